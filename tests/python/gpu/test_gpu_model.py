"""Whole models through the GPU backend, its kernels emulated: what a GPU is asked to do."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from typing import Any, cast

import gpu_emulator
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from golden import COLUMNS, error, errors, prompts
from numpy.typing import NDArray
from reference import Reference, Rounding

import pyds4
from models import DEMO, F32, MIX, fixture_path, random_tokens, synthetic_path, weights_of
from pyds4.chat import render
from pyds4.engine import Engine, StepItem
from pyds4.sampling import Sampler
from pyds4.synth import Dimensions, TensorTypes, dimensions

ONE_LAYER = dimensions("tiny", ratios=(0,), hash_layers=1)

EXACT_BOUND = 1e-5
HALF_BOUND = 5e-3
INTEGER_BOUND = 2e-4
"""Activations of sixteen bits, weights as they are."""


@pytest.fixture(autouse=True)
def emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYDS4_EMULATOR", str(gpu_emulator.library()))


def _open(path: Any, *, roundings: bool = False) -> Engine:
    return pyds4.Engine(path, backend=cast(Any, "emulated"), roundings=roundings)


def _logits(model: Engine, cuts: list[NDArray[np.int32]]) -> NDArray[np.float32]:
    """All logits of one session that takes the cuts one after another."""
    with model.session() as session:
        found = []
        for tokens in cuts:
            result = model.step([StepItem(session, tokens.tolist(), all_logits=True)])[0]
            assert result.error is None
            found.append(cast(NDArray[np.float32], result.logits))
        return np.concatenate(found)


def test_emulated_backend_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYDS4_EMULATOR")
    with pytest.raises(pyds4.BackendError, match="PYDS4_EMULATOR must name the library"):
        _open(fixture_path("a"))


SAMPLINGS = [
    pyds4.Sampling(temperature=0.0),
    pyds4.Sampling(temperature=0.3, seed=1),
    pyds4.Sampling(temperature=1.0, seed=2),
    pyds4.Sampling(temperature=40.0, seed=3),
    pyds4.Sampling(temperature=1.0, top_k=1, seed=4),
    pyds4.Sampling(temperature=1.0, top_k=20, seed=5),
    pyds4.Sampling(temperature=9.0, top_k=300, seed=6),
    pyds4.Sampling(temperature=0.8, top_p=0.4, seed=7),
    pyds4.Sampling(temperature=5.0, top_p=0.95, seed=8),
    pyds4.Sampling(temperature=1.0, min_p=0.3, seed=9),
    pyds4.Sampling(temperature=2.0, top_k=50, top_p=0.9, min_p=0.01, seed=10),
]


def test_device_chooses_the_tokens_that_the_cpu_would_choose_from_its_logits() -> None:
    with _open(synthetic_path(ONE_LAYER, F32)) as model, ExitStack() as stack:
        # Alone each, then all in one step.
        for batch in [*([sampling] for sampling in SAMPLINGS), SAMPLINGS]:
            sessions = [stack.enter_context(model.session()) for _ in batch]
            items = [
                StepItem(s, [3 + i], how)
                for i, (s, how) in enumerate(zip(sessions, batch, strict=True))
            ]
            for result, session, sampling in zip(model.step(items), sessions, batch, strict=True):
                assert result.error is None
                assert result.token == Sampler(sampling).choose(session.logits), sampling


def test_logits_are_there_after_the_device_chose() -> None:
    wanted = prompts("a")[17]
    with _open(fixture_path("a")) as model, model.session() as session:
        tokens = [int(token) for token in wanted.tokens[:6]]
        first = model.step([StepItem(session, tokens, pyds4.Sampling(temperature=0.0))])[0]
        assert first.token == wanted.best[5]
        assert error(session.logits[None, COLUMNS], wanted.logits[5:6]) <= EXACT_BOUND
        with session.fork() as twin:
            model.step([StepItem(session, [int(wanted.tokens[6])])])
            assert error(twin.logits[None, COLUMNS], wanted.logits[5:6]) <= EXACT_BOUND
        assert error(session.logits[None, COLUMNS], wanted.logits[6:7]) <= EXACT_BOUND


def test_model_that_does_not_fit_is_refused_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYDS4_EMULATOR_MEMORY", str(500 << 20))
    refusal = (
        r"the model does not fit CPU: weights \d+ MiB, attention .* MiB in all, and 500 MiB are"
    )
    with pytest.raises(pyds4.MemoryLimitError, match=refusal):
        _open(fixture_path("a"))
    monkeypatch.setenv("PYDS4_MEMORY_GUARD", "off")
    _open(fixture_path("a")).close()


def test_context_that_does_not_fit_is_refused_and_a_smaller_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dims = dimensions("tiny", yarn_factor=16.0, yarn_context=65536)
    monkeypatch.setenv("PYDS4_EMULATOR_MEMORY", str(600 << 20))
    with _open(synthetic_path(dims, F32), roundings=True) as model:
        refusal = "a context of 1048576 tokens does not fit CPU: attention memory .* MiB are free"
        with pytest.raises(pyds4.MemoryLimitError, match=refusal):
            model.session(context=1 << 20)
        with model.session(context=4096) as session:
            session.prefill([1, 2, 3])
            assert session.position == 3


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(_has_driver(), reason="an NVIDIA driver is installed")
def test_cuda_without_a_driver_says_so() -> None:
    with pytest.raises(pyds4.BackendError, match=r"no NVIDIA driver is installed \(libcuda"):
        pyds4.Engine(fixture_path("a"), backend="cuda")


# Of b with F32 weights only attention over more than 64 tokens, heads of 512, takes the half path.
@pytest.mark.parametrize(
    ("name", "n", "exact", "bound"),
    [
        ("a", 17, False, EXACT_BOUND),
        ("b", 17, True, EXACT_BOUND),
        ("b", 17, False, EXACT_BOUND),
        ("b", 66, False, HALF_BOUND),
    ],
)
def test_prompt_agrees_with_the_oracle(
    name: str, n: int, exact: bool, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if exact:
        monkeypatch.setenv("PYDS4_GPU_EXACT", "1")
    wanted = prompts(name)[17 if n == 17 else 130]
    with _open(fixture_path(name)) as model:
        found = _logits(model, [wanted.tokens[:n]])
    assert error(found[:, COLUMNS], wanted.logits[:n]) <= bound
    np.testing.assert_array_equal(found.argmax(axis=1), wanted.best[:n])


@pytest.mark.parametrize(
    ("types", "n", "bound"),
    [
        (F32, 11, EXACT_BOUND),
        (MIX, 11, HALF_BOUND),
        (TensorTypes.uniform(Type.Q4_K), 11, HALF_BOUND),
    ],
    ids=["f32", "mix", "q4_k"],
)
def test_unified_memory_takes_weights_as_they_lie(
    types: TensorTypes, n: int, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYDS4_EMULATOR_UNIFIED", "1")
    tokens = np.array(random_tokens(n + 6, seed=2), np.int32)
    with _open(synthetic_path(ONE_LAYER, types)) as model:
        # A prompt, five tokens at once, one.
        found = _logits(model, [tokens[:n], tokens[n:-1], tokens[-1:]])
    wanted = _reference(ONE_LAYER, types, tokens, memory=False)
    assert error(found[:n], wanted[:n]) <= bound
    assert error(found[n:], wanted[n:]) <= bound


def test_demo_model_says_with_metals_kernels_what_it_says_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYDS4_EMULATOR_UNIFIED", "1")
    with _open(DEMO, roundings=True) as model, model.session() as session:
        messages = [{"role": "user", "content": "What is 47 + 85?"}]
        session.prefill(render(messages, thinking_mode="chat").token_ids(model.tokenizer))
        said: list[int] = []
        while len(said) < 30 and model.tokenizer.eos_id not in said:
            said.append(int(session.logits.argmax()))
            session.decode(said[-1])
        assert model.tokenizer.decode(said[:-1]) == "47 + 85 = 132"


def test_decode_agrees_with_the_oracle_across_windows() -> None:
    wanted = prompts("a")[17]
    with _open(fixture_path("a")) as model:
        found = _logits(model, [wanted.tokens[:6], *np.split(wanted.tokens[6:], 11)])
    assert error(found[:, COLUMNS], wanted.logits) <= EXACT_BOUND


def test_sessions_in_one_step_do_not_disturb_each_other() -> None:
    wanted = prompts("a")[17]
    with _open(fixture_path("a")) as model, ExitStack() as stack:
        first, second, newcomer = (stack.enter_context(model.session()) for _ in range(3))
        first.prefill(wanted.tokens[:5].tolist())
        second.prefill(wanted.tokens[:8].tolist())
        twin = stack.enter_context(first.fork())
        # A prompt between single tokens: those are worked on together all the same.
        work = [
            (first, slice(5, 6)),
            (newcomer, slice(0, 3)),
            (second, slice(8, 9)),
            (twin, slice(5, 6)),
        ]
        # Twice: what sessions share at first is their own afterwards.
        for _ in range(2):
            results = model.step(
                [StepItem(s, wanted.tokens[at].tolist(), all_logits=True) for s, at in work]
            )
            for result, (_, at) in zip(results, work, strict=True):
                assert result.logits is not None
                assert error(result.logits[:, COLUMNS], wanted.logits[at]) <= EXACT_BOUND
            work = [(s, slice(at.stop, at.stop + 1)) for s, at in work]


def _reference(
    dims: Dimensions, types: TensorTypes, tokens: NDArray[np.int32], *, memory: bool
) -> NDArray[np.float64]:
    weights, _ = weights_of(synthetic_path(dims, types))
    return Reference(dims, weights, Rounding(memory=memory)).logits(tokens)


@pytest.mark.parametrize("ratio", [4, 128])
def test_rows_in_the_models_formats_agree_with_double_precision(ratio: int) -> None:
    dims = dimensions("tiny", ratios=(ratio,), hash_layers=1)
    tokens = np.array(random_tokens(12, seed=5), np.int32)
    with _open(synthetic_path(dims, F32), roundings=True) as model:
        found = _logits(model, [tokens[:9], *np.split(tokens[9:], 3)])
    # A value between two codes may go either way; most rows have none.
    distance = errors(found, _reference(dims, F32, tokens, memory=True))
    assert np.median(distance) <= EXACT_BOUND


EVERY_TYPE = [Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q2_K, Type.Q3_K, Type.Q4_K,
              Type.Q5_K, Type.Q6_K, Type.IQ2_XXS, Type.MXFP4]  # fmt: skip


@pytest.mark.parametrize("kind", EVERY_TYPE, ids=lambda kind: kind.name)
def test_weights_of_each_type_decode_as_numbers(
    kind: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYDS4_GPU_EXACT", "1")
    types = TensorTypes.uniform(kind)
    tokens = np.array(random_tokens(3, seed=1), np.int32)
    with _open(synthetic_path(ONE_LAYER, types)) as model:
        found = _logits(model, [tokens[:2], tokens[2:]])
    wanted = _reference(ONE_LAYER, types, tokens, memory=False)
    assert error(found, wanted) <= EXACT_BOUND


@pytest.mark.parametrize("types", [MIX, TensorTypes.uniform(Type.Q8_0)], ids=["mix", "q8_0"])
def test_few_tokens_as_integers_stay_within_sixteen_bits(types: TensorTypes) -> None:
    tokens = np.array(random_tokens(18, seed=3), np.int32)
    with _open(synthetic_path(ONE_LAYER, types)) as model:
        # Twelve tokens at once, then five, then one.
        found = _logits(model, [tokens[:12], tokens[12:17], tokens[17:]])
    wanted = _reference(ONE_LAYER, types, tokens, memory=False)
    assert error(found, wanted) <= INTEGER_BOUND


@pytest.mark.parametrize(
    "types",
    [MIX, TensorTypes.uniform(Type.Q4_K), TensorTypes.uniform(Type.MXFP4)],
    ids=["mix", "q4_k", "mxfp4"],
)
def test_prompts_on_the_matrix_units_stay_within_half_precision(types: TensorTypes) -> None:
    # As many as are not multiplied as integers, and one more.
    tokens = np.array(random_tokens(41 if types is not MIX else 129, seed=2), np.int32)
    with _open(synthetic_path(ONE_LAYER, types)) as model:
        found = _logits(model, [tokens])
    wanted = _reference(ONE_LAYER, types, tokens, memory=False)
    assert error(found, wanted) <= HALF_BOUND
