"""The bytes of a GGUF file's tensors and metadata, for tools that rewrite files."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGUFValueType
from numpy.typing import NDArray

from .._native import check, ffi, lib
from ..model_file import ModelFile, TensorInfo
from ..synth.writer import Typed

__all__ = ["RawValue", "TensorSource", "raw_metadata"]

_ARRAY, _STRING = 9, 8


class TensorSource:
    """Tensors of a file, mapped; nothing is read before it is used."""

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        self._parts = [np.memmap(path, np.uint8, "r") for path in file.paths]
        self.tensors = {tensor.name: tensor for tensor in file.tensors}

    def raw(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        """All bytes of ``tensor``, a view of the mapping."""
        part = self._parts[tensor.file_index]
        return part[tensor.offset : tensor.offset + tensor.byte_count]


@dataclass(frozen=True)
class RawValue(Typed):
    """A metadata value copied as it stands in another file."""

    raw: bytes = b""

    def encode(self) -> bytes:
        return self.raw


def raw_metadata(file: ModelFile) -> dict[str, RawValue]:
    """Every entry in file order, byte for byte, as ``write_gguf`` takes it."""
    entry, out = ffi.new("pyds4_metadata *"), {}
    for index, key in enumerate(file):
        check(lib.pyds4_file_metadata(file.handle, index, entry))
        data = bytes(ffi.buffer(entry.data, entry.byte_count)) if entry.byte_count else b""
        element = None
        if entry.type == _ARRAY:
            element = GGUFValueType(entry.element_type)
            data = struct.pack("<IQ", entry.element_type, entry.count) + data
        elif entry.type == _STRING:
            data = struct.pack("<Q", len(data)) + data
        out[key] = RawValue(GGUFValueType(entry.type), None, element, data)
    return out
