"""POST /tokenize, /detokenize and /apply-template: see exactly what the model will see."""

from __future__ import annotations

import asyncio

from sanic import Blueprint, HTTPResponse, Request

from pyds4_server.errors import InvalidRequestError
from pyds4_server.http import json_reply, parse_body, service_of
from pyds4_server.native import protocol as p
from pyds4_server.openai import convert
from pyds4_server.service import Service

blueprint = Blueprint("tokens")


@blueprint.post("/tokenize")
async def tokenize(request: Request) -> HTTPResponse:
    """The ids of a text, or of the prompt that a chat makes."""
    service = service_of(request)
    sent = parse_body(request, p.TokenizeRequest)
    ids = await _ids(sent, request, service)
    pieces = [
        p.Piece(id=token, piece=service.tokenizer.token_bytes(token).decode("utf-8", "replace"))
        for token in (ids if sent.with_pieces else ())
    ]
    return json_reply(
        p.Tokens(
            tokens=pieces if sent.with_pieces else ids,
            count=len(ids),
            max_model_len=service.context_tokens,
        )
    )


async def _ids(sent: p.TokenizeRequest, request: Request, service: Service) -> list[int]:
    if sent.messages is not None:
        conversation = convert.conversation(parse_body(request, p.TemplateRequest))
        return (await service.prepare(conversation)).ids
    text = sent.content if sent.content is not None else sent.prompt
    if text is None:
        raise InvalidRequestError("content, prompt or messages is required", param="content")
    ids = await asyncio.to_thread(service.tokenizer.encode, text, sent.parse_special)
    bos = service.tokenizer.bos_id
    wants_bos = sent.add_special or sent.add_special_tokens
    return [bos, *ids] if wants_bos and bos is not None and ids[:1] != [bos] else ids


@blueprint.post("/detokenize")
async def detokenize(request: Request) -> HTTPResponse:
    """The text of ids."""
    service = service_of(request)
    sent = parse_body(request, p.DetokenizeRequest)
    text = service.tokenizer.decode(service.checked_ids(sent.tokens, "tokens"))
    return json_reply(p.Text(content=text, prompt=text))


@blueprint.post("/apply-template")
async def apply_template(request: Request) -> HTTPResponse:
    """The prompt that a chat request makes, as text."""
    service = service_of(request)
    conversation = convert.conversation(parse_body(request, p.TemplateRequest))
    prepared = await service.prepare(conversation)
    return json_reply(p.RenderedPrompt(prompt=prepared.rendered.prompt.text))
