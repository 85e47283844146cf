"""Between Sanic and the endpoints: bodies in, JSON out, and who is on the other end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sanic import HTTPResponse, Request
from sanic.response import raw

from pyds4_server.anthropic import convert as anthropic
from pyds4_server.collect import Collector
from pyds4_server.errors import (
    ApiError,
    InvalidRequestError,
    NotReadyError,
    describe_validation,
)
from pyds4_server.jobs import Subscription
from pyds4_server.openai import convert as openai
from pyds4_server.service import Service
from pyds4_server.sse import cache_header

Model = TypeVar("Model", bound=BaseModel)

JSON_TYPE = "application/json; charset=utf-8"


def service_of(request: Request) -> Service:
    """The service of this app.

    Raises:
        NotReadyError: the model is still being loaded.
    """
    service = request.app.ctx.service
    if service is None:
        raise NotReadyError
    assert isinstance(service, Service)
    return service


def parse_body(request: Request, model: type[Model]) -> Model:
    """The body as ``model``.

    Raises:
        InvalidRequestError: no JSON, not an object, or a field of the wrong kind.
    """
    try:
        value = json.loads(request.body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"The request body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(
            f"The request body must be a JSON object, not {type(value).__name__}."
        )
    return checked(value, model)


def checked(value: dict[str, Any], model: type[Model]) -> Model:
    """``value`` as ``model``.

    Raises:
        InvalidRequestError: a field of the wrong kind.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        message, param = describe_validation(error.errors(include_url=False, include_input=False))
        raise InvalidRequestError(message, param=param) from error
    except RecursionError as error:
        raise InvalidRequestError("The request body is nested too deeply.") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def json_reply(
    body: BaseModel | dict[str, Any],
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> HTTPResponse:
    """``body`` as JSON; fields that were never set stay away."""
    if isinstance(body, BaseModel):
        text = body.model_dump_json(exclude_unset=True, by_alias=True)
    else:
        text = json.dumps(body, ensure_ascii=False)
    return raw(text.encode("utf-8", "replace"), status, headers, JSON_TYPE)


async def reply_when_done(
    request: Request,
    subscriptions: Sequence[Subscription],
    n: int,
    build: Callable[[list[Collector]], BaseModel],
) -> HTTPResponse | None:
    """Wait for whole answers and send what ``build`` makes of them.

    Clients give up on silence even before the headers. After ``patience_s`` these are sent, and
    then blanks, which JSON allows in front; an error that comes later has to be told with 200.
    A client that goes away cancels everything.

    Raises:
        GenerationFailedError: the engine failed before the headers were sent.
        ShuttingDownError: the server is going away, likewise.
    """
    settings = service_of(request).settings
    waiting = asyncio.ensure_future(_collected(subscriptions, n))
    try:
        done, _ = await asyncio.wait({waiting}, timeout=settings.patience_s)
        headers = {"x-pyds4-cache": cache_header(subscriptions[-1].progress)}
        if done:
            return json_reply(build(waiting.result()), headers=headers)
        response = await request.respond(content_type=JSON_TYPE, headers=headers)
        assert response is not None
        while not done:
            await response.send(" ")
            done, _ = await asyncio.wait({waiting}, timeout=settings.keepalive_s)
        try:
            body = build(waiting.result())
        except ApiError as error:
            body = error_body(request, error)
        await response.send(body.model_dump_json(exclude_unset=True, by_alias=True))
        await response.eof()
        return None
    finally:
        waiting.cancel()
        for subscription in subscriptions:
            subscription.close()


async def _collected(subscriptions: Sequence[Subscription], n: int) -> list[Collector]:
    collectors: list[Collector] = []
    for subscription in subscriptions:
        collector = Collector(n)
        while not collector.is_complete:
            collector.add(await subscription.next())
        collectors.append(collector)
    return collectors


def error_body(request: Request | None, error: ApiError) -> BaseModel:
    """``error`` in the protocol of the request's path."""
    if request is not None and speaks_anthropic(request):
        return anthropic.error_body(error)
    return openai.error_body(error)


def speaks_anthropic(request: Request) -> bool:
    """Whether the client expects Anthropic's shapes."""
    return request.path.startswith("/v1/messages")
