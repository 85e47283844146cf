"""Between Sanic and the endpoints: bodies in, JSON out, and who is on the other end."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sanic import HTTPResponse, Request
from sanic.response import raw

from pyds4_server.collect import Collector
from pyds4_server.errors import InvalidRequestError, describe_validation
from pyds4_server.jobs import Subscription
from pyds4_server.service import Service
from pyds4_server.sse import cache_header

Model = TypeVar("Model", bound=BaseModel)

JSON_TYPE = "application/json; charset=utf-8"


def service_of(request: Request) -> Service:
    """The service this app was made with."""
    service = request.app.ctx.service
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


async def collect(subscription: Subscription, n: int = 1) -> tuple[Collector, dict[str, str]]:
    """Wait for the whole answer; a client that goes away cancels it.

    Raises:
        GenerationFailedError: the engine failed.
        ShuttingDownError: the server is going away.
    """
    collector = Collector(n)
    try:
        while not collector.is_complete:
            collector.add(await subscription.next())
    finally:
        subscription.close()
    return collector, {"x-pyds4-cache": cache_header(subscription.progress)}
