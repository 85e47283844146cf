"""A GGUF file as Python sees it: metadata and tensor directory, read by the engine's own reader."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyds4._native import check, ffi, lib, text
from pyds4.errors import ClosedError, ModelFileError, UnsupportedModelError
from pyds4.tokenizer import Vocabulary

MetadataValue = int | float | bool | str | list[Any]

# GGUF value types with a fixed size; 7 is bool, 8 string, 9 array.
_NUMPY = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
# fmt: off
_TYPE_NAMES = ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64",
               "i64", "f64"]
# fmt: on


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the directory. ``shape`` is in ggml order: columns first."""

    name: str
    type: str
    shape: tuple[int, ...]
    byte_count: int
    offset: int
    file_index: int
    computable: bool


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes: the weights, one session's attention memory at a context, activation buffers."""

    weights: int
    kv: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.buffers


class ModelFile(Mapping[str, MetadataValue]):
    """The header of a GGUF file (of all parts of a split one); a mapping of its metadata.

    Values are decoded when asked for, so a 129,280-entry vocabulary costs nothing until then.

    Raises:
        ModelFileError: not found, not GGUF, or damaged; names file, byte and expectation.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        out = ffi.new("pyds4_file **")
        check(lib.pyds4_file_open(os.fsencode(path), out))
        self._adopt(ffi.gc(out[0], lib.pyds4_file_free))

    @classmethod
    def _borrow(cls, handle: Any, owner: Any = None) -> ModelFile:
        """The file of an engine, which ``owner`` keeps alive for as long as the file is used."""
        file = cls.__new__(cls)
        file._adopt(handle)
        file._owner = owner
        return file

    def _adopt(self, handle: Any) -> None:
        self._handle = handle
        self._owner: Any = None
        entry = ffi.new("pyds4_metadata *")
        self._index: dict[str, int] = {}
        for i in range(lib.pyds4_file_metadata_count(handle)):
            check(lib.pyds4_file_metadata(handle, i, entry))
            self._index[text(entry.key)] = i

    @property
    def handle(self) -> Any:
        if self._handle is None:
            raise ClosedError("the model file is closed")
        return self._handle

    def close(self) -> None:
        self._handle = self._owner = None

    # Mapping of the metadata

    def __getitem__(self, key: str) -> MetadataValue:
        entry = ffi.new("pyds4_metadata *")
        check(lib.pyds4_file_metadata(self.handle, self._index[key], entry))
        data = ffi.buffer(entry.data, entry.byte_count) if entry.byte_count else b""
        return _decode(key, entry.type, entry.element_type, entry.count, data)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def describe(self, key: str) -> tuple[str, int]:
        """Type name and element count of an entry, without decoding it."""
        entry = ffi.new("pyds4_metadata *")
        check(lib.pyds4_file_metadata(self.handle, self._index[key], entry))
        if entry.type != _ARRAY:
            return _TYPE_NAMES[entry.type], 1
        return f"array of {_TYPE_NAMES[entry.element_type]}", entry.count

    # The rest of the file

    @property
    def byte_count(self) -> int:
        return int(lib.pyds4_file_byte_count(self.handle))

    @property
    def paths(self) -> list[str]:
        count = lib.pyds4_file_part_count(self.handle)
        return [text(lib.pyds4_file_part_path(self.handle, i)) for i in range(count)]

    @property
    def tensors(self) -> list[TensorInfo]:
        out, info = [], ffi.new("pyds4_tensor *")
        for i in range(lib.pyds4_file_tensor_count(self.handle)):
            check(lib.pyds4_file_tensor(self.handle, i, info))
            out.append(
                TensorInfo(
                    name=text(info.name),
                    type=text(info.type_name),
                    shape=tuple(info.shape[d] for d in range(info.dimension_count)),
                    byte_count=info.byte_count,
                    offset=info.offset,
                    file_index=info.file_index,
                    computable=bool(info.computable),
                )
            )
        return out

    def memory(self, context: int, *, roundings: bool = True) -> MemoryNeed:
        """What running this model with ``context`` tokens in one session needs.

        Raises:
            UnsupportedModelError: not a model this engine runs.
        """
        out = ffi.new("pyds4_memory *")
        check(lib.pyds4_file_memory(self.handle, context, int(roundings), out))
        return MemoryNeed(weights=out.weights, kv=out.kv, buffers=out.buffers)

    def vocabulary(self) -> Vocabulary:
        """The tokenizer's tables (``tokenizer.ggml.*``).

        Raises:
            UnsupportedModelError: the file has no byte-level BPE vocabulary.
        """
        prefix = "tokenizer.ggml."
        model = self.get(prefix + "model")
        if model != "gpt2":
            raise UnsupportedModelError(
                f"{self.paths[0]}: metadata '{prefix}model': expected 'gpt2' (byte-level BPE), "
                f"found {model!r}"
            )

        def need(key: str, kind: type | tuple[type, ...]) -> Any:
            value = self.get(prefix + key)
            if not isinstance(value, kind):
                raise ModelFileError(
                    f"{self.paths[0]}: metadata '{prefix}{key}': missing or of another type"
                )
            return value

        return Vocabulary(
            tokens=need("tokens", list),
            merges=need("merges", list),
            token_types=need("token_type", list),
            pre=need("pre", str),
            bos_id=need("bos_token_id", int),
            eos_id=need("eos_token_id", int),
            pad_id=need("padding_token_id", int) if prefix + "padding_token_id" in self else None,
            add_bos=bool(self.get(prefix + "add_bos_token", False)),
        )


def _decode(key: str, kind: int, element: int, count: int, data: Any) -> MetadataValue:
    if kind == _STRING:
        return bytes(data).decode("utf-8", "replace")
    if kind != _ARRAY:
        value: MetadataValue = np.frombuffer(data, _NUMPY[kind], 1)[0].item()
        return value
    if element == _STRING:
        return _strings(bytes(data), count)
    if element == _ARRAY:
        raise ModelFileError(f"metadata '{key}': arrays of arrays are not decoded")
    values: list[Any] = np.frombuffer(data, _NUMPY[element], count).tolist()
    return values


def _strings(data: bytes, count: int) -> list[str]:
    """``count`` strings, each behind its u64 length; the reader has checked every length."""
    out, at = [], 0
    for _ in range(count):
        size = int.from_bytes(data[at : at + 8], "little")
        out.append(data[at + 8 : at + 8 + size].decode("utf-8", "replace"))
        at += 8 + size
    return out
