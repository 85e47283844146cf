"""What distinguishes two GGUF files: metadata, tensors, types, and the numbers themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model_file import ModelFile, TensorInfo
from ._kernels import decode, type_named
from .source import TensorSource

__all__ = ["FileDiff", "TensorDiff", "compare_files"]

_CHUNK_WEIGHTS = 1 << 22


@dataclass(frozen=True)
class TensorDiff:
    """One tensor that both files have and that is not the same in both.

    ``error`` is ||a - b|| / ||a|| over the decoded numbers; None when shapes differ or it was not
    asked for.
    """

    name: str
    types: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    error: float | None = None


@dataclass(frozen=True)
class FileDiff:
    """Empty lists all over: the files say the same."""

    only_in_a: list[str] = field(default_factory=list)
    only_in_b: list[str] = field(default_factory=list)
    metadata: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    tensors_only_in_a: list[str] = field(default_factory=list)
    tensors_only_in_b: list[str] = field(default_factory=list)
    tensors: list[TensorDiff] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not any(vars(self).values())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_files(a: ModelFile, b: ModelFile, *, data: bool = False) -> FileDiff:
    """Compare headers and, with ``data``, all numbers (reads both files whole).

    Without ``data``, tensors of the same type and shape count as equal.
    """
    diff = FileDiff(
        only_in_a=[key for key in a if key not in b], only_in_b=[key for key in b if key not in a]
    )
    for key in a:
        if key in b and (a.describe(key) != b.describe(key) or a[key] != b[key]):
            diff.metadata[key] = (_brief(a, key), _brief(b, key))
    ours, theirs = ({t.name: t for t in file.tensors} for file in (a, b))
    diff.tensors_only_in_a.extend(name for name in ours if name not in theirs)
    diff.tensors_only_in_b.extend(name for name in theirs if name not in ours)
    sources = (TensorSource(a), TensorSource(b)) if data else None
    for name, mine in ours.items():
        if name not in theirs:
            continue
        other = theirs[name]
        types, shapes = (mine.type, other.type), (mine.shape, other.shape)
        same = types[0] == types[1] and shapes[0] == shapes[1]
        error = None
        if sources and shapes[0] == shapes[1]:
            if same and _same_bytes(sources, mine, other):
                continue
            error = _relative_error(sources, mine, other)
            same = False
        if not same:
            diff.tensors.append(TensorDiff(name, types, shapes, error))
    return diff


def _brief(file: ModelFile, key: str) -> Any:
    kind, count = file.describe(key)
    return file[key] if count <= 128 else f"{kind} of {count}"


def _same_bytes(sources: tuple[TensorSource, TensorSource], a: TensorInfo, b: TensorInfo) -> bool:
    step = 16 << 20
    return all(
        np.array_equal(
            sources[0].read(a, start, min(step, a.byte_count - start)),
            sources[1].read(b, start, min(step, a.byte_count - start)),
        )
        for start in range(0, a.byte_count, step)
    )


def _relative_error(
    sources: tuple[TensorSource, TensorSource], a: TensorInfo, b: TensorInfo
) -> float | None:
    if a.type == "i32" or b.type == "i32" or not (a.computable and b.computable):
        return None
    off = norm = 0.0
    for x, y in zip(_numbers(sources[0], a), _numbers(sources[1], b), strict=True):
        off += float(np.sum(np.square(x - y, dtype=np.float64)))
        norm += float(np.sum(np.square(x, dtype=np.float64)))
    return float(np.sqrt(off / norm)) if norm else float(off > 0)


def _numbers(source: TensorSource, tensor: TensorInfo) -> Iterator[NDArray[np.float32]]:
    """All numbers in equal steps whatever the type: a multiple of every block size."""
    type, size = type_named(tensor.type), tensor.byte_count
    total = int(np.prod(tensor.shape, dtype=np.int64))
    for start in range(0, total, _CHUNK_WEIGHTS):
        count = min(_CHUNK_WEIGHTS, total - start)
        begin, end = size * start // total, size * (start + count) // total
        yield decode(type, source.read(tensor, begin, end - begin), count)
