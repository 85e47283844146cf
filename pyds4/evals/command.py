"""``pyds4 eval``: exact match of a model, family by family."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyds4.evals.score import Result

_EXAMPLES = """\
examples:
  pyds4 eval                                     the demo model, 20 samples of each family and mode
  pyds4 eval model.gguf --families 'tool*,agent' --per-family 50 --thinking on
  pyds4 eval --families 'recall@*' --json recall.json
"""


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


_count.__name__ = "whole number above 0"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``pyds4 eval``."""
    parser.epilog = _EXAMPLES
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a GGUF file (default: the demo)")
    parser.add_argument(
        "--families", metavar="A,B", default="*", help="names or patterns (default: all)"
    )
    parser.add_argument(
        "--per-family", type=_count, default=20, metavar="N", help="samples of each (default: 20)"
    )
    parser.add_argument("--seed", default="0", help="other seeds, other samples (default: 0)")
    parser.add_argument(
        "--thinking",
        choices=("on", "off", "both"),
        default="both",
        help="let the model reason, or not (default: both, one after the other)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write numbers and mistakes")
    parser.add_argument("--list", action="store_true", help="name the families and stop")
    parser.add_argument(
        "--backend", choices=("auto", "cpu", "metal", "cuda"), default="auto",
        help="where to compute (default: the best there is)",
    )  # fmt: skip
    parser.add_argument("--threads", type=_count, metavar="N", help="threads of the CPU backend")
    parser.add_argument(
        "--together", type=_count, default=8, metavar="N",
        help="samples that share each step (default: 8); changes the speed, on a CPU nothing else",
    )  # fmt: skip
    parser.add_argument(
        "--roundings", choices=("on", "off"), default="on", help="the model's own roundings"
    )


def chosen(patterns: str) -> list[str]:
    """Families that match any of the comma-separated ``patterns``, in the order of the table.

    Raises:
        ValueError: a pattern matches none.
    """
    from pyds4.evals.families import FAMILIES

    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in FAMILIES):
            raise ValueError(f"no family is called {pattern!r}; there are: {', '.join(FAMILIES)}")
    return [name for name in FAMILIES if any(fnmatchcase(name, p) for p in wanted)]


def execute(arguments: argparse.Namespace) -> int:
    """Evaluate and print the table; 0 whatever the model can do.

    Raises:
        InvalidArgumentError: ``--families`` names none that exist.
        PyDS4Error: the model cannot be opened.
    """
    from rich.console import Console
    from rich.progress import Progress

    from pyds4.default_model import find_model
    from pyds4.engine import Engine
    from pyds4.errors import InvalidArgumentError
    from pyds4.evals import report, score

    try:
        names = chosen(arguments.families)
    except ValueError as error:
        raise InvalidArgumentError(f"--families: {error}") from None
    if arguments.list:
        print("\n".join(names))
        return 0
    modes = {"on": score.MODES[1:], "off": score.MODES[:1], "both": score.MODES}
    path = find_model(arguments.model)
    started = monotonic()
    console = Console(stderr=True)
    with (
        Engine(
            path,
            backend=arguments.backend,
            roundings=arguments.roundings == "on",
            threads=arguments.threads,
        ) as engine,
        Progress(console=console, transient=True) as bar,
    ):
        total = len(names) * len(modes[arguments.thinking]) * arguments.per_family
        task = bar.add_task("evaluating", total=total)

        def progress(new: list[Result]) -> None:
            bar.update(task, advance=1, description=new[0].family)

        results = score.evaluate(
            engine,
            names,
            per_family=arguments.per_family,
            seed=arguments.seed,
            modes=modes[arguments.thinking],
            together=arguments.together,
            progress=progress,
        )
        backend = engine.backend
    seconds = monotonic() - started
    title = f"{Path(path).name}: exact match in percent ({backend}, {seconds:.0f} s)"
    Console().print(report.table(results, title))
    if arguments.json is not None:
        about = {
            "model": str(path),
            "backend": backend,
            "roundings": arguments.roundings,
            "seed": arguments.seed,
            "per_family": arguments.per_family,
            "seconds": round(seconds, 1),
        }
        text = json.dumps(about | report.summary(results), indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a command of its own: ``python -m pyds4.evals``."""
    parser = argparse.ArgumentParser(
        prog="pyds4 eval", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    configure(parser)
    return execute(parser.parse_args(argv))
