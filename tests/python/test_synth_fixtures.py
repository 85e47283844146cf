"""The models behind the golden logits come out bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from pyds4.synth.fixtures import FIXTURES, fixture_weights, write_fixture

# Of the files that the golden logits were computed from.
DIGESTS = {
    "a": "c122a060157339b14a16e920810b83f334eff187c8c72522342d76bb314d6cd8",
    "b": "3f80e3ffbefcf35ac420de756202fa04241abc27008026f8d94ceaf712c24de9",
    "as": "7b05a357b65add0345a2c78e96b3cd27677bcc1f0f71773f3dc03e7b908bd07c",
    "bs": "5090b26be1f335c06be129764eecaeb8256244be534ce1d30405397d13391eaa",
}


@pytest.mark.parametrize("name", FIXTURES)
def test_fixture_is_the_file_the_golden_logits_came_from(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.gguf"
    assert write_fixture(path, name) == path.stat().st_size
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == DIGESTS[name]


def test_weights_in_memory_are_those_of_the_file(tmp_path: Path) -> None:
    write_fixture(tmp_path / "a.gguf", "a")
    weights = fixture_weights("a")
    tensors = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    assert [tensor.name for tensor in tensors] == list(weights)
    for tensor in tensors:
        np.testing.assert_array_equal(tensor.data, weights[tensor.name])


def test_matrices_lose_nothing_in_half_precision() -> None:
    for name, weight in fixture_weights("b").items():
        if weight.dtype == np.float32:
            np.testing.assert_array_equal(weight.astype(np.float16), weight, err_msg=name)
            brief = dequantize(
                quantize(weight, GGMLQuantizationType.BF16), GGMLQuantizationType.BF16
            )
            if weight.ndim > 1 and not name.endswith("_ape.weight"):
                np.testing.assert_array_equal(brief, weight, err_msg=name)


def test_smooth_fixture_leaves_no_choice_to_activations() -> None:
    rough, smooth = fixture_weights("a"), fixture_weights("as")
    assert not [name for name in smooth if name.endswith("exp_probs_b.bias")]
    for name in rough.keys() & smooth.keys():
        np.testing.assert_array_equal(rough[name], smooth[name], err_msg=name)
    dimensions, _ = FIXTURES["as"]
    assert dimensions.index_top_k * 4 >= 700  # more rows than the longest golden prompt has
