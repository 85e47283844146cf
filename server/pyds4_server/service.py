"""What every endpoint shares: the engine's names and limits, and the way into the scheduler."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

from pyds4.tokenizer import Tokenizer
from pyds4_server.conversation import Conversation, Rendered, render_conversation
from pyds4_server.engine_api import EngineLike
from pyds4_server.errors import InvalidRequestError, PromptTooLongError, UnknownModelError
from pyds4_server.generation import Identity
from pyds4_server.kept import Kept
from pyds4_server.memory import TurnMemory
from pyds4_server.scheduler import Scheduler
from pyds4_server.settings import Settings


class NamesModel(Protocol):
    """A request that may name a model."""

    model: str

    def model_copy(self, *, update: dict[str, Any]) -> Any: ...


Named = TypeVar("Named", bound=NamesModel)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A rendered and tokenized conversation."""

    ids: list[int]
    rendered: Rendered


class Service:
    """One engine as the endpoints see it. All methods belong to the event loop's thread.

    Args:
        settings: Every knob.
        engine: The opened model.
    """

    def __init__(self, settings: Settings, engine: EngineLike) -> None:
        self.settings = settings
        self.engine = engine
        self.tokenizer: Tokenizer = engine.tokenizer
        self.kept = Kept(settings, engine)
        self.scheduler = Scheduler(engine, settings, self.kept)
        self.context_tokens = self.scheduler.context_tokens
        self.memory = TurnMemory(engine.tokenizer, self.kept)
        self.model_id = settings.model_name or _file_stem(engine) or "deepseek-v4"
        bound = getattr(engine, "profile", None)
        self.profile: Literal["preview", "0731"] = settings.effort_profile or bound or "preview"
        self.started_s = int(time.time())

    def start(self) -> None:
        """Serve requests from now on, on the running loop."""
        self.scheduler.start(asyncio.get_running_loop())

    async def stop(self) -> None:
        """End what runs, save what was evaluated, let go of the files."""
        await self.scheduler.stop(self.settings.shutdown_grace_s)
        await asyncio.to_thread(self.kept.close)

    def named(self, sent: Named) -> Named:
        """``sent`` with a model's name: who names none means the one there is.

        Raises:
            UnknownModelError: a name of another model, and ``strict_model`` is set.
        """
        if not sent.model:
            return cast(Named, sent.model_copy(update={"model": self.model_id}))
        known = (self.model_id, *self.settings.model_aliases)
        if self.settings.strict_model and sent.model not in known:
            raise UnknownModelError(
                f"The model {sent.model!r} does not exist; this server has {', '.join(known)}.",
                param="model",
            )
        return sent

    async def prepare(self, conversation: Conversation) -> Prepared:
        """Render and tokenize off the event loop: a long prompt takes a while.

        Raises:
            InvalidRequestError: the conversation cannot be rendered.
        """
        return await asyncio.to_thread(self._prepare, conversation)

    def _prepare(self, conversation: Conversation) -> Prepared:
        settings = self.settings
        rendered = render_conversation(
            self.memory.with_reasoning(conversation),
            default_thinking=settings.default_thinking,
            profile=self.profile,
        )
        ids, _ = self.kept.timelines.ids(rendered.prompt)
        return Prepared(self.memory.replay(ids, rendered), rendered)

    def checked_ids(self, ids: Sequence[int], param: str) -> list[int]:
        """Token ids from a client.

        Raises:
            InvalidRequestError: one of them is outside the vocabulary.
        """
        size = self.engine.config.vocab_size
        for index, token in enumerate(ids):
            if not 0 <= token < size:
                raise InvalidRequestError(
                    f"{param}[{index}]: token id {token} is outside the vocabulary of {size}",
                    param=param,
                )
        return list(ids)

    def token_budget(self, prompt_tokens: int, max_tokens: int | None) -> int:
        """How many tokens an answer may have: what was asked, within what the context holds.

        Raises:
            PromptTooLongError: the prompt leaves no room for one token.
        """
        room = self.context_tokens - prompt_tokens
        if room < 1:
            raise PromptTooLongError(prompt_tokens, self.context_tokens)
        wanted = max_tokens or self.settings.default_max_tokens or room
        return min(wanted, room)


def identity_of(
    path: str, headers: Mapping[str, str], body: bytes, *, deterministic: bool
) -> Identity:
    """What makes two requests one.

    A client that gave up and sends the same again says so (the SDKs count retries in a header); it
    joins the answer under way, or gets the one that was finished meanwhile. Two equal requests
    that both want a fresh sample are two.
    """
    token = headers.get("idempotency-key")
    is_retry = headers.get("x-stainless-retry-count", "0") != "0"
    digest = hashlib.sha256(path.encode())
    digest.update((headers.get("authorization") or headers.get("x-api-key") or "").encode())
    digest.update(b"\0" + (token or "").encode() + b"\0")
    digest.update(body)
    asks_again = bool(token) or is_retry
    return Identity(digest.hexdigest(), asks_again or deterministic, asks_again)


def _file_stem(engine: Any) -> str | None:
    """The model's name from its file, without the part number of a split file."""
    path = getattr(engine, "path", None)
    if not path:
        return None
    return Path(str(path)).stem.split("-00001-of-")[0]
