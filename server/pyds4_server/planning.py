"""What goes into the next step of the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from pyds4 import Sampler, Sampling, StepItem
from pyds4_server.engine_api import SessionLike
from pyds4_server.events import Lookup
from pyds4_server.generation import Generation
from pyds4_server.jobs import Job
from pyds4_server.sessions import PooledSession
from pyds4_server.settings import Settings

_GREEDY = Sampler(Sampling(temperature=0.0))


class Answering:
    """One answer being made: its generation, its session, and how far its prompt is.

    ``session`` is None for the second and later answers to a prompt that is still evaluated.
    ``anchor`` is where the part of the prompt ends that other conversations begin with too.
    """

    __slots__ = (
        "anchor",
        "cached",
        "choice",
        "done",
        "first_token_s",
        "generation",
        "job",
        "lookup",
        "pending",
        "prompt",
        "sampler",
        "session",
        "started_s",
    )

    def __init__(self, job: Job, choice: int, generation: Generation, sampler: Sampler) -> None:
        self.job = job
        self.choice = choice
        self.generation = generation
        self.prompt = job.request.prompt
        self.session: PooledSession | None = None
        self.done = 0
        self.cached = 0
        self.lookup = Lookup()
        self.anchor = 0
        self.pending: int | None = None
        self.sampler = sampler
        self.started_s = time.monotonic()
        self.first_token_s = 0.0

    def engine_sampler(self) -> Sampler | None:
        """What the engine is to draw the next token with; None to read the logits instead."""
        generation = self.generation
        if not generation.engine_may_sample:
            return None
        return _GREEDY if generation.wants_greedy else self.sampler


class Work(NamedTuple):
    """One item of a step: ``prompt_tokens`` is 0 for a decode."""

    sequence: Answering
    item: StepItem
    prompt_tokens: int


def plan(active: Sequence[Answering], settings: Settings) -> list[Work]:
    """The items of the next step: every decoder, and prompts within the step's share."""
    work: list[Work] = []
    prefilling: list[Answering] = []
    for sequence in active:
        if sequence.session is None:
            continue
        if sequence.pending is None:
            prefilling.append(sequence)
            continue
        item = _item(sequence.session.session, [sequence.pending], sequence.engine_sampler())
        work.append(Work(sequence, item, 0))
    budget = settings.prefill_chunk_tokens if work else settings.prefill_idle_chunk_tokens
    remaining = [len(sequence.prompt) - sequence.done for sequence in prefilling]
    for sequence, count in zip(prefilling, share(remaining, budget), strict=True):
        if not count or sequence.session is None:
            continue
        count = piece(sequence.done, count, len(sequence.prompt))
        if sequence.done < sequence.anchor:
            count = min(count, sequence.anchor - sequence.done)
        end = sequence.done + count
        is_last = end == len(sequence.prompt)
        single = sequence.job.request.n == 1
        sampler = sequence.engine_sampler() if is_last and single else None
        tokens = list(sequence.prompt[sequence.done : end])
        item = _item(sequence.session.session, tokens, sampler)
        work.append(Work(sequence, item, count))
    return work


def _item(session: SessionLike, tokens: list[int], sampler: Sampler | None) -> StepItem:
    return StepItem(cast(Any, session), tokens, sampler)


def piece(done: int, granted: int, total: int) -> int:
    """How many of the ``granted`` tokens to evaluate in one item.

    The engine can go back to where an item of several tokens ended. The last token of a prompt
    goes alone, so that it can go back to just before it: there a conversation parts when the same
    prompt is sent again, when thinking is switched, and when reasoning is left out of a later
    prompt. Items before end on multiples of 128, where the engine's own chunks end too.
    """
    end = done + granted
    if end == total:
        return granted - 1 if granted > 1 else granted
    aligned = end - end % 128
    return aligned - done if aligned > done else granted


def share(remaining: Sequence[int], budget: int) -> list[int]:
    """Divide ``budget`` prompt tokens among sequences, the oldest first in the list.

    The oldest always gets half, so nobody starves; the other half goes to whoever is done soonest,
    so that a title request does not wait behind a repository.
    """
    grants = [0] * len(remaining)
    if not remaining:
        return grants
    grants[0] = min(remaining[0], budget - budget // 2)
    left = budget - grants[0]
    for index in sorted(range(1, len(remaining)), key=remaining.__getitem__):
        grants[index] = min(remaining[index], left)
        left -= grants[index]
    grants[0] += min(remaining[0] - grants[0], left)
    return grants
