"""A small byte-level BPE vocabulary in the form that GGUF files carry."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product
from typing import NamedTuple

from ..errors import InvalidArgumentError

__all__ = ["LEARNED_SIZE", "Vocabulary", "byte_alphabet", "make_vocabulary"]

NORMAL, CONTROL = 1, 3
"""``tokenizer.ggml.token_type`` of text and of markers."""

SPECIALS = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "｜DSML｜",
]

LEARNED_SIZE = 512
"""Tokens that are learnt from the text below; a larger vocabulary goes on with letter pairs and
then with tokens that no text produces."""

_TEXT = (
    "the quick brown fox jumps over the lazy dog and then the other thing in that place " * 20
    + (
        "a model is a list of weights; a token is a small number; every layer mixes, attends, "
        "routes and adds. numbers: 0 1 2 3 10 16 128 256 512 1024; names: hidden inter heads "
        "window ratio seed config value index score compress sliding sparse heavily router expert "
        "shared gate up down norm rope yarn sink stream head layer block reference float logits "
        "prompt position margin selection dropped entries tensor shape bytes little endian"
    )
    * 3
)


class Vocabulary(NamedTuple):
    tokens: list[str]
    types: list[int]
    merges: list[str]


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte value in byte-level BPE."""
    keep = {*range(33, 127), *range(161, 173), *range(174, 256)}
    alphabet = []
    shifted = 256
    for byte in range(256):
        alphabet.append(chr(byte if byte in keep else shifted))
        shifted += byte not in keep
    return alphabet


def make_vocabulary(size: int) -> Vocabulary:
    """The first ``size`` tokens: markers, bytes, learnt merges, letter pairs, placeholders.

    Raises:
        InvalidArgumentError: ``size`` has no room for the markers and all bytes.
    """
    alphabet = byte_alphabet()
    tokens = SPECIALS + alphabet
    if size < len(tokens):
        raise InvalidArgumentError(f"a vocabulary needs {len(tokens)} tokens or more, not {size}")
    merges = _learn(tokens, alphabet, min(size, LEARNED_SIZE))
    known = set(tokens)
    letters = "abcdefghijklmnopqrstuvwxyz"
    # So that any text, and not only the one above, spreads over many ids.
    for left, right in product(letters + letters.upper() + alphabet[ord(" ")], letters):
        if len(tokens) < size and left + right not in known:
            merges.append(f"{left} {right}")
            tokens.append(left + right)
    tokens += [f"x{index}" for index in range(len(tokens), size)]
    types = [CONTROL] * len(SPECIALS) + [NORMAL] * (size - len(SPECIALS))
    return Vocabulary(tokens, types, merges)


def _learn(tokens: list[str], alphabet: list[str], size: int) -> list[str]:
    """Append to ``tokens`` what the most frequent pairs of ``_TEXT`` merge into; the merges."""
    words = Counter(tuple(alphabet[byte] for byte in f" {word}".encode()) for word in _TEXT.split())
    known = set(tokens)
    merges = []
    while len(tokens) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(f"{left} {right}")
        merged: Counter[tuple[str, ...]] = Counter()
        for word, count in words.items():
            merged[_merge(word, left, right)] += count
        words = merged
        if left + right not in known:
            known.add(left + right)
            tokens.append(left + right)
    return merges


def _merge(word: tuple[str, ...], left: str, right: str) -> tuple[str, ...]:
    result: list[str] = []
    for piece in word:
        if result and result[-1] == left and piece == right:
            result[-1] = left + right
        else:
            result.append(piece)
    return tuple(result)
