"""Bodies of the endpoints that are our own, spelled as vLLM's and llama.cpp's clients know them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from pyds4.kv import PrefixStats, StoreStats
from pyds4_server.openai.protocol import ChatRequest


class Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class TokenizeRequest(Request):
    """Text under ``content`` or ``prompt``; ``messages`` are tokenized as a chat's prompt."""

    model: str = ""
    content: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special: bool = False
    add_special_tokens: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(Request):
    model: str = ""
    tokens: list[int]


class TemplateRequest(ChatRequest):
    model: str = ""


class Piece(BaseModel):
    id: int
    piece: str


class Tokens(BaseModel):
    tokens: list[int] | list[Piece]
    count: int
    max_model_len: int


class Text(BaseModel):
    content: str
    prompt: str


class RenderedPrompt(BaseModel):
    prompt: str


class Health(BaseModel):
    status: str
    model: str
    active: int
    waiting: int


class KeptEntry(BaseModel):
    """A place on disk that a conversation can go on from; see `pyds4.kv.Entry`."""

    object: str
    key: str
    identity: str
    position: int
    byte_count: int
    chain_bytes: int
    made_s: int
    used_s: int
    pinned: bool
    anchor: bool
    ends_with: str


class KeptPrefixes(BaseModel):
    """``disk`` and ``directory`` are null when nothing is kept on disk."""

    object: str
    data: list[KeptEntry]
    directory: str | None
    disk: StoreStats | None
    memory: PrefixStats | None


class PinRequest(Request):
    pinned: bool = True


class Pinned(BaseModel):
    key: str
    pinned: bool


class Freed(BaseModel):
    freed_bytes: int


class WarmRequest(Request):
    """A conversation in the form of a chat completion's request, or plain text."""

    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None


class Warmed(BaseModel):
    """``kept`` tokens of ``tokens`` are on disk and pinned under ``key``."""

    tokens: int
    evaluated: int
    kept: int
    key: str | None
