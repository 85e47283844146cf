"""POST /v1/messages and /v1/messages/count_tokens"""

from __future__ import annotations

import secrets

from sanic import Blueprint, HTTPResponse, Request

from pyds4_server import sse
from pyds4_server.anthropic import convert
from pyds4_server.anthropic import protocol as p
from pyds4_server.anthropic.stream import MessageStream
from pyds4_server.collect import Collector
from pyds4_server.conversation import Conversation
from pyds4_server.formats import Formats, formats_of
from pyds4_server.generation import GenerationRequest
from pyds4_server.http import json_reply, parse_body, reply_when_done, service_of
from pyds4_server.sampling import SamplingOptions
from pyds4_server.service import Prepared, Service, identity_of

blueprint = Blueprint("anthropic_messages")


@blueprint.post("/v1/messages")
async def messages(request: Request) -> HTTPResponse | None:
    """Answer a conversation, streaming or in one piece."""
    service = service_of(request)
    sent = parse_body(request, p.MessagesRequest)
    sent = service.named(sent)
    conversation = convert.conversation(sent)
    prepared = await service.prepare(conversation)
    formats = await formats_of(conversation, prepared.rendered, service.tokenizer)
    generation = _generation(request, sent, conversation, prepared, formats, service)
    subscription = service.scheduler.submit(generation)
    identity = f"msg_{secrets.token_hex(12)}"
    if sent.stream:
        encoder = MessageStream(identity, sent.model, len(prepared.ids))
        await sse.stream(request, subscription, encoder, keepalive_s=service.settings.keepalive_s)
        return None

    def build(collected: list[Collector]) -> p.MessageOut:
        (answer,) = collected[0].answers
        return p.MessageOut(
            id=identity,
            type="message",
            role="assistant",
            model=sent.model,
            content=convert.blocks(answer),
            stop_reason=convert.stop_reason(answer.finish),
            stop_sequence=answer.finish.stop_sequence,
            usage=convert.usage(answer.finish.usage),
        )

    return await reply_when_done(request, [subscription], 1, build)


@blueprint.post("/v1/messages/count_tokens")
async def count_tokens(request: Request) -> HTTPResponse:
    """How many tokens the prompt of this request would have."""
    service = service_of(request)
    sent = parse_body(request, p.CountRequest)
    sent = service.named(sent)
    prepared = await service.prepare(convert.conversation(sent))
    return json_reply(p.TokenCount(input_tokens=len(prepared.ids)))


def _generation(
    request: Request,
    sent: p.MessagesRequest,
    conversation: Conversation,
    prepared: Prepared,
    formats: Formats,
    service: Service,
) -> GenerationRequest:
    options = SamplingOptions(
        temperature=1.0 if sent.temperature is None else sent.temperature,
        top_p=1.0 if sent.top_p is None else sent.top_p,
        top_k=sent.top_k or 0,
    )
    choice = sent.tool_choice
    return GenerationRequest(
        prompt=prepared.ids,
        max_tokens=service.token_budget(len(prepared.ids), sent.max_tokens),
        thinking=prepared.rendered.thinking,
        prefill=prepared.rendered.prefill,
        buffer_calls=not sent.stream,
        tools=conversation.tools,
        tool_choice=conversation.tool_choice,
        callable_names=conversation.callable_names,
        formats=formats,
        parallel_calls=not (choice and choice.disable_parallel_tool_use),
        thinking_tokens=sent.thinking.budget_tokens if sent.thinking else None,
        stop=tuple(stop for stop in sent.stop_sequences or () if stop),
        sampling=options,
        call_id_prefix="toolu_",
        identity=identity_of(
            request.path, request.headers, request.body, deterministic=options.is_greedy
        ),
        on_turn=service.memory.remember,
    )
