"""Requests that cannot be served: each gets a clear error, none breaks the server."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyds4_server import logs
from server_fakes import FakeEngine
from server_harness import Serve, Served, serving_in_background

HI: Any = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "Hi"}, "messages", "list"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role", "required"),
        ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role", "'system'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "at least one user"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
            "reads text only, not 'image_url'",
        ),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 1.5}, "max_tokens", "integer"),
        ({"n": 1000}, "n", "128"),
        ({"n": 100}, "n", "at most 16"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "no token id"),
        ({"tools": [{"type": "function"}]}, "tools[0]", "only tools of type"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0]", "not 'custom'"),
        ({"tools": [{"type": "function", "function": {"name": 'a"b'}}]}, "tools[0]", "name"),
        ({"tool_choice": "required"}, "tool_choice", "no tool to call"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "nope"}}},
            "tool_choice",
            "not in tools",
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "required", "tools": []},
                }
            },
            "tool_choice",
            "no tool to call",
        ),
        ({"stop": [1]}, "stop", "string"),
        ({"stream": "yes"}, "stream", "boolean"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema.schema",
            "is missing",
        ),
        ({"model": None}, "model", "string"),
    ],
)
async def test_the_field_at_fault_is_named(
    served: Served, change: dict[str, Any], param: str, says: str
) -> None:
    body = {"model": "m", "messages": HI} | change
    response = await served.http.post(CHAT, json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"a":NaN}', b"[" * 100_000]
)
async def test_a_body_that_is_no_json_object_is_refused(
    served: Served, path: str, body: bytes
) -> None:
    response = await served.http.post(path, content=body)
    assert response.status_code == 400
    assert "JSON" in response.json()["error"]["message"]


async def test_unknown_paths_and_methods_are_told_apart(served: Served) -> None:
    missing = await served.http.get("/v1/nothing")
    assert missing.status_code == 404
    assert "error" in missing.json()
    wrong = await served.http.get(CHAT)
    assert wrong.status_code == 405
    anthropic = await served.http.get(MESSAGES)
    assert anthropic.json()["type"] == "error"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{",
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n{}",
    ],
)
async def test_what_is_no_http_does_no_harm(
    served: Served, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(sent)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert not [record for record in caplog.records if record.exc_info]
    assert (await served.http.get("/health")).status_code == 200


async def test_a_body_beyond_the_limit_is_refused(serve: Serve) -> None:
    async with serve(max_body_bytes=2048) as served:
        response = await served.http.post(CHAT, content=b"x" * 5000)
        assert response.status_code == 413
        assert "error" in response.json()


async def test_an_unknown_model_is_refused_only_when_strict(serve: Serve) -> None:
    async with serve(strict_model=True, model_aliases=("other",)) as served:
        body = {"model": "gpt-9", "messages": HI}
        refused = await served.http.post(CHAT, json=body)
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "model_not_found"
        assert "gpt-9" in refused.json()["error"]["message"]
        assert (await served.http.post(CHAT, json=body | {"model": "other"})).status_code == 200
        assert (await served.http.get("/v1/models/gpt-9")).status_code == 404
        assert (await served.http.get("/v1/models/fake-v4")).json()["context_length"] == 4096


async def test_foreign_hosts_are_refused(served: Served) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        response = await served.http.get("/v1/models", headers={"host": host})
        assert response.status_code == 403, host
    for host in ("localhost:1234", "127.0.0.1", "[::1]:80", "app.localhost"):
        response = await served.http.get("/v1/models", headers={"host": host})
        assert response.status_code == 200, host


async def test_keys_are_asked_when_there_are_any(serve: Serve, tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# mine\nsecret-1\n\nsecret-2 # theirs\n")
    async with serve(api_key_file=keys, api_keys=("third",)) as served:
        assert (await served.http.get("/v1/models")).status_code == 401
        assert (await served.http.get("/health")).status_code == 200
        for headers in (
            {"authorization": "Bearer secret-1"},
            {"x-api-key": "secret-2"},
            {"authorization": "bearer third"},
        ):
            assert (await served.http.get("/v1/models", headers=headers)).status_code == 200
        for headers in (
            {"authorization": "Bearer secret"},
            {"authorization": "secret-1"},
            {"x-api-key": ""},
            {"x-api-key": "mine"},
        ):
            assert (await served.http.get("/v1/models", headers=headers)).status_code == 401


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
_FIELDS = (
    *("messages", "system", "tools", "tool_choice", "temperature", "top_p", "top_k", "max_tokens"),
    *("stop", "stop_sequences", "n", "stream", "stream_options", "thinking", "reasoning_effort"),
    *("response_format", "logit_bias", "seed", "logprobs", "top_logprobs", "functions", "input"),
    *("function_call", "parallel_tool_calls", "model", "role", "content", "tool_calls", "id"),
    *("type", "function", "name", "arguments", "input_schema", "text", "tool_use_id"),
    *("output_config", "prompt", "instructions", "reasoning", "tokens", "add_special"),
)


def _plausible(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=5) | st.lists(
        inner, max_size=3
    )


_WORDS = st.sampled_from(
    [
        *("user", "assistant", "system", "tool", "text", "tool_use", "tool_result", "function"),
        *("enabled", "any", "auto", "none", "message", "function_call", "reasoning"),
    ]
)
_BODY = st.recursive(_JSON | _WORDS, _plausible, max_leaves=15)


PATHS = (CHAT, MESSAGES, MESSAGES + "/count_tokens", "/v1/responses")


@pytest.fixture(scope="module")
def background_url() -> Iterator[str]:
    """A server on a thread of its own, for tests that have no event loop."""
    with serving_in_background(FakeEngine(context=256)) as url:
        yield url


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=st.dictionaries(st.sampled_from(_FIELDS), _BODY, max_size=6))
def test_no_body_makes_the_server_fail(background_url: str, body: dict[str, Any]) -> None:
    good = {"model": "m", "messages": HI, "max_tokens": 4, "input": "Hi", "prompt": "Hi"}
    with httpx.Client(base_url=background_url) as client:
        for path in PATHS:
            for sent in (body, good | body, body | good):
                response = client.post(path, content=json.dumps(sent))
                assert response.status_code < 500, (path, sent, response.text)


async def test_pages_elsewhere_may_not_read_unless_allowed(serve: Serve) -> None:
    page = {"origin": "https://app.example"}
    async with serve(cors_origins=("https://app.example",), api_keys=("k",)) as served:
        ask = page | {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        preflight = await served.http.options(CHAT, headers=ask)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == page["origin"]
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        body = {"model": "m", "messages": HI, "stream": True}
        key = {"authorization": "Bearer k"}
        answer = await served.http.post(CHAT, json=body, headers=page | key)
        assert answer.headers["access-control-allow-origin"] == page["origin"]
        other = await served.http.get("/health", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
    async with serve() as served:
        closed = await served.http.get("/health", headers=page)
        assert "access-control-allow-origin" not in closed.headers
        blind = page | {"sec-fetch-site": "cross-site", "content-type": "text/plain"}
        sent = await served.http.post(CHAT, content=json.dumps(body), headers=blind)
        assert sent.status_code == 403
        assert not served.engine.prompts


def test_json_logs_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logger = logging.getLogger("pyds4.test")
    try:
        raise ValueError("Grüße")
    except ValueError:
        logger.exception("it\nfailed")
    line = json.loads(capsys.readouterr().err)
    assert line["message"] == "it\nfailed"
    assert "ValueError: Grüße" in line["exception"]
    logs.configure("text")
    logger.info("hello")
    assert capsys.readouterr().err.endswith("INFO pyds4.test: hello\n")
    logging.getLogger("pyds4").handlers.clear()
    logging.getLogger("pyds4").propagate = True
