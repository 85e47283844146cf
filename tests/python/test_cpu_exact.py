"""PYDS4_CPU_EXACT=1: activations as they are. It is read once a process, hence another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
SCRIPT = """
import numpy as np
import pyds4
from golden import error
from models import MIX, random_tokens, synthetic_path, weights_of
from pyds4.engine import StepItem
from pyds4.synth import dimensions
from reference import Reference, Rounding

dims = dimensions("tiny", ratios=(0, 4), hash_layers=1)
path, tokens = synthetic_path(dims, MIX), np.array(random_tokens(9, seed=2), np.int32)
with pyds4.Engine(path, backend="cpu", roundings=False) as model, model.session() as session:
    cuts = [tokens[:8].tolist(), tokens[8:].tolist()]
    found = np.concatenate([
        model.step([StepItem(session, cut, all_logits=True)])[0].logits for cut in cuts
    ])
weights, _ = weights_of(path)
print(error(found, Reference(dims, weights, Rounding(memory=False)).logits(tokens)))
"""


def _error(isa: str, exact: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={
            **os.environ,
            "PYDS4_ISA": isa,
            "PYDS4_CPU_EXACT": exact,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), *sys.path]),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@pytest.mark.parametrize("isa", ["plain", ""])
def test_two_bit_weights_times_f32_agree_with_double_precision(isa: str) -> None:
    assert _error(isa, "1") <= 1e-5


def test_activations_are_rounded_to_eight_bits_otherwise() -> None:
    assert 1e-4 < _error("", "0") < 0.2
