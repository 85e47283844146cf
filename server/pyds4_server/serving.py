"""Running the app: one process, one event loop, no fork once an engine is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple

from pyds4_server import logs
from pyds4_server.app import create_app
from pyds4_server.engine_api import EngineLike
from pyds4_server.security import is_loopback
from pyds4_server.service import Service
from pyds4_server.settings import Settings

log = logging.getLogger("pyds4.server")

SWITCH_INTERVAL_S = 0.0005
"""The event loop and the scheduler share the GIL; Python's 5 ms would show in every token."""


class UnsafeBindError(ValueError):
    """Listening beyond this machine without an API key."""


class Running(NamedTuple):
    """A server that accepts requests."""

    url: str
    service: Service


@contextlib.asynccontextmanager
async def running(settings: Settings, engine: EngineLike) -> AsyncIterator[Running]:
    """Serve within a block, on the running loop; gives the base URL and the service behind it.

    Raises:
        UnsafeBindError: the address is not loopback and no API key is set.
        OSError: the address cannot be bound, or the key file cannot be read.
    """
    if not is_loopback(settings.host) and not settings.keys():
        raise UnsafeBindError(
            f"listening on {settings.host} lets others in: set an API key, or use 127.0.0.1"
        )
    app = create_app(settings, engine)
    listener = bind(settings.host, settings.port)
    try:
        server: Any = await app.create_server(sock=listener, return_asyncio_server=True)
        await server.startup()
        await server.before_start()
        await server.after_start()
        port = listener.getsockname()[1]
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            yield Running(f"http://{name}:{port}", app.ctx.service)
        finally:
            # No new connections; then the streams that run may end; then the rest is told.
            server.server.close()
            await server.before_stop()
            await _last_words(server.connections)
            for connection in list(server.connections):
                connection.close()
            await server.after_stop()
    finally:
        listener.close()


async def _last_words(connections: Iterable[Any], patience_s: float = 2.0) -> None:
    """Let handlers that are in the middle of an answer write its end."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        # Sanic's connection is true while it handles a request.
        if not any(getattr(connection, "_http", None) for connection in list(connections)):
            return
        await asyncio.sleep(0.01)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; the error of one that cannot be had names the address.

    Raises:
        OSError: as it says.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(256)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno, f"cannot listen on {host}:{port}: {error.strerror or error}"
        ) from error
    return listener


def serve_engine(
    settings: Settings, engine: EngineLike, on_ready: Callable[[str], None] | None = None
) -> None:
    """Serve ``engine`` until SIGINT or SIGTERM; a second signal does not wait for streams.

    Raises:
        UnsafeBindError, OSError: as ``running``.
    """
    if not logging.getLogger("pyds4").hasHandlers():
        logs.configure(settings.log_format)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_until_signal(settings, engine, on_ready))


async def _until_signal(
    settings: Settings, engine: EngineLike, on_ready: Callable[[str], None] | None
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running(settings, engine) as (url, _):
        log.info("serving on %s", url)
        if on_ready is not None:
            on_ready(url)
        await stop.wait()
        log.info("shutting down")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
