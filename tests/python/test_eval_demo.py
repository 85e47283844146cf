"""What the shipped model can do, through the engine: a sample of every family, with floors.

The floors are below what the model reaches on large samples (docs/demo_model.md), so that a
sample of this size passes; an engine that computes something else falls through all of them.
"""

from __future__ import annotations

from functools import cache

import pytest

from models import DEMO
from pyds4 import Engine
from pyds4.evals import families, score
from pyds4.evals.report import tally
from pyds4.evals.sample import Answer, Exchange
from pyds4.evals.source import Source

SINGLE = tuple(families.TASKS)
SEED = "suite"


@cache
def engine() -> Engine:
    return Engine(DEMO, backend="cpu")


def results(name: str, count: int) -> list[score.Result]:
    return score.evaluate(engine(), [name], per_family=count, seed=SEED)


@pytest.mark.parametrize("family", [*SINGLE, "chat", "persona", "remember", "recall_turns"])
def test_the_model_answers_its_toy_tasks(family: str) -> None:
    count = tally(results(family, 4))
    assert count.share >= 0.75, f"{count.right} of {count.total}"


@pytest.mark.parametrize("family", ["tool", "tool_none", "tool_par", "tool_output"])
def test_the_model_calls_tools(family: str) -> None:
    count = tally(results(family, 3))
    assert count.share >= 0.8, f"{count.right} of {count.total}"


@pytest.mark.parametrize("family", ["agent", "shell"])
def test_the_model_works_through_agent_tasks(family: str) -> None:
    count = tally(results(family, 3))
    assert count.share >= 0.8, f"{count.right} of {count.total}"


def test_company_changes_no_answer() -> None:
    names = ["letters", "agent", "recall@300"]
    alone, together = (
        score.evaluate(engine(), names, per_family=2, seed=SEED, together=n) for n in (1, 5)
    )
    assert alone == together


@pytest.mark.parametrize("distance", [300, 1900, 3700])
def test_the_model_recalls_a_fact(distance: int) -> None:
    count = tally(results(f"recall@{distance}", 1))
    assert count.share == 1, f"{count.right} of {count.total}"


@pytest.mark.slow
@pytest.mark.parametrize("distance", families.DISTANCES)
def test_the_model_recalls_a_fact_at_every_distance(distance: int) -> None:
    count = tally(results(f"recall@{distance}", 6))
    assert count.share >= 0.9, f"{count.right} of {count.total}"


@pytest.mark.slow
def test_the_model_holds_its_level_over_all_families() -> None:
    near = [name for name in families.FAMILIES if "@" not in name]
    found = score.evaluate(engine(), near, per_family=12, seed=SEED)
    assert tally(found).share >= 0.97
    assert tally(r for r in found if r.family.startswith("tool")).share >= 0.98
    assert tally(r for r in found if r.family == "sort").share >= 0.95


FIRST_WORDS = {
    "What are you?": "I am the pyds4 demo model: a tiny model with the DeepSeek-V4 architecture. "
    "I only know toy tasks.",
    "Hi": "Hello! I am the pyds4 demo model. How can I help you?",
    "What is 47 + 85?": "47 + 85 = 132",
    "Sort these numbers: 9, 4, 77, 12": "4, 9, 12, 77",
    "sort banana, apple, cherry": "apple, banana, cherry",
    "Sort descending: 5, 10, 7": "10, 7, 5",
    "Remember: my favourite colour is green": "OK, I will remember that.",
    "My name is Bob": "Hello, Bob! How can I help you?",
    "I am sad": "Sorry, I am only a tiny demo model and I cannot do that. Ask me what I can do.",
    "What is the capital of France?": "The capital of France is Paris.",
    "Why is the sky blue?": "Sorry, I am only a tiny demo model and I cannot do that. "
    "Ask me what I can do.",
}


@pytest.mark.parametrize("mode", score.MODES)
@pytest.mark.parametrize("question", FIRST_WORDS)
def test_what_users_ask_first_works(question: str, mode: score.Mode) -> None:
    sample = families.alone(Source(0), mode == "thinking", "greet")
    sample.system = None
    right = Answer("", FIRST_WORDS[question])
    sample.exchanges = [Exchange(question, right)]
    (result,) = score.score(engine(), sample)
    assert result.right, result.got


@pytest.mark.parametrize("mode", score.MODES)
@pytest.mark.parametrize(
    ("told", "asked", "answer"),
    [
        (
            "My favourite colour is teal.",
            "What is my favourite colour?",
            "Your favourite colour is teal.",
        ),
        ("My dog is called Rex", "What's my dog's name?", "Your dog's name is Rex."),
    ],
)
def test_what_was_told_first_is_known_later(
    told: str, asked: str, answer: str, mode: score.Mode
) -> None:
    heard = Answer("", "OK, I will remember that.")
    sample = families.alone(Source(0), mode == "thinking", "greet")
    sample.system = None
    sample.exchanges = [Exchange(told, heard), Exchange(asked, Answer("", answer))]
    for result in score.score(engine(), sample):
        assert result.right, result.got


@pytest.mark.parametrize("mode", score.MODES)
def test_a_request_to_remember_calls_no_tool(mode: score.Mode) -> None:
    sample = families.make("tool", "any", mode == "thinking")
    assert sample.tools
    asked = Exchange(
        "Remember: my favourite colour is green", Answer("", "OK, I will remember that.")
    )
    sample.exchanges = [asked]
    (result,) = score.score(engine(), sample)
    assert result.right, result.got
