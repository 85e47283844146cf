"""GET / and /docs: two static pages that ask nothing of anyone outside, and /openapi.json."""

from __future__ import annotations

from importlib import resources

from sanic import Blueprint, HTTPResponse, Request
from sanic.response import html

from pyds4_server.http import json_reply
from pyds4_server.native.openapi import document

blueprint = Blueprint("pages")

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def _page(name: str) -> str:
    return (resources.files("pyds4_server") / "page" / name).read_text("utf-8")


@blueprint.get("/")
async def chat_page(request: Request) -> HTTPResponse:
    """The chat page."""
    return html(_page("index.html"), headers=_HEADERS)


@blueprint.get("/docs")
async def docs_page(request: Request) -> HTTPResponse:
    """The API's documentation, drawn from /openapi.json."""
    return html(_page("docs.html"), headers=_HEADERS)


@blueprint.get("/openapi.json")
async def openapi(request: Request) -> HTTPResponse:
    """The API's description."""
    return json_reply(document())
