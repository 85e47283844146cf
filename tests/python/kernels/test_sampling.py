"""Logits to a token."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from .conftest import Kernels

Floats = NDArray[np.floating]


def choose(
    k: Kernels,
    logits: Floats,
    random: float = 0.5,
    temperature: float = 1.0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    top_k: int = 0,
) -> int:
    row = np.ascontiguousarray(logits, np.float32)
    options = k.ffi.new("ck_sampling *", [temperature, top_p, min_p, top_k])
    return int(k.lib.sampling_choose(k.pointer(row), len(row), options, random))


def kept(k: Kernels, logits: Floats, **options: float) -> set[int]:
    """Every token that some random number chooses."""
    randoms = [*np.linspace(0, 1, 2001)[:-1], np.nextafter(1, 0)]
    return {choose(k, logits, r, **options) for r in randoms}  # type: ignore[arg-type]


LOGITS = np.log([0.4, 0.05, 0.3, 0.2, 0.05])


def test_greedy_takes_the_first_of_the_best(kernels: Kernels) -> None:
    logits = np.array([1, 5, 2, 5, np.nan, -np.inf])
    for options in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        for random in (0.0, 0.3, np.nextafter(1, 0)):
            if options == {"min_p": 1.0}:
                assert choose(kernels, logits, random, **options) in (1, 3)
            else:
                assert choose(kernels, logits, random, **options) == 1


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 0.5, 1.0, 5.0, 1e30])
def test_what_is_no_number_is_never_chosen(kernels: Kernels, temperature: float) -> None:
    logits = np.array([np.nan, -np.inf, 3.0, np.nan, 2.0, -np.inf])
    assert kept(kernels, logits, temperature=temperature) <= {2, 4}


def test_without_a_single_number_nothing_is_chosen(kernels: Kernels) -> None:
    for logits in ([np.nan] * 3, [-np.inf] * 3, [np.nan, -np.inf]):
        for temperature in (0.0, 1.0):
            assert choose(kernels, np.array(logits), temperature=temperature) == -1


def test_an_infinite_logit_wins(kernels: Kernels) -> None:
    assert kept(kernels, np.array([1.0, np.inf, 2.0])) == {1}


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 3}, {0, 2, 3}),
        ({"top_k": 4}, {0, 1, 2, 3}),  # of equals the first
        ({"top_k": 100}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.39}, {0}),
        ({"top_p": 0.41}, {0, 2}),
        ({"top_p": 0.69}, {0, 2}),
        ({"top_p": 0.71}, {0, 2, 3}),
        ({"top_p": 0.91}, {0, 1, 2, 3}),
        ({"min_p": 0.49}, {0, 2, 3}),
        ({"min_p": 0.51}, {0, 2}),
        ({"min_p": 0.12}, {0, 1, 2, 3, 4}),
        ({"top_k": 3, "top_p": 0.43}, {0}),  # of the three: 4/9, 3/9, 2/9
        ({"top_k": 3, "top_p": 0.46}, {0, 2}),
    ],
)
def test_each_limit_keeps_the_tokens_it_should(
    kernels: Kernels, options: dict[str, float], tokens: set[int]
) -> None:
    assert kept(kernels, LOGITS, **options) == tokens


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("options", [{}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.1}], ids=str)
def test_tokens_come_as_often_as_their_probability_says(
    kernels: Kernels, temperature: float, options: dict[str, float]
) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 50).astype(np.float32)
    chances = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    order = np.argsort(-chances, kind="stable")
    if "top_k" in options:
        chances[order[20:]] = 0
    if "top_p" in options:
        before = np.cumsum(chances[order]) - chances[order]
        chances[order[before >= 0.8 * chances.sum()]] = 0
    if "min_p" in options:
        chances[chances < 0.1] = 0
    chances /= chances.sum()
    count = 40_000
    found = np.bincount(
        [choose(kernels, logits, r, temperature, **options) for r in rng.random(count)],  # type: ignore[arg-type]
        minlength=50,
    )
    assert not found[chances == 0].any()
    expected = chances[chances > 0] * count
    statistic = float(((found[chances > 0] - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    # Wilson and Hilferty: the cube root is about normal; 4 sigma, and the seed is fixed.
    normal = (np.cbrt(statistic / freedom) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))
    assert abs(normal) < 4


def test_a_whole_vocabulary_is_handled(kernels: Kernels) -> None:
    logits = np.random.default_rng(0).normal(0, 3, 129_280).astype(np.float32)
    assert choose(kernels, logits, 0.0) == int(logits.argmax())
    assert 0 <= choose(kernels, logits, np.nextafter(1, 0), temperature=100.0) < 129_280


@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.6, "top_p": 0.95}, {"min_p": 0.05}, {"top_k": 40, "top_p": 0.9}],
    ids=str,
)
def test_the_draw_is_that_of_all_tokens_in_order(
    kernels: Kernels, spread: float, options: dict[str, float]
) -> None:
    """Against the definition in double precision: sort all, cut, add up until the number is met."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, spread, 20_003).astype(np.float32)
    logits[rng.integers(0, len(logits), 50)] = -np.inf
    order = np.lexsort((np.arange(len(logits)), -logits))
    scaled = (logits[order].astype(np.float64) - logits.max()) / options.get("temperature", 1.0)
    chances = np.exp(scaled)[: int(options.get("top_k", 0)) or None]
    before = np.cumsum(chances) - chances
    stays = (before < options.get("top_p", 1.0) * chances.sum()) & (
        chances >= options.get("min_p", 0.0)
    )
    ends = np.cumsum(chances * stays)
    for random in rng.random(200):
        at = random * ends[-1]
        place = int(np.searchsorted(ends, at, side="right"))
        if np.abs(ends - at).min() < 1e-6 * ends[-1]:
            continue  # on the edge of two tokens, where sums of another order may differ
        assert choose(kernels, logits, random, **options) == order[place]  # type: ignore[arg-type]
