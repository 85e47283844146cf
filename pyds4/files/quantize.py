"""Write a GGUF file again with other tensor types, or with tensors of other files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from ..errors import InvalidArgumentError, UnsupportedModelError
from ..model_file import ModelFile, TensorInfo
from ..synth.writer import Progress, Say, Tensor, Typed, write_gguf
from ._kernels import decode, type_named
from .imatrix import Importance
from .manifest import forget_manifest
from .origin import made_from
from .recipes import Recipe, recipe
from .rows import tensor_of_rows
from .source import TensorSource, raw_metadata

__all__ = ["Change", "plan_types", "quantize_file"]

_FLOATS = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}


@dataclass(frozen=True)
class Change:
    """What becomes of one tensor; ``other`` names the file it is taken from instead."""

    tensor: TensorInfo
    type: GGMLQuantizationType
    other: str | None = None

    @property
    def byte_count(self) -> int:
        block, size = GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.tensor.shape, dtype=np.int64)) // block * size


def plan_types(file: ModelFile, chosen: Recipe) -> list[Change]:
    """The type of each tensor. What is quantised already is kept unless a rule asks for it: its
    lost bits do not come back in a larger type.

    Raises:
        UnsupportedModelError: a tensor to be changed is of a type nothing here reads.
    """
    changes = []
    for tensor in file.tensors:
        now = type_named(tensor.type)
        choice = chosen.choose(tensor.name, tensor.shape, now)
        keep = not choice.asked and (now not in _FLOATS or chosen.exact or len(tensor.shape) == 1)
        type = now if keep else choice.type
        if type is not now and not tensor.computable:
            raise UnsupportedModelError(
                f"{file.paths[0]}: tensor {tensor.name!r}: type {tensor.type} cannot be read"
            )
        changes.append(Change(tensor, type))
    return changes


def quantize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    recipe_name: str = "exact",
    rules: Sequence[str] = (),
    importance: Importance | None = None,
    take: Mapping[str, str | os.PathLike[str]] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> list[Change]:
    """Write ``target`` and return what became of each tensor.

    Until it is complete the file is called ``TARGET.partial``; after a kill, Ctrl-C or a full disk
    the next run with the same input and recipe goes on with it. Memory stays within some hundred
    megabytes, whatever the size.

    Args:
        recipe_name: One of ``RECIPES``; ``rules`` are ``PATTERN=TYPE`` and stronger.
        importance: Of inputs, as ``collect`` measures it; tensors it lacks are rounded as if all
            inputs counted the same.
        take: Tensors by pattern from other files, as they are there.
        say: Told, in a sentence, what becomes of an earlier run's part.

    Raises:
        InvalidArgumentError: an unknown recipe, rule or type; a pattern that takes nothing; source
            and target are the same.
        ModelFileError: a number is not finite; a shape differs in the other file.
        OSError: the target cannot be written, or the disk has too little room.
    """
    file = ModelFile(source)
    if Path(target).exists() and any(os.path.samefile(target, path) for path in file.paths):
        raise InvalidArgumentError(f"{os.fspath(target)} is the file to be read")
    layers = file.get("deepseek4.block_count")
    chosen = recipe(recipe_name, layers if isinstance(layers, int) else 0, rules)
    own = TensorSource(file)
    changes, tensors = [], []
    others = _taken(own, take or {})
    for change in plan_types(file, chosen):
        name = change.tensor.name
        if name in others:
            origin, found = others[name]
            path = origin.file.paths[0]
            change = Change(found, type_named(found.type), path)
            tensors.append(_copied(origin, found))
        elif change.type.name.lower() == change.tensor.type:
            tensors.append(_copied(own, change.tensor))
        else:
            tensors.append(_changed(own, change, importance))
        changes.append(change)
    entries = raw_metadata(file)
    entries.update(_notes(chosen, importance, others))
    alignment = entries.pop("general.alignment", None)
    del alignment  # the writer's own is 32
    inputs = [*file.paths, *(path for other, _ in others.values() for path in other.file.paths)]
    write_gguf(
        target,
        entries,
        tensors,
        threads=threads,
        progress=progress,
        made_from=made_from(inputs, importance),
        say=say,
    )
    if forget_manifest(Path(target)) and say is not None:
        say(f"the manifest of the earlier {os.fspath(target)} was removed")
    return changes


def _notes(
    chosen: Recipe, importance: Importance | None, others: Mapping[str, Any]
) -> dict[str, Typed]:
    notes: dict[str, Typed] = {}
    if chosen.rules:
        notes["general.file_type"] = Typed(GGUFValueType.UINT32, chosen.file_type)
        notes["general.quantization_version"] = Typed(GGUFValueType.UINT32, 2)
        notes["pyds4.quantize.recipe"] = Typed(GGUFValueType.STRING, chosen.name)
    if importance is not None:
        notes["quantize.imatrix.dataset"] = Typed(GGUFValueType.STRING, importance.dataset)
        entries = len(importance.sums)
        notes["quantize.imatrix.entries_count"] = Typed(GGUFValueType.UINT32, entries)
        notes["quantize.imatrix.chunks_count"] = Typed(GGUFValueType.UINT32, importance.chunks)
    if others:
        notes["pyds4.quantize.taken"] = Typed(GGUFValueType.UINT32, len(others))
    return notes


def _taken(
    own: TensorSource, take: Mapping[str, str | os.PathLike[str]]
) -> dict[str, tuple[TensorSource, TensorInfo]]:
    found: dict[str, tuple[TensorSource, TensorInfo]] = {}
    for pattern, path in take.items():
        other = TensorSource(ModelFile(path))
        names = [name for name in other.tensors if fnmatchcase(name, pattern)]
        if not names:
            raise InvalidArgumentError(f"{os.fspath(path)} has no tensor {pattern!r}")
        for name in names:
            tensor, mine = other.tensors[name], own.tensors.get(name)
            if mine is None or mine.shape != tensor.shape:
                here = "is missing" if mine is None else f"has shape {mine.shape}"
                raise InvalidArgumentError(
                    f"tensor {name!r} has shape {tensor.shape} in {os.fspath(path)} and {here} in "
                    f"{own.file.paths[0]}"
                )
            found[name] = (other, tensor)
    return found


def _copied(source: TensorSource, tensor: TensorInfo) -> Tensor:
    type = type_named(tensor.type)
    size = GGML_QUANT_SIZES[type][1]
    return Tensor(
        tensor.name,
        tensor.shape,
        type,
        lambda start, count: source.read(tensor, start * size, count * size),
    )


@dataclass(frozen=True)
class _GGUFMatrix:
    """One matrix of a tensor in a GGUF file."""

    source: TensorSource
    tensor: TensorInfo
    index: int

    @property
    def label(self) -> str:
        return f"{self.source.file.paths[self.tensor.file_index]}: tensor {self.tensor.name!r}"

    @property
    def columns(self) -> int:
        return self.tensor.shape[0]

    @property
    def rows(self) -> int:
        return self.tensor.shape[1]

    def numbers(self, start: int, stop: int) -> NDArray[np.float32]:
        type = type_named(self.tensor.type)
        block, size = GGML_QUANT_SIZES[type]
        row = self.columns // block * size
        first = (self.index * self.rows + start) * row
        data = self.source.read(self.tensor, first, (stop - start) * row)
        count = (stop - start) * self.columns
        return decode(type, data, count).reshape(stop - start, self.columns)

    def blocks(self, type: GGMLQuantizationType, start: int, stop: int) -> None:
        """Only other types are asked for."""


def _changed(source: TensorSource, change: Change, importance: Importance | None) -> Tensor:
    tensor = change.tensor
    count = int(np.prod(tensor.shape[2:], dtype=np.int64))
    matrices = [_GGUFMatrix(source, tensor, index) for index in range(count)]
    weights = importance.of(tensor.name, tensor.shape) if importance else None
    return tensor_of_rows(tensor.name, tensor.shape, change.type, matrices, weights)
