"""What the user of `chat` enters: lines with editing and history, or a pipe's."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_HISTORY_LINES = 2000
_BLOCK = '"""'


def join_message(read_line: Callable[[bool], str | None]) -> str | None:
    """One message: a line, lines joined by backslashes, or a block between triple quotes.

    Args:
        read_line: Gives the next line, None at the end; its argument says whether the line
            continues a message.
    """
    line = read_line(False)
    if line is None:
        return None
    if line.strip() == _BLOCK:
        lines: list[str] = []
        while (line := read_line(True)) is not None and line.strip() != _BLOCK:
            lines.append(line)
        return "\n".join(lines)
    parts = [line]
    while parts[-1].endswith("\\"):
        parts[-1] = parts[-1][:-1]
        following = read_line(True)
        if following is None:
            break
        parts.append(following)
    return "\n".join(parts)


class Prompter:
    """Reads messages; on a terminal with readline and a history file that only its owner reads."""

    def __init__(self, people: bool) -> None:
        self._people = people
        self._history: Path | None = None

    def read(self) -> str | None:
        """The next message, None when there are no more."""
        while True:
            try:
                return join_message(self._line)
            except KeyboardInterrupt:
                if not self._people:
                    raise
                print("\n(Ctrl-D or /quit to leave)")

    def _line(self, continues: bool) -> str | None:
        try:
            if self._people:
                return input("… " if continues else "› ")
            line = sys.stdin.readline()
        except EOFError:
            print()
            return None
        return line.rstrip("\n") if line else None

    def __enter__(self) -> Prompter:
        if self._people:
            with contextlib.suppress(ImportError, OSError):
                self._load_history()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._history is not None:
            import readline

            with contextlib.suppress(OSError):
                readline.set_history_length(_HISTORY_LINES)
                readline.write_history_file(self._history)

    def _load_history(self) -> None:
        import readline

        import platformdirs

        directory = Path(platformdirs.user_state_dir("pyds4"))
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "chat_history"
        os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o600))
        readline.read_history_file(path)
        self._history = path
