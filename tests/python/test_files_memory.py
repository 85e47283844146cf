"""Whether a model fits is known before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyds4.cli import main
from pyds4.engine import Engine
from pyds4.errors import InvalidArgumentError, MemoryLimitError
from pyds4.files import memory
from pyds4.files.catalogue import artifacts, find_artifact
from pyds4.files.memory import (
    GUARD_VARIABLE,
    MachineMemory,
    Verdict,
    guard_load,
    judge,
    machine_memory,
    parse_vm_stat,
)
from pyds4.files.plan import memory_of
from pyds4.model_file import MemoryNeed, ModelFile
from pyds4.synth import TensorTypes, dimensions, synthesize

GiB = 2**30


def machine(tmp_path: Path, groups: dict[str, dict[str, str]], line: str) -> MachineMemory:
    """What is read from made-up /proc and /sys/fs/cgroup trees."""
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(
        "MemTotal: 16777216 kB\nMemFree: 100 kB\nMemAvailable: 8388608 kB\n"
    )
    (proc / "self" / "cgroup").write_text(line + "\n")
    for path, files in groups.items():
        (cgroup / path).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (cgroup / path / name).write_text(text)
    return machine_memory(proc, cgroup)


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    found = machine(tmp_path, {"a": {"memory.max": "max\n", "memory.current": "5"}}, "0::/a")
    assert found == MachineMemory(16 * GiB, 8 * GiB, "machine")


def test_the_tightest_group_above_a_process_counts(tmp_path: Path) -> None:
    groups = {
        "": {},
        "a": {
            "memory.max": str(6 * GiB),
            "memory.current": str(4 * GiB),
            "memory.stat": f"anon 1\ninactive_file {GiB}\nactive_file {GiB}\n",
        },
        "a/b": {"memory.max": str(7 * GiB), "memory.current": str(GiB)},
    }
    assert machine(tmp_path, groups, "0::/a/b") == MachineMemory(6 * GiB, 4 * GiB, "container")


def test_groups_of_version_1_count_too(tmp_path: Path) -> None:
    files = {"memory.limit_in_bytes": str(2 * GiB), "memory.usage_in_bytes": str(GiB)}
    found = machine(tmp_path, {"memory": files}, "4:cpu,memory:/docker/xyz")
    assert found == MachineMemory(2 * GiB, GiB, "container")


def test_vm_stat_counts_what_macos_gives_up() -> None:
    report = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                    10.\nPages active:   99.\nPages inactive:    20.\n"
        "Pages speculative:   5.\nPages purgeable:      1.\n"
    )
    assert parse_vm_stat(report) == 36 * 16384


@pytest.mark.parametrize(
    ("weights", "own", "verdict"),
    [
        (4, 1, Verdict.FITS),
        (10, 1, Verdict.TIGHT),
        (16, 1, Verdict.REFUSED),
        (1, 9, Verdict.REFUSED),
        (0, 16, Verdict.REFUSED),
    ],
)
def test_a_model_is_refused_when_it_would_swap_or_reread(
    weights: int, own: int, verdict: Verdict
) -> None:
    need = MemoryNeed(weights=weights * GiB, kv=own * GiB, buffers=0)
    fit = judge(need, MachineMemory(16 * GiB, 8 * GiB))
    assert fit.verdict is verdict
    assert f"weights {weights:.2f} GiB" in fit.reason or weights < 1


def test_weights_on_a_gpu_do_not_count() -> None:
    need = MemoryNeed(weights=100 * GiB, kv=GiB, buffers=0)
    assert judge(need, MachineMemory(16 * GiB, 8 * GiB), weights_on_host=False).verdict == "fits"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    synthesize(path, dimensions("tiny"))
    return path


def test_an_engine_refuses_what_does_not_fit_and_says_why(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: MachineMemory(1 << 20, 1 << 20))
    with pytest.raises(MemoryLimitError, match=r"tiny.gguf does not fit .* weights .* MiB"):
        Engine(tiny)
    monkeypatch.setenv(GUARD_VARIABLE, "off")
    Engine(tiny).close()


def test_a_context_that_does_not_fit_is_refused(tiny: Path) -> None:
    file = ModelFile(tiny)
    need = file.memory(4096)
    little = MachineMemory(1 << 40, need.kv + need.buffers - 1)
    guard_load(file, 1, machine=little)
    with pytest.raises(MemoryLimitError, match="context of 4096 tokens"):
        guard_load(file, 4096, machine=little)


def test_a_session_whose_context_does_not_fit_is_refused_with_one_that_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.gguf"
    synthesize(path, dimensions("tiny", yarn_factor=64.0))
    file = ModelFile(path)
    limit = file["deepseek4.context_length"]
    assert isinstance(limit, int)
    need = file.memory(limit // 2)
    little = MachineMemory(1 << 40, need.kv + need.buffers)
    monkeypatch.setattr(memory, "machine_memory", lambda: little)
    expected = rf"context of {limit} tokens: weights .*, attention memory .*available. \d+ tokens"
    with Engine(path) as engine:
        with pytest.raises(MemoryLimitError, match=expected):
            engine.session(limit)
        engine.session(limit // 2).close()
        engine.session().close()  # grows with use
    with pytest.raises(MemoryLimitError, match=expected):
        Engine(path, context=limit)
    Engine(path, context=limit // 2).close()
    assert main(["run", "-m", str(path), "-p", "x", "--context", str(limit)]) == 1


def test_the_proposed_context_does_fit(tiny: Path) -> None:
    file = ModelFile(tiny)
    need = file.memory(3000)
    little = MachineMemory(1 << 40, need.kv + need.buffers)
    with pytest.raises(MemoryLimitError, match=r"2048 tokens would fit; .*=off tries anyway"):
        guard_load(file, 4096, machine=little)
    with pytest.raises(MemoryLimitError, match="Take a smaller file"):
        guard_load(file, 4096, machine=MachineMemory(1 << 40, 1000))


@pytest.mark.parametrize("context", [1, 127, 128, 129, 1024, 4096, 100_000, 1_048_576])
@pytest.mark.parametrize("roundings", [True, False])
def test_the_plan_of_a_model_that_is_not_here_is_the_engines(
    tmp_path: Path, tiny: Path, context: int, roundings: bool
) -> None:
    planned = memory_of(dimensions("tiny"), 0, context, roundings=roundings)
    engine = ModelFile(tiny).memory(context, roundings=roundings)
    assert (planned.kv, planned.buffers) == (engine.kv, engine.buffers)


def test_a_million_tokens_of_flash_stay_below_four_gigabytes() -> None:
    assert 3.3e9 < memory_of(dimensions("flash"), 0, 1 << 20).kv < 4.2e9


def test_catalogue_names_are_unique_and_drafters_exist() -> None:
    names = [artifact.name for artifact in artifacts()]
    assert len(set(names)) == len(names)
    for artifact in artifacts():
        assert artifact.drafter is None or find_artifact(artifact.drafter).profile is None
    with pytest.raises(InvalidArgumentError, match=r"no model called 'q9'.*q2"):
        find_artifact("q9")


def test_doctor_exits_with_0_only_when_the_model_runs(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--json", "--no-disk", str(tiny)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"][0]["fits"]["4096"]["verdict"] == "fits"
    assert report["machine"]["memory"]["total"] > 0
    assert report["backend"]
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    assert main(["doctor", "--no-disk", str(broken), str(tiny)]) == 1
    assert capsys.readouterr().out.count(str(broken)) == 1
    assert main(["doctor", "--port", "0"]) == 2


def test_doctor_looks_at_what_was_downloaded(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYDS4_MODELS", str(tmp_path))
    own = tmp_path / "own.gguf"
    own.symlink_to(tiny)
    assert main(["models", "--bind", str(own)]) == 0
    capsys.readouterr()
    assert main(["doctor", "--no-disk"]) == 0
    assert "own.gguf" in capsys.readouterr().out
    assert main(["models", "--check", "own"]) == 0
    assert main(["models", "--check", "absent"]) == 1
    assert "no model 'absent'" in capsys.readouterr().err
    own.unlink()
    assert main(["doctor", "--no-disk"]) == 1


def test_diff_of_two_files_shows_metadata_types_and_error(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.gguf"
    synthesize(other, dimensions("tiny"), TensorTypes.named(experts="q4_k"), name="another")
    assert main(["inspect", str(tiny), "--diff", str(tiny), "--data"]) == 0
    assert "no difference" in capsys.readouterr().out
    assert main(["inspect", str(tiny), "--diff", str(other), "--data", "--json"]) == 1
    diff = json.loads(capsys.readouterr().out)
    assert diff["metadata"]["general.name"] == ["synthetic deepseek4", "another"]
    changed = {tensor["name"]: tensor for tensor in diff["tensors"]}
    assert changed["blk.0.ffn_gate_exps.weight"]["types"] == ["iq2_xxs", "q4_k"]
    assert changed["blk.0.ffn_gate_exps.weight"]["error"] > 0.5
    assert "blk.0.attn_q_a.weight" not in changed
