"""GET /v1/models and /v1/models/NAME, for OpenAI's and Anthropic's clients alike."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from sanic import Blueprint, HTTPResponse, Request

from pyds4_server.errors import UnknownModelError
from pyds4_server.http import json_reply, service_of
from pyds4_server.openai import protocol as p
from pyds4_server.service import Service

blueprint = Blueprint("models")

_YES, _NO = {"supported": True}, {"supported": False}
_CAPABILITIES: dict[str, Any] = {
    "batch": _NO,
    "citations": _NO,
    "code_execution": _NO,
    "context_management": _NO,
    "effort": _YES | dict.fromkeys(("low", "medium", "high", "xhigh", "max"), _YES),
    "image_input": _NO,
    "pdf_input": _NO,
    "server_tools": _NO | {"code_execution": _NO, "web_search": _NO},
    "structured_outputs": _YES,
    "thinking": _YES
    | {"types": dict.fromkeys(("adaptive", "between_tools", "disabled", "enabled"), _YES)},
    "tools": _YES,
    "logprobs": _YES,
}
"""In the form of Anthropic's models API, which OpenAI's clients do not look at."""


@blueprint.get("/v1/models")
async def list_models(request: Request) -> HTTPResponse:
    """The one model, and its aliases."""
    service = service_of(request)
    cards = [model_card(service, name) for name in _names(service)]
    return json_reply(
        p.ModelList(
            object="list", data=cards, has_more=False, first_id=cards[0].id, last_id=cards[-1].id
        )
    )


@blueprint.get("/v1/models/<name:path>")
async def get_model(request: Request, name: str) -> HTTPResponse:
    """One model by name."""
    service = service_of(request)
    name = unquote(name)
    if name not in _names(service):
        raise UnknownModelError(f"The model {name!r} does not exist.", param="model")
    return json_reply(model_card(service, name))


def _names(service: Service) -> tuple[str, ...]:
    return (service.model_id, *service.settings.model_aliases)


def model_card(service: Service, name: str) -> p.ModelCard:
    """Name and limits in every spelling that clients look for."""
    context = service.context_tokens
    return p.ModelCard(
        id=name,
        object="model",
        created=service.started_s,
        owned_by="pyds4",
        context_length=context,
        context_window=context,
        max_model_len=context,
        max_output_tokens=context,
        capabilities=_CAPABILITIES,
        lifecycle="active",
        max_input_tokens=context,
        max_tokens=context,
        display_name=name,
        type="model",
        created_at=datetime.fromtimestamp(service.started_s, UTC).isoformat(),
    )
