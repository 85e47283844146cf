"""An original checkpoint (safetensors) as a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from ..errors import InvalidArgumentError, ModelFileError
from ..synth.writer import Progress, Say, Tensor, write_gguf
from .checkpoint import CheckpointModel, open_checkpoint
from .imatrix import Importance
from .manifest import forget_manifest
from .origin import made_from
from .recipes import recipe
from .rows import tensor_of_rows
from .safetensors import StoredTensor
from .tokenizer_json import tokenizer_metadata

__all__ = ["Conversion", "convert_checkpoint"]


@dataclass(frozen=True)
class Conversion:
    """What was written: bytes, the spelling of names found, tensors left out (drafters)."""

    byte_count: int
    style: str
    types: dict[str, GGMLQuantizationType]
    skipped: list[str]


def convert_checkpoint(
    directory: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    recipe_name: str = "mxfp4",
    rules: Sequence[str] = (),
    importance: Importance | None = None,
    name: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Conversion:
    """Convert a checkpoint; names and shapes of everything are checked before anything is written.

    FP4 experts become MXFP4 bit for bit when the recipe says so; FP8 and BF16 matrices lose
    nothing with ``recipe_name="exact"``. Memory stays within some hundred megabytes, whatever the
    size. Until it is complete the file is called ``TARGET.partial``; after a kill, Ctrl-C or a full
    disk the next run with the same input and recipe goes on with it.

    Args:
        recipe_name: One of ``RECIPES``; ``rules`` are ``PATTERN=TYPE`` and stronger.
        name: ``general.name``; the directory's when None.
        say: Told, in a sentence, what becomes of an earlier run's part.

    Raises:
        ModelFileError: the checkpoint is incomplete or not as it should be; names file and tensor.
        InvalidArgumentError: an unknown recipe, rule or type.
        OSError: the target cannot be written, or the disk has too little room.
    """
    source = Path(directory)
    if not source.is_dir():
        raise InvalidArgumentError(f"{source}: expected the directory of a checkpoint")
    model = open_checkpoint(source)
    chosen = recipe(recipe_name, len(model.dimensions.ratios), rules)
    types: dict[str, GGMLQuantizationType] = {}
    tensors = []
    for planned in model.plan:
        if planned.name in model.tables:
            types[planned.name] = GGMLQuantizationType.I32
            table = _table(model, model.tables[planned.name])
            tensors.append(Tensor(planned.name, planned.shape, types[planned.name], table))
            continue
        matrices = model.matrices[planned.name]
        exact = matrices[0].exact_type
        choice = chosen.choose(planned.name, planned.shape, exact)
        types[planned.name] = choice.type
        weights = importance.of(planned.name, planned.shape) if importance else None
        tensors.append(tensor_of_rows(planned.name, planned.shape, choice.type, matrices, weights))
    file_type = chosen.file_type
    entries = model.metadata(name or source.resolve().name, file_type)
    entries.update(tokenizer_metadata(source, model.dimensions.vocab, model.config))
    origin = made_from(model.checkpoint.files, importance, source / "config.json")
    size = write_gguf(
        target,
        entries,
        tensors,
        threads=threads,
        progress=progress,
        made_from=origin,
        say=say,
    )
    if forget_manifest(Path(target)) and say is not None:
        say(f"the manifest of the earlier {os.fspath(target)} was removed")
    return Conversion(size, model.style, types, model.skipped)


def _table(model: CheckpointModel, tensor: StoredTensor) -> NDArray[np.int32]:
    data = model.checkpoint.read(tensor, 0, tensor.byte_count)
    ids = data.view("<i8" if tensor.dtype == "I64" else "<i4")
    experts = model.dimensions.experts
    wrong = (ids < 0) | (ids >= experts)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ModelFileError(f"{tensor.label}: entry {at} names expert {ids[at]} of {experts}")
    return ids.astype("<i4")
