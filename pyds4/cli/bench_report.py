"""What becomes of measurements: tables, CSV, a plot."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TextIO

from pyds4.cli.bench_measure import OURS, Measurement
from pyds4.cli.console import print_table
from pyds4.cli.failure import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable

CSV_COLUMNS = (
    "engine",
    "kind",
    "context",
    "sessions",
    "tokens",
    "repeat",
    "seconds",
    "tokens_per_s",
    "weight_bytes_per_step",
    "memory_bytes_per_s",
    "threads",
)


class CsvFile:
    """One row a measurement, on disk as soon as it is made."""

    def __init__(self, file: TextIO, threads: int) -> None:
        self._file = file
        self._threads = threads
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(CSV_COLUMNS)

    def add(self, m: Measurement) -> None:
        self._writer.writerow(
            (
                m.engine,
                m.kind,
                m.context,
                m.sessions,
                m.tokens,
                m.repeat,
                f"{m.seconds:.6f}",
                f"{m.rate:.3f}",
                f"{m.weight_bytes_per_step:.0f}",
                f"{m.memory_bytes_per_s:.0f}",
                self._threads,
            )
        )
        self._file.flush()


class Results:
    """Measurements, asked for by what was measured; repeats give their median."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self._all = list(measurements)
        others = {m.engine for m in self._all} - {OURS}
        self.peer = min(others) if others else None

    def keys(self, kind: str) -> list[tuple[int, int]]:
        """(context, sessions) in the order of measuring."""
        return list(dict.fromkeys((m.context, m.sessions) for m in self._all if m.kind == kind))

    def value(
        self,
        of: Callable[[Measurement], float],
        engine: str | None,
        kind: str,
        context: int,
        sessions: int = 1,
    ) -> float | None:
        """The median of a property over repeats; None when nothing was measured."""
        wanted = (engine, kind, context, sessions)
        found = [of(m) for m in self._all if (m.engine, m.kind, m.context, m.sessions) == wanted]
        return median(found) if found else None

    def rate(self, engine: str | None, kind: str, context: int, sessions: int = 1) -> float | None:
        return self.value(lambda m: m.rate, engine, kind, context, sessions)

    def print_tables(self) -> None:
        """Prefill and decode, with the peer and ratios where there are any."""
        peer = (self.peer, "ratio") if self.peer else ()
        rows = []
        for context, _ in self.keys("prefill"):
            ours = self.rate(OURS, "prefill", context)
            theirs = self.rate(self.peer, "prefill", context)
            row = [f"{context:,}", _number(ours)]
            rows.append([*row, _number(theirs), _ratio(ours, theirs)] if peer else row)
        print_table(("prefill", "tokens/s", *peer), rows, right=range(4))
        rows = []
        for context, sessions in self.keys("decode"):
            ours = self.rate(OURS, "decode", context, sessions)
            single = self.rate(OURS, "decode", context)
            theirs = self.rate(self.peer, "decode", context, sessions)
            read = self.value(lambda m: m.weight_bytes_per_s, OURS, "decode", context, sessions)
            share = self.value(lambda m: m.memory_share, OURS, "decode", context, sessions)
            row = [
                f"{context:,}",
                str(sessions),
                _number(ours),
                _ratio(ours, single),
                _number(read / 1e9 if read else None),
                f"{share:.0%}" if share else "",
            ]
            rows.append([*row, _number(theirs), _ratio(ours, theirs)] if peer else row)
        print()
        headers = ("decode at", "sessions", "tokens/s", "× single", "weights GB/s", "of memory")
        print_table((*headers, *peer), rows, right=range(8))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}" if ours and theirs else ""


def check_plot(path: Path) -> None:
    """Before anything is measured: can the plot be drawn?

    Raises:
        CommandError: matplotlib is missing, or the file has a suffix it cannot write.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise CommandError(
            "--plot needs matplotlib: pip install 'pyds4-engine[plot]' (or matplotlib)"
        ) from None
    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in known:
        raise CommandError(f"{path}: cannot plot to this; known: {', '.join(sorted(known))}")


def plot(path: Path, results: Results, title: str) -> None:
    """Prefill and decode over the context, in two panels; the peer dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(title)
    for panel, kind in enumerate(("prefill", "decode")):
        axes = figure.add_subplot(1, 2, panel + 1)
        keys = results.keys(kind)
        for sessions in dict.fromkeys(sessions for _, sessions in keys):
            for engine, line in ((OURS, "-o"), (results.peer, "--s")):
                points = [
                    (context, rate)
                    for context, count in keys
                    if count == sessions
                    for rate in [results.rate(engine, kind, context, sessions)]
                    if rate is not None
                ]
                if points:
                    label = f"{engine}" if sessions == 1 else f"{engine}, {sessions} sessions"
                    axes.plot(*zip(*points, strict=True), line, label=label)
        contexts = sorted({context for context, _ in keys})
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
        axes.set_ylim(bottom=0)
        axes.set_title(kind)
        axes.set_xlabel("context, tokens")
        axes.set_ylabel("tokens/s")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)
