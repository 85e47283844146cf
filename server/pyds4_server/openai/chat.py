"""POST /v1/chat/completions"""

from __future__ import annotations

import secrets
import time

from sanic import Blueprint, HTTPResponse, Request

from pyds4_server import sse
from pyds4_server.collect import Answer, Collector
from pyds4_server.conversation import Conversation
from pyds4_server.errors import InvalidRequestError
from pyds4_server.formats import Formats, formats_of
from pyds4_server.generation import GenerationRequest
from pyds4_server.http import parse_body, reply_when_done, service_of
from pyds4_server.openai import convert
from pyds4_server.openai import protocol as p
from pyds4_server.openai.chat_stream import ChatStream
from pyds4_server.service import Prepared, Service, identity_of

blueprint = Blueprint("openai_chat")


@blueprint.post("/v1/chat/completions")
async def chat_completions(request: Request) -> HTTPResponse | None:
    """Answer a chat, streaming or in one piece."""
    service = service_of(request)
    sent = parse_body(request, p.ChatRequest)
    sent = service.named(sent)
    conversation = convert.conversation(sent)
    prepared = await service.prepare(conversation)
    formats = await formats_of(conversation, prepared.rendered, service.tokenizer)
    generation = _generation(request, sent, conversation, prepared, formats, service)
    subscription = service.scheduler.submit(generation)
    head = (f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), sent.model)
    if not sent.stream:
        return await reply_when_done(
            request,
            [subscription],
            generation.n,
            lambda collected: _completion(head, sent, collected[0], service),
        )
    encoder = ChatStream(
        head,
        n=generation.n,
        include_usage=bool(sent.stream_options and sent.stream_options.include_usage),
        tokenizer=service.tokenizer if sent.logprobs else None,
        legacy=_is_legacy(sent),
        may_call=bool(conversation.tools) and conversation.tool_choice != "none",
    )
    await sse.stream(request, subscription, encoder, keepalive_s=service.settings.keepalive_s)
    return None


def _is_legacy(sent: p.ChatRequest) -> bool:
    return bool(sent.functions) and not sent.tools


def _generation(
    request: Request,
    sent: p.ChatRequest,
    conversation: Conversation,
    prepared: Prepared,
    formats: Formats,
    service: Service,
) -> GenerationRequest:
    n = sent.n or 1
    if n > service.settings.max_active:
        raise InvalidRequestError(f"n is at most {service.settings.max_active}", param="n")
    if sent.top_logprobs is not None and not sent.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs", param="top_logprobs")
    options = convert.sampling(sent, service.engine.config.vocab_size)
    deterministic = options.is_greedy or options.seed is not None
    return GenerationRequest(
        prompt=prepared.ids,
        max_tokens=service.token_budget(
            len(prepared.ids), sent.max_completion_tokens or sent.max_tokens
        ),
        thinking=prepared.rendered.thinking,
        prefill=prepared.rendered.prefill,
        buffer_calls=not sent.stream,
        tools=conversation.tools,
        tool_choice=conversation.tool_choice,
        callable_names=conversation.callable_names,
        formats=formats,
        parallel_calls=sent.parallel_tool_calls is not False and not _is_legacy(sent),
        thinking_tokens=convert.thinking_budget(sent),
        stop=convert.stop_strings(sent),
        sampling=options,
        top_logprobs=(sent.top_logprobs or 0) if sent.logprobs else None,
        n=n,
        identity=identity_of(
            request.path, request.headers, request.body, deterministic=deterministic
        ),
        on_turn=service.memory.remember,
    )


def _completion(
    head: tuple[str, int, str], sent: p.ChatRequest, collector: Collector, service: Service
) -> p.ChatCompletion:
    identity, created, model = head
    return p.ChatCompletion(
        id=identity,
        object="chat.completion",
        created=created,
        model=model,
        choices=[
            _choice(index, answer, sent, service) for index, answer in enumerate(collector.answers)
        ],
        usage=convert.usage(collector.usage()),
    )


def _choice(index: int, answer: Answer, sent: p.ChatRequest, service: Service) -> p.Choice:
    legacy = _is_legacy(sent)
    message = p.MessageOut(role="assistant", content=answer.content or None, refusal=None)
    if answer.content == "" and not answer.calls:
        message.content = ""
    if answer.reasoning:
        message.reasoning_content = message.reasoning = answer.reasoning
    if answer.calls and legacy:
        call = answer.calls[0]
        message.function_call = p.FunctionOut(name=call.name, arguments=call.arguments)
    elif answer.calls:
        message.tool_calls = convert.tool_calls(answer.calls)
    return p.Choice(
        index=index,
        message=message,
        logprobs=convert.logprobs(answer.logprobs, service.tokenizer) if sent.logprobs else None,
        finish_reason=convert.finish_reason(answer.finish.reason, legacy=legacy),
    )
