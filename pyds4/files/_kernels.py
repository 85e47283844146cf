"""The engine's quantisation kernels, called directly; the one place that declares them.

They are plain C functions of the engine's library (swift/CKernels/include/quantize.h), not part of
its public ABI. Calls release the GIL, so threads run them side by side.
"""

from __future__ import annotations

from typing import Any

import cffi
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from .._native import library_path
from ..errors import InvalidArgumentError

__all__ = ["decode", "quantize", "quantize_error", "type_named", "writable_types"]

_ffi = cffi.FFI()
_ffi.cdef("""
void quant_decode_row(int32_t type, const void *source, float *out, int64_t n);
_Bool quantize_supported(int32_t type);
void quantize_rows(int32_t type, const float *x, int64_t rows, int64_t cols,
                   const float *importance, void *blocks);
void quantize_error(int32_t type, const float *x, int64_t rows, int64_t cols,
                    const float *importance, const void *blocks, double *error, double *norm);
""")
_lib: Any = _ffi.dlopen(str(library_path))

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def writable_types() -> list[GGMLQuantizationType]:
    """Types that ``quantize`` makes."""
    return [type for type in GGMLQuantizationType if _lib.quantize_supported(int(type))]


def type_named(name: str) -> GGMLQuantizationType:
    """The type called ``name``, in any case.

    Raises:
        InvalidArgumentError: GGUF has no such type.
    """
    try:
        return GGMLQuantizationType[name.upper()]
    except KeyError:
        known = ", ".join(sorted(type.name.lower() for type in writable_types()))
        raise InvalidArgumentError(f"no tensor type {name!r}; there are {known}") from None


def decode(type: GGMLQuantizationType, data: Bytes, count: int) -> Floats:
    """``count`` numbers from their blocks; bit for bit what PyPI ``gguf`` makes of them."""
    block, size = GGML_QUANT_SIZES[type]
    if count % block or len(data) != count // block * size or not _lib.quantize_supported(type):
        raise InvalidArgumentError(f"{len(data)} bytes of {type.name} are not {count} numbers")
    data = np.ascontiguousarray(data)
    out = np.empty(count, np.float32)
    _lib.quant_decode_row(int(type), _pointer(data, "void *"), _pointer(out, "float *"), count)
    return out


def quantize(
    type: GGMLQuantizationType, weights: Floats, importance: Floats | None = None
) -> Bytes:
    """Blocks of ``weights`` [rows, columns], finite; shape [rows, bytes a row].

    Args:
        importance: [columns]: what a squared error of each column counts; None: all the same.
    """
    weights = np.ascontiguousarray(weights, np.float32)
    rows, columns = weights.shape
    block, size = GGML_QUANT_SIZES[type]
    if columns % block or not _lib.quantize_supported(int(type)):
        raise InvalidArgumentError(f"rows of {columns} numbers cannot be written as {type.name}")
    out = np.empty((rows, columns // block * size), np.uint8)
    scales, keep = _importance(importance, columns)
    x = _pointer(weights, "float *")
    _lib.quantize_rows(int(type), x, rows, columns, scales, _pointer(out, "void *"))
    del keep
    return out


def quantize_error(
    type: GGMLQuantizationType, weights: Floats, blocks: Bytes, importance: Floats | None = None
) -> tuple[float, float]:
    """Σ importance · (w - ŵ)² and Σ importance · w² over ``weights`` [rows, columns]."""
    weights = np.ascontiguousarray(weights, np.float32)
    blocks = np.ascontiguousarray(blocks)
    scales, keep = _importance(importance, weights.shape[1])
    error, norm = _ffi.new("double *"), _ffi.new("double *")
    x, back = _pointer(weights, "float *"), _pointer(blocks, "void *")
    _lib.quantize_error(int(type), x, *weights.shape, scales, back, error, norm)
    del keep
    return error[0], norm[0]


def _importance(importance: Floats | None, columns: int) -> tuple[Any, Any]:
    """The pointer to pass and what must stay alive meanwhile."""
    if importance is None:
        return _ffi.NULL, None
    kept = np.ascontiguousarray(importance, np.float32)
    if kept.shape != (columns,):
        raise InvalidArgumentError(
            f"importance: expected {columns} numbers, found shape {kept.shape}"
        )
    return _pointer(kept, "float *"), kept


def _pointer(array: NDArray[Any], kind: str) -> Any:
    return _ffi.cast(kind, array.ctypes.data)
