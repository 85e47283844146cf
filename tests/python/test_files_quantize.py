"""Files are written again in other types, weighted by what matters, and checked."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from pyds4.cli import main
from pyds4.engine import Engine
from pyds4.errors import InvalidArgumentError, ModelFileError
from pyds4.files.corpus import read_corpus
from pyds4.files.imatrix import collect, read_importance
from pyds4.files.quantize import quantize_file
from pyds4.files.recipes import RECIPES, recipe
from pyds4.files.verify import compare_models, compare_vectors, score_text
from pyds4.model_file import ModelFile
from pyds4.synth import TensorTypes, dimensions, synthesize
from pyds4.synth.fixtures import write_fixture

TEXT = "the quick brown fox jumps over the lazy dog; a model is a list of weights. " * 6


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fixture") / "a.gguf"
    write_fixture(path, "a")
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.type for tensor in ModelFile(path).tensors}


def test_without_rules_a_file_is_copied_bit_for_bit(fixture: Path, tmp_path: Path) -> None:
    quantize_file(fixture, tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == fixture.read_bytes()


def test_recipes_give_the_types_of_published_files(fixture: Path, tmp_path: Path) -> None:
    quantize_file(fixture, tmp_path / "q2.gguf", recipe_name="q2")
    found = types(tmp_path / "q2.gguf")
    expected = {
        "token_embd.weight": "f16", "output.weight": "q8_0", "output_norm.weight": "f32",
        "output_hc_fn.weight": "f16", "blk.1.hc_attn_fn.weight": "f16",
        "blk.1.attn_q_a.weight": "q8_0", "blk.1.attn_compressor_ape.weight": "f16",
        "blk.1.indexer.proj.weight": "f16", "blk.0.ffn_gate_tid2eid.weight": "i32",
        "blk.2.exp_probs_b.bias": "f32", "blk.1.ffn_gate_inp.weight": "f16",
        "blk.1.ffn_gate_exps.weight": "iq2_xxs", "blk.1.ffn_up_exps.weight": "iq2_xxs",
        "blk.1.ffn_down_exps.weight": "q2_k", "blk.1.ffn_down_shexp.weight": "q8_0",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert ModelFile(tmp_path / "q2.gguf")["general.file_type"] == 19


def test_what_is_quantised_stays_unless_a_rule_names_it(tmp_path: Path) -> None:
    synthesize(tmp_path / "q2.gguf", dimensions("tiny"))
    quantize_file(
        tmp_path / "q2.gguf", tmp_path / "out.gguf", rules=["blk.1-2.ffn_down_exps.weight=q4_k"]
    )
    before, after = types(tmp_path / "q2.gguf"), types(tmp_path / "out.gguf")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"blk.{layer}.ffn_down_exps.weight" for layer in (1, 2)}


def test_tensors_are_taken_from_another_file(tmp_path: Path) -> None:
    for name, experts in (("a", "iq2_xxs+q2_k"), ("b", "q4_k")):
        synthesize(
            tmp_path / f"{name}.gguf", dimensions("tiny"), TensorTypes.named(experts=experts)
        )
    quantize_file(
        tmp_path / "a.gguf", tmp_path / "out.gguf", take={"blk.3.ffn_*": tmp_path / "b.gguf"}
    )
    found = types(tmp_path / "out.gguf")
    assert found["blk.3.ffn_up_exps.weight"] == "q4_k"
    assert found["blk.2.ffn_up_exps.weight"] == "iq2_xxs"
    assert main(["inspect", str(tmp_path / "a.gguf"), "--diff", str(tmp_path / "out.gguf")]) == 1


def test_mistakes_are_named(fixture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    for options, message in (
        ({"recipe_name": "q7"}, "no recipe 'q7'"),
        ({"rules": ["x"]}, "expected PATTERN=TYPE"),
        ({"rules": ["x=q9"]}, "no tensor type 'q9'"),
        ({"rules": ["x=i8"]}, "I8 cannot be written"),
        ({"take": {"nothing*": fixture}}, "has no tensor 'nothing\\*'"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            quantize_file(fixture, out, **options)
    with pytest.raises(InvalidArgumentError, match="is the file to be read"):
        quantize_file(fixture, fixture)
    assert not out.exists()


def test_every_recipe_makes_a_model_that_runs(fixture: Path, tmp_path: Path) -> None:
    assert set(RECIPES) > {"q2", "q2-q4", "q4", "mxfp4"}
    for name in ("q3", "mxfp4"):  # the others are run elsewhere
        out = tmp_path / "out.gguf"
        quantize_file(fixture, out, recipe_name=name)
        with Engine(out) as engine, engine.session() as session:
            session.prefill([3, 4, 5])
            assert np.isfinite(session.logits).all(), name


def test_a_number_that_is_not_finite_is_named(fixture: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    data = bytearray(fixture.read_bytes())
    tensor = next(t for t in ModelFile(fixture).tensors if t.name == "blk.0.attn_kv.weight")
    at = tensor.offset + 4 * (3 * tensor.shape[0] + 5)
    data[at : at + 4] = np.float32(np.nan).tobytes()
    broken.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"'blk.0.attn_kv.weight': row 3, column 5 is nan"):
        quantize_file(broken, tmp_path / "out.gguf", recipe_name="q8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.gguf"]


def test_the_last_six_layers_of_q2_q4_are_larger() -> None:
    chosen = recipe("q2-q4", 8)
    shape, now = (256, 256, 4), GGMLQuantizationType.F32
    found = [chosen.choose(f"blk.{n}.ffn_up_exps.weight", shape, now).type.name for n in range(8)]
    assert found == ["IQ2_XXS"] * 2 + ["Q4_K"] * 6


# Importance


@pytest.fixture(scope="module")
def importance(fixture: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imatrix") / "a.imatrix.gguf"
    assert main(["imatrix", str(fixture), str(text), str(path), "--chunk", "40"]) == 0
    return path


def test_importance_counts_every_token_once_a_matrix(
    fixture: Path, text: Path, importance: Path
) -> None:
    found = read_importance(importance)
    with Engine(fixture) as engine:
        documents = read_corpus(text, engine.tokenizer, chunk=40)
    tokens = sum(len(document) for document in documents)
    matrices = {t.name for t in ModelFile(fixture).tensors if len(t.shape) > 1}
    unused = {name for name in matrices if name.endswith(("_ape.weight", "tid2eid.weight"))}
    unused |= {"token_embd.weight"}
    assert set(found.sums) == matrices - unused
    assert found.counts["blk.2.attn_q_a.weight"].tolist() == [tokens]
    assert found.counts["blk.2.attn_output_a.weight"].tolist() == [tokens, tokens]
    for part in ("gate", "up", "down"):
        experts = found.counts[f"blk.2.ffn_{part}_exps.weight"]
        assert (len(experts), experts.sum()) == (16, 4 * tokens)
    assert found.chunks == len(documents)


def test_importance_of_normed_inputs_is_that_of_the_norm(importance: Path, fixture: Path) -> None:
    """Inputs of q_b are normed to a mean square of 1, times weights that the file tells."""
    found = read_importance(importance)
    name = "blk.1.attn_q_b.weight"
    mean = found.sums[name][0].sum() / found.counts[name][0]
    source = ModelFile(fixture)
    tensor = next(t for t in source.tensors if t.name == "blk.1.attn_q_a_norm.weight")
    with fixture.open("rb") as file:
        file.seek(tensor.offset)
        norm = np.frombuffer(file.read(tensor.byte_count), np.float32)
    assert mean == pytest.approx(float((norm.astype(np.float64) ** 2).sum()), rel=0.1)


def test_a_stopped_collection_goes_on_where_it_was(
    fixture: Path, text: Path, importance: Path, tmp_path: Path
) -> None:
    path = tmp_path / "part.gguf"
    with Engine(fixture, backend="cpu") as engine:
        documents = read_corpus(text, engine.tokenizer, chunk=40)
        collect(engine, documents[:2], path, dataset=text.name)
        seen = []
        collect(
            engine, documents, path, dataset=text.name, progress=lambda done, _: seen.append(done)
        )
        with pytest.raises(InvalidArgumentError, match=r"was measured on 'text\.txt'"):
            collect(engine, documents, path, dataset="other")
    assert seen[0] == sum(len(document) for document in documents[:3])
    retrained = tmp_path / "retrained.gguf"
    data = bytearray(fixture.read_bytes())
    data[-100] ^= 1
    retrained.write_bytes(data)
    other = pytest.raises(InvalidArgumentError, match="on another model file than")
    with Engine(retrained, backend="cpu") as engine, other:
        collect(engine, documents, path, dataset=text.name)
    whole, parts = read_importance(importance), read_importance(path)
    for name, sums in whole.sums.items():
        np.testing.assert_allclose(parts.sums[name], sums, rtol=1e-5)


def test_importance_keeps_a_quantised_model_closer(
    fixture: Path, text: Path, importance: Path, tmp_path: Path
) -> None:
    divergence = []
    with Engine(fixture) as reference:
        documents = read_corpus(text, reference.tokenizer, chunk=64)[:1]
        for given in (None, read_importance(importance)):
            quantize_file(fixture, tmp_path / "q.gguf", recipe_name="q2_k", importance=given)
            with Engine(tmp_path / "q.gguf") as model:
                found = compare_models(model, reference, documents)
            divergence.append(found.kl_mean)
    # Random weights: a small gain, but one.
    assert divergence[1] < 1.1 * divergence[0]


def test_importance_of_another_model_is_refused(importance: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "other.gguf", dimensions("tiny", experts=8), TensorTypes.named())
    with pytest.raises(InvalidArgumentError, match="16 matrices, the tensor has shape"):
        quantize_file(
            tmp_path / "other.gguf", tmp_path / "out.gguf", recipe_name="q4",
            importance=read_importance(importance),
        )  # fmt: skip


# Verification


def test_a_model_agrees_with_itself_and_not_with_a_damaged_one(
    fixture: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--text", str(text), "--limit", "100", "--json"]
    assert main(["verify", str(fixture), "--against", str(fixture), *common]) == 0
    same = json.loads(capsys.readouterr().out)["comparison"]
    assert (same["kl_max"], same["top1"], same["top_k"]) == (0, 1, 1)
    quantize_file(fixture, tmp_path / "q2.gguf", recipe_name="q2")
    words = ["verify", str(tmp_path / "q2.gguf"), "--against", str(fixture), *common]
    assert main([*words, "--max-kl", "1e-6"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["comparison"]["kl_mean"] > 1e-3
    assert report["limits_broken"]


def test_nll_is_that_of_the_logits(fixture: Path) -> None:
    ids = [5, 9, 200, 31, 77]
    with Engine(fixture) as engine:
        score = score_text(engine, [ids])
        expected = 0.0
        with engine.session() as session:
            for now, following in pairwise(ids):
                session.decode(now)
                logits = session.logits.astype(np.float64)
                expected += np.log(np.exp(logits - logits.max()).sum()) + logits.max()
                expected -= logits[following]
    assert score.tokens == 4
    assert score.nll == pytest.approx(expected / 4, rel=1e-6)


def test_captured_answers_are_compared_by_bytes(fixture: Path, tmp_path: Path) -> None:
    with Engine(fixture) as engine:
        prompt, tokens = "the quick", []
        with engine.session() as session:
            session.prefill(engine.tokenizer.encode(prompt))
            for _ in range(3):
                row = session.logits.astype(np.float64)
                row -= np.log(np.exp(row - row.max()).sum()) + row.max()
                best = [int(id) for id in np.argsort(-row)[:4]]
                top = [
                    {"bytes": list(engine.tokenizer.token_bytes(id)), "logprob": row[id]}
                    for id in best
                ]
                tokens.append({**top[0], "top_logprobs": top})
                session.decode(best[0])
        path = tmp_path / "vectors.json"
        path.write_text(json.dumps({"vectors": [{"prompt": prompt, "tokens": tokens}]}))
        found = compare_vectors(engine, path)
        assert (found.steps, found.top1, found.unknown) == (3, 1, 0)
        assert found.logprob_error < 1e-6
        assert found.nll == pytest.approx(found.reference_nll)
        path.write_text(json.dumps({"vectors": [{"prompt": prompt, "tokens": [{"x": 1}]}]}))
        with pytest.raises(InvalidArgumentError, match="vector 0: KeyError"):
            compare_vectors(engine, path)


def test_only_answers_are_scored_when_asked(tmp_path: Path) -> None:
    from pyds4.default_model import find_model

    chat = [
        {"role": "user", "content": "What is 12 + 30?"},
        {"role": "assistant", "content": "12 + 30 = 42"},
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": chat}))
    with Engine(find_model()) as engine:
        documents = read_corpus(path, engine.tokenizer)
        answers = score_text(engine, documents, answers=True)
        everything = score_text(engine, documents)
    assert answers.tokens < everything.tokens == len(documents[0]) - 1
    assert answers.nll < everything.nll


def test_a_line_that_is_no_conversation_is_named(tmp_path: Path, fixture: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text('{"text": "a fine line"}\n{"no": 1}\n')
    with Engine(fixture) as engine, pytest.raises(InvalidArgumentError, match="line 2"):
        read_corpus(path, engine.tokenizer)
