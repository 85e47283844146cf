"""POST /v1/completions: the prompt sent back, and scored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from server_fakes import TOKENIZER, FakeEngine
from server_harness import Serve, Served

PATH = "/v1/completions"


async def post(served: Served, **body: Any) -> Any:
    reply = await served.http.post(PATH, json={"model": "m", "max_tokens": 4} | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def chunks(served: Served, **body: Any) -> list[Any]:
    body = {"model": "m", "stream": True, "stream_options": {"include_usage": True}} | body
    reply = await served.http.post(PATH, json=body)
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def consistent(choice: Any) -> None:
    """Every token of the text has an entry, and stands where the entry says."""
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)


@pytest.mark.parametrize("n", [1, 3])
async def test_echo_with_logprobs_scores_the_prompt(serve: Serve, n: int) -> None:
    ids = TOKENIZER.encode("A hello\nworld")
    async with serve(FakeEngine(["B C"])) as served:
        reply = await post(served, prompt="A hello\nworld", echo=True, logprobs=2, n=n)
        assert len(reply["choices"]) == n
        for choice in reply["choices"]:
            consistent(choice)
            told = choice["logprobs"]
            assert choice["text"] == "A hello\nworldB C"
            assert None not in told["token_logprobs"]  # BOS stands in front of the first one
            assert all(len(top) == 2 for top in told["top_logprobs"])
        usage = reply["usage"]
        assert usage["prompt_tokens"] == len(ids) + 1
        assert usage["completion_tokens"] == n * (len(TOKENIZER.encode("B C")) + 1)


async def test_the_first_of_given_ids_has_no_logprob(serve: Serve) -> None:
    ids = TOKENIZER.encode("A hello")
    async with serve(FakeEngine([ids[1:] + TOKENIZER.encode("!")])) as served:
        (choice,) = (await post(served, prompt=ids, echo=True, logprobs=0))["choices"]
        consistent(choice)
        told = choice["logprobs"]
        assert choice["text"] == "A hello!"
        assert told["token_logprobs"][0] is None
        # The fake engine's answer to the first token is the rest: all of it is likely.
        assert all(-0.01 < logprob <= 0 for logprob in told["token_logprobs"][1:])


async def test_a_prompt_can_be_scored_without_an_answer(served: Served) -> None:
    reply = await post(served, prompt="A hello", echo=True, logprobs=1, max_tokens=0)
    (choice,) = reply["choices"]
    assert choice["text"] == "A hello"
    assert reply["usage"]["completion_tokens"] == 0
    assert len(choice["logprobs"]["tokens"]) == len(TOKENIZER.encode("A hello"))


async def test_nothing_to_answer_and_nothing_to_score_is_refused(served: Served) -> None:
    for body in ({}, {"echo": True}, {"echo": True, "logprobs": 1, "prompt": [5]}):
        sent = {"model": "m", "prompt": "A hello", "max_tokens": 0} | body
        reply = await served.http.post(PATH, json=sent)
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "max_tokens"


async def test_stop_strings_and_ends_in_a_scored_prompt_end_nothing(serve: Serve) -> None:
    eos = TOKENIZER.eos_id
    assert eos is not None
    ids = [*TOKENIZER.encode("A stop B"), eos, *TOKENIZER.encode(" C C C C C C C C C C")]
    async with serve(FakeEngine(["D stop E"])) as served:
        body = {"prompt": ids, "echo": True, "logprobs": 0, "stop": "stop", "max_tokens": 20}
        (choice,) = (await post(served, **body))["choices"]
        assert choice["text"] == TOKENIZER.decode(ids) + "D "
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("given", ["A hello", TOKENIZER.encode("A hello")])
async def test_streamed_pieces_add_up(serve: Serve, given: Any) -> None:
    async with serve(FakeEngine(["B C"])) as served:
        body = {"prompt": given, "echo": True, "logprobs": 1, "n": 2, "max_tokens": 9}
        *frames, last = await chunks(served, **body)
        whole = await post(served, **body)
        assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
        for choice in whole["choices"]:
            pieces = [
                piece
                for frame in frames
                for piece in frame["choices"]
                if piece["index"] == choice["index"]
            ]
            assert "".join(piece["text"] for piece in pieces) == choice["text"]
            for name, told in choice["logprobs"].items():
                parts = [entry for piece in pieces for entry in piece["logprobs"][name]]
                assert parts == told


async def test_a_prompt_too_long_to_score_is_refused(serve: Serve) -> None:
    async with serve(FakeEngine(context=64)) as served:
        body = {"model": "m", "prompt": [5] * 65, "echo": True, "logprobs": 0, "max_tokens": 0}
        reply = await served.http.post(PATH, json=body)
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "context_length_exceeded"
        reply = await served.http.post(PATH, json=body | {"prompt": [5] * 64})
        assert reply.status_code == 200
        assert len(reply.json()["choices"][0]["logprobs"]["tokens"]) == 64
