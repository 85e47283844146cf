"""POST /v1/responses, and what was stored of earlier ones."""

from __future__ import annotations

import json
from typing import Any

from sanic import Blueprint, HTTPResponse, Request

from pyds4_server import sse
from pyds4_server.collect import Collector
from pyds4_server.conversation import Conversation
from pyds4_server.errors import InvalidRequestError
from pyds4_server.formats import Formats, formats_of
from pyds4_server.generation import GenerationRequest
from pyds4_server.http import json_reply, parse_body, reply_when_done, service_of
from pyds4_server.openai import convert as openai
from pyds4_server.responses import convert, naming
from pyds4_server.responses import protocol as p
from pyds4_server.responses.builder import ResponseBuilder
from pyds4_server.responses.naming import ToolNames
from pyds4_server.responses.store import ResponseStore, Stored
from pyds4_server.responses.stream import ResponseStream
from pyds4_server.sampling import SamplingOptions
from pyds4_server.service import Prepared, Service, identity_of

blueprint = Blueprint("responses")


@blueprint.post("/v1/responses")
async def responses(request: Request) -> HTTPResponse | None:
    """Answer, streaming or in one piece."""
    service = service_of(request)
    sent = parse_body(request, p.ResponsesRequest)
    sent = service.named(sent)
    if sent.background:
        raise InvalidRequestError("background responses are not supported", param="background")
    store = _store(request)
    items, names, conversation = _conversation(sent, store)
    prepared = await service.prepare(conversation)
    formats = await formats_of(conversation, prepared.rendered, service.tokenizer)
    subscription = service.scheduler.submit(
        _generation(request, sent, conversation, prepared, formats, service)
    )
    builder = ResponseBuilder(sent, json.loads(request.body).get("tools") or (), names)

    def keep(response: p.Response) -> None:
        if response.store and response.status in ("completed", "incomplete"):
            made = [convert.as_input(item) for item in response.output]
            store.put(Stored(response, [*items, *made]))

    if sent.stream:
        tokenizer = service.tokenizer if _wants_logprobs(sent) else None
        encoder = ResponseStream(builder, tokenizer, keep)
        await sse.stream(request, subscription, encoder, keepalive_s=service.settings.keepalive_s)
        return None

    def build(collected: list[Collector]) -> p.Response:
        (answer,) = collected[0].answers
        logprobs: list[Any] | None = None
        if _wants_logprobs(sent):
            tokens = openai.logprobs(answer.logprobs, service.tokenizer).content
            logprobs = [json.loads(token.model_dump_json()) for token in tokens]
        builder.add_answer(answer, logprobs)
        builder.finish(answer.finish)
        keep(builder.response)
        return builder.response

    return await reply_when_done(request, [subscription], 1, build)


@blueprint.post("/v1/responses/input_tokens")
async def input_tokens(request: Request) -> HTTPResponse:
    """How many tokens the prompt of this request would have."""
    service = service_of(request)
    sent = parse_body(request, p.CountRequest)
    sent = service.named(sent)
    _, _, conversation = _conversation(sent, _store(request))
    prepared = await service.prepare(conversation)
    return json_reply(p.InputTokens(object="response.input_tokens", input_tokens=len(prepared.ids)))


@blueprint.get("/v1/responses/<identity:str>")
async def get_response(request: Request, identity: str) -> HTTPResponse:
    """A stored response."""
    return json_reply(_store(request).get(identity).response)


@blueprint.delete("/v1/responses/<identity:str>")
async def delete_response(request: Request, identity: str) -> HTTPResponse:
    """Forget a stored response."""
    _store(request).delete(identity)
    return json_reply(p.Deleted(id=identity, object="response", deleted=True))


@blueprint.get("/v1/responses/<identity:str>/input_items")
async def list_input_items(request: Request, identity: str) -> HTTPResponse:
    """What led to a stored response."""
    stored = _store(request).get(identity)
    items = stored.items[: len(stored.items) - len(stored.response.output)]
    data = [_listed(item, index) for index, item in enumerate(items)]
    return json_reply(
        p.ItemList(object="list", data=data, first_id=None, last_id=None, has_more=False)
    )


def _listed(item: p.Item, index: int) -> dict[str, Any]:
    """An input item as it is listed: with an id, and text as parts."""
    listed: dict[str, Any] = json.loads(item.model_dump_json(exclude_unset=True))
    listed |= {"type": item.type, "id": item.id or f"item_{index}"}
    if isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        listed["content"] = [{"type": kind, "text": item.content}]
    return listed


def _store(request: Request) -> ResponseStore:
    store = request.app.ctx.responses
    assert isinstance(store, ResponseStore)
    return store


def _conversation(
    sent: p.CountRequest, store: ResponseStore
) -> tuple[list[p.Item], ToolNames, Conversation]:
    items = convert.items_of(sent)
    if sent.previous_response_id is not None:
        earlier = store.get(sent.previous_response_id, "previous_response_id")
        items = [*earlier.items, *items]
    names = naming.collect(sent.tools or ())
    return items, names, convert.conversation(sent, items, names)


def _wants_logprobs(sent: p.ResponsesRequest) -> bool:
    return "message.output_text.logprobs" in (sent.include or ())


def _generation(
    request: Request,
    sent: p.ResponsesRequest,
    conversation: Conversation,
    prepared: Prepared,
    formats: Formats,
    service: Service,
) -> GenerationRequest:
    options = SamplingOptions(
        temperature=1.0 if sent.temperature is None else sent.temperature,
        top_p=1.0 if sent.top_p is None else sent.top_p,
    )
    return GenerationRequest(
        prompt=prepared.ids,
        max_tokens=service.token_budget(len(prepared.ids), sent.max_output_tokens),
        thinking=prepared.rendered.thinking,
        prefill=prepared.rendered.prefill,
        buffer_calls=not sent.stream,
        tools=conversation.tools,
        tool_choice=conversation.tool_choice,
        callable_names=conversation.callable_names,
        formats=formats,
        parallel_calls=sent.parallel_tool_calls is not False,
        sampling=options,
        top_logprobs=(sent.top_logprobs or 0) if _wants_logprobs(sent) else None,
        identity=identity_of(
            request.path, request.headers, request.body, deterministic=options.is_greedy
        ),
        on_turn=service.memory.remember,
    )
