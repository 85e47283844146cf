"""An engine that has its answers prepared.

It replays completions through the real scheduler, parser and protocol code. Like the real one it
keeps sessions, forks and rewinds them, fails when a context is full, and takes its time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from chat_vectors import tiny_vocabulary
from pyds4_server.engine_api import Logits

from pyds4.engine import StepItem, StepResult
from pyds4.errors import ContextFullError, PyDS4Error
from pyds4.kv import Resume
from pyds4.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_vocabulary(tiny_vocabulary())

Completion = str | Sequence[int]


@dataclass(frozen=True)
class FakeConfig:
    vocab_size: int
    context_length: int
    name: str = "fake"


class FakeSession:
    """A timeline with an answer prepared for the prompt it holds."""

    def __init__(self, engine: FakeEngine, context: int) -> None:
        self.engine = engine
        self.context = context
        self.tokens: list[int] = []
        self.plan: list[int] | None = None
        self.cursor = 0
        self.is_closed = False
        self.resume = Resume(0, 0, "nothing", None, 0)
        engine.open_sessions += 1

    @property
    def position(self) -> int:
        return len(self.tokens)

    @property
    def logits(self) -> Logits:
        scores = np.zeros(self.engine.config.vocab_size, np.float32)
        scores[self.next_token()] = 20.0
        if self.engine.has_no_numbers:
            scores[:] = np.nan
        return scores

    def next_token(self) -> int:
        """What the prepared answer has here; EOS behind its end."""
        if self.plan is None:
            self.plan, self.cursor = self.engine.plan_for(self.tokens), 0
        eos = self.engine.tokenizer.eos_id
        assert eos is not None
        return self.plan[self.cursor] if self.cursor < len(self.plan) else eos

    def feed(self, tokens: Sequence[int]) -> None:
        """Take tokens in. One that is not the prepared one was forced and moves nothing."""
        for token in tokens:
            if self.plan is not None and self.cursor < len(self.plan):
                self.cursor += token == self.plan[self.cursor]
            self.tokens.append(token)

    def rewind(self, tokens: Sequence[int], *, whole: bool = False) -> int:
        kept = 0
        for mine, theirs in zip(self.tokens, tokens[: len(tokens) - 1], strict=False):
            if mine != theirs:
                break
            kept += 1
        known = kept == len(self.tokens)
        self.resume = Resume(
            reused=kept,
            known=kept,
            source="session" if kept else "nothing",
            expected=None if known else self.tokens[kept],
            bytes_read=0,
        )
        self.tokens = self.tokens[:kept]
        self.plan = None
        return kept

    def save(self) -> None:
        assert not self.is_closed

    def fork(self) -> FakeSession:
        twin = FakeSession(self.engine, self.context)
        twin.tokens = list(self.tokens)
        twin.plan = None if self.plan is None else list(self.plan)
        twin.cursor = self.cursor
        return twin

    def close(self) -> None:
        assert not self.is_closed, "closed twice"
        self.is_closed = True
        self.engine.open_sessions -= 1


class FakeEngine:
    """Answers prompts with ``completions``, one after the other and then the last one again.

    Args:
        completions: Texts in which markers are markers; EOS is added. Or a function from the
            prompt's text to one.
        step_s: How long a step takes, the GIL released.
        context: Context length.
    """

    def __init__(
        self,
        completions: Sequence[Completion] | Callable[[str], Completion] = ("Hello!",),
        *,
        step_s: float = 0.0,
        context: int = 4096,
    ) -> None:
        self.tokenizer = TOKENIZER
        self.config = FakeConfig(TOKENIZER.vocab_size, context)
        self.path = "/models/fake-v4.gguf"
        self.profile: str | None = None
        self.completions = completions
        self.step_s = step_s
        self.prompts: list[str] = []
        self.open_sessions = 0
        self.steps: list[list[int]] = []
        self.evaluated = 0
        self.fail_step: Exception | None = None
        self.fail_item: PyDS4Error | None = None
        self.has_no_numbers = False
        self.gate = threading.Event()
        self.gate.set()
        self.is_in_step = False
        """A step waits for the gate."""
        self._thread: int | None = None

    def session(self, context: int | None = None) -> FakeSession:
        return FakeSession(self, context or self.config.context_length)

    def plan_for(self, prompt: Sequence[int]) -> list[int]:
        """The answer prepared for a prompt."""
        self.prompts.append(self.tokenizer.decode(prompt))
        if callable(self.completions):
            completion = self.completions(self.prompts[-1])
        else:
            completion = self.completions[min(len(self.prompts), len(self.completions)) - 1]
        if isinstance(completion, str):
            return self.tokenizer.encode(completion)
        return list(completion)

    def step(self, items: Sequence[StepItem]) -> list[StepResult]:
        """One step; only ever from one thread."""
        thread = threading.get_ident()
        assert self._thread in (None, thread), "two threads step the engine"
        self._thread = thread
        self.is_in_step = True
        self.gate.wait()
        self.is_in_step = False
        if self.step_s:
            time.sleep(self.step_s)
        if self.fail_step is not None:
            error, self.fail_step = self.fail_step, None
            raise error
        self.steps.append([len(item.tokens) for item in items])
        assert len({id(item.session) for item in items}) == len(items), "a session twice in a step"
        return [self._take(item) for item in items]

    def _take(self, item: StepItem) -> StepResult:
        session: Any = item.session
        assert not session.is_closed
        assert item.tokens
        if self.fail_item is not None:
            error, self.fail_item = self.fail_item, None
            return StepResult(error=error)
        if session.position + len(item.tokens) > session.context:
            return StepResult(error=ContextFullError("the context is full"))
        session.feed(item.tokens)
        self.evaluated += len(item.tokens)
        return StepResult(token=session.next_token() if item.sampling is not None else None)
