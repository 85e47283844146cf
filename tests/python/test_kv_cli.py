"""``pyds4 kv``: looking after a directory of prefixes from the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pyds4
from models import DEMO, MIX, TINY, random_tokens, synthetic_path
from pyds4.cli import main
from pyds4.kv import Store


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three prompts are kept in it."""
    place = tmp_path / "kv"
    with pyds4.Engine(synthetic_path(TINY, MIX)) as engine:
        store = engine.keep_prefixes(place, reserve_bytes=0, fewest_tokens=1)
        for seed in range(3):
            with engine.session() as session:
                session.prefill(random_tokens(300 + 100 * seed, seed=seed))
            store.flush()
    return place


def run(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> str:
    assert main(["kv", *map(str, words)]) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


def listed(capsys: pytest.CaptureFixture[str], directory: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(capsys, "list", "--json", "-d", directory))[
        "entries"
    ]
    return found


def test_list_shows_the_latest_first(capsys: pytest.CaptureFixture[str], directory: Path) -> None:
    assert [entry["position"] for entry in listed(capsys, directory)] == [500, 400, 300]
    lines = run(capsys, "list", "-d", directory).splitlines()
    assert len(lines) == 4
    assert lines[1].split()[1] == "500"


def test_stats_count_what_is_there(capsys: pytest.CaptureFixture[str], directory: Path) -> None:
    stats = json.loads(run(capsys, "stats", "--json", "-d", directory))
    assert (stats["states"], stats["files"], stats["blocks"]) == (3, 6, 2 + 3 + 3)
    assert "3, 0 of them pinned" in run(capsys, "stats", "-d", directory)


def test_pin_and_delete_take_the_beginning_of_a_key(
    capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    keys = [entry["key"] for entry in listed(capsys, directory)]
    run(capsys, "pin", keys[0][:10], "-d", directory)
    assert [entry["pinned"] for entry in listed(capsys, directory)] == [True, False, False]
    freed = json.loads(run(capsys, "delete", keys[1][:10], "--json", "-d", directory))
    assert freed["freed_bytes"] > 0
    run(capsys, "delete", "--all", "-d", directory)
    assert [entry["key"] for entry in listed(capsys, directory)] == [keys[0]]
    run(capsys, "unpin", keys[0], "-d", directory)
    run(capsys, "delete", "--all", "-d", directory)
    assert listed(capsys, directory) == []


def test_nothing_changes_when_one_key_is_wrong(
    capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    key = listed(capsys, directory)[0]["key"]
    message = run(capsys, "delete", key, "zz", "-d", directory, status=1)
    assert "no entry begins with 'zz'" in message
    assert "entries begin with" in run(capsys, "delete", "", "-d", directory, status=1)
    assert len(listed(capsys, directory)) == 3


@pytest.mark.parametrize(
    "words", [["pin"], ["list", "ab"], ["stats", "--all"], ["warm"], ["delete", "ab", "--all"], []]
)
def test_a_command_line_that_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], directory: Path, words: list[str]
) -> None:
    run(capsys, *words, "-d", directory, status=2)


def test_a_missing_directory_holds_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "nothing is kept" in run(capsys, "list", "-d", tmp_path / "none")
    assert "nothing is kept" in run(capsys, "pin", "ab", "-d", tmp_path / "none", status=1)


def test_warm_keeps_a_text_and_list_shows_how_it_ends(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = tmp_path / "system.txt"
    text.write_text("You are a careful assistant. " * 80 + "The end of the prompt.")
    words = ["-d", tmp_path / "kv", "-m", DEMO]
    first = json.loads(run(capsys, "warm", text, "--json", *words))
    again = json.loads(run(capsys, "warm", text, "--json", *words))
    assert first["evaluated"] == first["tokens"] > 256
    assert again == {"tokens": first["tokens"], "evaluated": 0}
    (entry,) = Store.open(tmp_path / "kv").entries()
    assert entry.pinned
    assert "The end of the prompt." in run(capsys, "list", *words)
