"""Choosing tokens from Python, and generating with it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import pyds4
from models import DEMO, F32, SMALL, engine, random_tokens, synthetic_path
from pyds4.engine import Engine, StepItem
from pyds4.errors import ContextFullError, InvalidArgumentError, SessionCancelled
from pyds4.generation import generate
from pyds4.sampling import GREEDY, Sampler, Sampling

LOGITS = np.random.default_rng(0).normal(0, 2, 300).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Engine:
    return engine(synthetic_path(SMALL, F32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("top_k", -1),
    ],
)
def test_impossible_options_are_named(field: str, value: float) -> None:
    options: dict[str, Any] = {field: value}
    with pytest.raises(InvalidArgumentError, match=field):
        Sampling(**options)


def test_the_same_seed_chooses_the_same_tokens() -> None:
    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.5, seed=seed))
        return [sampler.choose(LOGITS) for _ in range(30)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)
    assert tokens(None) != tokens(None)


def test_greedy_takes_the_best() -> None:
    assert Sampler(GREEDY).choose(LOGITS) == int(LOGITS.argmax())


def test_a_top_k_beyond_any_vocabulary_means_all() -> None:
    wide = Sampler(Sampling(top_k=2**40, seed=1))
    free = Sampler(Sampling(seed=1))
    assert [wide.choose(LOGITS) for _ in range(20)] == [free.choose(LOGITS) for _ in range(20)]


def test_logits_of_another_kind_are_converted() -> None:
    sampler = Sampler(GREEDY)
    wide: Any = LOGITS.astype(np.float64)[::-1]
    assert sampler.choose(wide) == int(LOGITS[::-1].argmax())


@pytest.mark.parametrize("logits", [[], [math.nan, math.nan], [-math.inf]])
def test_logits_without_a_number_are_refused(logits: list[float]) -> None:
    with pytest.raises(InvalidArgumentError):
        Sampler(Sampling()).choose(np.array(logits, np.float32))


def test_a_step_chooses_what_the_sampler_would(model: Engine) -> None:
    sampling = Sampling(temperature=1.2, top_p=0.9, seed=3)
    stepping, choosing = Sampler(sampling), Sampler(sampling)
    with model.session() as session:
        tokens = random_tokens(10)
        for _ in range(20):
            result = model.step([StepItem(session, tokens, stepping)])[0]
            assert result.token == choosing.choose(session.logits)
            tokens = [result.token]


# ---------------------------------------------------------------------- generate


def ids(*args: Any, **options: Any) -> list[int]:
    return [token.id for token in generate(*args, **options) if token.id >= 0]


def test_generation_is_decoding_the_chosen_token(model: Engine) -> None:
    prompt = random_tokens(12)
    found = ids(model, prompt, sampling=GREEDY, max_tokens=15, stop_ids=[])
    with model.session() as session:
        session.prefill(prompt)
        for token in found:
            assert token == int(session.logits.argmax())
            session.decode(token)
    assert len(found) == 15


def test_generation_stops_at_a_stop_id_and_does_not_return_it(model: Engine) -> None:
    prompt = random_tokens(12)
    found = ids(model, prompt, sampling=GREEDY, max_tokens=15, stop_ids=[])
    stop = found[5]
    assert ids(model, prompt, sampling=GREEDY, stop_ids=[stop]) == found[: found.index(stop)]
    assert ids(model, prompt, sampling=GREEDY, max_tokens=0) == []


def test_generation_ends_where_the_context_does(model: Engine) -> None:
    with model.session(context=20) as session:
        found = ids(session, random_tokens(12), sampling=Sampling(seed=1), stop_ids=[])
        # The last token needs no room: nothing is evaluated behind it.
        assert len(found) in (8, 9)
        assert session.position <= 20
        with pytest.raises(ContextFullError):
            ids(session, random_tokens(21))


def test_generation_goes_on_in_the_session_it_was_given(model: Engine) -> None:
    prompt = random_tokens(12)
    with model.session() as session:
        found = ids(session, prompt, sampling=GREEDY, max_tokens=6, stop_ids=[])
        assert session.tokens[:12] == prompt
        assert session.tokens[12:] == found[: session.position - 12]
        held = session.position
        assert session.prefill([*prompt, *found, 9]) == held


def test_the_same_seed_generates_the_same_tokens(model: Engine) -> None:
    def run(seed: int) -> list[int]:
        sampling = Sampling(temperature=2.0, seed=seed)
        return ids(model, random_tokens(5), sampling=sampling, max_tokens=20, stop_ids=[])

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_cancel_ends_a_generation_with_its_error(model: Engine) -> None:
    with model.session() as session:
        tokens = generate(session, random_tokens(12), max_tokens=100, stop_ids=[])
        next(tokens)
        session.cancel()
        with pytest.raises(SessionCancelled):
            for _ in tokens:
                pass


def test_bad_prompts_are_refused_at_the_first_token(model: Engine) -> None:
    with pytest.raises(InvalidArgumentError, match="empty"):
        next(generate(model, []))


@pytest.mark.skipif(not DEMO.exists(), reason="the demo model is not here")
def test_generated_texts_are_the_text_of_the_generated_ids() -> None:
    with pyds4.Engine(DEMO) as demo:
        sampling = Sampling(temperature=3.0, seed=5)  # far from likely: broken characters too
        tokens = list(generate(demo, "hello", sampling=sampling, max_tokens=60, stop_ids=[]))
        found = [token.id for token in tokens if token.id >= 0]
        assert "".join(token.text for token in tokens) == demo.tokenizer.decode(found)
