"""One answer of a model: prompt in, events out, and what it took."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pyds4.cli import options
from pyds4.cli.console import rate
from pyds4.cli.failure import UsageError
from pyds4.cli.relay import relay
from pyds4.errors import ContextFullError

if TYPE_CHECKING:
    from pyds4.chat import Event
    from pyds4.generation import Token
    from pyds4.sampling import Sampling
    from pyds4.session import Progress, Session

Profile = Literal["preview", "0731"]


@dataclass
class Answer:
    """Counts, times in seconds and the way it ended; complete once its stream is."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    output_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    finish_reason: str = "interrupted"

    @property
    def prefill_rate(self) -> float:
        """Tokens a second, those not reused."""
        return rate(self.prompt_tokens - self.reused_tokens, self.prefill_s)

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first, which comes with the prefill."""
        return rate(self.output_tokens - 1, self.decode_s)

    def summary(self) -> str:
        """One line for people."""
        reused = f", {self.reused_tokens} reused" if self.reused_tokens else ""
        parts = [
            f"prompt {self.prompt_tokens} tokens{reused}, {self.prefill_rate:.1f} tokens/s",
            f"answer {self.output_tokens} tokens, {self.decode_rate:.1f} tokens/s",
        ]
        if self.finish_reason != "stop":
            parts.append({"length": "cut at its limit"}.get(self.finish_reason, "interrupted"))
        return " · ".join(parts)


@dataclass(frozen=True)
class Style:
    """How answers are asked for."""

    thinking: bool = False
    effort: str | None = None
    profile: Profile = "preview"
    max_tokens: int | None = None

    @property
    def mode(self) -> Literal["thinking", "chat"]:
        return "thinking" if self.thinking else "chat"


def style(arguments: Any) -> Style:
    """What ``options.add_answering`` describes.

    Raises:
        UsageError: an effort that the checkpoint does not know.
    """
    from pyds4.chat import EFFORTS

    profile = options.profile(arguments)
    if arguments.effort not in (efforts := EFFORTS[profile]):
        known = ", ".join(effort for effort in efforts if effort is not None)
        raise UsageError(f"--effort {arguments.effort}: --profile {profile} knows {known}")
    return Style(
        thinking=arguments.think or arguments.effort is not None,
        effort=arguments.effort,
        profile=profile,
        max_tokens=arguments.max_tokens,
    )


def stream_tokens(
    session: Session,
    prompt: Sequence[int],
    answer: Answer,
    *,
    sampling: Sampling,
    max_tokens: int | None = None,
    stop_ids: Collection[int] | None = None,
    progress: Progress | None = None,
) -> Generator[Token, None, None]:
    """Continue ``prompt`` in ``session``, counting into ``answer``.

    Raises:
        ContextFullError: the prompt does not fit, or leaves no room for an answer.
    """
    from pyds4.generation import generate

    room = session.context_size - len(prompt)
    if room < 1:
        raise ContextFullError(
            f"the prompt has {len(prompt)} tokens; the context of {session.context_size} has no "
            "room for an answer"
        )
    limit = room if max_tokens is None else min(room, max_tokens)
    answer.prompt_tokens = len(prompt)
    answer.reused_tokens = session.rewind(prompt)
    started = time.perf_counter()

    def work() -> Iterator[Token]:
        return generate(
            session,
            prompt,
            sampling=sampling,
            max_tokens=max_tokens,
            stop_ids=stop_ids,
            progress=progress,
        )

    with closing(relay(session, work)) as tokens:
        for token in tokens:
            now = time.perf_counter()
            if answer.output_tokens == 0:
                answer.prefill_s = now - started
            if token.id >= 0:
                answer.output_tokens += 1
                answer.decode_s = now - started - answer.prefill_s
            yield token
    if answer.output_tokens == 0:
        answer.prefill_s = time.perf_counter() - started
    answer.finish_reason = "length" if answer.output_tokens >= limit else "stop"


def stream_events(
    session: Session,
    messages: Sequence[dict[str, Any]],
    answer: Answer,
    *,
    style: Style,
    sampling: Sampling,
    progress: Progress | None = None,
) -> Generator[Event, None, None]:
    """Answer ``messages``; reasoning and content as they come.

    Raises:
        RenderError: the template has no form for a message or an option.
        ContextFullError: the prompt does not fit.
    """
    from pyds4.chat import StreamParser, render

    prompt = render(
        messages,
        thinking_mode=style.mode,
        reasoning_effort=style.effort,
        profile=style.profile,
    ).token_ids(session.engine.tokenizer)
    parser = StreamParser(style.mode)
    stream = stream_tokens(
        session, prompt, answer, sampling=sampling, max_tokens=style.max_tokens, progress=progress
    )
    with closing(stream) as tokens:
        for token in tokens:
            yield from parser.feed(token.text)
    yield from parser.finish()
