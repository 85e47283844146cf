"""Tensors made row by row: the common part of converting and quantising.

A tensor to write is some matrices behind one another, each of which gives any of its rows as
float32. Rows are read, checked, encoded and given away in slices, so memory does not grow with the
tensor; any number of threads may ask for different parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from ..errors import ModelFileError
from ..synth.writer import Tensor
from ._kernels import quantize

__all__ = ["RowSource", "tensor_of_rows"]

_SLICE_WEIGHTS = 1 << 20


class RowSource(Protocol):
    """One matrix. ``label`` names it in errors: its tensor, and its file where that helps."""

    @property
    def label(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...

    def numbers(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop), [stop - start, columns]."""
        ...

    def blocks(self, type: GGMLQuantizationType, start: int, stop: int) -> NDArray[np.uint8] | None:
        """The same rows as bytes of ``type`` where they can be had without decoding."""
        ...


def tensor_of_rows(
    name: str,
    shape: tuple[int, ...],
    type: GGMLQuantizationType,
    matrices: Sequence[RowSource],
    importance: Callable[[int, int], NDArray[np.float32] | None] | None = None,
) -> Tensor:
    """A tensor whose bytes are made when they are written.

    Args:
        shape: In ggml's order.
        importance: Of the columns, for (matrix, first row).
    """
    block, size = GGML_QUANT_SIZES[type]
    columns = shape[0]
    row_bytes = columns // block * size
    rows_each = matrices[0].rows
    per_slice = max(1, _SLICE_WEIGHTS // columns)

    def make(start: int, count: int) -> NDArray[np.uint8]:
        begin, end = start * size, (start + count) * size
        first, last = begin // row_bytes, -(-end // row_bytes)
        pieces, row = [], first
        while row < last:
            index, inside = divmod(row, rows_each)
            stop = min(inside + per_slice, rows_each, inside + last - row)
            stop = min(stop, _next_change(importance, index, inside, stop))
            weights = importance(index, inside) if importance else None
            pieces.append(encode_rows(matrices[index], type, inside, stop, weights).reshape(-1))
            row += stop - inside
        data = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return data[begin - first * row_bytes : end - first * row_bytes]

    return Tensor(name, shape, type, make)


def _next_change(importance: object, index: int, start: int, stop: int) -> int:
    """Where, before ``stop``, another importance begins; see ``Importance.boundary``."""
    boundary = getattr(importance, "boundary", None)
    return int(boundary(index, start, stop)) if boundary else stop


def encode_rows(
    matrix: RowSource,
    type: GGMLQuantizationType,
    start: int,
    stop: int,
    importance: NDArray[np.float32] | None,
) -> NDArray[np.uint8]:
    """Rows [start, stop) of ``matrix`` in ``type``.

    Raises:
        ModelFileError: a number is not finite, or too large for F16; names the matrix.
    """
    same = matrix.blocks(type, start, stop)
    if same is not None:
        return same
    numbers = matrix.numbers(start, stop)
    if not np.isfinite(numbers).all():
        row, column = np.argwhere(~np.isfinite(numbers))[0]
        raise ModelFileError(
            f"{matrix.label}: row {start + row}, column {column} is {numbers[row, column]}"
        )
    if type is GGMLQuantizationType.F16 and np.abs(numbers).max(initial=0) > 65504:
        raise ModelFileError(f"{matrix.label}: {np.abs(numbers).max()} is too large for F16")
    return quantize(type, numbers, importance)
