"""From dimensions to a synthetic model file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType, LlamaFileType

from ..errors import InvalidArgumentError
from .blocks import RANDOM_TYPES, BlockSource
from .model import Dimensions, Fill, Role, TensorPlan, metadata, plan
from .writer import Progress, Tensor, write_gguf

__all__ = ["TensorTypes", "synthesize", "synthetic_tensors", "tensor_type"]


def tensor_type(name: str) -> GGMLQuantizationType:
    """The type called ``name`` (any case).

    Raises:
        InvalidArgumentError: not a type that synthetic weights can have.
    """
    for choice in RANDOM_TYPES:
        if choice.name == name.upper():
            return choice
    known = ", ".join(sorted(choice.name.lower() for choice in RANDOM_TYPES))
    raise InvalidArgumentError(f"no tensor type {name!r}; there are {known}")


@dataclass(frozen=True)
class TensorTypes:
    """Storage type by role; the default is that of the published 2-bit files."""

    embedding: GGMLQuantizationType = GGMLQuantizationType.F16
    output: GGMLQuantizationType = GGMLQuantizationType.Q8_0
    dense: GGMLQuantizationType = GGMLQuantizationType.Q8_0
    small: GGMLQuantizationType = GGMLQuantizationType.F16
    experts_in: GGMLQuantizationType = GGMLQuantizationType.IQ2_XXS
    experts_out: GGMLQuantizationType = GGMLQuantizationType.Q2_K

    @classmethod
    def named(
        cls,
        *,
        embedding: str = "f16",
        output: str = "q8_0",
        dense: str = "q8_0",
        small: str = "f16",
        experts: str = "iq2_xxs+q2_k",
    ) -> TensorTypes:
        """Types by name; ``experts`` is one type, or those of gate and up and of down with a plus
        between them.

        Raises:
            InvalidArgumentError: an unknown type.
        """
        into, _, out = experts.partition("+")
        return cls(
            embedding=tensor_type(embedding),
            output=tensor_type(output),
            dense=tensor_type(dense),
            small=tensor_type(small),
            experts_in=tensor_type(into),
            experts_out=tensor_type(out or into),
        )

    @classmethod
    def uniform(cls, type: GGMLQuantizationType) -> TensorTypes:
        """Every matrix in ``type``."""
        return cls(type, type, type, type, type, type)

    def of(self, role: Role) -> GGMLQuantizationType:
        if role is Role.VECTOR:
            return GGMLQuantizationType.F32
        if role is Role.TABLE:
            return GGMLQuantizationType.I32
        chosen: GGMLQuantizationType = getattr(self, role.value)
        return chosen

    @property
    def file_type(self) -> int:
        """``general.file_type``: llama.cpp's name for the mix, by its largest part."""
        names = {
            GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
            GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
            GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
            GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
            GGMLQuantizationType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
            GGMLQuantizationType.Q2_K: LlamaFileType.MOSTLY_Q2_K,
            GGMLQuantizationType.Q3_K: LlamaFileType.MOSTLY_Q3_K_M,
            GGMLQuantizationType.Q4_K: LlamaFileType.MOSTLY_Q4_K_M,
            GGMLQuantizationType.Q5_K: LlamaFileType.MOSTLY_Q5_K_M,
            GGMLQuantizationType.Q6_K: LlamaFileType.MOSTLY_Q6_K,
            GGMLQuantizationType.IQ2_XXS: LlamaFileType.MOSTLY_IQ2_XXS,
            GGMLQuantizationType.MXFP4: LlamaFileType.MOSTLY_MXFP4_MOE,
        }
        return int(names[self.experts_in])


def synthesize(
    path: str | os.PathLike[str],
    dimensions: Dimensions,
    types: TensorTypes | None = None,
    *,
    seed: int = 0,
    name: str = "synthetic deepseek4",
    threads: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a model with random weights and return the size of the file in bytes.

    The same dimensions, types and seed give the same bytes with any number of threads (and with
    any numpy that draws the same normal numbers). Memory stays below 1 GB whatever the size.

    Args:
        types: The published 2-bit mix when None.
        name: ``general.name``.
        progress: Called with bytes written and bytes in all.

    Raises:
        InvalidArgumentError: a row is not a whole number of blocks; the tensor is named.
        OSError: the file cannot be written, or the disk has too little room.
    """
    types = types or TensorTypes()
    entries = metadata(dimensions, name, types.file_type)
    tensors = synthetic_tensors(dimensions, types, seed)
    return write_gguf(path, entries, tensors, threads=threads, progress=progress)


def synthetic_tensors(
    dimensions: Dimensions, types: TensorTypes | None = None, seed: int = 0
) -> Sequence[Tensor]:
    """The tensors that ``synthesize`` writes; their data are not made before they are written."""
    types = types or TensorTypes()
    source = BlockSource(seed)
    return [
        Tensor(
            tensor.name,
            tensor.shape,
            types.of(tensor.role),
            _data(tensor, types.of(tensor.role), dimensions, source),
        )
        for tensor in plan(dimensions)
    ]


def _data(
    tensor: TensorPlan, type: GGMLQuantizationType, dimensions: Dimensions, source: BlockSource
) -> Callable[[int, int], Any]:
    if tensor.fill is Fill.CONSTANT:
        return lambda start, count: np.full(count, tensor.mean, "<f4")
    if tensor.fill is Fill.SCALES:
        return lambda start, count: _scales(source.rng(tensor.name))[start : start + count]
    if tensor.fill is Fill.TABLE:
        return lambda start, count: _table(tensor, start, count, dimensions, source)
    blocks = Tensor(tensor.name, tensor.shape, type, b"").block_count
    return source.data(tensor.name, type, blocks, tensor.std, tensor.mean)


def _scales(rng: np.random.Generator) -> Any:
    return (np.array([0.75, 1.0, 1.25]) + rng.normal(0, 0.05, 3)).astype("<f4")


def _table(
    tensor: TensorPlan, start: int, count: int, dimensions: Dimensions, source: BlockSource
) -> Any:
    """Distinct random experts for each token, made 4096 tokens at a time."""
    used, vocab = tensor.shape
    step = 4096
    rows = []
    first = start // used
    last = -(-(start + count) // used)
    for part in range(first // step, -(-last // step)):
        rng = source.rng(f"{tensor.name} {part}")
        keys = rng.random((min(step, vocab - part * step), dimensions.experts), np.float32)
        chosen = np.argpartition(keys, used - 1, axis=1)[:, :used]
        rows.append(chosen.astype("<i4"))
    made = np.concatenate(rows).reshape(-1)
    offset = start - first // step * step * used
    return made[offset : offset + count]
