"""Running the app: one process, one event loop, no fork once an engine is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple

from sanic import Sanic

from pyds4_server import logs
from pyds4_server.app import create_app, provide
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
        UnsafeBindError, OSError: as ``listening``.
    """
    app = create_app(settings, engine)
    service: Service = app.ctx.service
    try:
        async with listening(settings, app) as url:
            yield Running(url, service)
    finally:
        service.kept.close()


@contextlib.asynccontextmanager
async def listening(settings: Settings, app: Sanic[Any, Any]) -> AsyncIterator[str]:
    """Accept requests within a block, on the running loop; gives the base URL.

    Raises:
        UnsafeBindError: the address is not loopback and no API key is set.
        OSError: the address cannot be bound, or the key file cannot be read.
    """
    if not is_loopback(settings.host) and not settings.keys():
        raise UnsafeBindError(
            f"listening on {settings.host} lets others in: set an API key, or use 127.0.0.1"
        )
    listener = bind(settings.host, settings.port)
    try:
        server: Any = await app.create_server(sock=listener, return_asyncio_server=True)
        await server.startup()
        await server.before_start()
        await server.after_start()
        port = listener.getsockname()[1]
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            yield f"http://{name}:{port}"
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
        UnsafeBindError, OSError: as ``listening``.
    """
    serve_loading(settings, lambda: engine, on_ready)


def serve_loading(
    settings: Settings,
    load: Callable[[], EngineLike],
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Listen at once, load the engine meanwhile, and serve it as `serve_engine` does.

    Args:
        load: Opens the engine; called on a thread of its own. Requests are answered with 503 and
            ``Retry-After`` until it returns.
        on_ready: Called with the base URL once requests are served.

    Raises:
        UnsafeBindError, OSError: as ``listening``.
        Exception: whatever ``load`` raises.
    """
    if not logging.getLogger("pyds4").hasHandlers():
        logs.configure(settings.log_format)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_until_signal(settings, load, on_ready))


async def _until_signal(
    settings: Settings,
    load: Callable[[], EngineLike],
    on_ready: Callable[[str], None] | None,
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    app = create_app(settings)
    async with listening(settings, app) as url:
        log.info("listening on %s while the model loads", url)
        loading = _on_a_thread(lambda: Service(settings, load()))
        stopping = asyncio.ensure_future(stop.wait())
        either: set[asyncio.Future[Any]] = {loading, stopping}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            provide(app, loading.result())
            log.info("serving on %s", url)
            if on_ready is not None:
                on_ready(url)
        await stopping
        log.info("shutting down")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _on_a_thread(work: Callable[[], Service]) -> asyncio.Future[Service]:
    """What ``work`` returns, done on a thread that the end of the program does not wait for: a
    model may take minutes to load, and cannot be told to stop."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Service] = loop.create_future()

    def settle(value: Service | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        elif value is not None:
            done.set_result(value)

    def run() -> None:
        value, failure = None, None
        try:
            value = work()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=run, name="pyds4-load", daemon=True).start()
    return done


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
