"""What a file is made from, in one digest: the same digest means the same bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .._native import library_path
from .imatrix import Importance
from .manifest import file_sha256

__all__ = ["made_from"]


def made_from(
    inputs: Iterable[str | os.PathLike[str]],
    importance: Importance | None = None,
    *read_whole: Path,
) -> str:
    """SHA-256 of the inputs, the importance and the program.

    Args:
        inputs: Large files, told apart by path, size and time of the last change.
        read_whole: Small ones, by content.
    """
    digest = hashlib.sha256(file_sha256(Path(library_path)).encode())
    for path in sorted(set(map(os.path.realpath, inputs))):
        found = os.stat(path)
        digest.update(f"\0{path}\0{found.st_size}\0{found.st_mtime_ns}".encode())
    for small in read_whole:
        digest.update(b"\0" + file_sha256(small).encode())
    if importance is not None:
        for name in sorted(importance.sums):
            digest.update(f"\0{name}\0".encode())
            for values in (importance.sums[name], importance.counts[name]):
                digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
