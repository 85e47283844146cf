"""The OpenAPI document, from the same Pydantic models that check requests."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pyds4_server.anthropic import protocol as anthropic
from pyds4_server.native import protocol as native
from pyds4_server.openai import protocol as openai
from pyds4_server.responses import protocol as responses


class Route(NamedTuple):
    """An endpoint as it is described."""

    method: str
    path: str
    summary: str
    request: type[BaseModel] | None
    response: type[BaseModel] | None
    error: type[BaseModel] = openai.ErrorBody


ROUTES = (
    Route("post", "/v1/chat/completions", "Answer a chat",
          openai.ChatRequest, openai.ChatCompletion),
    Route("post", "/v1/completions", "Continue text",
          openai.CompletionRequest, openai.Completion),
    Route("post", "/v1/responses", "Answer, with stored state",
          responses.ResponsesRequest, responses.Response),
    Route("post", "/v1/responses/input_tokens", "Count a response's prompt tokens",
          responses.CountRequest, responses.InputTokens),
    Route("get", "/v1/responses/{id}", "A stored response", None, responses.Response),
    Route("delete", "/v1/responses/{id}", "Forget a response", None, responses.Deleted),
    Route("get", "/v1/responses/{id}/input_items", "What led to a response",
          None, responses.ItemList),
    Route("post", "/v1/messages", "Answer a conversation",
          anthropic.MessagesRequest, anthropic.MessageOut, anthropic.ErrorBody),
    Route("post", "/v1/messages/count_tokens", "Count a message's prompt tokens",
          anthropic.CountRequest, anthropic.TokenCount, anthropic.ErrorBody),
    Route("get", "/v1/models", "The model and its aliases", None, openai.ModelList),
    Route("get", "/v1/models/{name}", "One model", None, openai.ModelCard),
    Route("post", "/tokenize", "Text or a chat to token ids",
          native.TokenizeRequest, native.Tokens),
    Route("post", "/detokenize", "Token ids to text", native.DetokenizeRequest, native.Text),
    Route("post", "/apply-template", "The prompt a chat makes",
          native.TemplateRequest, native.RenderedPrompt),
    Route("get", "/v1/kv", "What is kept of conversations", None, native.KeptPrefixes),
    Route("delete", "/v1/kv", "Forget all that is not pinned", None, native.Freed),
    Route("post", "/v1/kv/{key}", "Pin an entry, or no longer", native.PinRequest, native.Pinned),
    Route("delete", "/v1/kv/{key}", "Forget an entry", None, native.Freed),
    Route("post", "/v1/kv/warm", "Have a prompt ready", native.WarmRequest, native.Warmed),
    Route("get", "/health", "Whether requests are served", None, native.Health),
    Route("get", "/metrics", "Prometheus metrics, as text", None, None),
)  # fmt: skip


@cache
def document() -> dict[str, Any]:
    """The whole document."""
    models = {
        model: None
        for route in ROUTES
        for model in (route.request, route.response, route.error)
        if model is not None
    }
    keys, schemas = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
    )
    references: dict[Any, str] = {
        model: reference["$ref"] for (model, _), reference in keys.items()
    }
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "pyds4", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _operation(route: Route, references: dict[Any, str]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method}{route.path}").strip("_"),
        "responses": {
            "200": {"description": "Done"} | _content(route.response, references),
            "default": {"description": "Refused"} | _content(route.error, references),
        },
    }
    if "{" in route.path:
        name = route.path.split("{")[1].split("}")[0]
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    if route.request is not None:
        operation["requestBody"] = {"required": True} | _content(route.request, references)
        if route.response is not None and "stream" in route.request.model_fields:
            # What the events hold is the protocol's; OpenAPI 3.1 has no words for a stream.
            operation["responses"]["200"]["content"]["text/event-stream"] = {}
    return operation


def _content(model: type[BaseModel] | None, references: dict[Any, str]) -> dict[str, Any]:
    if model is None:
        return {"content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"content": {"application/json": {"schema": {"$ref": references[model]}}}}
