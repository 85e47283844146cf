"""bench: what is measured, how it is written down, and the peer beside it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from cli_support import DEMO, error_of, run, tiny_model

from pyds4.cli import bandwidth
from pyds4.cli.bench_measure import Measurement
from pyds4.cli.bench_peer import parse_rate
from pyds4.cli.bench_report import CSV_COLUMNS, Results
from pyds4.cli.failure import CommandError

PEER = """\
#!{python}
import json, sys
def option(name):
    return sys.argv[sys.argv.index(name) + 1]
assert option("-m") == {model!r} and option("-t") == "1" and option("-ub") == "2048"
assert "--extra" in sys.argv
prompt, count = int(option("-p")), int(option("-n"))
rate = 1000 / prompt if prompt else 10 + int(option("-d"))
assert bool(prompt) != bool(count)
print(json.dumps([{{"avg_ts": rate}}]))
"""


@pytest.fixture(autouse=True)
def _small_memory_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_MOST_BYTES", 1 << 24)


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_context_and_batch_is_measured_as_often_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    words = ["--contexts", "24,8", "--decode", 3, "--sessions", "1,2", "--repeat", 2, "-t", 1]
    outcome = run("bench", tiny_model(), *words, "--csv", path)
    assert outcome.status == 0, outcome.err
    rows = rows_of(path)
    assert tuple(rows[0]) == CSV_COLUMNS
    found = [(r["kind"], r["context"], r["sessions"], r["tokens"], r["repeat"]) for r in rows]
    once = [
        (kind, str(context), sessions, tokens)
        for context in (8, 24)
        for kind, sessions, tokens in (
            ("prefill", "1", str(context)),
            ("decode", "1", "3"),
            ("decode", "2", "6"),
        )
    ]
    assert found == [(*row, repeat) for repeat in "01" for row in once]
    for row in rows:
        assert float(row["tokens_per_s"]) > 0
        assert row["threads"] == "1"
        assert (float(row["memory_bytes_per_s"]) > 0) == (row["kind"] == "decode")
    assert "× single" in outcome.out


def test_the_peer_is_measured_in_turn_on_the_same_file(tmp_path: Path) -> None:
    peer = program(tmp_path / "peer", PEER.format(python=sys.executable, model=tiny_model()))
    path = tmp_path / "b.csv"
    words = ["--contexts", "8,16", "--decode", 2, "-t", 1, "--csv", path]
    outcome = run(
        "bench", tiny_model(), *words, "--peer", f"llama-bench={peer}", "--peer-options=--extra x"
    )
    assert outcome.status == 0, outcome.err
    rows = rows_of(path)
    assert [(r["engine"], r["kind"]) for r in rows] == [
        ("pyds4", "prefill"),
        ("llama-bench", "prefill"),
        ("pyds4", "decode"),
        ("llama-bench", "decode"),
    ] * 2
    theirs = [float(r["tokens_per_s"]) for r in rows if r["engine"] == "llama-bench"]
    assert theirs == pytest.approx([125, 18, 62.5, 26], rel=1e-3)
    assert "ratio" in outcome.out


def test_repeats_give_their_median_and_ratios_follow(capsys: pytest.CaptureFixture[str]) -> None:
    def at(engine: str, seconds: float, repeat: int) -> Measurement:
        return Measurement(engine, "prefill", 100, 1, 100, repeat, seconds)

    results = Results([at("pyds4", s, i) for i, s in enumerate((1.0, 2.0, 50.0))])
    assert results.rate("pyds4", "prefill", 100) == 50
    assert results.peer is None
    ours_and_theirs = [at("pyds4", 1.0, 0), at("llama-bench", 4.0, 0)]
    Results(ours_and_theirs).print_tables()
    assert capsys.readouterr().out.splitlines()[1].split() == ["100", "100.0", "25.0", "4.00"]


def test_the_share_of_the_memory_counts_steps_not_tokens() -> None:
    m = Measurement("pyds4", "decode", 1, 8, 80, 0, 2.0, 1e9, 20e9)
    assert m.rate == 40
    assert m.weight_bytes_per_s == 5e9
    assert m.memory_share == 0.25


def test_without_decode_only_prefill_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    assert run("bench", tiny_model(), "--contexts", "8", "--decode", 0, "--csv", path).status == 0
    assert [row["kind"] for row in rows_of(path)] == ["prefill"]


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "b.png"
    words = ["--contexts", "4,8", "--decode", 1, "--plot", path]
    assert run("bench", tiny_model(), *words).status == 0
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_a_plot_without_matplotlib_fails_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert "pip install" in error_of("bench", DEMO, "--plot", "b.png")


def test_contexts_beyond_the_model_are_refused() -> None:
    assert "16384" in error_of("bench", DEMO, "--contexts", "16384")


@pytest.mark.parametrize("peer", ["llama-bench", "llama-bench=", "ollama=x"])
def test_an_unknown_peer_is_a_usage_error(peer: str) -> None:
    assert "llama-bench=PATH" in error_of("bench", DEMO, "--peer", peer, status=2)


def test_a_missing_peer_is_named() -> None:
    assert "/nowhere/lb" in error_of("bench", DEMO, "--peer", "llama-bench=/nowhere/lb")


def test_what_a_failing_peer_says_is_passed_on(tmp_path: Path) -> None:
    peer = program(tmp_path / "peer", "#!/bin/sh\necho out of luck >&2\nexit 3\n")
    words = ["--contexts", "4", "--decode", 0, "--peer", f"llama-bench={peer}"]
    outcome = run("bench", tiny_model(), *words)
    assert outcome.status == 1
    assert "exit status 3: out of luck" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize(
    "output", ["", "[]", "{}", "null", '[{"avg_ts": "fast"}]', '[{"avg_ts": 0}]', '[{}, {}]']
)  # fmt: skip
def test_a_peer_that_says_something_else_is_not_believed(output: str) -> None:
    with pytest.raises(CommandError, match="llama-bench"):
        parse_rate(output)
    assert parse_rate(json.dumps([{"avg_ts": 2.5, "n_prompt": 4}])) == 2.5


def test_memory_is_read_at_some_rate() -> None:
    assert bandwidth.MemoryReader(2).bytes_per_s() > 1e8
