"""Results -> numbers, a table, JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from pyds4.evals.score import MODES, Mode, Result


@dataclass(slots=True)
class Tally:
    """Right answers of all."""

    right: int = 0
    total: int = 0

    def add(self, result: Result) -> None:
        """Count one more."""
        self.right += result.right
        self.total += 1

    @property
    def share(self) -> float:
        """Right answers, 0 to 1; 1 without any."""
        return self.right / self.total if self.total else 1.0

    def __str__(self) -> str:
        return f"{100 * self.share:.1f}" if self.total else "–"


GROUPS = {
    "recall": ("recall@", "recall_turns"),
    "tools": ("tool",),
    "agents": ("agent", "shell"),
}
"""Sums that are shown below the table, by how their families' names begin."""


def tally(results: Iterable[Result], family: str | None = None, mode: Mode | None = None) -> Tally:
    """Results of a family and a mode, all without."""
    count = Tally()
    for result in results:
        if family in (None, result.family) and mode in (None, result.mode):
            count.add(result)
    return count


def _group(results: Sequence[Result], name: str) -> Tally:
    return tally(r for r in results if r.family.startswith(GROUPS[name]))


def _families(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.family for result in results))


def table(results: Sequence[Result], title: str) -> Table:
    """Exact match in percent, a row for each family and group."""
    out = Table(title=title, title_justify="left")
    out.add_column("family")
    for name in (*MODES, "answers"):
        out.add_column(name, justify="right")
    for family in _families(results):
        cells = [str(tally(results, family, mode)) for mode in MODES]
        out.add_row(family, *cells, str(tally(results, family).total))
    out.add_section()
    for name in GROUPS:
        count = _group(results, name)
        if count.total:
            by_mode = [_group([r for r in results if r.mode == mode], name) for mode in MODES]
            out.add_row(name, *map(str, by_mode), str(count.total))
    by_mode = [tally(results, mode=mode) for mode in MODES]
    total = tally(results)
    out.add_row("all", *map(str, by_mode), str(total.total), style="bold")
    return out


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Everything the table shows, and the mistakes."""
    return {
        "exact_match": tally(results).share,
        "answers": tally(results).total,
        "groups": {name: count.share for name in GROUPS if (count := _group(results, name)).total},
        "families": {
            family: {
                mode: {"right": count.right, "total": count.total}
                for mode in MODES
                if (count := tally(results, family, mode)).total
            }
            for family in _families(results)
        },
        "mistakes": [asdict(result) for result in results if not result.right],
    }
