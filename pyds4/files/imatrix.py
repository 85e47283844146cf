"""How much each input of each matrix matters: its mean square over a corpus.

The file is llama.cpp's GGUF form of an importance matrix: for every matrix NAME the tensors
``NAME.in_sum2`` [columns, matrices] and ``NAME.counts`` [1, matrices].
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from .._native import check, ffi, lib, text
from ..engine import Engine
from ..errors import InvalidArgumentError, ModelFileError
from ..model_file import ModelFile
from ..synth.writer import Tensor, Typed, write_gguf
from ._kernels import decode
from .manifest import file_sha256
from .source import TensorSource

__all__ = [
    "Importance",
    "TensorImportance",
    "collect",
    "read_importance",
    "recorded",
    "write_importance",
]

SAVE_EVERY = 16
"""Sequences between two writes of an unfinished collection."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class TensorImportance:
    """Importance of one tensor's columns, for ``tensor_of_rows``.

    ``means`` is [matrices, columns]. Where a matrix stands for several in one (the groups of the
    output projection), each has an equal share of the rows, ``rows_each``.
    """

    means: Floats
    rows_each: int

    def __call__(self, matrix: int, row: int) -> Floats:
        means: Floats = self.means[matrix if self.rows_each == 0 else row // self.rows_each]
        return means

    def boundary(self, matrix: int, start: int, stop: int) -> int:
        """Where rows of another importance begin, at most ``stop``."""
        if self.rows_each == 0:
            return stop
        return min(stop, (start // self.rows_each + 1) * self.rows_each)


@dataclass(frozen=True)
class Importance:
    """Sums over a corpus.

    Attributes:
        sums: By tensor name: Σ x², [matrices, columns].
        counts: By tensor name: inputs seen, [matrices].
        dataset: What it was measured on.
        chunks: How many sequences.
        model: Identity of the file it was measured on; empty when its maker did not say.
    """

    sums: Mapping[str, Doubles]
    counts: Mapping[str, Doubles]
    dataset: str = ""
    chunks: int = 0
    model: str = ""

    def of(self, name: str, shape: Sequence[int]) -> TensorImportance | None:
        """Mean squares for the tensor ``name``; None when it was not measured.

        A matrix that no input reached counts every column the same.

        Raises:
            InvalidArgumentError: it was measured on a tensor of another shape.
        """
        if name not in self.sums:
            return None
        sums, counts = self.sums[name], self.counts[name]
        matrices = int(np.prod(shape[2:], dtype=np.int64))
        groups = len(sums) if matrices == 1 and len(sums) > 1 else 0
        fits = shape[1] % groups == 0 if groups else len(sums) == matrices
        if sums.shape[1] != shape[0] or not fits:
            raise InvalidArgumentError(
                f"importance of {name!r} is {sums.shape[1]} columns of {len(sums)} matrices, "
                f"the tensor has shape {tuple(shape)}"
            )
        means = sums / np.maximum(counts, 1)[:, None]
        return TensorImportance(means.astype(np.float32), shape[1] // groups if groups else 0)


def write_importance(path: str | os.PathLike[str], importance: Importance) -> None:
    """Write the file; complete or not at all."""
    tensors = []
    for name, sums in importance.sums.items():
        f32 = GGMLQuantizationType.F32
        data, counts = sums.astype("<f4"), importance.counts[name].astype("<f4")
        tensors.append(Tensor(f"{name}.in_sum2", data.shape[::-1], f32, data))
        tensors.append(Tensor(f"{name}.counts", (1, len(counts)), f32, counts))
    entries = {
        "general.type": "imatrix",
        "imatrix.datasets": Typed.array(GGUFValueType.STRING, [importance.dataset]),
        "imatrix.chunk_count": Typed(GGUFValueType.UINT32, importance.chunks),
        "imatrix.chunk_size": Typed(GGUFValueType.UINT32, 512),
        "pyds4.imatrix.model": importance.model,
    }
    write_gguf(path, entries, tensors)


def read_importance(path: str | os.PathLike[str]) -> Importance:
    """Read what ``write_importance`` or llama.cpp wrote.

    Raises:
        ModelFileError: not such a file, or half of a pair is missing.
    """
    file = ModelFile(path)
    if file.get("general.type") != "imatrix":
        raise ModelFileError(f"{Path(path)}: not an importance matrix in GGUF form")
    source, sums, counts = TensorSource(file), {}, {}
    for name, tensor in source.tensors.items():
        values = decode(
            GGMLQuantizationType.F32,
            source.read(tensor, 0, tensor.byte_count),
            tensor.byte_count // 4,
        ).astype(np.float64)
        if name.endswith(".in_sum2"):
            sums[name.removesuffix(".in_sum2")] = values.reshape(-1, tensor.shape[0])
        elif name.endswith(".counts"):
            counts[name.removesuffix(".counts")] = values.reshape(-1)
    for name in sums.keys() ^ counts.keys():
        raise ModelFileError(f"{Path(path)}: {name!r} has sums or counts, not both")
    datasets = file.get("imatrix.datasets", [])
    chunks = file.get("imatrix.chunk_count", 0)
    return Importance(
        sums,
        counts,
        dataset=str(datasets[0]) if isinstance(datasets, list) and datasets else "",
        chunks=chunks if isinstance(chunks, int) else 0,
        model=str(file.get("pyds4.imatrix.model", "")),
    )


def recorded(engine: Engine, dataset: str = "", chunks: int = 0) -> Importance:
    """What ``engine`` has been recording since it was told to."""
    entry, sums, counts = ffi.new("pyds4_importance *"), {}, {}
    index = 0
    while index == 0 or index < entry.entry_count:
        check(lib.pyds4_engine_importance(engine.handle, index, entry))
        name, shape = text(entry.name), (entry.matrices, entry.columns)
        size = entry.matrices * entry.columns * 8
        sums[name] = np.frombuffer(ffi.buffer(entry.sums, size), np.float64).reshape(shape).copy()
        counted = ffi.buffer(entry.counts, entry.matrices * 8)
        counts[name] = np.frombuffer(counted, np.float64).copy()
        index += 1
    return Importance(sums, counts, dataset, chunks)


def collect(
    engine: Engine,
    documents: Sequence[Sequence[int]],
    path: Path,
    *,
    dataset: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Importance:
    """Run ``documents`` through the model and write what its matrices were fed to ``path``.

    Every ``SAVE_EVERY`` sequences the state is written; when ``path`` holds an unfinished or
    shorter collection of the same ``dataset`` and model file, it is gone on with.

    Raises:
        BackendError: the engine does not run on the CPU.
        InvalidArgumentError: ``path`` was measured on something else.
        ModelFileError: ``path`` is there and not an importance matrix.
    """
    model = _identity(engine)
    earlier = read_importance(path) if path.exists() else Importance({}, {}, dataset, 0, model)
    if earlier.model != model:
        raise InvalidArgumentError(
            f"{path} was measured on another model file than {engine.path}: choose another file"
        )
    if earlier.dataset != dataset:
        raise InvalidArgumentError(
            f"{path} was measured on {earlier.dataset!r}, not {dataset!r}: choose another file"
        )
    result, total = earlier, sum(len(document) for document in documents)
    done = sum(len(document) for document in documents[: earlier.chunks])
    check(lib.pyds4_engine_record_importance(engine.handle, 1))
    try:
        for index in range(earlier.chunks, len(documents)):
            with engine.session() as session:
                session.prefill(documents[index])
            done += len(documents[index])
            if progress is not None:
                progress(done, total)
            if (index + 1) % SAVE_EVERY == 0 or index + 1 == len(documents):
                fresh = recorded(engine, dataset, index + 1)
                result = replace(_sum(earlier, fresh), model=model)
                write_importance(path, result)
    finally:
        check(lib.pyds4_engine_record_importance(engine.handle, 0))
    return result


def _sum(a: Importance, b: Importance) -> Importance:
    """Both together; the number of sequences is that of ``b``, who counts on."""
    sums, counts = dict(a.sums), dict(a.counts)
    for name, values in b.sums.items():
        sums[name] = values + sums[name] if name in sums else values
        counts[name] = b.counts[name] + counts[name] if name in counts else b.counts[name]
    return Importance(sums, counts, b.dataset, b.chunks)


def _identity(engine: Engine) -> str:
    """SHA-256 of the model's files: two trainings of one model differ in nothing else."""
    digest = hashlib.sha256()
    for path in engine.file.paths:
        digest.update(file_sha256(Path(path)).encode())
    return digest.hexdigest()
