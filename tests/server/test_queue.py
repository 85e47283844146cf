"""Many requests on one engine: waiting, fairness, overload, cancellation, failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyds4_server.planning import piece, share
from server_fakes import FakeEngine
from server_harness import Serve, Served

from pyds4.errors import BackendError

HI: Any = [{"role": "user", "content": "Hi"}]
LONG = "word " * 300
ENDLESS = "word " * 3000  # to be hung up on


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for ``condition``; fails when it does not come about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.005)


async def hang_up(request: asyncio.Task[Any]) -> None:
    """Close the request's connection."""
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)


async def ask(served: Served, text: str = "Hi", **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return await served.openai.chat.completions.create(model="m", messages=messages, **more)


def _echo(prompt: str) -> str:
    return prompt.split("<｜User｜>")[-1].split("<｜Assistant｜>")[0] + "!"


async def test_every_concurrent_request_gets_its_own_answer(serve: Serve) -> None:
    async with serve(FakeEngine(_echo), max_active=4) as served:
        answers = await asyncio.gather(*(ask(served, f"number {i}") for i in range(40)))
    texts = [answer.choices[0].message.content for answer in answers]
    assert texts == [f"number {i}!" for i in range(40)]


async def test_one_at_a_time_when_the_batch_holds_one(serve: Serve) -> None:
    async with serve(FakeEngine(_echo), max_active=1) as served:
        answers = await asyncio.gather(*(ask(served, f"number {i}") for i in range(6)))
        assert all(len(step) == 1 for step in served.engine.steps)
    assert [a.choices[0].message.content for a in answers] == [f"number {i}!" for i in range(6)]


async def test_new_requests_join_while_others_decode(serve: Serve) -> None:
    engine = FakeEngine([ENDLESS, "Short."], step_s=0.002)
    async with serve(engine, repetition_guard=False) as served:
        long = asyncio.create_task(ask(served, "first"))
        await until(lambda: len(engine.steps) > 5)
        short = await ask(served, "second")
        assert short.choices[0].message.content == "Short."
        assert not long.done()
        await hang_up(long)


async def test_a_long_prompt_does_not_stop_the_others(serve: Serve) -> None:
    engine = FakeEngine([ENDLESS, "Read."], step_s=0.002)
    async with serve(engine, prefill_chunk_tokens=16, repetition_guard=False) as served:
        decoding = asyncio.create_task(ask(served, "go"))
        await until(lambda: len(engine.steps) > 5)
        begin = len(engine.steps)
        await ask(served, "word " * 200)
        mixed = [step for step in engine.steps[begin:] if sum(step) > 2]
        assert len(mixed) > 8
        assert all(1 in step for step in mixed)
        assert all(sum(step) <= 17 for step in mixed)
        await hang_up(decoding)


async def test_a_full_queue_says_so(serve: Serve) -> None:
    engine = FakeEngine()
    engine.gate.clear()
    async with serve(engine, max_active=1, max_waiting=2) as served:
        waiting = [asyncio.create_task(ask(served, f"{i}")) for i in range(3)]
        await until(lambda: served.active >= 3)
        with pytest.raises(openai.RateLimitError) as refused:
            await ask(served, "one too many")
        assert refused.value.response.headers["retry-after"] == "2"
        assert "busy" in refused.value.message
        engine.gate.set()
        answers = await asyncio.gather(*waiting)
    assert all(answer.choices[0].message.content for answer in answers)


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnect_stops_decoding_within_a_step(serve: Serve, stream: bool) -> None:
    engine = FakeEngine([ENDLESS], step_s=0.005)
    async with serve(engine, repetition_guard=False) as served:
        body = {"model": "m", "messages": HI, "stream": stream, "temperature": 0}
        request = asyncio.create_task(served.http.post("/v1/chat/completions", json=body))
        await until(lambda: len(engine.steps) > 10)
        await hang_up(request)
        await until(lambda: not served.active)
        steps = len(engine.steps)
        await asyncio.sleep(0.1)
        assert len(engine.steps) == steps
        assert steps < 2000  # of 3,000; how soon the hang-up is seen depends on the machine
        assert (await ask(served, "and now?", max_tokens=2)).choices[0].message.content


async def test_disconnect_in_the_queue_leaves_no_trace(serve: Serve) -> None:
    engine = FakeEngine(["x"])
    engine.gate.clear()
    async with serve(engine, max_active=1) as served:
        first = asyncio.create_task(ask(served))
        await until(lambda: engine.is_in_step)
        second = asyncio.create_task(ask(served, "second"))
        await until(lambda: served.active == 2)
        (waiting,) = served.service.scheduler._inbox
        await hang_up(second)
        await until(lambda: waiting.is_cancelled)
        engine.gate.set()
        await first
        assert len(engine.prompts) == 1


async def test_a_cancelled_prefill_is_continued_by_the_retry(serve: Serve) -> None:
    engine = FakeEngine(step_s=0.1, context=16384)
    prompt = "word " * 2500
    async with serve(engine, prefill_idle_chunk_tokens=32) as served:
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
        request = asyncio.create_task(served.http.post("/v1/chat/completions", json=body))
        await until(lambda: len(engine.steps) >= 2)
        await hang_up(request)
        await until(lambda: not served.active)
        done = engine.evaluated
        assert 0 < done < 2500
        engine.step_s = 0
        answer = await ask(served, prompt)
        assert answer.usage.prompt_tokens_details.cached_tokens == done


async def test_a_retry_joins_the_answer_under_way(serve: Serve) -> None:
    engine = FakeEngine(["joined"], step_s=0.01)
    async with serve(engine) as served:
        body = {"model": "m", "messages": HI}
        retry = {"x-stainless-retry-count": "1"}
        answers = await asyncio.gather(
            *(served.http.post("/v1/chat/completions", json=body, headers=retry) for _ in range(3))
        )
        assert len(engine.prompts) == 1
        late = await served.http.post("/v1/chat/completions", json=body, headers=retry)
        assert len(engine.prompts) == 1
    for answer in [*answers, late]:
        assert answer.json()["choices"][0]["message"]["content"] == "joined"


async def test_a_retry_after_a_lost_answer_gets_the_same_one(serve: Serve) -> None:
    engine = FakeEngine(["a lost answer"])
    async with serve(engine) as served:
        body = {"model": "m", "messages": HI, "temperature": 1}
        first = await served.http.post("/v1/chat/completions", json=body)
        again = await served.http.post(
            "/v1/chat/completions", json=body, headers={"x-stainless-retry-count": "1"}
        )
        assert again.json()["choices"] == first.json()["choices"]
        assert len(engine.prompts) == 1
        await served.http.post("/v1/chat/completions", json=body)
        assert len(engine.prompts) == 2


async def test_an_answer_in_one_piece_keeps_its_connection_awake(serve: Serve) -> None:
    engine = FakeEngine(step_s=0.1)
    async with serve(engine, patience_s=0.05, keepalive_s=0.05) as served:
        body = {"model": "m", "messages": HI}
        response = await served.http.post("/v1/chat/completions", json=body)
        assert response.text.startswith(" ")
        assert response.json()["choices"][0]["message"]["content"] == "Hello!"
        engine.gate.clear()
        engine.fail_step = BackendError("too late")
        request = asyncio.create_task(served.http.post("/v1/chat/completions", json=body))
        await asyncio.sleep(0.2)  # the answer has usually begun by then
        engine.gate.set()
        late = await request
        assert "too late" in late.json()["error"]["message"]


async def test_equal_requests_that_want_samples_are_not_one(serve: Serve) -> None:
    async with serve(FakeEngine(step_s=0.002)) as served:
        await asyncio.gather(*(ask(served) for _ in range(3)))
        assert len(served.engine.prompts) == 3


async def test_an_engine_error_reaches_the_client_and_the_server_lives(serve: Serve) -> None:
    engine = FakeEngine()
    async with serve(engine) as served:
        engine.fail_step = BackendError("the device is on fire")
        with pytest.raises(openai.InternalServerError, match="on fire"):
            await ask(served)
        engine.fail_item = BackendError("one bad item")
        with pytest.raises(openai.InternalServerError, match="one bad item"):
            await ask(served)
        assert (await ask(served)).choices[0].message.content == "Hello!"
        assert engine.open_sessions == 1


async def test_logits_without_a_number_cost_one_request_not_the_server(serve: Serve) -> None:
    engine = FakeEngine([LONG, "Hello!"], step_s=0.002)
    async with serve(engine) as served:
        other = asyncio.create_task(ask(served, "unharmed", max_tokens=60))
        await until(lambda: len(engine.steps) > 3)
        engine.has_no_numbers = True
        with pytest.raises(openai.InternalServerError, match="no logit is a number"):
            await ask(served, "broken", frequency_penalty=1)
        engine.has_no_numbers = False
        assert (await other).usage.completion_tokens == 60
        assert (await ask(served, "next", frequency_penalty=1)).choices[0].message.content


async def test_an_error_in_a_stream_is_its_last_event(serve: Serve) -> None:
    engine = FakeEngine([LONG], step_s=0.002)
    async with serve(engine) as served:
        stream = await ask(served, stream=True)
        await anext(stream)
        engine.fail_step = BackendError("the device is gone")
        with pytest.raises(openai.APIError, match="device"):
            _ = [chunk async for chunk in stream]
        body = {"model": "m", "messages": HI, "stream": True}
        engine.fail_step = BackendError("again")
        text = (await served.http.post("/v1/chat/completions", json=body)).text
        assert text.endswith("data: [DONE]\n\n")


async def test_shutdown_ends_streams_properly(serve: Serve) -> None:
    engine = FakeEngine([LONG * 10], step_s=0.005)
    body = {"model": "m", "messages": HI, "stream": True}
    async with serve(engine, shutdown_grace_s=0.1) as served:
        request = asyncio.create_task(served.http.post("/v1/chat/completions", json=body))
        await until(lambda: len(engine.steps) > 3)
        http = served.http
        served.http = type(http)()
    text = (await request).text
    await http.aclose()
    assert "shutting down" in text
    assert text.endswith("data: [DONE]\n\n")
    assert engine.open_sessions == 0


async def test_silence_is_filled_with_comments(serve: Serve) -> None:
    engine = FakeEngine()
    engine.gate.clear()
    async with serve(engine, keepalive_s=0.02) as served:
        body = {"model": "m", "messages": HI, "stream": True, "max_tokens": 2}
        lines = []
        async with served.http.stream("POST", "/v1/chat/completions", json=body) as stream:
            async for line in stream.aiter_lines():
                lines.append(line)
                if sum(line.startswith(": pyds4 {") for line in lines) == 3:
                    engine.gate.set()
    assert [line for line in lines if line][-1] == "data: [DONE]"


async def test_repetition_is_noticed(serve: Serve) -> None:
    async with serve(FakeEngine([LONG * 5])) as served:
        guarded = await ask(served)
        assert guarded.choices[0].finish_reason == "length"
        assert guarded.usage.completion_tokens < 1100
    async with serve(FakeEngine([LONG * 5]), repetition_guard=False) as served:
        assert (await ask(served)).usage.completion_tokens > 1400


async def test_a_side_request_leaves_the_conversation_cached(serve: Serve) -> None:
    async with serve(FakeEngine(["An answer."]), max_sessions=3, max_active=2) as served:
        history: Any = [{"role": "system", "content": "word " * 100}]
        history += [{"role": "user", "content": "Question? " * 20}]
        first: Any = await served.openai.chat.completions.create(model="m", messages=history)
        for title in range(5):
            await ask(served, f"Title of {title}?")
            side: Any = [history[0], {"role": "user", "content": f"Side {title}"}]
            await served.openai.chat.completions.create(model="m", messages=side)
        history.append({"role": "assistant", "content": first.choices[0].message.content})
        history.append({"role": "user", "content": "And?"})
        second: Any = await served.openai.chat.completions.create(model="m", messages=history)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.total_tokens - 2


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=12), st.integers(1, 2048))
def test_shares_use_the_budget_and_starve_nobody(remaining: list[int], budget: int) -> None:
    grants = share(remaining, budget)
    assert sum(grants) == min(budget, sum(remaining))
    assert all(0 <= grant <= most for grant, most in zip(grants, remaining, strict=True))
    assert grants[0] >= min(remaining[0], budget // 2)


@given(st.integers(0, 5000), st.integers(1, 1024), st.integers(0, 5000))
def test_pieces_make_progress_and_leave_the_last_token_alone(
    done: int, granted: int, rest: int
) -> None:
    total = done + granted + rest
    count = piece(done, granted, total)
    assert 1 <= count <= granted
    assert done + count < total or count == 1
