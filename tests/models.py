"""Small models for the tests, written on demand and kept for the session."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize
from numpy.typing import NDArray

import pyds4
from pyds4.engine import Engine, StepItem
from pyds4.session import Session
from pyds4.synth import (
    Dimensions,
    Tensor,
    TensorTypes,
    dimensions,
    synthesize,
    synthetic_tensors,
    write_gguf,
)
from pyds4.synth.fixtures import FIXTURES, fixture_weights, write_fixture
from pyds4.synth.model import metadata

DEMO = Path(__file__).parent.parent / "models" / "pyds4-demo-q4_k.gguf"
F32 = TensorTypes.uniform(Type.F32)
MIX = TensorTypes()
"""Types of the published 2-bit files: F16, Q8_0, IQ2_XXS and Q2_K."""

TINY = dimensions("tiny")
SMOOTH = dimensions("tiny", hash_layers=4, index_top_k=1024)
"""No discrete choice depends on activations, so rounding errors stay small and continuous."""

SMALL = dimensions("tiny", hidden=64, inter=64, q_lora=64, o_lora=64, index_heads=2)
"""Of every kind one, and quick to write."""

QUANTISED = frozenset({Type.Q8_0, Type.Q4_0, Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K,
                       Type.IQ2_XXS, Type.MXFP4})  # fmt: skip


@cache
def folder() -> Path:
    """Removed when the process ends."""
    path = Path(tempfile.mkdtemp(prefix="pyds4-tests-"))
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(path, True) if os.getpid() == owner else None)
    return path


@cache
def fixture_path(name: str) -> Path:
    """The model behind the golden logits ``name``; "a_hca16" is "a" with 16 in place of 128."""
    path = folder() / f"{name}.gguf"
    if name == "a_hca16":
        shorter = hca16()
        write_gguf(path, hca16_metadata(), tensors_of(shorter))
    else:
        write_fixture(path, name)
    return path


def hca16() -> dict[str, NDArray[Any]]:
    """Weights of "a" where the ratio 128 becomes 16: the same but for shorter position biases."""
    ratios = FIXTURES["a"][0].ratios
    long = {f"blk.{i}.attn_compressor_ape.weight" for i, r in enumerate(ratios) if r == 128}
    return {name: w[:16] if name in long else w for name, w in fixture_weights("a").items()}


def hca16_metadata() -> dict[str, Any]:
    entries = metadata(FIXTURES["a"][0], "tiny deepseek4 a_hca16", 0)
    key = "deepseek4.attention.compress_ratios"
    entries[key] = [16 if ratio == 128 else ratio for ratio in entries[key]]
    return entries


def tensors_of(weights: Mapping[str, NDArray[Any]]) -> list[Tensor]:
    """Weights as tensors of a file: I32 tables, everything else F32."""
    return [
        Tensor(name, w.shape[::-1], Type.I32 if w.dtype == np.int32 else Type.F32, w)
        for name, w in weights.items()
    ]


@cache
def synthetic_path(dims: Dimensions = TINY, types: TensorTypes = F32, seed: int = 0) -> Path:
    path = folder() / f"synthetic-{abs(hash((dims, types, seed))):x}.gguf"
    synthesize(path, dims, types, seed=seed)
    return path


def weights_of(path: Path) -> tuple[dict[str, NDArray[Any]], frozenset[str]]:
    """All weights of a file as numbers, and the names of the quantised ones."""
    tensors = gguf.GGUFReader(path).tensors
    return {
        tensor.name: np.array(tensor.data)
        if tensor.tensor_type in (Type.I32, Type.F32)
        else dequantize(tensor.data, tensor.tensor_type)
        for tensor in tensors
    }, frozenset(tensor.name for tensor in tensors if tensor.tensor_type in QUANTISED)


def altered(
    name: str,
    *,
    entries: Mapping[str, Any] | None = None,
    drop: Sequence[str] = (),
    replace: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Path:
    """The small model with entries changed (None removes one), tensors dropped or replaced."""
    made = metadata(SMALL, "altered", 0) | dict(entries or {})
    kept = {key: value for key, value in made.items() if value is not None and key not in drop}
    tensors = [replace(t) for t in synthetic_tensors(SMALL, F32) if t.name not in drop]
    path = folder() / f"{name}.gguf"
    write_gguf(path, kept, tensors)
    return path


@cache
def engine(path: Path, roundings: bool = True, threads: int | None = None) -> Engine:
    """An engine that lives as long as the test run; nobody closes it."""
    return pyds4.Engine(path, roundings=roundings, threads=threads)


def evaluate(session: Session, tokens: Sequence[int] | NDArray[np.int32]) -> NDArray[np.float32]:
    """The logits after each of ``tokens``, which go behind what the session holds."""
    result = session.engine.step([StepItem(session, list(map(int, tokens)), all_logits=True)])[0]
    if result.error is not None:
        raise result.error
    assert result.logits is not None
    return result.logits


def cold(engine: Engine, tokens: Sequence[int] | NDArray[np.int32]) -> NDArray[np.float32]:
    """The logits after each token of a fresh session."""
    with engine.session() as session:
        return evaluate(session, tokens)


def in_chunks(
    engine: Engine, tokens: NDArray[np.int32], sizes: Sequence[int]
) -> NDArray[np.float32]:
    """The logits of a fresh session fed ``sizes`` tokens at a time; the last size repeats."""
    parts, at, turn = [], 0, 0
    with engine.session() as session:
        while at < len(tokens):
            size = sizes[min(turn, len(sizes) - 1)]
            parts.append(evaluate(session, tokens[at : at + size]))
            at, turn = at + size, turn + 1
    return np.concatenate(parts)


def random_tokens(count: int, seed: int = 0, vocabulary: int = TINY.vocab) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(8, vocabulary, count).tolist()
    return found
