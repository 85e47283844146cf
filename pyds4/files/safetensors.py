"""Checkpoints in safetensors files: where each tensor lies, checked before anything is read."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelFileError
from .source import read_exactly

__all__ = ["Checkpoint", "StoredTensor"]

_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip
_LARGEST_HEADER = 1 << 28
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """``shape`` in numpy's order; ``offset`` from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    byte_count: int

    @property
    def label(self) -> str:
        return f"{self.path}: tensor {self.name!r}"


class Checkpoint:
    """A directory of safetensors files, or one file.

    Raises:
        ModelFileError: no such files; a shard that the index names is missing; a header that is
            not one, or that promises more than its file holds. Names file and tensor.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.tensors: dict[str, StoredTensor] = {}
        self._descriptors: dict[Path, int] = {}
        wanted = self._wanted()
        for shard, names in wanted.items():
            if not shard.is_file():
                example = f", which holds {names[0]!r}" if names else ""
                raise ModelFileError(f"{shard} is missing{example}: download the checkpoint again")
            found = _read_header(shard)
            for name in names:
                if name not in found:
                    raise ModelFileError(f"{shard}: tensor {name!r} is missing; {_INDEX} names it")
            self.tensors.update(found)
            self._descriptors[shard] = os.open(shard, os.O_RDONLY)

    def _wanted(self) -> dict[Path, list[str]]:
        """Files to open, and what the index says each holds."""
        if self.path.is_file():
            return {self.path: []}
        index = self.path / _INDEX
        if index.is_file():
            try:
                places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                wanted: dict[Path, list[str]] = {}
                for name, shard in places.items():
                    if Path(shard).name != shard:
                        raise ValueError(f"{shard!r} is not a file beside it")
                    wanted.setdefault(self.path / shard, []).append(name)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelFileError(f"{index}: not an index: {error}") from None
            return dict(sorted(wanted.items()))
        files: dict[Path, list[str]] = {
            file: [] for file in sorted(self.path.glob("*.safetensors"))
        }
        if not files:
            raise ModelFileError(f"{self.path}: no {_INDEX} and no .safetensors files")
        return files

    @property
    def files(self) -> list[Path]:
        """Its shards."""
        return list(self._descriptors)

    def read(self, tensor: StoredTensor, start: int, count: int) -> NDArray[np.uint8]:
        """``count`` bytes of ``tensor`` from byte ``start`` on; from any thread."""
        descriptor = self._descriptors[tensor.path]
        return read_exactly(descriptor, str(tensor.path), tensor.offset + start, count)

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise ModelFileError(
                f"{path}: not a safetensors file, or cut short: its header would take {length} "
                f"bytes of {size}"
            )
        text = file.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        return {
            name: _tensor(path, name, entry, 8 + length, size) for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: bad header: {error!r}") from None


def _tensor(path: Path, name: str, entry: dict[str, object], base: int, size: int) -> StoredTensor:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r}: no shape or offsets")
    extents = tuple(int(extent) for extent in shape)
    begin, end = (int(offset) for offset in offsets)
    if dtype not in _SIZES or min(extents, default=1) < 0:
        raise ModelFileError(f"{path}: tensor {name!r}: unknown dtype {dtype} or shape {extents}")
    needed = math.prod(extents) * _SIZES[str(dtype)]
    if begin < 0 or end - begin != needed:
        raise ModelFileError(
            f"{path}: tensor {name!r}: {dtype} {extents} takes {needed} bytes, its offsets give "
            f"{end - begin}"
        )
    if base + end > size:
        raise ModelFileError(
            f"{path} is cut short: tensor {name!r} ends at byte {base + end} of {size}; download "
            "it again"
        )
    return StoredTensor(name, str(dtype), extents, path, base + begin, needed)
