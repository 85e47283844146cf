"""A checkpoint's ``tokenizer.json`` as the metadata of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf.constants import GGUFValueType

from ..errors import ModelFileError
from ..synth.writer import Typed

__all__ = ["tokenizer_metadata"]

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def tokenizer_metadata(directory: Path, vocab_size: int, config: dict[str, Any]) -> dict[str, Any]:
    """``tokenizer.ggml.*`` from ``tokenizer.json`` (and ``tokenizer_config.json`` if there).

    Ids that the tokenizer does not use get placeholders, so that tokens and logits are as many.

    Raises:
        ModelFileError: missing, not byte-level BPE, or larger than the model's vocabulary.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelFileError(f"{path} is missing: a checkpoint needs its tokenizer")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        model = data["model"]
        tokens = {int(id): str(text) for text, id in model["vocab"].items()}
        types = dict.fromkeys(tokens, _NORMAL)
        for added in data.get("added_tokens", []):
            tokens[int(added["id"])] = added["content"]
            types[int(added["id"])] = _CONTROL if added["special"] else _USER_DEFINED
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        kind = model.get("type", "BPE")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: not a tokenizer: {error!r}") from None
    if kind != "BPE":
        raise ModelFileError(f"{path}: expected byte-level BPE, found {kind}")
    if tokens and max(tokens) >= vocab_size:
        raise ModelFileError(
            f"{path}: token {max(tokens)} is beyond the model's vocabulary of {vocab_size}"
        )
    special = _special_ids(directory, tokens, config)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "joyai-llm",
        "tokenizer.ggml.tokens": [tokens.get(id, f"[PAD{id}]") for id in range(vocab_size)],
        "tokenizer.ggml.token_type": [types.get(id, _UNUSED) for id in range(vocab_size)],
        "tokenizer.ggml.merges": Typed.array(GGUFValueType.STRING, merges),
        **special,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }


def _special_ids(directory: Path, tokens: dict[int, str], config: dict[str, Any]) -> dict[str, int]:
    ids = {text: id for id, text in tokens.items()}
    settings: dict[str, Any] = {}
    path = directory / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
    found = {}
    for name, key, usual in (
        ("bos", "bos_token_id", 0),
        ("eos", "eos_token_id", 1),
        ("pad", "padding_token_id", 2),
    ):
        named = settings.get(f"{name}_token")
        text = named.get("content") if isinstance(named, dict) else named
        id = ids.get(text) if isinstance(text, str) else None
        if id is None:
            given = config.get(f"{name}_token_id")
            id = given if isinstance(given, int) else usual
        found[f"tokenizer.ggml.{key}"] = id
    return found
