"""Tokens one after another, as an iterator."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass

from pyds4.engine import Engine, StepItem
from pyds4.sampling import Sampler, Sampling
from pyds4.session import Progress, Session


@dataclass(frozen=True)
class Token:
    """One generated token: its id, and the text that it completes (often a part of a word)."""

    id: int
    text: str


def generate(
    target: Engine | Session,
    prompt: str | Sequence[int],
    *,
    sampling: Sampling | None = None,
    max_tokens: int | None = None,
    stop_ids: Collection[int] | None = None,
    progress: Progress | None = None,
) -> Generator[Token, None, None]:
    """Continue ``prompt`` token by token.

    Args:
        target: A session, whose prefix is reused and which then holds prompt and continuation; or
            an engine, for a session that lives as long as the iterator.
        prompt: Token ids, or text that is encoded with role markers recognised.
        sampling: How tokens are chosen; None: `Sampling()`.
        max_tokens: At most this many; None: until a stop id or a full context.
        stop_ids: Ids that end the text and are not returned; None: the end-of-sentence id.
        progress: See `Session.prefill`.

    Yields:
        Each token as soon as it is chosen. An incomplete character waits for its rest; what is
        still incomplete at the end comes as U+FFFD in a last `Token` with id -1.

    Raises:
        What `Session.prefill` raises, at the first ``next()``.
    """
    engine = target if isinstance(target, Engine) else target.engine
    session = target.session() if isinstance(target, Engine) else target
    tokenizer = engine.tokenizer
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    if stop_ids is None:
        stop_ids = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    stops = frozenset(stop_ids)
    try:
        yield from _tokens(
            session, ids, Sampler(sampling or Sampling()), max_tokens, stops, progress
        )
    finally:
        if session is not target:
            session.close()


def _tokens(
    session: Session,
    ids: list[int],
    sampler: Sampler,
    max_tokens: int | None,
    stops: frozenset[int],
    progress: Progress | None,
) -> Generator[Token, None, None]:
    engine = session.engine
    session.prefill(ids, progress)
    decoder = engine.tokenizer.decoder()
    room = session.context_size - session.position
    left = room if max_tokens is None else min(max_tokens, room)
    token = sampler.choose(session.logits) if left > 0 else None
    while token is not None and token not in stops:
        yield Token(token, decoder.feed(token))
        left -= 1
        if left <= 0:
            break
        result = engine.step([StepItem(session, [token], sampler)])[0]
        if result.error is not None:
            raise result.error
        token = result.token
    rest = decoder.finish()
    if rest:
        yield Token(-1, rest)
