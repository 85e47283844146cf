"""``pyds4 eval``: exact match of a model, family by family."""

from __future__ import annotations

from pyds4.evals.command import configure, execute

__all__ = ["configure", "execute"]
