"""The bytes of a GGUF file's tensors and metadata, for tools that rewrite files."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGUFValueType
from numpy.typing import NDArray

from .._native import check, ffi, lib
from ..errors import ModelFileError
from ..model_file import ModelFile, TensorInfo
from ..synth.writer import Typed

__all__ = ["RawValue", "TensorSource", "raw_metadata", "read_exactly"]

_ARRAY, _STRING = 9, 8


def read_exactly(descriptor: int, path: str, offset: int, count: int) -> NDArray[np.uint8]:
    """``count`` bytes of a file, read rather than mapped: memory then holds what is in use, not
    all that was ever touched.

    Raises:
        ModelFileError: the file ends before.
    """
    out = np.empty(count, np.uint8)
    view, done = out.data, 0
    while done < count:
        got = os.preadv(descriptor, [view[done:]], offset + done)
        if got == 0:
            raise ModelFileError(
                f"{path} ends at byte {offset + done}: expected {count - done} more"
            )
        done += got
    return out


class TensorSource:
    """Tensors of a file, read in pieces; from any thread."""

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        self.tensors = {tensor.name: tensor for tensor in file.tensors}
        self._descriptors = [os.open(path, os.O_RDONLY) for path in file.paths]

    def read(self, tensor: TensorInfo, start: int, count: int) -> NDArray[np.uint8]:
        """``count`` bytes of ``tensor`` from byte ``start`` on."""
        descriptor, path = self._descriptors[tensor.file_index], self.file.paths[tensor.file_index]
        return read_exactly(descriptor, path, tensor.offset + start, count)

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", []):
            os.close(descriptor)


@dataclass(frozen=True)
class RawValue(Typed):
    """A metadata value copied as it stands in another file."""

    raw: bytes = b""

    def encode(self) -> bytes:
        return self.raw


def raw_metadata(file: ModelFile) -> dict[str, Typed]:
    """Every entry in file order, byte for byte, as ``write_gguf`` takes it; without what only a
    split file has."""
    entry = ffi.new("pyds4_metadata *")
    out: dict[str, Typed] = {}
    for index, key in enumerate(file):
        check(lib.pyds4_file_metadata(file.handle, index, entry))
        data = bytes(ffi.buffer(entry.data, entry.byte_count)) if entry.byte_count else b""
        element = None
        if entry.type == _ARRAY:
            element = GGUFValueType(entry.element_type)
            data = struct.pack("<IQ", entry.element_type, entry.count) + data
        elif entry.type == _STRING:
            data = struct.pack("<Q", len(data)) + data
        if not key.startswith("split."):
            out[key] = RawValue(GGUFValueType(entry.type), None, element, data)
    return out
