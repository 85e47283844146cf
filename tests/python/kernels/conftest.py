"""Calls the C kernels of the built library directly, on every instruction set this machine has.

The instruction set is chosen once per loaded library, so each one gets a copy of the library's file
under its own name. Which library: ``PYDS4_LIBRARY``, else where ``pyds4._native`` looks.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi
import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import quants

ROOT = Path(__file__).resolve().parents[3]
HEADER = ROOT / "swift" / "CKernels" / "include" / "ckernels.h"

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

TYPES: dict[str, int] = {
    name: int(gguf.GGMLQuantizationType[name])
    for name in (
        [
            "F32",
            "F16",
            "BF16",
            "Q8_0",
            "Q4_0",
            "MXFP4",
            "Q2_K",
            "Q3_K",
            "Q4_K",
            "Q5_K",
            "Q6_K",
            "IQ2_XXS",
        ]
    )
}
FLOAT_TYPES = ("F32", "F16", "BF16")
QUANTISED_TYPES = tuple(name for name in TYPES if name not in FLOAT_TYPES)

# Where a block keeps its half-precision scales, to fill them with sensible values.
_HALVES = {
    "Q8_0": (0,), "Q4_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2),
    "Q5_K": (0, 2), "Q6_K": (208,), "IQ2_XXS": (0,),
}  # fmt: skip


class Weights:
    """A random matrix: its bytes as in a file, and the same as float64 [rows, cols]."""

    def __init__(self, name: str, rows: int, cols: int, rng: np.random.Generator) -> None:
        self.name, self.rows, self.cols = name, rows, cols
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (rows, cols // block, size), dtype=np.uint8)
        if name in FLOAT_TYPES:
            values = rng.normal(0, 1, (rows, cols)).astype(np.float32)
            if name == "BF16":
                halves = (values.view(np.uint32) >> 16).astype(np.uint16)
                raw = halves.view(np.uint8)
                values = (halves.astype(np.uint32) << 16).view(np.float32)
            elif name == "F16":
                raw = values.astype(np.float16).view(np.uint8)
                values = values.astype(np.float16).astype(np.float32)
            else:
                raw = values.view(np.uint8)
        else:
            for at in _HALVES.get(name, ()):
                halves = rng.normal(0, 0.01, (rows, cols // block, 1)).astype(np.float16)
                raw[:, :, at : at + 2] = halves.view(np.uint8)
            if name == "MXFP4":
                raw[:, :, 0] = rng.integers(115, 125, raw.shape[:2])
            values = quants.dequantize(raw.reshape(rows, -1), kind)
        self.bytes: ByteArray = np.ascontiguousarray(raw.reshape(rows, -1))
        self.values = values.reshape(rows, cols).astype(np.float64)


def rounded(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """x [n, cols] as the kernels see it beside quantised weights: int8 in blocks of 32.

    The scale is amax / 127, in f32; ties go to the even integer.
    """
    blocks = x.astype(np.float32).reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    scale = largest / np.float32(127)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    integers = np.rint(blocks * inverse).astype(np.float64)
    out: npt.NDArray[np.float64] = (integers * scale).reshape(x.shape)
    return out


class Kernels:
    """The functions of one loaded library, over numpy arrays."""

    def __init__(self, path: Path, isa: str | None) -> None:
        self.ffi = cffi.FFI()
        text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
        self.ffi.cdef("\n".join(x for x in text.splitlines() if not x.startswith("#")))
        library: Any = self.ffi.dlopen(str(path))
        self.lib = library
        before = os.environ.get("PYDS4_ISA")
        if isa is not None:
            os.environ["PYDS4_ISA"] = isa
        name: Any = self.ffi.string(self.lib.ck_isa_name())
        self.isa: str = name.decode()
        if before is None:
            os.environ.pop("PYDS4_ISA", None)
        else:
            os.environ["PYDS4_ISA"] = before
        self._pools: dict[int, Any] = {}

    def pool(self, threads: int) -> Any:
        """The pool of that many threads; made once."""
        if threads not in self._pools:
            self._pools[threads] = self.lib.ck_pool_create(threads)
        return self._pools[threads]

    def close(self) -> None:
        for pool in self._pools.values():
            self.lib.ck_pool_destroy(pool)
        self._pools.clear()

    def pointer(self, array: npt.NDArray[Any], kind: str = "float *") -> Any:
        assert array.flags.c_contiguous
        return self.ffi.cast(kind, array.ctypes.data)

    def matrix(self, w: Weights, rows: int | None = None) -> Any:
        return {
            "data": self.pointer(w.bytes, "void *"),
            "type": TYPES[w.name],
            "rows": w.rows if rows is None else rows,
            "cols": w.cols,
            "row_bytes": w.bytes.shape[1],
        }

    def decode(self, name: str, raw: ByteArray, count: int) -> FloatArray:
        out = np.full(count, np.nan, np.float32)
        self.lib.quant_decode_row(
            TYPES[name], self.pointer(raw, "void *"), self.pointer(out), count
        )
        return out

    def matmul(self, w: Weights, x: FloatArray, threads: int = 2) -> FloatArray:
        return self.matmuls([w], x, threads)[0]

    def matmuls(self, ws: list[Weights], x: FloatArray, threads: int = 2) -> list[FloatArray]:
        """One call with one job a matrix, all of the same x [n, cols]."""
        ys = [np.full((len(x), w.rows), np.nan, np.float32) for w in ws]
        jobs = [
            {"w": self.matrix(w), "x": self.pointer(x), "ldx": x.shape[1],
             "y": self.pointer(y), "ldy": w.rows}
            for w, y in zip(ws, ys, strict=True)
        ]  # fmt: skip
        self.lib.matmul(
            self.pool(threads), self.ffi.new("ck_matmul_job[]", jobs), len(jobs), len(x)
        )
        return ys

    def experts(
        self,
        weights: tuple[Weights, Weights, Weights],
        x: FloatArray,
        ids: npt.NDArray[np.int32],
        scales: FloatArray,
        clamp: float = 10.0,
        threads: int = 2,
    ) -> FloatArray:
        """gate, up, down hold their experts behind one another."""
        gate, up, down = weights
        count = down.rows // x.shape[1]
        layer = self.ffi.new(
            "ck_experts *",
            {
                "gate": self.matrix(gate, gate.rows // count),
                "up": self.matrix(up, up.rows // count),
                "down": self.matrix(down, down.rows // count),
                "n_experts": count,
                "used": ids.shape[1],
                "clamp": clamp,
            },
        )
        y = np.full_like(x, np.nan)
        self.lib.experts_forward(
            self.pool(threads), layer, self.pointer(x), self.pointer(ids, "int32_t *"),
            self.pointer(scales), len(x), self.pointer(y),
        )  # fmt: skip
        return y


def _library() -> Path:
    from pyds4 import _native

    return _native.library_path


ISAS = ("plain", "avx2-basic", "avx2", "avx512-basic", "avx512", "neon")


@pytest.fixture(scope="session")
def kernels_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Kernels]]:
    """One set of kernels for each instruction set that this machine has."""
    try:
        library = _library()
    except ImportError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("kernels")
    loaded: dict[str, Kernels] = {}
    for isa in ISAS:
        copy = folder / f"{isa}-{library.name}"
        shutil.copy(library, copy)
        kernels = Kernels(copy, isa)
        if kernels.isa == isa.removesuffix("-basic"):
            loaded[isa] = kernels
    yield loaded
    for kernels in loaded.values():
        kernels.close()


@pytest.fixture(scope="session")
def kernels(kernels_of: dict[str, Kernels]) -> Kernels:
    """The kernels that a user of this machine gets."""
    return list(kernels_of.values())[-1]
