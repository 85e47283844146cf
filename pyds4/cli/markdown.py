"""Markdown on a terminal while it is still being written.

Finished blocks are printed for good, formatted. The block under way is shown as plain text in a
region that is repainted, and replaced by its formatted self once it ends: what has scrolled by is
never repainted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


def split_blocks(text: str) -> tuple[str, str]:
    """``text`` cut behind its last finished block: (finished, under way).

    A block is finished by an empty line outside of a code fence, or by the end of a fence.
    """
    fence = ""
    finished = at = 0
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # who knows what it becomes
        at += len(line)
        match = _FENCE.match(line.rstrip("\n"))
        if not fence:
            if match and not (match[1][0] == "`" and "`" in match[2]):
                fence = match[1]
            elif not line.strip():
                finished = at
        elif match and match[1].startswith(fence) and not match[2].strip():
            fence = ""
            finished = at
    return text[:finished], text[finished:]


class TextView(Protocol):
    """Where the words of an answer go."""

    def feed(self, text: str) -> None: ...

    def finish(self) -> None: ...


class PlainView:
    """Words as they come; for pipes, and for who likes them raw."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = "\n"

    def feed(self, text: str) -> None:
        self._console.out(text, end="", highlight=False)
        self._console.file.flush()
        self._last = text[-1:] or self._last

    def finish(self) -> None:
        if self._last != "\n":
            self._console.out("")


class MarkdownView:
    """Formatted blocks; the one under way in a live region."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._text = ""
        self._live = Live(
            console=console, transient=True, auto_refresh=False, vertical_overflow="crop"
        )
        self._live.start()

    def feed(self, text: str) -> None:
        finished, self._text = split_blocks(self._text + text)
        if finished.strip():
            self._print(finished)
        self._live.update(self._tail(), refresh=True)

    def finish(self) -> None:
        from rich.text import Text

        self._live.update(Text(""))
        self._live.stop()
        if self._text.strip():
            self._print(self._text)
        self._text = ""

    def _print(self, block: str) -> None:
        from rich.markdown import Markdown

        self._console.print(Markdown(block))

    def _tail(self) -> Text:
        """The end of the block under way, as much as fits the screen."""
        from rich.text import Text

        lines = Text(self._text.strip("\n")).wrap(self._console, self._console.width)
        return Text("\n").join(lines[-max(1, self._console.height - 2) :])
