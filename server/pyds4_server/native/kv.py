"""/v1/kv: what is kept of conversations, on disk and in memory."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from sanic import Blueprint, HTTPResponse, Request

from pyds4.chat import markers
from pyds4.errors import InvalidArgumentError, NoSuchKeyError
from pyds4.kv import Store
from pyds4_server.collect import Collector
from pyds4_server.errors import ApiError, InvalidRequestError
from pyds4_server.generation import GenerationRequest
from pyds4_server.http import checked, json_reply, parse_body, service_of
from pyds4_server.native import protocol as p
from pyds4_server.openai import convert
from pyds4_server.service import Service

blueprint = Blueprint("kv")

TEXT_TOKENS = 24
"""How much of an entry's end is shown."""


class NothingKeptError(ApiError):
    """There is no disk cache, or not this entry."""

    status = 404
    code = "not_found"


@blueprint.get("/v1/kv")
async def overview(request: Request) -> HTTPResponse:
    """Every place on disk that this model's conversations can go on from, and statistics."""
    service = service_of(request)
    entries = await asyncio.to_thread(_entries, service)
    kept = service.kept
    return json_reply(
        p.KeptPrefixes(
            object="list",
            data=entries,
            directory=None if kept.store is None else str(kept.store.directory),
            disk=kept.disk_stats(),
            memory=kept.memory_stats(),
        )
    )


@blueprint.delete("/v1/kv")
async def clear(request: Request) -> HTTPResponse:
    """Remove all of this model that is not pinned."""
    store = _store(service_of(request))
    return json_reply(p.Freed(freed_bytes=await asyncio.to_thread(store.clear)))


@blueprint.delete("/v1/kv/<key:str>")
async def delete(request: Request, key: str) -> HTTPResponse:
    """Remove one entry and the rows that nothing else stands on."""
    store = _store(service_of(request))
    try:
        return json_reply(p.Freed(freed_bytes=await asyncio.to_thread(store.delete, key)))
    except (NoSuchKeyError, InvalidArgumentError) as error:
        raise NothingKeptError(f"There is no entry {key[:64]!r}.", param="key") from error


@blueprint.post("/v1/kv/<key:str>")
async def change(request: Request, key: str) -> HTTPResponse:
    """Pin an entry, or no longer."""
    store = _store(service_of(request))
    pinned = parse_body(request, p.PinRequest).pinned
    try:
        await asyncio.to_thread(store.pin, key, pinned)
    except (NoSuchKeyError, InvalidArgumentError) as error:
        raise NothingKeptError(f"There is no entry {key[:64]!r}.", param="key") from error
    return json_reply(p.Pinned(key=key, pinned=pinned))


@blueprint.post("/v1/kv/warm")
async def warm(request: Request) -> HTTPResponse:
    """Have a prompt ready: evaluate what is not kept of it, keep it and pin it.

    A conversation that ends with its system message is warmed up to there, for all that begin
    like it. The request waits for its turn like any other.
    """
    service = service_of(request)
    store = _store(service)
    ids = await _prompt(parse_body(request, p.WarmRequest), request, service)
    service.token_budget(len(ids), 1)
    subscription = service.scheduler.submit(GenerationRequest(prompt=ids, max_tokens=1, chat=False))
    answer = Collector(1)
    try:
        while not answer.is_complete:
            answer.add(await subscription.next())
    finally:
        subscription.close()
    cached = answer.usage().cached_tokens
    await asyncio.to_thread(service.kept.flush)
    entry = await asyncio.to_thread(store.pin_longest, ids)
    return json_reply(
        p.Warmed(
            tokens=len(ids),
            evaluated=len(ids) - cached,
            kept=0 if entry is None else entry.position,
            key=None if entry is None else entry.key,
        )
    )


async def _prompt(sent: p.WarmRequest, request: Request, service: Service) -> list[int]:
    if sent.prompt is not None:
        ids = await asyncio.to_thread(service.tokenizer.encode, sent.prompt)
        if not ids:
            raise InvalidRequestError("prompt is empty", param="prompt")
        return ids
    if sent.messages is None:
        raise InvalidRequestError("messages or prompt is required", param="messages")
    body = request.json
    is_beginning = bool(body["messages"]) and body["messages"][-1].get("role") == "system"
    if is_beginning:
        body["messages"] = [*body["messages"], {"role": "user", "content": ""}]
    conversation = convert.conversation(checked(body, p.TemplateRequest))
    ids = (await service.prepare(conversation)).ids
    user = service.tokenizer.token_id(markers.USER)
    if is_beginning and user in ids:
        # What follows the system message differs from conversation to conversation.
        ids = ids[: len(ids) - 1 - ids[::-1].index(user)]
    return ids


def _entries(service: Service) -> list[p.KeptEntry]:
    store = service.kept.store
    if store is None:
        return []
    listed = []
    for entry in service.kept.entries():
        try:
            end = service.tokenizer.decode(store.tokens(entry.key)[-TEXT_TOKENS:])
        except NoSuchKeyError:
            continue
        listed.append(p.KeptEntry(object="kv.prefix", ends_with=end, **asdict(entry)))
    return listed


def _store(service: Service) -> Store:
    if service.kept.store is None:
        raise NothingKeptError("This server keeps nothing on disk (disk_cache).")
    return service.kept.store
