"""What outlives a request, a session and the process: the disk cache through the real server."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from protocol_agents import READ as READ_TOOL
from pyds4_server import Settings
from pyds4_server.events import CallEnd
from pyds4_server.generation import Turn
from pyds4_server.kept import Kept
from pyds4_server.memory import TurnMemory
from server_fakes import FakeEngine
from server_harness import Served, serving

import pyds4
from models import DEMO

FACTS = " ".join(f"The code of door {i} is {i * 37 % 1000}." for i in range(60))
"""Long enough to be worth a place on disk."""
READ: Any = {
    "type": "function",
    "function": {"name": READ_TOOL.name, "parameters": READ_TOOL.schema},
}


@asynccontextmanager
async def started(directory: Path | None, **settings: Any) -> AsyncIterator[Served]:
    """A fresh start of engine and server."""
    kept = {} if directory is None else {"disk_cache": True, "disk_cache_directory": directory}
    with pyds4.Engine(DEMO) as engine:
        async with serving(engine, **(kept | {"memory_cache_gib": 0.1} | settings)) as served:
            yield served


async def ask(served: Served, messages: list[Any], **more: Any) -> tuple[dict[str, Any], Any]:
    """The answer as JSON, and its headers."""
    body = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 200} | more
    response = await served.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json(), response.headers


def cached(answer: dict[str, Any]) -> int:
    count: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return count


def conversation() -> list[Any]:
    return [
        {"role": "system", "content": FACTS},
        {"role": "user", "content": "What is the code of door 7?"},
    ]


async def test_a_conversation_goes_on_from_disk_after_a_restart(tmp_path: Path) -> None:
    async with started(tmp_path) as served:
        messages = conversation()
        first, headers = await ask(served, messages)
        assert cached(first) == 0
        assert "source=nothing" in headers["x-pyds4-cache"]
    messages.append(first["choices"][0]["message"])
    messages.append({"role": "user", "content": "And what is the code of door 9?"})
    async with started(None) as cold:
        expected, _ = await ask(cold, messages)
    async with started(tmp_path) as served:
        second, headers = await ask(served, messages)
        metrics = (await served.http.get("/metrics")).text
    assert cached(second) > first["usage"]["prompt_tokens"] - 30
    assert "source=disk" in headers["x-pyds4-cache"]
    assert second["choices"][0]["message"] == expected["choices"][0]["message"]
    assert re.search(r'pyds4_cache_lookups_total{place="disk",result="hit"} [1-9]', metrics)


async def test_a_turn_is_replayed_by_its_call_id_after_a_restart(tmp_path: Path) -> None:
    messages: list[Any] = [
        {"role": "system", "content": FACTS},
        {"role": "user", "content": "Read config.ini and tell me the value of port"},
    ]
    async with started(tmp_path) as served:
        body: Any = {"tools": [READ], "reasoning_effort": "high"}
        first, _ = await ask(served, messages, **body)
        message = first["choices"][0]["message"]
        (call,) = message["tool_calls"]
        # As clients do: without the reasoning, and spelled by another serialiser.
        arguments = json.loads(call["function"]["arguments"])
        call["function"]["arguments"] = json.dumps(arguments, indent=3)
        result = {"role": "tool", "tool_call_id": call["id"], "content": "port = 8471\nname = abc"}
        messages += [{"role": "assistant", "content": None, "tool_calls": [call]}, result]
        body["messages"] = messages
        sampled = (await served.http.post("/tokenize", json=body)).json()["tokens"]
    async with started(tmp_path) as served:
        assert (await served.http.post("/tokenize", json=body)).json()["tokens"] == sampled
        second, headers = await ask(served, **body)
        assert "source=disk" in headers["x-pyds4-cache"]
        assert "8471" in second["choices"][0]["message"]["content"]
    async with started(None) as served:
        assert (await served.http.post("/tokenize", json=body)).json()["tokens"] != sampled


async def test_a_new_conversation_finds_the_system_prompt_of_the_first(tmp_path: Path) -> None:
    system, question = conversation()
    async with started(tmp_path) as served:
        first, _ = await ask(served, [system, question])
    async with started(tmp_path) as served:
        second, headers = await ask(served, [system, {"role": "user", "content": "Hello!"}])
    async with started(None) as cold:
        expected, _ = await ask(cold, [system, {"role": "user", "content": "Hello!"}])
    assert cached(second) > first["usage"]["prompt_tokens"] - 20
    assert "source=disk" in headers["x-pyds4-cache"]
    assert second["choices"][0]["message"] == expected["choices"][0]["message"]


async def test_what_a_hung_up_client_had_evaluated_is_saved_at_shutdown(tmp_path: Path) -> None:
    messages = conversation()
    async with started(tmp_path, prefill_idle_chunk_tokens=128) as served:
        body = {"model": "demo", "messages": messages, "max_tokens": 4000, "stream": True}
        async with served.http.stream("POST", "/v1/chat/completions", json=body) as stream:
            async for line in stream.aiter_lines():
                # The first word: all of the prompt is evaluated, and nothing else has ended.
                if re.search(r'"content":"[^"]', line):
                    break
    async with started(tmp_path) as served:
        again, _ = await ask(served, messages)
    assert cached(again) > 500


async def test_the_header_says_where_a_prompt_differs(tmp_path: Path) -> None:
    messages = conversation()
    async with started(tmp_path) as served:
        await ask(served, messages)
        messages[0]["content"] = FACTS.replace("door 55 is", "door 55 was")
        changed, headers = await ask(served, messages)
    assert 0 < cached(changed) < changed["usage"]["prompt_tokens"]
    reason = json.loads(headers["x-pyds4-cache"].split("reason=")[1])
    assert "differs at" in reason
    assert "was" in reason


async def test_no_client_is_told_a_word_of_anothers(tmp_path: Path) -> None:
    async with started(tmp_path, api_keys=("one", "two")) as served:
        served.http.headers["authorization"] = "Bearer one"
        await ask(served, [{"role": "user", "content": f"{FACTS} The password is heron."}])
        served.http.headers["authorization"] = "Bearer two"
        guess = [{"role": "user", "content": f"{FACTS} The password is what?"}]
        _, headers = await ask(served, guess)
    assert "instead of" not in headers["x-pyds4-cache"]
    assert "heron" not in headers["x-pyds4-cache"]


async def test_two_servers_share_a_directory(tmp_path: Path) -> None:
    async with started(tmp_path) as one, started(tmp_path) as other:
        answers = await asyncio.gather(*(ask(s, conversation()) for s in (one, other)))
    texts = {answer["choices"][0]["message"]["content"] for answer, _ in answers}
    assert len(texts) == 1
    async with started(tmp_path) as served:
        again, _ = await ask(served, conversation())
    assert cached(again) > 500


async def test_a_directory_below_home_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with started(Path("~/kv")) as served:
        await ask(served, conversation())
    assert {path.name for path in (tmp_path / "kv").iterdir()} >= {"turns.sqlite", "ledger"}


async def test_a_turn_file_that_cannot_be_opened_costs_the_turns_only(tmp_path: Path) -> None:
    (tmp_path / "turns.sqlite").mkdir()
    async with started(tmp_path) as served:
        await ask(served, conversation())
    async with started(tmp_path) as served:
        again, _ = await ask(served, conversation())
    assert cached(again) > 500


async def test_a_directory_that_cannot_be_made_costs_the_cache_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A command that another test ran may have taken the log from the root's handlers.
    monkeypatch.setattr(logging.getLogger("pyds4"), "propagate", True)
    (tmp_path / "file").write_text("")
    async with started(tmp_path / "file" / "kv") as served:
        answer, _ = await ask(served, conversation())
        assert answer["choices"][0]["message"]["content"]
        refused = await served.http.delete("/v1/kv")
        assert refused.status_code == 404
        assert "disk_cache" in refused.json()["error"]["message"]
        overview = (await served.http.get("/v1/kv")).json()
        assert overview["disk"] is None
        assert overview["data"] == []
    assert "not kept on disk" in caplog.text


async def test_kept_prefixes_can_be_listed_pinned_and_deleted(tmp_path: Path) -> None:
    async with started(tmp_path) as served:
        await ask(served, conversation())
        await asyncio.to_thread(served.service.kept.flush)
        overview = (await served.http.get("/v1/kv")).json()
        assert overview["directory"] == str(tmp_path)
        assert overview["disk"]["states"] == len(overview["data"]) > 0
        entry = overview["data"][0]
        assert "door 59" in entry["ends_with"]
        path = f"/v1/kv/{entry['key']}"
        pinned = await served.http.post(path, json={"pinned": True})
        assert pinned.json() == {"key": entry["key"], "pinned": True}
        assert (await served.http.delete("/v1/kv")).json()["freed_bytes"] >= 0
        (left,) = (await served.http.get("/v1/kv")).json()["data"]
        assert left["pinned"]
        assert (await served.http.delete(path)).json()["freed_bytes"] > 0
        assert (await served.http.get("/v1/kv")).json()["data"] == []


@pytest.mark.parametrize("key", ["0" * 40, "nothing", "%2e%2e", "é", "f" * 5000])
async def test_an_unknown_key_is_not_found(tmp_path: Path, key: str) -> None:
    async with started(tmp_path) as served:
        for answer in (
            await served.http.delete(f"/v1/kv/{key}"),
            await served.http.post(f"/v1/kv/{key}", json={}),
        ):
            assert answer.status_code in (404, 414), answer.text


async def test_a_system_prompt_is_warmed_for_every_conversation_with_it(tmp_path: Path) -> None:
    system = {"role": "system", "content": FACTS}
    async with started(tmp_path) as served:
        body = {"messages": [system], "tools": [READ]}
        warmed = (await served.http.post("/v1/kv/warm", json=body)).json()
        assert warmed["evaluated"] == warmed["tokens"] > 500
        assert warmed["kept"] >= warmed["tokens"] - 1
        again = (await served.http.post("/v1/kv/warm", json=body)).json()
        assert again["evaluated"] <= 1
        entries = (await served.http.get("/v1/kv")).json()["data"]
        assert [e["key"] for e in entries if e["pinned"]] == [warmed["key"]]
    async with started(tmp_path) as served:
        answer, _ = await ask(served, [system, {"role": "user", "content": "Hi"}], tools=[READ])
    assert cached(answer) >= warmed["kept"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "messages or prompt is required"),
        ({"prompt": ""}, "prompt is empty"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"prompt": "door " * 20_000}, "maximum context length"),
    ],
)
async def test_a_prompt_that_cannot_be_warmed_is_refused(
    tmp_path: Path, body: Any, message: str
) -> None:
    async with started(tmp_path) as served:
        refused = await served.http.post("/v1/kv/warm", json=body)
    assert refused.status_code == 400
    assert message in refused.json()["error"]["message"]


def test_a_remembered_turn_does_not_hold_its_prompt() -> None:
    class Ids(list[int]):
        """A list that a weak reference may point to."""

    engine = FakeEngine()
    kept = Kept(Settings(disk_cache=False), engine)
    memory = TurnMemory(engine.tokenizer, kept)
    prompt = Ids(range(8, 1000))
    watched = weakref.ref(prompt)
    call = CallEnd(0, "call_1", "read", "{}")
    memory.remember(Turn(prompt, [9, 10], True, "", "words", [call]))
    kept.close()
    del prompt
    gc.collect()
    assert watched() is None


async def test_kept_prefixes_are_shown_to_who_has_a_key() -> None:
    async with serving(FakeEngine(), api_keys=("one",)) as served:
        for method, path in (
            ("GET", "/v1/kv"),
            ("DELETE", "/v1/kv"),
            ("DELETE", f"/v1/kv/{'0' * 40}"),
            ("POST", f"/v1/kv/{'0' * 40}"),
            ("POST", "/v1/kv/warm"),
        ):
            assert (await served.http.request(method, path)).status_code == 401, path
        served.http.headers["authorization"] = "Bearer one"
        assert (await served.http.get("/v1/kv")).json()["data"] == []
