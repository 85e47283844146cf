"""GET /health and HEAD /"""

from __future__ import annotations

from sanic import Blueprint, HTTPResponse, Request
from sanic.response import empty

from pyds4_server.http import json_reply, service_of
from pyds4_server.native import protocol as p

blueprint = Blueprint("health")


@blueprint.get("/health")
async def health(request: Request) -> HTTPResponse:
    """200 while requests are served; 503 while the model loads and once the server shuts down."""
    if request.app.ctx.service is None:
        loading = p.Health(status="loading", model="", active=0, waiting=0)
        return json_reply(loading, status=503, headers={"retry-after": "2"})
    service = service_of(request)
    scheduler = service.scheduler
    state = p.Health(
        status="ok" if scheduler.is_running else "stopping",
        model=service.model_id,
        active=scheduler.counters.active,
        waiting=scheduler.counters.waiting,
    )
    return json_reply(state, status=200 if scheduler.is_running else 503)


@blueprint.head("/")
async def head(request: Request) -> HTTPResponse:
    """Some clients look whether anyone is there."""
    return empty(200)
