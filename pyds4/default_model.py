"""Which model is meant when none is named."""

from __future__ import annotations

import os
from pathlib import Path

from pyds4.errors import ModelFileError

DEMO_NAME = "pyds4-demo-q4_k.gguf"
ENVIRONMENT_VARIABLE = "PYDS4_MODEL"


def find_model(named: str | os.PathLike[str] | None = None) -> Path:
    """The model file to open: ``named``, else ``$PYDS4_MODEL``, else the bundled demo model.

    Whether a named file exists is left to whoever opens it, whose error is the better one.

    Raises:
        ModelFileError: nothing is named and this installation has no demo model.
    """
    if named is not None:
        return Path(named)
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
    if from_environment:
        return Path(from_environment)
    for directory in demo_directories():
        if (directory / DEMO_NAME).is_file():
            return directory / DEMO_NAME
    raise ModelFileError(
        f"no model named: give --model PATH or set {ENVIRONMENT_VARIABLE} "
        f"(the demo model {DEMO_NAME} is not in this installation)"
    )


def demo_directories() -> tuple[Path, ...]:
    """Where the demo model may lie: inside an installed package, or in a source checkout."""
    package = Path(__file__).resolve().parent
    return (package / "models", package.parent / "models")
