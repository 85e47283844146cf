"""POST /v1/completions: text goes on, without the chat template."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence

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
    service.check_model(sent.model)
    if sent.suffix:
        raise InvalidRequestError("suffix is not supported by this model", param="suffix")
    if sent.best_of is not None and sent.best_of != (sent.n or 1):
        raise InvalidRequestError("best_of is not supported beyond n", param="best_of")
    prompts = await asyncio.to_thread(_prompts, sent, service)
    generations = [_generation(sent, prompt, service) for prompt in prompts]
    head = (f"cmpl-{secrets.token_hex(12)}", int(time.time()), sent.model)
    if sent.stream:
        if len(generations) > 1:
            raise InvalidRequestError("a stream continues one prompt", param="prompt")
        subscription = service.scheduler.submit(generations[0])
        encoder = CompletionStream(
            head, sent, service.tokenizer, _echoed(sent, prompts[0], service)
        )
        await sse.stream(request, subscription, encoder, keepalive_s=service.settings.keepalive_s)
        return None
    subscriptions = _submitted(generations, service)

    def build(collected: list[Collector]) -> p.Completion:
        echoed = [_echoed(sent, prompt, service) for prompt in prompts]
        choices = [
            _choice(sent, answer.content, answer.logprobs, service.tokenizer, text, answer.finish)
            for text, collector in zip(echoed, collected, strict=True)
            for answer in collector.answers
        ]
        for index, choice in enumerate(choices):
            choice.index = index
        usages = [collector.usage() for collector in collected]
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


def _prompts(sent: p.CompletionRequest, service: Service) -> list[list[int]]:
    """The prompts as ids. Text gets BOS and is read literally, markers included.

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
    prompts: list[list[int]] = []
    for one in several:
        if isinstance(one, str):
            ids = service.tokenizer.encode(one)
            prompts.append(ids if bos is None or ids[:1] == [bos] else [bos, *ids])
        else:
            prompts.append(service.checked_ids(one, "prompt"))
    if not all(prompts):
        raise InvalidRequestError("prompt: a prompt is empty", param="prompt")
    return prompts


def _generation(
    sent: p.CompletionRequest, prompt: list[int], service: Service
) -> GenerationRequest:
    n = sent.n or 1
    if n > service.settings.max_active:
        raise InvalidRequestError(f"n is at most {service.settings.max_active}", param="n")
    if sent.max_tokens == 0:
        raise InvalidRequestError("max_tokens must be at least 1", param="max_tokens")
    return GenerationRequest(
        prompt=prompt,
        max_tokens=service.token_budget(len(prompt), sent.max_tokens or DEFAULT_MAX_TOKENS),
        chat=False,
        stop=convert.stop_strings(sent),
        sampling=convert.sampling(sent, service.engine.config.vocab_size),
        top_logprobs=sent.logprobs,
        n=n,
    )


def _echoed(sent: p.CompletionRequest, prompt: list[int], service: Service) -> str:
    """The prompt's text, if the request wants it back."""
    if not sent.echo:
        return ""
    bos = service.tokenizer.bos_id
    return service.tokenizer.decode(prompt[1:] if prompt[0] == bos else prompt)


def _choice(
    sent: p.CompletionRequest,
    text: str,
    logprobs: Sequence[TokenLogprob],
    tokenizer: Tokenizer,
    echoed: str,
    finished: Finished | None,
) -> p.CompletionChoice:
    return p.CompletionChoice(
        index=0,
        text=echoed + text,
        logprobs=None if sent.logprobs is None else _logprobs(logprobs, tokenizer, len(echoed)),
        finish_reason=None if finished is None else convert.finish_reason(finished.reason),
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
        echoed: str,
    ) -> None:
        self._head = head
        self._sent = sent
        self._tokenizer = tokenizer
        self._echoed = echoed
        self._usages: list[Counted] = []
        self.is_complete = False

    def begin(self, progress: Prefilled | None) -> bytes:
        """The prompt, where it is wanted back."""
        if not self._echoed:
            return b""
        return b"".join(
            self._chunk(choice, self._echoed, (), None) for choice in range(self._sent.n or 1)
        )

    def encode(self, updates: Sequence[Update]) -> bytes:
        """Chunks, and at the end ``[DONE]``."""
        return b"".join(self._event(update.choice, update.event) for update in updates)

    def keep_alive(self, progress: Prefilled | None) -> bytes:
        """A comment."""
        return sse.progress_comment(progress)

    def _event(self, choice: int, event: Event) -> bytes:
        if isinstance(event, Content):
            return self._chunk(choice, event.text, event.logprobs, None)
        if isinstance(event, Finished):
            self._usages.append(event.usage)
            sent = self._chunk(choice, "", (), event)
            if len(self._usages) < (self._sent.n or 1):
                return sent
            self.is_complete = True
            options = self._sent.stream_options
            if options is not None and options.include_usage:
                usage = _frame(self._head, [], convert.usage(add_usage(self._usages)))
                sent += sse.data(usage.model_dump_json(exclude_unset=True))
            return sent + sse.data("[DONE]")
        if isinstance(event, Failed):
            self.is_complete = True
            body = convert.error_body(failure(event))
            return sse.data(body.model_dump_json()) + sse.data("[DONE]")
        return b""

    def _chunk(
        self,
        choice: int,
        text: str,
        logprobs: Sequence[TokenLogprob],
        finished: Finished | None,
    ) -> bytes:
        one = _choice(self._sent, text, logprobs, self._tokenizer, "", finished)
        one.index = choice
        return sse.data(_frame(self._head, [one]).model_dump_json(exclude_unset=True))
