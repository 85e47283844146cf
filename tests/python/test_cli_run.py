"""run: one answer, and the interruptible worker that makes it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from cli_support import DEMO, error_of, run

import pyds4
from pyds4.cli.relay import call, relay

SUM = ("-p", "What is 12 + 30?", "--temperature", "0")


def test_run_prints_the_answer_and_nothing_else() -> None:
    assert run("run", *SUM) == (0, "12 + 30 = 42\n", "")


def test_run_reads_the_prompt_from_standard_input() -> None:
    outcome = run("run", "--temperature", "0", stdin="What is 12 + 30?")
    assert outcome.out == "12 + 30 = 42\n"


def test_reasoning_goes_to_standard_error() -> None:
    outcome = run("run", *SUM, "--think")
    assert outcome.out == "12 + 30 = 42\n"
    assert "42" in outcome.err
    assert "think>" not in outcome.err + outcome.out


def test_json_tells_everything_about_an_answer() -> None:
    outcome = run("run", *SUM, "--think", "--json", "--system", "Be brief.")
    report = json.loads(outcome.out)
    assert report["content"] == "12 + 30 = 42"
    assert "42" in report["reasoning"]
    assert report["model"] == "pyds4 demo"
    assert report["finish_reason"] == "stop"
    assert report["usage"]["completion_tokens"] > 10
    assert report["timings"]["decode_tokens_per_s"] > 0
    assert outcome.err == ""


def test_an_answer_that_is_cut_off_says_so() -> None:
    report = json.loads(run("run", *SUM, "--max-tokens", 3, "--json").out)
    assert report["finish_reason"] == "length"
    assert report["usage"]["completion_tokens"] == 3
    assert "12 + 30 = 42".startswith(report["content"])


def test_the_last_token_that_fits_is_no_cut_when_the_model_stops_there() -> None:
    whole = json.loads(run("run", *SUM, "--json").out)
    count = whole["usage"]["completion_tokens"]
    report = json.loads(run("run", *SUM, "--json", "--max-tokens", count + 1).out)
    assert report == whole | {"timings": report["timings"]}


def test_raw_text_goes_to_the_model_as_it_stands() -> None:
    report = json.loads(run("run", "--raw", "-p", "one two", "-n", 1, "--json").out)
    with pyds4.Engine(DEMO) as engine:
        assert report["usage"]["prompt_tokens"] == len(engine.tokenizer.encode("one two"))


def test_the_same_seed_gives_the_same_answer() -> None:
    words = ("run", "-p", "Tell me a story", "--seed", 5, "-n", 20)
    assert run(*words).out == run(*words).out


def test_verbose_says_what_it_took() -> None:
    assert "tokens/s" in run("run", *SUM, "--verbose").err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["-p", "x", "--raw", "--system", "y"], 2, "--raw"),
        (["-p", "", "--raw"], 2, "empty"),
        (["-p", "x", "--temperature", "-1"], 1, "temperature"),
        (["-p", "x", "--top-p", "0"], 1, "top_p"),
        (["-p", "x", "--effort", "low"], 2, "preview knows high, max"),
        (["-p", "x", "--context", "2"], 1, "context of 2"),
        (["-p", "x", "--context", "100000"], 1, "16384"),
        (["-p", "x", "--backend", "metal"], 1, "metal"),
    ],
)
def test_run_says_what_it_cannot_do(words: list[str], status: int, said: str) -> None:
    assert said in error_of("run", *words, status=status)


# relay


def fresh_logits(engine: pyds4.Engine, ids: list[int]) -> bytes:
    with engine.session() as session:
        session.prefill(ids)
        return session.logits.tobytes()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_a_session_is_as_good_as_new_after_an_interruption(taken: int) -> None:
    with pyds4.Engine(DEMO) as engine, engine.session() as session:
        ids = engine.tokenizer.encode("Tell me a story about a dog. " * 20)
        stream = relay(session, lambda: pyds4.generate(session, ids, stop_ids=()))
        with closing(stream) as tokens:
            for _ in range(taken):
                next(tokens)
        other = ids[:40]
        session.prefill(other)
        assert session.logits.tobytes() == fresh_logits(engine, other)


def test_a_cancellation_that_came_too_late_does_not_hit_the_next_call() -> None:
    with pyds4.Engine(DEMO) as engine, engine.session() as session:

        def work() -> Iterator[int]:
            session.prefill([5, 6, 7])
            yield 1

        with closing(relay(session, work)) as items:
            assert next(items) == 1
            time.sleep(0.05)  # let the worker end
        session.prefill([5, 6, 7, 8])
        assert session.logits.tobytes() == fresh_logits(engine, [5, 6, 7, 8])


def test_errors_of_the_worker_arrive() -> None:
    with pyds4.Engine(DEMO) as engine, engine.session() as session:
        with pytest.raises(pyds4.TokenOutOfRangeError):
            call(session, lambda: session.prefill([10**6]))
        assert call(session, lambda: session.prefill([1])) == 0
