"""What people see: progress, tables, sizes. Plain wherever no terminal is at the other end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_PLAIN_INTERVAL_S = 10.0
"""Between two lines of progress where there is no terminal."""


def console(stream: TextIO) -> Console:
    """A rich console on ``stream``; colours only on a terminal and without NO_COLOR."""
    from rich.console import Console

    return Console(file=stream, highlight=False)


def is_terminal(stream: TextIO) -> bool:
    """Whether a person reads ``stream``."""
    return stream.isatty()


def note(text: str) -> None:
    """A remark on standard error, dim on a terminal."""
    if is_terminal(sys.stderr):
        console(sys.stderr).print(text, style="dim", markup=False, soft_wrap=True)
    else:
        print(text, file=sys.stderr)


def size(byte_count: float) -> str:
    """Bytes as a person reads them: ``1.27 GiB``."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if byte_count >= scale:
            return f"{byte_count / scale:.2f} {unit}"
    return f"{byte_count:.0f} B"


def rate(count: int, seconds: float) -> float:
    """Per second; 0 when nothing was timed."""
    return count / seconds if seconds > 0 else 0.0


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> None:
    """A table on standard output: drawn on a terminal, aligned columns elsewhere.

    Args:
        right: Columns that are aligned to the right, such as numbers.
    """
    if is_terminal(sys.stdout):
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column, header in enumerate(headers):
            table.add_column(header, justify="right" if column in right else "left")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console(sys.stdout).print(table)
        return
    lines = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    for line in lines:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


class Progress:
    """A bar on standard error while something long goes on; shown from the first `update` on.

    Without a terminal: a line now and then. Use as a context manager.
    """

    def __init__(self, description: str, unit: str = "tokens") -> None:
        self._description = description
        self._is_bytes = unit == "bytes"
        self._unit = unit
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._said_at = time.monotonic()

    def update(self, done: int, total: int) -> None:
        """``done`` of ``total``; from any thread."""
        if not is_terminal(sys.stderr):
            now = time.monotonic()
            if now - self._said_at >= _PLAIN_INTERVAL_S:
                self._said_at = now
                print(f"{self._description}: {self._amounts(done, total)}", file=sys.stderr)
            return
        if self._bar is None:
            self._bar = self._make_bar()
            self._task = self._bar.add_task(self._description, total=total)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _amounts(self, done: int, total: int) -> str:
        if self._is_bytes:
            return f"{size(done)} of {size(total)}"
        return f"{done} of {total} {self._unit}"

    def _make_bar(self) -> RichProgress:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        amount = DownloadColumn(binary_units=True) if self._is_bytes else MofNCompleteColumn()
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            amount,
            TextColumn("" if self._is_bytes else self._unit),
            TimeRemainingColumn(),
            console=console(sys.stderr),
            transient=True,
            refresh_per_second=4,  # drawing takes time from what is shown
        )
