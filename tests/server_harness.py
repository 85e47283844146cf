"""A server on a loopback port, and clients for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

import anthropic
import httpx
import openai
from pyds4_server import Settings, running
from pyds4_server.engine_api import EngineLike
from pyds4_server.service import Service
from server_fakes import FakeEngine


class Served:
    """A running server with its engine and one client of every kind."""

    def __init__(self, url: str, engine: Any, service: Service) -> None:
        self.url = url
        self.service = service
        self.engine = engine
        self.openai = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="key", max_retries=0, _strict_response_validation=True
        )
        self.anthropic = anthropic.AsyncAnthropic(
            base_url=url, api_key="key", max_retries=0, _strict_response_validation=True
        )
        self.http = httpx.AsyncClient(base_url=url, timeout=600)  # however slow the machine

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def active(self) -> int:
        """Sequences in the batch and requests in the queue."""
        counters = self.service.scheduler.counters
        return counters.active + counters.waiting

    async def close(self) -> None:
        await self.openai.close()
        await self.anthropic.close()
        await self.http.aclose()


_DEFAULTS: dict[str, Any] = {"port": 0, "shutdown_grace_s": 0.2, "disk_cache": False}

Serve = Callable[..., AbstractAsyncContextManager[Served]]


@asynccontextmanager
async def serving(engine: EngineLike | None = None, **settings: Any) -> AsyncIterator[Served]:
    """Serve ``engine`` with ``settings`` on a free port."""
    engine = engine or FakeEngine()
    checked = Settings(**_DEFAULTS | settings)
    async with running(checked, engine) as (url, service):
        served = Served(url, engine, service)
        try:
            yield served
        finally:
            if isinstance(engine, FakeEngine):
                engine.gate.set()  # a test that failed with it shut would wait for ever
            await served.close()


@contextmanager
def serving_in_background(engine: EngineLike, **settings: Any) -> Iterator[str]:
    """Serve on a thread of its own; gives the base URL."""
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, str]] = Future()

    async def main() -> None:
        stop = asyncio.Event()
        try:
            async with running(Settings(**_DEFAULTS | settings), engine) as (url, _):
                ready.set_result((asyncio.get_running_loop(), stop, url))
                await stop.wait()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    loop, stop, url = ready.result()
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
