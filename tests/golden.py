"""Logits of another implementation for the models of `pyds4.synth.fixtures`; see vectors/logits."""

from __future__ import annotations

import io
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "vectors" / "logits"
LENGTHS = (1, 5, 17, 130, 300, 700)
COLUMNS = slice(0, None, 2)
"""Every second token of the vocabulary is kept; the best of all is kept beside them."""


@dataclass(frozen=True)
class Prompt:
    """One prompt and what the other implementation says after each of its tokens.

    Attributes:
        tokens: [n] ids.
        logits: [n, kept columns].
        best: [n] ids of the highest logit of the whole vocabulary.
        margin: [n] relative distance of the nearest choice (indexer's rows, router's experts) to
            another outcome, at this position or before it. Infinite where nothing is chosen.
    """

    tokens: NDArray[np.int32]
    logits: NDArray[np.float64]
    best: NDArray[np.int64]
    margin: NDArray[np.float32]


@cache
def prompts(name: str) -> dict[int, Prompt]:
    """The prompts of one vector file by their length."""
    with np.load(io.BytesIO(lzma.decompress((FOLDER / f"{name}.npz.xz").read_bytes()))) as file:
        arrays = {key: file[key] for key in file.files}
    lengths = sorted(int(key[1:].split("_")[0]) for key in arrays if key.endswith("_tokens"))
    return {n: _unpack(arrays, n) for n in lengths}


def pack(
    original: Mapping[str, NDArray[np.generic]], tokens: NDArray[np.int32], n: int, bits: int
) -> dict[str, NDArray[np.generic]]:
    """What is kept of one prompt: every second logit in steps of 2^-bits, by planes of bytes."""
    logits = original[f"n{n}_logits"].astype(np.float64)
    steps = np.rint(logits[:, COLUMNS] * 2.0**bits).astype("<i4")
    margins = [original[key] for key in (f"n{n}_marg_idx", f"n{n}_marg_rtr") if key in original]
    margin = np.minimum.reduce([np.full(n, np.inf), *margins])
    return {
        f"n{n}_tokens": tokens.astype(np.int32),
        f"n{n}_planes": steps[..., None].view(np.uint8).transpose(2, 0, 1),
        f"n{n}_bits": np.array(bits),
        f"n{n}_best": logits.argmax(axis=1),
        f"n{n}_margin": np.minimum.accumulate(margin).astype(np.float32),
    }  # fmt: skip


def _unpack(arrays: Mapping[str, NDArray[np.generic]], n: int) -> Prompt:
    planes = np.ascontiguousarray(arrays[f"n{n}_planes"].transpose(1, 2, 0))
    steps = planes.view("<i4")[..., 0]
    return Prompt(
        tokens=arrays[f"n{n}_tokens"].astype(np.int32),
        logits=steps * 2.0 ** -int(arrays[f"n{n}_bits"]),
        best=arrays[f"n{n}_best"].astype(np.int64),
        margin=arrays[f"n{n}_margin"].astype(np.float32),
    )


def errors(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> NDArray[np.float64]:
    """Relative L2 distance of each row."""
    difference = np.asarray(found, np.float64) - wanted
    distance: NDArray[np.float64] = np.linalg.norm(difference, axis=-1)
    size: NDArray[np.float64] = np.linalg.norm(wanted, axis=-1)
    return distance / size


def error(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    """Relative L2 distance of a whole prompt."""
    difference = np.asarray(found, np.float64) - wanted
    return float(np.linalg.norm(difference) / np.linalg.norm(wanted))
