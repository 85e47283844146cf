"""What the server costs beside the engine, and whether it holds up. Run by hand:

    export PYTHONPATH=tests:server
    python tests/server/measure.py overhead
    python tests/server/measure.py soak --seconds 300

The server runs in this process on a fake engine; the clients run in another, so that each has a
core. ``overhead`` reports milliseconds a token beyond the engine's step at one stream, and tokens a
second over 64. ``soak`` keeps 200 streams of all protocols open, half of which hang up somewhere,
and reports what was left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import queue
import random
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyds4_server.serving import SWITCH_INTERVAL_S
from server_fakes import TOKENIZER, FakeEngine
from server_harness import serving_in_background

STEP_S = 0.001
CUT_BYTES = 64
"""Longer than anything looked for in a stream."""
VARIED = " ".join(f"word{i}" for i in range(4000))


@dataclass(frozen=True)
class Protocol:
    """One way to ask for a stream, and how its bytes tell what happened."""

    path: str
    body: Callable[[str, int], dict[str, Any]]
    delta: bytes
    """Once in every piece of text."""
    end: bytes
    usage: bytes
    """The number of tokens as it is reported."""


CHAT = Protocol(
    "/v1/chat/completions",
    lambda text, tokens: {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "stream_options": {"include_usage": True},
    },
    b'"delta":{"content":"',
    b"[DONE]",
    b'"completion_tokens":%d,',
)
MESSAGES = Protocol(
    "/v1/messages",
    lambda text, tokens: {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
    },
    b'"type":"text_delta"',
    b"event: message_stop",
    b'"output_tokens":%d}',
)
RESPONSES = Protocol(
    "/v1/responses",
    lambda text, tokens: {"input": text, "max_output_tokens": tokens},
    b"event: response.output_text.delta",
    b"event: response.incomplete",
    b'"output_tokens": %d,',
)


@dataclass
class Seen:
    """What a client saw of a stream."""

    pieces: int = 0
    is_counted: bool = False
    is_ended: bool = False

    @property
    def is_complete(self) -> bool:
        """As long as it was to be, and properly ended."""
        return self.is_counted and self.is_ended


async def _stream(
    port: int, tokens: int, protocol: Protocol = CHAT, hang_up_after: int | None = None
) -> Seen:
    """One stream over a bare socket. Zero pieces: hang up as soon as the request is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    text = f"Go {random.random()}"
    body = json.dumps({"model": "m", "stream": True} | protocol.body(text, tokens)).encode()
    head = (
        f"POST {protocol.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    seen = Seen()
    wanted = protocol.usage % tokens
    cut = b""  # what may be the beginning of a word that the next bytes complete
    while hang_up_after is None or seen.pieces < hang_up_after:
        data = await reader.read(65536)
        if not data:
            break
        data = cut + data
        seen.pieces += data.count(protocol.delta) - cut.count(protocol.delta)
        cut = data[-CUT_BYTES:]
        seen.is_counted = seen.is_counted or wanted in data
        seen.is_ended = seen.is_ended or protocol.end in data
    writer.close()
    return seen


def _clients(port: int, streams: int, tokens: int, results: Any) -> None:
    async def run() -> tuple[float, int]:
        await asyncio.gather(*(_stream(port, 4) for _ in range(4)))
        begin = time.perf_counter()
        seen = await asyncio.gather(*(_stream(port, tokens) for _ in range(streams)))
        return time.perf_counter() - begin, sum(one.pieces for one in seen)

    results.put(asyncio.run(run()))


def _soak_clients(port: int, seconds: float, results: Any) -> None:
    async def client(until: float, tally: dict[str, int]) -> None:
        while time.monotonic() < until:
            protocol = random.choice([CHAT, MESSAGES, RESPONSES])
            hang_up = random.choice([None, random.randint(0, 40)])
            seen = await _stream(port, random.randint(5, 80), protocol, hang_up)
            if hang_up is None:
                tally["complete" if seen.is_complete else "broken"] += 1
            else:
                tally["hung up"] += 1

    async def run() -> dict[str, int]:
        tally = {"complete": 0, "broken": 0, "hung up": 0}
        until = time.monotonic() + seconds
        await asyncio.gather(*(client(until, tally) for _ in range(200)))
        return tally

    results.put(asyncio.run(run()))


def _in_another_process(target: Any, *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=target, args=(*arguments, results))
    process.start()
    while True:
        try:
            result = results.get(timeout=30)
            break
        except queue.Empty:
            assert process.is_alive()
            print(f"  {_resident_mib():.1f} MiB", flush=True)
    process.join()
    return result


def overhead() -> None:
    """Measure one stream and 64."""
    words = TOKENIZER.encode(VARIED)
    for streams, tokens in ((1, 1500), (64, 300)):
        engine = FakeEngine([words], step_s=STEP_S, context=10_000)
        with serving_in_background(engine, max_active=64, max_sessions=64) as url:
            port = int(url.rsplit(":", 1)[1])
            took_s, seen = _in_another_process(_clients, port, streams, tokens)
        # What a sleep of a millisecond really takes here is not the server's doing.
        begin = time.perf_counter()
        for _ in range(300):
            time.sleep(STEP_S)
        step_s = (time.perf_counter() - begin) / 300
        added_ms = (took_s / tokens - step_s) * 1000
        print(
            f"{streams:3} streams: {seen / took_s:7.0f} chunks/s, "
            f"{streams * tokens / took_s:7.0f} tokens/s, "
            f"{added_ms:.3f} ms a step beyond the engine's {step_s * 1000:.2f} ms"
        )


class Latest(list[Any]):
    """What the fake engine notes for tests, and no test asks for here."""

    def append(self, item: Any) -> None:
        self[:] = [item]


def soak(seconds: float) -> None:
    """200 clients, random hang-ups; then count what is left."""
    engine = FakeEngine([TOKENIZER.encode(VARIED)], step_s=STEP_S, context=10_000)
    engine.steps, engine.prompts = Latest(), Latest()
    settings = {"max_active": 64, "max_waiting": 400, "max_sessions": 80}
    with serving_in_background(engine, **settings) as url:
        port = int(url.rsplit(":", 1)[1])
        print(_in_another_process(_soak_clients, port, min(seconds, 20.0)))
        gc.collect()
        before, objects = _resident_mib(), len(gc.get_objects())
        print(_in_another_process(_soak_clients, port, seconds))
        gc.collect()
        print(f"memory {before:.1f} -> {_resident_mib():.1f} MiB")
        print(f"objects {objects} -> {len(gc.get_objects())}, sessions {engine.open_sessions}")
        print(f"threads {threading.active_count()}, open files {len(os.listdir('/proc/self/fd'))}")
    print(f"sessions after the end: {engine.open_sessions}")
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f} MiB")


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["overhead", "soak"])
    parser.add_argument("--seconds", type=float, default=300.0)
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if arguments.what == "overhead":
        overhead()
    else:
        soak(arguments.seconds)


if __name__ == "__main__":
    main()
