"""Write GGUF files of any size without holding them in memory."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_MAGIC,
    GGMLQuantizationType,
    GGUFValueType,
)

from ..errors import InvalidArgumentError
from .partial import PartialFile

__all__ = ["Progress", "Say", "Tensor", "Typed", "write_gguf"]

Progress = Callable[[int, int], None]
"""Called with bytes written so far and bytes in all; from any thread, one call at a time."""

Say = Callable[[str], None]
"""Called with something a person should know, in a sentence."""

_CHUNK_BYTES = 8 << 20
_CHECKPOINT_BYTES = 256 << 20
"""Written between two checkpoints; what a killed run loses at most."""

_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


@dataclass(frozen=True)
class Typed:
    """A metadata value together with the type it is stored as.

    ``element`` is the element type of an array (``type`` is then ``ARRAY``); the elements of an
    array of arrays are ``Typed`` themselves.
    """

    type: GGUFValueType
    value: Any
    element: GGUFValueType | None = None

    @classmethod
    def array(cls, element: GGUFValueType, values: Sequence[Any]) -> Typed:
        return cls(GGUFValueType.ARRAY, values, element)

    @classmethod
    def infer(cls, key: str, value: Any) -> Typed:
        """The usual type of a plain value: uint32, float32, bool, string, and arrays of int32,
        float32, bool, string; integers that do not fit get the type that holds them.

        Raises:
            TypeError: no type can be told, as for an empty list; ``key`` is named.
        """
        if isinstance(value, Typed):
            return value
        if isinstance(value, str):
            return cls(GGUFValueType.STRING, value)
        if isinstance(value, bool):
            return cls(GGUFValueType.BOOL, value)
        if isinstance(value, int):
            return cls(_integer_type(value, value, GGUFValueType.UINT32), value)
        if isinstance(value, float):
            return cls(GGUFValueType.FLOAT32, value)
        if isinstance(value, list | tuple) and value:
            kinds = {type(item) for item in value}
            if kinds == {int}:
                element = _integer_type(min(value), max(value), GGUFValueType.INT32)
                return cls.array(element, value)
            if kinds == {str} or kinds == {bool} or kinds == {float}:
                return cls.array(cls.infer(key, value[0]).type, value)
        raise TypeError(f"metadata {key!r}: say the type of {value!r} with Typed")

    def encode(self) -> bytes:
        """The value as it stands in the file, without its type."""
        if self.type is GGUFValueType.STRING:
            return _string(self.value)
        if self.type is not GGUFValueType.ARRAY:
            return struct.pack(_SCALARS[self.type], self.value)
        if self.element is None:
            raise TypeError("an array needs an element type")
        if self.element is GGUFValueType.STRING:
            body = b"".join(map(_string, self.value))
        elif self.element is GGUFValueType.ARRAY:
            body = b"".join(item.encode() for item in self.value)
        else:
            code = _SCALARS[self.element][1]
            body = struct.pack(f"<{len(self.value)}{code}", *self.value)
        return struct.pack("<IQ", self.element, len(self.value)) + body


def _integer_type(low: int, high: int, preferred: GGUFValueType) -> GGUFValueType:
    choices = [preferred, GGUFValueType.INT32, GGUFValueType.INT64, GGUFValueType.UINT64]
    for choice in choices:
        bits = struct.calcsize(_SCALARS[choice]) * 8
        signed = _SCALARS[choice][1].islower()
        lowest, above = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
        if lowest <= low and high < above:
            return choice
    raise TypeError(f"no GGUF integer holds {low} to {high}")


def _string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


@dataclass(frozen=True)
class Tensor:
    """One tensor to be written.

    Attributes:
        name: As in the file.
        shape: In ggml's order, adjacent numbers first; the reverse of numpy's.
        type: Storage type; ``shape[0]`` is a multiple of its block.
        data: All the bytes, or a function of (first block, blocks) that makes that part of them.
            Such a function is called from several threads and in any order.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    data: np.ndarray[Any, Any] | bytes | Callable[[int, int], Any]

    @property
    def block_count(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) // GGML_QUANT_SIZES[self.type][0]

    @property
    def byte_count(self) -> int:
        return self.block_count * GGML_QUANT_SIZES[self.type][1]

    def check(self) -> None:
        """Raises ``InvalidArgumentError`` when shape, type and data do not go together."""
        if not 1 <= len(self.shape) <= 4 or min(self.shape) < 1:
            raise InvalidArgumentError(f"tensor {self.name!r}: impossible shape {self.shape}")
        block = GGML_QUANT_SIZES[self.type][0]
        if self.shape[0] % block:
            raise InvalidArgumentError(
                f"tensor {self.name!r}: rows of {self.shape[0]} numbers are not whole blocks of "
                f"{block}, as {self.type.name} needs"
            )
        if not callable(self.data):
            given = len(self.data) if isinstance(self.data, bytes) else self.data.nbytes
            if given != self.byte_count:
                raise InvalidArgumentError(
                    f"tensor {self.name!r}: shape {self.shape} in {self.type.name} has "
                    f"{self.byte_count} bytes, {given} were given"
                )

    def part(self, start: int, count: int) -> memoryview:
        """Bytes of ``count`` blocks from block ``start`` on."""
        size = GGML_QUANT_SIZES[self.type][1]
        if callable(self.data):
            made = np.ascontiguousarray(self.data(start, count)).data.cast("B")
            if len(made) != count * size:
                raise InvalidArgumentError(
                    f"tensor {self.name!r}: {len(made)} bytes for {count} blocks"
                )
            return made
        if isinstance(self.data, bytes):
            whole = memoryview(self.data)
        else:
            whole = np.ascontiguousarray(self.data).data.cast("B")
        return whole[start * size : (start + count) * size]


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Sequence[Tensor],
    *,
    alignment: int = GGUF_DEFAULT_ALIGNMENT,
    threads: int | None = None,
    progress: Progress | None = None,
    made_from: str | None = None,
    say: Say | None = None,
) -> int:
    """Write a GGUF file (version 3) and return its size in bytes.

    Data is made and written in chunks of 8 MiB by ``threads`` threads, so memory does not grow
    with the file. The bytes do not depend on the number of threads, and are those that PyPI
    ``gguf``'s writer would write. Until it is complete the file is called ``PATH.partial``.

    Args:
        path: Replaced if it exists.
        metadata: In file order; plain values (see ``Typed.infer``) or ``Typed``.
            ``general.alignment`` is added when ``alignment`` is not 32.
        tensors: In file order.
        threads: All processors, at most 16, when None.
        made_from: Names all that the data is made from. With it, a run that was killed, stopped or
            found the disk full leaves what it wrote, and the next one goes on from there.
        say: Called with a sentence about an earlier run's part, if there is one.

    Raises:
        InvalidArgumentError: two tensors share a name, or one does not fit its shape.
        OSError: the file cannot be written, or the disk has too little room (checked first).
    """
    header, offsets, total = _layout(metadata, tensors, alignment)
    identity = None
    if made_from is not None:
        key = f"{made_from}\0{_CHUNK_BYTES}\0".encode()
        identity = hashlib.sha256(key + header).hexdigest()
    file = PartialFile(Path(path), header, total, identity)
    if file.story is not None and say is not None:
        say(file.story)
    writing = _Writing(file, tensors, offsets, progress)
    try:
        writing.run(threads if threads is not None else min(16, os.cpu_count() or 1))
    except BaseException as error:
        # Input that is wrong will be another input when it is put right.
        keep = identity is not None and isinstance(error, OSError | KeyboardInterrupt)
        if keep:
            with suppress(OSError):
                writing.checkpoint()
        file.close(keep=keep)
        raise
    file.finish()
    return total


def _layout(
    metadata: Mapping[str, Any], tensors: Sequence[Tensor], alignment: int
) -> tuple[bytes, list[int], int]:
    """Header bytes, where each tensor's data begins, and the size of the file."""
    entries = dict(metadata)
    if alignment != GGUF_DEFAULT_ALIGNMENT:
        entries["general.alignment"] = alignment
    parts = [struct.pack("<IIQQ", GGUF_MAGIC, 3, len(tensors), len(entries))]
    for key, value in entries.items():
        typed = Typed.infer(key, value)
        try:
            encoded = typed.encode()
        except (struct.error, TypeError, AttributeError) as error:
            raise TypeError(f"metadata {key!r}: {error}") from error
        parts += [_string(key), struct.pack("<I", typed.type), encoded]
    offset = 0
    relative = []
    seen: set[str] = set()
    for tensor in tensors:
        tensor.check()
        if tensor.name in seen:
            raise InvalidArgumentError(f"two tensors are called {tensor.name!r}")
        seen.add(tensor.name)
        relative.append(offset)
        rank = len(tensor.shape)
        parts += [
            _string(tensor.name),
            struct.pack(f"<I{rank}QIQ", rank, *tensor.shape, tensor.type, offset),
        ]
        offset += _round_up(tensor.byte_count, alignment)
    header = b"".join(parts)
    start = _round_up(len(header), alignment)
    return header, [start + place for place in relative], start + offset


def _round_up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


class _Writing:
    """Makes and writes the chunks of a file, in order as far as threads allow.

    Attributes:
        finished: Chunks from the first on that have all been written.
    """

    def __init__(
        self,
        file: PartialFile,
        tensors: Sequence[Tensor],
        offsets: list[int],
        progress: Progress | None,
    ) -> None:
        self._file = file
        self._chunks = enumerate(_chunks(tensors, offsets))
        self._progress = progress
        # One lock hands out chunks and another counts what is done, so that a slow progress
        # display holds up nobody who has bytes to write; the third is for synchronising.
        self._hand_out, self._count, self._safe = Lock(), Lock(), Lock()
        self._ahead: set[int] = set()
        self._bytes = self._unsaved = 0
        self._failed = False
        self.finished = 0
        for _, (tensor, _, blocks, _) in islice(self._chunks, file.done):
            self.finished += 1
            self._bytes += blocks * GGML_QUANT_SIZES[tensor.type][1]

    def run(self, threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            jobs = [pool.submit(self._work) for _ in range(threads)]
            try:
                for job in jobs:
                    job.result()
            except BaseException:  # Ctrl-C arrives here, and the others shall stop too
                self._failed = True
                raise

    def checkpoint(self) -> None:
        """Bring what is finished to the disk; one thread at a time."""
        with self._safe:
            with self._count:
                finished, self._unsaved = self.finished, 0
            self._file.checkpoint(finished)

    def _work(self) -> None:
        try:
            while not self._failed:
                with self._hand_out:
                    chunk = next(self._chunks, None)
                if chunk is None:
                    return
                index, (tensor, start, blocks, offset) = chunk
                data = tensor.part(start, blocks)
                self._file.write(data, offset)
                if self._is_due(index, len(data)) and not self._safe.locked():
                    self.checkpoint()
        except BaseException:
            self._failed = True
            raise

    def _is_due(self, index: int, byte_count: int) -> bool:
        """Count a chunk; whether it is time for a checkpoint."""
        with self._count:
            self._ahead.add(index)
            while self.finished in self._ahead:
                self._ahead.remove(self.finished)
                self.finished += 1
            self._bytes += byte_count
            self._unsaved += byte_count
            if self._progress is not None:
                self._progress(self._bytes, self._file.total)
            return self._unsaved >= _CHECKPOINT_BYTES


def _chunks(
    tensors: Sequence[Tensor], offsets: list[int]
) -> Iterator[tuple[Tensor, int, int, int]]:
    """(tensor, first block, blocks, byte offset in the file) for every chunk."""
    for tensor, offset in zip(tensors, offsets, strict=True):
        size = GGML_QUANT_SIZES[tensor.type][1]
        step = max(1, _CHUNK_BYTES // size)
        for start in range(0, tensor.block_count, step):
            yield tensor, start, min(step, tensor.block_count - start), offset + start * size
