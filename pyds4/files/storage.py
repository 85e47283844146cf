"""Rows of checkpoint matrices: FP8 and FP4 with their scales, BF16, F16, F32.

- FP8: e4m3 bytes [rows, columns] with one scale for 128 × 128 of them
- FP4: two e2m1 codes a byte [rows, columns / 2], the first in the low bits, with one e8m0 scale
  for 32 of a row: numbers and layout of a code aside exactly what GGUF calls MXFP4

Stacked experts have an axis more in front, of weights and scales alike.

Every FP8 number times a power of two is a BF16 number, and every FP4 block an MXFP4 block: both
are kept bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from ..errors import ModelFileError
from .safetensors import Checkpoint, StoredTensor

__all__ = ["StoredMatrix", "stored_numbers"]

Type = GGMLQuantizationType
_FP8_BLOCK, _FP4_BLOCK = 128, 32
_EXACT = {"F64": Type.F32, "F32": Type.F32, "F16": Type.F16, "BF16": Type.BF16}


def _e4m3_table() -> NDArray[np.float32]:
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(
        exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    )
    magnitude[codes & 127 == 127] = np.nan
    return np.where(codes & 128, -magnitude, magnitude).astype(np.float32)


_E4M3 = _e4m3_table()
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass(frozen=True)
class StoredMatrix:
    """Some rows of a stored tensor, with its scales if it has any.

    ``first`` and ``rows`` count rows of the tensor with all but its last axis flattened.
    """

    checkpoint: Checkpoint
    weight: StoredTensor
    scale: StoredTensor | None
    first: int
    rows: int

    def __post_init__(self) -> None:
        if self.weight.dtype in ("I8", "U8", "F8_E4M3") and self.scale is None:
            raise ModelFileError(f"{self.weight.label}: {self.weight.dtype} without scales")
        if len(self.weight.shape) < 2 and self.scale is not None:
            raise ModelFileError(f"{self.weight.label}: {self.weight.shape} is not a matrix")
        if self.scale is not None:
            self._check_scale(self.scale)
        elif self.weight.dtype not in _EXACT:
            raise ModelFileError(f"{self.weight.label}: cannot convert dtype {self.weight.dtype}")

    def _check_scale(self, scale: StoredTensor) -> None:
        columns, stack = self.columns, self.weight.shape[:-2]
        if self.is_fp4:
            expected = (*self.weight.shape[:-1], columns // _FP4_BLOCK)
            kinds: tuple[str, ...] = ("F8_E8M0", "U8", "F32")
        else:
            expected = (*stack, self._scale_rows, -(-columns // _FP8_BLOCK))
            kinds = ("F8_E8M0", "U8", "F32", "BF16", "F16")
        if scale.dtype not in kinds or scale.shape != expected:
            raise ModelFileError(
                f"{scale.label}: expected {kinds[0]} {expected} for {self.weight.dtype} "
                f"{self.weight.shape}, found {scale.dtype} {scale.shape}"
            )
        if self.is_fp4 and columns % _FP4_BLOCK:
            raise ModelFileError(f"{self.weight.label}: rows are not whole blocks of {_FP4_BLOCK}")

    @property
    def _scale_rows(self) -> int:
        """Rows of FP8 scales that one matrix of a stack has."""
        return -(-self.weight.shape[-2] // _FP8_BLOCK)

    @property
    def label(self) -> str:
        return self.weight.label

    @property
    def is_fp4(self) -> bool:
        return self.weight.dtype in ("I8", "U8")

    @property
    def columns(self) -> int:
        return self.weight.shape[-1] * (2 if self.is_fp4 else 1)

    @property
    def _all_rows(self) -> int:
        return math.prod(self.weight.shape[:-1])

    @property
    def exact_type(self) -> GGMLQuantizationType:
        """The smallest GGUF type that holds the numbers without loss."""
        if self.is_fp4:
            return Type.MXFP4
        if self.weight.dtype == "F8_E4M3":
            # A scale that is not a power of two needs the bits of F32.
            assert self.scale is not None
            return Type.BF16 if self.scale.dtype in ("F8_E8M0", "U8") else Type.F32
        return _EXACT[self.weight.dtype]

    def _bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        row = self.weight.byte_count // self._all_rows
        at = (self.first + start) * row
        return self.checkpoint.read(self.weight, at, (stop - start) * row)

    def numbers(self, start: int, stop: int) -> NDArray[np.float32]:
        data, n = self._bytes(start, stop), stop - start
        if self.is_fp4:
            codes = np.empty((n, self.columns), np.uint8)
            packed = data.reshape(n, -1)
            codes[:, 0::2], codes[:, 1::2] = packed & 15, packed >> 4
            blocks = _E2M1[codes].reshape(n, -1, _FP4_BLOCK)
            exponents = self._scale_bytes(start, stop)
            scaled = blocks * np.exp2(exponents.astype(np.float32) - 127)[..., None]
            return np.asarray(scaled.reshape(n, -1), np.float32)
        if self.weight.dtype == "F8_E4M3":
            numbers = _E4M3[data].reshape(n, self.columns)
            scales = self._fp8_scales()
            stacked, row = np.divmod(self.first + np.arange(start, stop), self.weight.shape[-2])
            block_rows = stacked * self._scale_rows + row // _FP8_BLOCK
            wide = np.repeat(scales[block_rows], _FP8_BLOCK, axis=1)[:, : self.columns]
            return np.asarray(numbers * wide, np.float32)
        return stored_numbers(self.weight, data).reshape(n, self.columns)

    def blocks(self, type: GGMLQuantizationType, start: int, stop: int) -> NDArray[np.uint8] | None:
        if type is not Type.MXFP4 or not self.is_fp4:
            return None
        n = stop - start
        packed = self._bytes(start, stop).reshape(n, -1, 16)
        out = np.empty((*packed.shape[:2], 17), np.uint8)
        out[..., 0] = self._scale_bytes(start, stop)
        # A byte held codes 2i and 2i + 1; it shall hold codes i and i + 16.
        first, second = packed[..., :8], packed[..., 8:]
        out[..., 1::2] = (first & 15) | (second << 4)
        out[..., 2::2] = (first >> 4) | (second & 0xF0)
        return out.reshape(n, -1)

    def _scale_bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """FP4 exponents [rows, blocks]."""
        assert self.scale is not None
        row = self.columns // _FP4_BLOCK
        size = self.scale.byte_count // (self._all_rows * row)
        at = (self.first + start) * row * size
        data = self.checkpoint.read(self.scale, at, (stop - start) * row * size)
        if size == 4:
            bits = data.view("<u4")
            if (bits & 0x807FFFFF).any():
                raise ModelFileError(f"{self.scale.label}: a scale is not a power of two")
            data = (bits >> 23).astype(np.uint8)
        if (data == 255).any():
            raise ModelFileError(f"{self.scale.label}: a scale is not a number")
        return data.reshape(stop - start, row)

    def _fp8_scales(self) -> NDArray[np.float32]:
        """All scales; a matrix of 16,384 × 4,096 has 4,096 of them."""
        assert self.scale is not None
        data = self.checkpoint.read(self.scale, 0, self.scale.byte_count)
        if self.scale.dtype in ("F8_E8M0", "U8"):
            if (data == 255).any():
                raise ModelFileError(f"{self.scale.label}: a scale is not a number")
            scales = np.exp2(data.astype(np.float32) - 127)
        else:
            scales = stored_numbers(self.scale, data)
        return scales.reshape(-1, self.scale.shape[-1])


def stored_numbers(tensor: StoredTensor, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Plain floats of ``data``, flat."""
    if tensor.dtype == "BF16":
        return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    if tensor.dtype not in kinds:
        raise ModelFileError(f"{tensor.label}: expected floats, found {tensor.dtype}")
    return np.asarray(data.view(kinds[tensor.dtype]), np.float32)
