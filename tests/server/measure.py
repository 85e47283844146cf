"""What the server costs beside the engine, and whether it holds up. Run by hand:

    export PYTHONPATH=tests:server
    python tests/server/measure.py overhead
    python tests/server/measure.py soak --seconds 300

The server runs in this process on a fake engine; the clients run in another, so that each has a
core. ``overhead`` reports milliseconds a token beyond the engine's step at one stream, and tokens a
second over 64. ``soak`` keeps 200 streams open, half of which hang up somewhere, and reports what
was left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

from pyds4_server.serving import SWITCH_INTERVAL_S
from server_fakes import TOKENIZER, FakeEngine
from server_harness import serving_in_background

STEP_S = 0.001
VARIED = " ".join(f"word{i}" for i in range(4000))


async def _stream(port: int, tokens: int, hang_up_after: int | None = None) -> tuple[int, bool]:
    """One streamed chat over a bare socket: chunks seen, and whether it ended properly."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(
        {
            "model": "m",
            "messages": [{"role": "user", "content": f"Go {random.random()}"}],
            "stream": True,
            "max_tokens": tokens,
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    seen = 0
    ended = False
    while data := await reader.read(65536):
        seen += data.count(b'"delta":{"content":"') + data.count(b'"error"')
        ended = ended or b"[DONE]" in data
        if hang_up_after is not None and seen >= hang_up_after:
            break
    writer.close()
    return seen, ended


def _clients(port: int, streams: int, tokens: int, results: Any) -> None:
    async def run() -> tuple[float, int]:
        await asyncio.gather(*(_stream(port, 4) for _ in range(4)))
        begin = time.perf_counter()
        seen = await asyncio.gather(*(_stream(port, tokens) for _ in range(streams)))
        return time.perf_counter() - begin, sum(count for count, _ in seen)

    results.put(asyncio.run(run()))


def _soak_clients(port: int, seconds: float, results: Any) -> None:
    async def client(until: float, tally: dict[str, int]) -> None:
        while time.monotonic() < until:
            hang_up = random.choice([None, random.randint(0, 40)])
            seen, ended = await _stream(port, random.randint(5, 80), hang_up)
            if hang_up is None:
                tally["complete" if ended and seen else "broken"] += 1
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
    result = results.get()
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


def soak(seconds: float) -> None:
    """200 clients, random hang-ups; then count what is left."""
    engine = FakeEngine([TOKENIZER.encode(VARIED)], step_s=STEP_S, context=10_000)
    settings = {"max_active": 64, "max_waiting": 400, "max_sessions": 80}
    with serving_in_background(engine, **settings) as url:
        port = int(url.rsplit(":", 1)[1])
        print(_in_another_process(_soak_clients, port, min(seconds, 20.0)))
        _forget(engine)
        before, objects = _resident_mib(), len(gc.get_objects())
        print(_in_another_process(_soak_clients, port, seconds))
        _forget(engine)
        print(f"memory {before:.1f} -> {_resident_mib():.1f} MiB")
        print(f"objects {objects} -> {len(gc.get_objects())}, sessions {engine.open_sessions}")
    print(f"sessions after the end: {engine.open_sessions}")
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f} MiB")


def _forget(engine: FakeEngine) -> None:
    """What the fake engine noted for tests is no leak of the server's."""
    engine.steps.clear()
    engine.prompts.clear()
    gc.collect()


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
