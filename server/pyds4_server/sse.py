"""Server-sent events: framing, and streams that never fall silent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Protocol

from sanic import Request

from pyds4_server.events import Prefilled, Update
from pyds4_server.jobs import Subscription

CONTENT_TYPE = "text/event-stream; charset=utf-8"

FIRST_WORD_S = 0.2
"""How long headers wait for the first news, so that they can say how much was cached."""


class StreamEncoder(Protocol):
    """Turns updates into the bytes of one protocol."""

    @property
    def is_complete(self) -> bool:
        """The last byte was written."""
        ...

    def begin(self, progress: Prefilled | None) -> bytes:
        """What is sent before any news; ``progress`` is known unless the request waits."""
        ...

    def encode(self, updates: Sequence[Update]) -> bytes:
        """The bytes for ``updates``, the protocol's ending included when it is the end."""
        ...

    def keep_alive(self, progress: Prefilled | None) -> bytes:
        """Something that this protocol's clients count as a sign of life."""
        ...


def data(payload: str) -> bytes:
    """One event without a name."""
    return f"data: {payload}\n\n".encode()


def named(event: str, payload: str) -> bytes:
    """One event with a name."""
    return f"event: {event}\ndata: {payload}\n\n".encode()


def comment(text: str) -> bytes:
    """A line that clients skip, but that keeps the connection awake."""
    return f": {text}\n\n".encode()


def progress_comment(progress: Prefilled | None) -> bytes:
    """The state of the prefill as a comment that a program can read."""
    if progress is None:
        return comment('pyds4 {"state":"queued"}')
    state = {
        "state": "prefill",
        "done": progress.done,
        "total": progress.total,
        "cached": progress.cached,
    }
    return comment("pyds4 " + json.dumps(state, separators=(",", ":")))


MAX_REASON_CHARACTERS = 400


def cache_header(progress: Prefilled | None) -> str:
    """``x-pyds4-cache``: how much of the prompt was there already, who had it, and why not more."""
    if progress is None:
        return "queued"
    # Quoted as JSON it is ASCII without line breaks, whatever the prompt holds.
    reason = json.dumps(progress.lookup.reason[:MAX_REASON_CHARACTERS])
    return (
        f"reused={progress.cached}; prompt={progress.total}; "
        f"source={progress.lookup.source}; reason={reason}"
    )


async def stream(
    request: Request,
    subscription: Subscription,
    encoder: StreamEncoder,
    *,
    keepalive_s: float,
) -> None:
    """Send a subscription until its end; a client that goes away cancels it.

    Silence is measured on the wire: an update that makes no bytes does not count as a sign of
    life. With the request header ``x-pyds4-progress`` every step of the prefill is told.
    """
    loop = asyncio.get_running_loop()
    wants_progress = "x-pyds4-progress" in request.headers
    try:
        updates = await subscription.next(FIRST_WORD_S)
        headers = {
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            "x-pyds4-cache": cache_header(subscription.progress),
        }
        response = await request.respond(content_type=CONTENT_TYPE, headers=headers)
        if response is None:
            return
        await response.send(encoder.begin(subscription.progress) or comment("ok"))
        sent_s = loop.time()
        while True:
            payload = encoder.encode(updates) if updates else b""
            if (
                not payload
                and wants_progress
                and any(isinstance(update.event, Prefilled) for update in updates)
            ):
                payload = progress_comment(subscription.progress)
            if not payload and loop.time() - sent_s >= keepalive_s:
                payload = encoder.keep_alive(subscription.progress)
            if payload:
                await response.send(payload)
                sent_s = loop.time()
            if encoder.is_complete:
                break
            updates = await subscription.next(max(0.0, sent_s + keepalive_s - loop.time()))
        await response.eof()
        subscription.close(delivered=True)
    finally:
        subscription.close()
