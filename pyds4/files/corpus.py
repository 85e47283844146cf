"""Texts to measure a model on: plain text, or conversations in the model's own prompt format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from ..errors import InvalidArgumentError
from ..tokenizer import Tokenizer

__all__ = ["read_corpus"]


def read_corpus(
    path: Path,
    tokenizer: Tokenizer,
    *,
    chunk: int = 512,
    profile: Literal["preview", "0731"] = "preview",
) -> list[list[int]]:
    """Token sequences of at most ``chunk`` tokens, at least two each.

    A ``.jsonl`` file holds one object a line: ``{"messages": […]}`` (rendered with the chat
    template; a ``thinking_mode`` beside it is used) or ``{"text": "…"}``. Anything else is UTF-8
    text.

    Raises:
        InvalidArgumentError: a line is not such an object (named), or nothing is long enough.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path}: not UTF-8 text: {error}") from None
    documents = _conversations(path, text, tokenizer, profile) if path.suffix == ".jsonl" else []
    if path.suffix != ".jsonl":
        # What looks like a marker in plain text is text.
        documents = [tokenizer.encode(text, special=False)]
    pieces = [
        document[start : start + chunk]
        for document in documents
        for start in range(0, len(document), chunk)
    ]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise InvalidArgumentError(f"{path}: no text of two tokens or more")
    return pieces


def _conversations(
    path: Path, text: str, tokenizer: Tokenizer, profile: Literal["preview", "0731"]
) -> list[list[int]]:
    from ..chat import render

    documents = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if "messages" in entry:
                mode = entry.get("thinking_mode", "chat")
                prompt = render(entry["messages"], thinking_mode=mode, profile=profile)
                documents.append(prompt.token_ids(tokenizer))
            else:
                documents.append(tokenizer.encode(entry["text"], special=False))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(f"{path}, line {number}: {error!r}") from None
    return documents
