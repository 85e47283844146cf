"""create_app(settings, engine): the server, put together."""

from __future__ import annotations

import itertools
import logging
import time
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import SanicException
from sanic.response import BaseHTTPResponse, empty

from pyds4_server.anthropic import convert as anthropic
from pyds4_server.anthropic import messages
from pyds4_server.engine_api import EngineLike
from pyds4_server.errors import ApiError, HostError
from pyds4_server.http import error_body, json_reply, speaks_anthropic
from pyds4_server.native import health, kv, metrics, pages, tokens
from pyds4_server.openai import chat, completions, models
from pyds4_server.responses import endpoint
from pyds4_server.responses.store import ResponseStore
from pyds4_server.security import HostCheck, KeyCheck
from pyds4_server.service import Service
from pyds4_server.settings import Settings

log = logging.getLogger("pyds4.server")
access_log = logging.getLogger("pyds4.access")

_numbers = itertools.count()

_HOURS_S = 24 * 3600
"""Sanic's limit on making a response. Prefill of a long prompt may take very long; whether the
client still waits is seen from its connection."""

PUBLIC_PATHS = frozenset({"/", "/docs", "/health", "/openapi.json"})
"""Served without an API key."""


MODULES = (chat, completions, models, endpoint, messages, tokens, kv, health, metrics, pages)
"""Everything with a blueprint."""


def create_app(settings: Settings, engine: EngineLike | None = None) -> Sanic[Any, Any]:
    """The application for one engine.

    The engine is used from the moment the app starts until it stops, by the scheduler's thread.
    Without one the app says that it is loading, until `provide` is called.

    Raises:
        OSError: the API key file cannot be read.
    """
    app: Sanic[Any, Any] = Sanic(f"pyds4-{next(_numbers)}", configure_logging=False)
    app.config.update(
        {
            "ACCESS_LOG": False,
            "AUTO_EXTEND": False,
            # What Sanic itself answers, to a client that hung up, say: it would guess, and warn.
            "FALLBACK_ERROR_FORMAT": "json",
            "KEEP_ALIVE_TIMEOUT": 120,
            "MOTD": False,
            "REQUEST_MAX_HEADER_SIZE": 16384,
            "REQUEST_MAX_SIZE": settings.max_body_bytes,
            "REQUEST_TIMEOUT": 300,
            "RESPONSE_TIMEOUT": _HOURS_S,
            # Rewrites methods of Sanic once a process; a second app would fail.
            "TOUCHUP": False,
        }
    )
    app.ctx.service = None if engine is None else Service(settings, engine)
    app.ctx.responses = ResponseStore(settings.stored_responses)
    for module in MODULES:
        app.blueprint(module.blueprint)
    _guard(app, settings)
    _answer_browsers(app, frozenset(settings.cors_origins))
    _log_requests(app)
    _handle_errors(app)

    @app.before_server_start
    async def start(app: Sanic[Any, Any]) -> None:
        if app.ctx.service is not None:
            app.ctx.service.start()

    @app.before_server_stop
    async def stop(app: Sanic[Any, Any]) -> None:
        if app.ctx.service is not None:
            await app.ctx.service.stop()

    return app


def provide(app: Sanic[Any, Any], service: Service) -> None:
    """Begin to serve, on the loop of a running app that had no engine."""
    service.start()
    app.ctx.service = service


def _guard(app: Sanic[Any, Any], settings: Settings) -> None:
    """Check every request's host and key before anything else sees it."""
    hosts = HostCheck(settings.host, settings.allowed_hosts)
    keys = KeyCheck(settings.keys())

    async def check(request: Request) -> None:
        hosts.check(request.headers.get("host"))
        if request.path not in PUBLIC_PATHS and request.method != "OPTIONS":
            keys.check(request.headers)

    app.register_middleware(check, "request")


def _answer_browsers(app: Sanic[Any, Any], origins: frozenset[str]) -> None:
    """CORS for the origins in the settings; for all others browsers keep the answer to themselves.

    Pages of other sites can still send what needs no preflight, and so put the engine to work;
    browsers mark such requests, and they are refused.
    """

    async def refuse_others(request: Request) -> None:
        foreign = request.headers.get("sec-fetch-site") == "cross-site"
        allowed = request.headers.get("origin") in origins or "*" in origins
        if foreign and not allowed and request.path not in PUBLIC_PATHS:
            raise HostError("Pages of other sites may not use this server.")

    async def preflight(request: Request) -> HTTPResponse | None:
        wanted = request.headers.get("access-control-request-method")
        if request.method != "OPTIONS" or wanted is None:
            return None
        return empty(204)

    async def allow(request: Request, response: BaseHTTPResponse) -> None:
        origin = request.headers.get("origin")
        if origin is None or not (origin in origins or "*" in origins):
            return
        response.headers["access-control-allow-origin"] = origin
        response.headers["vary"] = "origin"
        if request.method == "OPTIONS":
            response.headers["access-control-allow-methods"] = "GET, POST, DELETE, OPTIONS"
            response.headers["access-control-allow-headers"] = request.headers.get(
                "access-control-request-headers", "*"
            )
            response.headers["access-control-max-age"] = "600"

    app.register_middleware(refuse_others, "request")
    app.register_middleware(preflight, "request")
    app.register_middleware(allow, "response")


def _handle_errors(app: Sanic[Any, Any]) -> None:
    """Every failure leaves in the shape of the protocol that was spoken."""

    @app.exception(ApiError)
    async def known(request: Request, error: ApiError) -> HTTPResponse:
        return error_reply(request, error)

    @app.exception(Exception)
    async def unknown(request: Request, error: Exception) -> HTTPResponse | None:
        if isinstance(error, SanicException):
            status = error.status_code or 500
            message = str(error) or "The request could not be handled."
            return error_reply(request, ApiError(message, status=status))
        log.exception("unhandled error on %s %s", request.method, request.path)
        return error_reply(request, ApiError("Internal server error.", status=500))


def _log_requests(app: Sanic[Any, Any]) -> None:
    """One line a request: what was asked and how it went, never what was said."""

    async def begin(request: Request) -> None:
        request.ctx.begun_s = time.monotonic()

    async def answered(request: Request, response: BaseHTTPResponse) -> None:
        response.headers["request-id"] = response.headers["x-request-id"] = str(request.id)
        if access_log.isEnabledFor(logging.INFO):
            took_s = time.monotonic() - getattr(request.ctx, "begun_s", time.monotonic())
            access_log.info(
                "%s %s %d after %.3f s", request.method, request.path, response.status, took_s
            )

    app.register_middleware(begin, "request", priority=100)
    app.register_middleware(answered, "response")


def error_reply(request: Request | None, error: ApiError) -> HTTPResponse:
    """``error`` as a response in the protocol of the path."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    is_anthropic = request is not None and speaks_anthropic(request)
    status = anthropic.status(error) if is_anthropic else error.status
    return json_reply(error_body(request, error), status=status, headers=headers)
