"""POST /v1/completions: text goes on, without the chat template."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sanic import Blueprint, HTTPResponse, Request

from pyds4.tokenizer import Tokenizer
from pyds4_server import sse
from pyds4_server.collect import Collector, add_usage, failure
from pyds4_server.errors import ApiError, InvalidRequestError
from pyds4_server.events import (
    Content,
    Event,
    Failed,
    Finished,
    Prefilled,
    TokenLogprob,
    Update,
)
from pyds4_server.events import Usage as Counted
from pyds4_server.generation import GenerationRequest
from pyds4_server.http import parse_body, reply_when_done, service_of
from pyds4_server.jobs import Subscription
from pyds4_server.openai import convert
from pyds4_server.openai import protocol as p
from pyds4_server.service import Service

blueprint = Blueprint("openai_completions")

DEFAULT_MAX_TOKENS = 16
"""What OpenAI's API does when a request does not say."""


@blueprint.post("/v1/completions")
async def completions(request: Request) -> HTTPResponse | None:
    """Continue one prompt or several, streaming or in one piece."""
    service = service_of(request)
    sent = parse_body(request, p.CompletionRequest)
    sent = service.named(sent)
    if sent.suffix:
        raise InvalidRequestError("suffix is not supported by this model", param="suffix")
    if sent.best_of is not None and sent.best_of != (sent.n or 1):
        raise InvalidRequestError("best_of is not supported beyond n", param="best_of")
    prompts = [
        _prompt(sent, ids, has_bos, service)
        for ids, has_bos in await asyncio.to_thread(_prompts, sent, service)
    ]
    generations = [_generation(sent, prompt, service) for prompt in prompts]
    head = (f"cmpl-{secrets.token_hex(12)}", int(time.time()), sent.model)
    if sent.stream:
        if len(generations) > 1:
            raise InvalidRequestError("a stream continues one prompt", param="prompt")
        subscription = service.scheduler.submit(generations[0])
        encoder = CompletionStream(head, sent, service.tokenizer, prompts[0])
        await sse.stream(request, subscription, encoder, keepalive_s=service.settings.keepalive_s)
        return None
    subscriptions = _submitted(generations, service)

    def build(collected: list[Collector]) -> p.Completion:
        choices = [
            p.CompletionChoice(
                index=0,
                text=prompt.shown + answer.content,
                logprobs=prompt.logprobs(answer.logprobs, service.tokenizer),
                finish_reason=convert.finish_reason(answer.finish.reason),
            )
            for prompt, collector in zip(prompts, collected, strict=True)
            for answer in collector.answers
        ]
        for index, choice in enumerate(choices):
            choice.index = index
        usages = [
            prompt.usage(collector.usage(), len(collector.answers))
            for prompt, collector in zip(prompts, collected, strict=True)
        ]
        total = Counted(
            prompt_tokens=sum(usage.prompt_tokens for usage in usages),
            cached_tokens=sum(usage.cached_tokens for usage in usages),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            reasoning_tokens=0,
        )
        return _frame(head, choices, convert.usage(total))

    return await reply_when_done(request, subscriptions, generations[0].n, build)


def _submitted(generations: Sequence[GenerationRequest], service: Service) -> list[Subscription]:
    """All of them under way at once, or none."""
    subscriptions: list[Subscription] = []
    try:
        for generation in generations:
            subscriptions.append(service.scheduler.submit(generation))
    except ApiError:
        for subscription in subscriptions:
            subscription.close()
        raise
    return subscriptions


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, and what of it is sent back.

    Attributes:
        ids: All of it.
        scored: The end of it that is taken like an answer, for its log-probabilities; or nothing.
        shown: What the answer's text begins with, besides what was scored.
        wants_logprobs: Whether log-probabilities are sent.
        unscored: The token in front of the scored ones, if it is shown.
    """

    ids: list[int]
    scored: list[int]
    shown: str
    wants_logprobs: bool
    unscored: int | None

    def usage(self, counted: Counted, n: int) -> Counted:
        """The token counts of ``n`` answers: what was scored is prompt."""
        return replace(
            counted,
            prompt_tokens=len(self.ids),
            completion_tokens=counted.completion_tokens - n * len(self.scored),
        )

    def logprobs(
        self, tokens: Sequence[TokenLogprob], tokenizer: Tokenizer
    ) -> p.CompletionLogprobs | None:
        """Those of a whole answer."""
        if not self.wants_logprobs:
            return None
        told = _logprobs(tokens, tokenizer, len(self.shown))
        if self.unscored is not None:
            told.tokens.insert(0, self.shown)
            told.token_logprobs.insert(0, None)
            told.top_logprobs.insert(0, None)
            told.text_offset.insert(0, 0)
        return told


def _prompt(sent: p.CompletionRequest, ids: list[int], has_bos: bool, service: Service) -> Prompt:
    """A prompt as the request wants it handled; ``has_bos`` if BOS is ours and not the client's."""
    wants_logprobs = sent.logprobs is not None
    is_scored = bool(sent.echo) and wants_logprobs and len(ids) > 1
    shown = ids[has_bos:] if sent.echo and not is_scored else ids[has_bos:1] if is_scored else []
    return Prompt(
        ids,
        ids[1:] if is_scored else [],
        service.tokenizer.decode(shown),
        wants_logprobs,
        ids[0] if is_scored and not has_bos else None,
    )


def _prompts(sent: p.CompletionRequest, service: Service) -> list[tuple[list[int], bool]]:
    """The prompts as ids, and whether BOS was added. Text is read literally, markers included.

    Raises:
        InvalidRequestError: no prompt, an empty one, or an id outside the vocabulary.
    """
    given = sent.prompt
    several: Sequence[str | list[int]]
    if isinstance(given, str):
        several = [given]
    elif given and isinstance(given[0], int):
        several = [[token for token in given if isinstance(token, int)]]
    else:
        several = [one for one in given if not isinstance(one, int)]
    if not 1 <= len(several) <= 64:
        raise InvalidRequestError("prompt: from 1 to 64 prompts", param="prompt")
    bos = service.tokenizer.bos_id
    prompts: list[tuple[list[int], bool]] = []
    for one in several:
        if isinstance(one, str):
            ids = service.tokenizer.encode(one)
            has_bos = bos is not None and ids[:1] != [bos]
            prompts.append(([bos, *ids] if bos is not None and has_bos else ids, has_bos))
        else:
            prompts.append((service.checked_ids(one, "prompt"), False))
    if not all(ids for ids, _ in prompts):
        raise InvalidRequestError("prompt: a prompt is empty", param="prompt")
    return prompts


def _generation(sent: p.CompletionRequest, prompt: Prompt, service: Service) -> GenerationRequest:
    n = sent.n or 1
    if n > service.settings.max_active:
        raise InvalidRequestError(f"n is at most {service.settings.max_active}", param="n")
    if sent.max_tokens == 0 and not prompt.scored:
        raise InvalidRequestError(
            "max_tokens must be at least 1, but for a prompt of several tokens with echo and "
            "logprobs",
            param="max_tokens",
        )
    wanted = DEFAULT_MAX_TOKENS if sent.max_tokens is None else sent.max_tokens
    # Without an answer the last token of the prompt needs no place.
    room = service.token_budget(len(prompt.ids) - (not wanted), wanted or 1)
    return GenerationRequest(
        prompt=prompt.ids[: len(prompt.ids) - len(prompt.scored)],
        scored=prompt.scored,
        max_tokens=len(prompt.scored) + (room if wanted else 0),
        chat=False,
        stop=convert.stop_strings(sent),
        sampling=convert.sampling(sent, service.engine.config.vocab_size),
        top_logprobs=sent.logprobs,
        n=n,
    )


def _logprobs(
    tokens: Sequence[TokenLogprob], tokenizer: Tokenizer, offset: int
) -> p.CompletionLogprobs:
    shown = p.CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for one in convert.logprobs(tokens, tokenizer).content:
        shown.tokens.append(one.token)
        shown.token_logprobs.append(one.logprob)
        shown.top_logprobs.append({top.token: top.logprob for top in one.top_logprobs} or None)
        shown.text_offset.append(offset)
        offset += len(one.token)
    return shown


def _frame(
    head: tuple[str, int, str], choices: list[p.CompletionChoice], usage: p.Usage | None = None
) -> p.Completion:
    identity, created, model = head
    frame = p.Completion(
        id=identity, object="text_completion", created=created, model=model, choices=choices
    )
    if usage is not None:
        frame.usage = usage
    return frame


class CompletionStream:
    """Encodes the updates of one streamed completion."""

    def __init__(
        self,
        head: tuple[str, int, str],
        sent: p.CompletionRequest,
        tokenizer: Tokenizer,
        prompt: Prompt,
    ) -> None:
        self._head = head
        self._sent = sent
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._offsets = [len(prompt.shown)] * (sent.n or 1)
        self._usages: list[Counted] = []
        self.is_complete = False

    def begin(self, progress: Prefilled | None) -> bytes:
        """The prompt, where it is wanted back."""
        prompt = self._prompt
        if not prompt.shown:
            return b""
        logprobs = prompt.logprobs((), self._tokenizer)
        return b"".join(
            self._chunk(choice, prompt.shown, logprobs, None) for choice in range(self._sent.n or 1)
        )

    def encode(self, updates: Sequence[Update]) -> bytes:
        """Chunks, and at the end ``[DONE]``."""
        return b"".join(self._event(update.choice, update.event) for update in updates)

    def keep_alive(self, progress: Prefilled | None) -> bytes:
        """A comment."""
        return sse.progress_comment(progress)

    def _event(self, choice: int, event: Event) -> bytes:
        if isinstance(event, Content):
            return self._chunk(choice, event.text, self._next(choice, event.logprobs), None)
        if isinstance(event, Finished):
            self._usages.append(event.usage)
            sent = self._chunk(choice, "", self._next(choice, ()), event)
            if len(self._usages) < (self._sent.n or 1):
                return sent
            self.is_complete = True
            options = self._sent.stream_options
            if options is not None and options.include_usage:
                counted = self._prompt.usage(add_usage(self._usages), len(self._usages))
                usage = _frame(self._head, [], convert.usage(counted))
                sent += sse.data(usage.model_dump_json(exclude_unset=True))
            return sent + sse.data("[DONE]")
        if isinstance(event, Failed):
            self.is_complete = True
            body = convert.error_body(failure(event))
            return sse.data(body.model_dump_json()) + sse.data("[DONE]")
        return b""

    def _next(self, choice: int, tokens: Sequence[TokenLogprob]) -> p.CompletionLogprobs | None:
        """The log-probabilities of the next piece of a choice."""
        if not self._prompt.wants_logprobs:
            return None
        told = _logprobs(tokens, self._tokenizer, self._offsets[choice])
        self._offsets[choice] += sum(map(len, told.tokens))
        return told

    def _chunk(
        self,
        choice: int,
        text: str,
        logprobs: p.CompletionLogprobs | None,
        finished: Finished | None,
    ) -> bytes:
        reason = None if finished is None else convert.finish_reason(finished.reason)
        one = p.CompletionChoice(index=choice, text=text, logprobs=logprobs, finish_reason=reason)
        return sse.data(_frame(self._head, [one]).model_dump_json(exclude_unset=True))
