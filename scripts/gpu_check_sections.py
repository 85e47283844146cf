"""The sections of scripts/gpu_check: JSON lines, ``ok`` where something was expected."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from golden import COLUMNS, error, errors, prompts
from numpy.typing import NDArray

import pyds4
from pyds4.engine import Engine, StepItem
from pyds4.sampling import GREEDY
from pyds4.synth import TensorTypes, dimensions, synthesize
from pyds4.synth.fixtures import write_fixture

EXACT_BOUND, HALF_BOUND = 1e-4, 5e-3
"""Relative L2 of golden logits, in f32 throughout and with products in half."""
AGREE_TOP, AGREE_KL = 0.99, 1e-3
POSITIONS = 512
DECODED = 64
"""Tokens whose time is measured behind each context."""


def report(section: str, **values: Any) -> None:
    print(json.dumps({"section": section, **values}), flush=True)


def opened(path: Path, backend: str, **options: Any) -> Engine:
    return pyds4.Engine(path, backend=cast(Any, backend), **options)


@contextlib.contextmanager
def variables(**values: str | None) -> Iterator[None]:
    """Environment variables, None: unset, for as long as the block runs."""
    before = {name: os.environ.get(name) for name in values}
    try:
        for name, value in values.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def all_logits(model: Engine, cuts: list[list[int]]) -> NDArray[np.float32]:
    """Logits of one session that takes the cuts one after another."""
    found = []
    with model.session() as session:
        for tokens in cuts:
            result = model.step([StepItem(session, tokens, all_logits=True)])[0]
            if result.error is not None:
                raise result.error
            assert result.logits is not None
            found.append(result.logits)
    return np.concatenate(found)


def golden(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names.split(","):
            path = Path(folder) / f"{name}.gguf"
            write_fixture(path, name)
            for exact in (True, False):
                with variables(PYDS4_GPU_EXACT="1" if exact else None):
                    started = time.perf_counter()
                    with opened(path, arguments.backend, roundings=False) as model:
                        seconds = round(time.perf_counter() - started, 2)
                        report("golden", model=name, exact=exact, open_s=seconds)
                        for n in arguments.lengths:
                            golden_prompt(model, name, n, exact)


def golden_prompt(model: Engine, name: str, n: int, exact: bool) -> None:
    wanted = prompts(name)[n]
    tokens = [int(token) for token in wanted.tokens]
    for kept in (n, n // 2) if n > 1 else (n,):
        found = all_logits(model, [tokens[:kept], *([token] for token in tokens[kept:])])
        distance = error(found[:, COLUMNS], wanted.logits)
        top = float((found.argmax(axis=1) == wanted.best).mean())
        report(
            "golden", model=name, exact=exact, n=n, decoded=n - kept, error=distance, top1=top,
            median=float(np.median(errors(found[:, COLUMNS], wanted.logits))),
            ok=bool(distance <= (EXACT_BOUND if exact else HALF_BOUND) and top >= 0.995),
        )  # fmt: skip


def repeat(arguments: argparse.Namespace) -> None:
    """One prompt and four tokens, many times, with half the sessions in company."""
    tokens = [int(token) for token in prompts("b")[17].tokens]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b.gguf"
        write_fixture(path, "b")
        answers: dict[bytes, int] = {}
        started = time.perf_counter()
        with opened(path, arguments.backend) as model:
            for _ in range(arguments.runs):
                with model.session() as session:
                    session.prefill(tokens[:13])
                    for token in tokens[13:]:
                        session.decode(token)
                    answer = session.logits.tobytes()
                answers[answer] = answers.get(answer, 0) + 1
                if time.perf_counter() - started > 60:
                    break
        report("repeat", runs=sum(answers.values()), answers=len(answers), ok=len(answers) == 1)


def five_layers(arguments: argparse.Namespace) -> Path:
    """Flash's dimensions with its first five layers: one of each kind."""
    path = Path(arguments.folder) / "pyds4-flash-5.gguf"
    if not path.exists():
        started = time.perf_counter()
        synthesize(path, dimensions("flash", 5), TensorTypes(), seed=1)
        report("model", path=str(path), seconds=round(time.perf_counter() - started, 1))
    return path


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    shifted: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return shifted


def agree(arguments: argparse.Namespace) -> None:
    """Without roundings: between two codes of FP8 or FP4 either side may be taken.

    The CPU computes with activations as they are; those of eight bits, its usual ones, differ from
    f32 by more than a GPU does.
    """
    path = five_layers(arguments)
    vocabulary = dimensions("flash", 5).vocab
    tokens = np.random.default_rng(7).integers(1000, vocabulary - 1000, POSITIONS).tolist()

    def logits(backend: str) -> NDArray[np.float32]:
        started = time.perf_counter()
        with opened(path, backend, roundings=False) as model:
            loaded = time.perf_counter()
            # The end one by one: decode is checked as well.
            found = all_logits(model, [tokens[:480], *([t] for t in tokens[480:])])
        report(
            "agree", backend=backend, load_s=round(loaded - started, 1),
            seconds=round(time.perf_counter() - loaded, 1),
        )  # fmt: skip
        return found

    with variables(PYDS4_CPU_EXACT="1"):
        cpu = logits("cpu")
    for exact in (True, False):
        with variables(PYDS4_GPU_EXACT="1" if exact else None):
            gpu = logits(arguments.backend)
        agreement("prefill", exact, gpu[:480], cpu[:480])
        agreement("decode", exact, gpu[480:], cpu[480:])
        kl, top = agreement("all", exact, gpu, cpu)
        report("agree", exact=exact, ok=bool(top >= AGREE_TOP and kl < AGREE_KL))


def agreement(
    part: str, exact: bool, gpu: NDArray[np.float32], cpu: NDArray[np.float32]
) -> tuple[float, float]:
    """Reports how near two backends' rows of logits are; mean KL divergence and share of top-1."""
    same = gpu.argmax(axis=1) == cpu.argmax(axis=1)
    p, q = log_softmax(cpu), log_softmax(gpu)
    divergence = (np.exp(p) * (p - q)).sum(axis=1)
    rows = np.linalg.norm(gpu - cpu, axis=1) / np.linalg.norm(cpu, axis=1)
    kl, top = float(divergence.mean()), float(same.mean())
    report(
        "agree", part=part, exact=exact, top1=top, others=np.flatnonzero(~same).tolist(),
        kl_mean=kl, kl_most=float(divergence.max()), error=error(gpu, cpu.astype(np.float64)),
        row_error={str(share): float(np.quantile(rows, share)) for share in (0.5, 0.9, 0.99, 1)},
    )  # fmt: skip
    return kl, top


def memory_used() -> int | None:
    """MiB in use on the first NVIDIA GPU, as nvidia-smi says."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return int(done.stdout.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def measured_model(arguments: argparse.Namespace) -> Path:
    return Path(arguments.model) if arguments.model else five_layers(arguments)


def speed(arguments: argparse.Namespace) -> None:
    path = measured_model(arguments)
    started = time.perf_counter()
    with opened(path, arguments.backend) as model:
        report(
            "speed", model=path.name, layers=model.config.layer_count,
            load_s=round(time.perf_counter() - started, 1), memory_mib=memory_used(),
        )  # fmt: skip
        rng = np.random.default_rng(1)

        def random_tokens(count: int) -> list[int]:
            return [int(t) for t in rng.integers(0, model.config.vocab_size, count)]

        tokens: list[int] = []
        with model.session() as session:
            session.prefill(random_tokens(600))  # the first launches of every kernel
        with model.session() as session:
            for context in arguments.contexts:
                start, tokens = len(tokens), tokens + random_tokens(context - len(tokens))
                began = time.perf_counter()
                session.prefill(tokens)
                seconds = time.perf_counter() - began
                report(
                    "speed", prefill=[start, context], tokens_s=round((context - start) / seconds),
                    finite=bool(np.isfinite(session.logits).all()),
                )  # fmt: skip
                with session.fork() as twin:
                    speed_decode([twin], model, context)
        report("speed", memory_mib=memory_used())
        with contextlib.ExitStack() as stack:
            several = [stack.enter_context(model.session()) for _ in range(arguments.sessions)]
            for count, session in enumerate(several):
                session.prefill(random_tokens(1024 + 100 * count))
            speed_decode(several, model, 1024)
        report("speed", memory_mib=memory_used())


def speed_decode(sessions: list[pyds4.Session], model: Engine, context: int) -> None:
    """Greedy decoding of all of them together, in two halves: the first one warms up."""
    tokens = [3] * len(sessions)
    for part in range(2):
        times = []
        for _ in range(DECODED // 2):
            began = time.perf_counter()
            items = [StepItem(s, [t], GREEDY) for s, t in zip(sessions, tokens, strict=True)]
            results = model.step(items)
            times.append(time.perf_counter() - began)
            for result in results:
                if result.error is not None:
                    raise result.error
            tokens = [result.token or 0 for result in results]
        report(
            "speed", decode_at=context, sessions=len(sessions), part=part,
            tokens_s=round(len(sessions) * len(times) / sum(times), 1),
            median_ms=round(float(np.median(times)) * 1e3, 3),
            slowest_ms=round(max(times) * 1e3, 3),
        )  # fmt: skip


PROFILE_LINE = re.compile(r"(\w+): (\d+) × (\d+) us = (\d+) us")


def kernels(arguments: argparse.Namespace) -> None:
    """In processes of their own: the profile is printed when the engine closes."""
    path = measured_model(arguments)
    for name, body in (
        ("decode", "s.prefill([7] * 2100); [s.decode(3) for _ in range(32)]"),
        ("sessions", "t = [m.session() for _ in range(8)]; [x.prefill([7 + i] * 200)"
         " for i, x in enumerate(t)]; [m.step([StepItem(x, [3]) for x in t]) for _ in range(16)]"),
        ("prefill", "s.prefill([i * 7 % 4000 for i in range(4096)])"),
    ):  # fmt: skip
        code = (
            "import sys, pyds4; from pyds4.engine import StepItem\n"
            f"m = pyds4.Engine({str(path)!r}, backend={arguments.backend!r})\n"
            f"s = m.session()\n{body}"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYDS4_CUDA_PROFILE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        found = [
            {"kernel": kernel, "count": int(count), "each_us": int(each), "all_us": int(total)}
            for kernel, count, each, total in PROFILE_LINE.findall(done.stderr)
        ]
        report("kernels", part=name, kernels=found, ok=done.returncode == 0 and bool(found))


SECTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "golden": golden,
    "repeat": repeat,
    "agree": agree,
    "speed": speed,
    "kernels": kernels,
}
