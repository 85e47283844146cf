"""What a model can do: exact match on fresh samples, family by family.

``families`` makes samples from seeds, ``score`` lets a model answer them, ``report`` adds up.
Importing this package imports neither the engine nor rich; making samples needs neither.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``pyds4 eval``; see ``pyds4.evals.command``."""
    from pyds4.evals.command import main as run

    return run(argv)
