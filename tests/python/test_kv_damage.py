"""The store when the world is unkind: damage, kills, full disks, company, wrong clocks.

Whatever happens to its files, a session never goes on from anything but exact bytes; what is lost
is computed again.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import pyds4
from models import MIX, TINY, cold, engine, evaluate, random_tokens, synthetic_path
from pyds4.engine import Engine
from pyds4.errors import StoreError
from pyds4.kv import Store

PROMPT = random_tokens(700, seed=1)
KEPT = (200, 384, 700)
WORKER = Path(__file__).parent.parent / "kv_worker.py"
OPTIONS = {"reserve_bytes": 0, "fewest_tokens": 1}


@pytest.fixture(scope="module")
def model() -> Iterator[Engine]:
    with pyds4.Engine(synthetic_path(TINY, MIX)) as opened:
        yield opened


@pytest.fixture(scope="module")
def wanted() -> NDArray[np.float32]:
    """The logits after every token of the prompt and a few more, never kept anywhere."""
    return cold(engine(synthetic_path(TINY, MIX)), [*PROMPT, *random_tokens(8, seed=9)])


@pytest.fixture(scope="module")
def sound(model: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with states at `KEPT` and the rows below them in several files."""
    directory = tmp_path_factory.mktemp("sound") / "kv"
    store = model.keep_prefixes(directory, **OPTIONS)
    with model.session() as session:
        for end in KEPT:
            session.prefill(PROMPT[:end])
            store.flush()
            store.pin(store.entries()[0].key)  # so that none is thinned out
    assert sorted(entry.position for entry in store.entries()) == list(KEPT)
    store.close()
    return directory


def check_goes_on(model: Engine, wanted: NDArray[np.float32]) -> int:
    """Go on from whatever is found; where that was. The next token must be that of a cold run."""
    ids = [*PROMPT, *random_tokens(8, seed=9)]
    with model.session() as session:
        reused = session.rewind(ids)
        assert reused in (0, *KEPT)
        logits = evaluate(session, ids[reused : reused + 2])
        assert np.array_equal(logits, wanted[reused : reused + 2])
    return reused


def damage(path: Path, rng: random.Random) -> str:
    """Cut, flip, lengthen, empty, swap or exchange; what was done."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flip", "flip", "cut", "cut", "grow", "zeros", "swap"])
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 1, 8])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "grow":
        data += rng.randbytes(rng.randrange(1, 5000))
    elif kind == "zeros":
        start = rng.randrange(len(data))
        end = min(start + 4096, len(data))
        data[start:end] = bytes(end - start)
    else:
        other = rng.choice(sorted(path.parent.glob(f"*{path.suffix}")))
        data = bytearray(other.read_bytes())
    path.write_bytes(data)
    return kind


def test_damage_in_a_thousand_files_never_shows(
    model: Engine, sound: Path, wanted: NDArray[np.float32], tmp_path: Path
) -> None:
    rng = random.Random(20)
    found: dict[int, int] = {}
    damaged = removed = 0
    while damaged < 1000:
        directory = tmp_path / f"{damaged}"
        shutil.copytree(sound, directory)
        files = [*directory.glob("v1-*/*.rows"), *directory.glob("v1-*/*.state")]
        before = {path: path.read_bytes() for path in files}
        for path in rng.sample(sorted(before), rng.choice([1, 1, 2, len(before)])):
            damage(path, rng)
            damaged += path.read_bytes() != before[path]
        store = model.keep_prefixes(directory, **OPTIONS)
        reused = check_goes_on(model, wanted)
        found[reused] = found.get(reused, 0) + 1
        removed += store.stats().damaged_removed
        shutil.rmtree(directory)
    # Damage met on the way is removed; the rest of the store goes on serving.
    assert removed > 500
    assert all(found.get(position, 0) > 10 for position in (0, *KEPT[:2]))


def test_a_damaged_prefix_is_computed_and_kept_again(
    model: Engine, sound: Path, wanted: NDArray[np.float32], tmp_path: Path
) -> None:
    directory = tmp_path / "kv"
    shutil.copytree(sound, directory)
    for path in directory.glob("v1-*/*.state"):
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)
    store = model.keep_prefixes(directory, **OPTIONS)
    with model.session() as session:
        assert session.prefill(PROMPT) == 0
    store.flush()
    store = model.keep_prefixes(directory, **OPTIONS)
    assert check_goes_on(model, wanted) == 700


def test_files_of_others_are_left_alone(model: Engine, sound: Path, tmp_path: Path) -> None:
    directory = tmp_path / "kv"
    shutil.copytree(sound, directory)
    folder = next(directory.glob("v1-*"))
    strangers = [directory / "notes.txt", folder / "README", directory / "v2-abc", folder / ".hid"]
    for path in strangers:
        path.write_text("mine")
    (folder / "link.state").symlink_to(directory / "notes.txt")
    store = model.keep_prefixes(directory, **OPTIONS)
    store.clear()
    assert all(path.read_text() == "mine" for path in strangers)


def test_a_foreign_file_under_a_right_name_is_removed(
    model: Engine, sound: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "kv"
    shutil.copytree(sound, directory)
    folder = next(directory.glob("v1-*"))
    path = folder / ("ab" * 20 + ".state")
    shutil.copy(next(folder.glob("*.state")), path)
    store = model.keep_prefixes(directory, **OPTIONS)
    assert not path.exists()
    assert store.stats().damaged_removed == 1
    assert len(store.entries()) == 3


# ---------------------------------------------------------------------- a disk that refuses


def test_a_full_disk_loses_nothing_but_the_write(
    model: Engine, sound: Path, wanted: NDArray[np.float32], tmp_path: Path
) -> None:
    """A limit on file sizes stands for a full disk: writes fail half-way."""
    directory = tmp_path / "kv"
    shutil.copytree(sound, directory)
    store = model.keep_prefixes(directory, **OPTIONS)
    names = sorted(path.name for path in directory.glob("v1-*/*"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with model.session() as session:
            session.prefill(random_tokens(600, seed=3))
        store.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    stats = store.stats()
    assert stats.write_errors == 1
    assert os.strerror(errno.EFBIG) in stats.last_error
    assert sorted(path.name for path in directory.glob("v1-*/*")) == names
    assert check_goes_on(model, wanted) == 700
    with model.session() as session:
        session.prefill(random_tokens(600, seed=4))
    store.flush()
    assert len(store.entries()) == 4


def test_a_small_file_system_fills_up_without_harm(
    model: Engine, sound: Path, wanted: NDArray[np.float32]
) -> None:
    directory = Path(tempfile.mkdtemp(prefix="pyds4-full-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "none", directory],
        check=False,
        capture_output=True,
    )
    if mounted.returncode != 0:
        directory.rmdir()
        pytest.skip("may not mount a file system")
    try:
        shutil.copytree(sound, directory / "kv")
        store = model.keep_prefixes(directory / "kv", **OPTIONS)
        for seed in range(10):
            with model.session() as session:
                session.prefill(random_tokens(600, seed=seed + 30))
            store.flush()
        stats = store.stats()
        assert stats.over_budget + stats.write_errors > 0
        assert check_goes_on(model, wanted) == 700
        store = model.keep_prefixes(directory / "kv", **(OPTIONS | {"budget_bytes": 500_000}))
        with model.session() as session:
            session.prefill(random_tokens(600, seed=77))
        store.flush()
        assert store.entries()[0].position == 600
    finally:
        model.keep_prefixes(tempfile.mkdtemp(prefix="pyds4-full-"), **OPTIONS)
        subprocess.run(["umount", "-l", directory], check=True)
        directory.rmdir()


def test_a_read_only_directory_is_read(
    model: Engine, sound: Path, wanted: NDArray[np.float32]
) -> None:
    directory = Path(tempfile.mkdtemp(prefix="pyds4-read-only-"))
    shutil.copytree(sound, directory / "kv")
    names = sorted(path.name for path in directory.rglob("*"))
    everything = [directory, *directory.rglob("*")]
    is_root = os.geteuid() == 0
    for path in everything:
        if is_root:
            os.chown(path, 65534, 65534)
    for path in everything:
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        if is_root:
            os.seteuid(65534)  # root may write anywhere
        store = model.keep_prefixes(directory / "kv", **OPTIONS)
        assert check_goes_on(model, wanted) == 700
        with model.session() as session:
            session.prefill(random_tokens(600, seed=3))
        store.flush()
        stats = store.stats()
        assert stats.write_errors == 1
        assert os.strerror(errno.EACCES) in stats.last_error
        with pytest.raises(StoreError, match="Permission"):
            store.pin(store.entries()[0].key, False)
        with pytest.raises(StoreError, match="Permission"):
            store.delete(store.entries()[0].key)
        with pytest.raises(StoreError, match="Permission"):
            model.keep_prefixes(directory / "kv" / "new" / "deeper", **OPTIONS)
    finally:
        if is_root:
            os.seteuid(0)
    assert sorted(path.name for path in directory.rglob("*")) == names
    for path in everything:
        path.chmod(0o700 if path.is_dir() else 0o600)
    shutil.rmtree(directory)


# ---------------------------------------------------------------------- wrong clocks


@pytest.mark.parametrize("moment", [0, 1, 2**31 - 1, 2**31 + 5, 4_102_444_800, 10_000_000_000])
def test_a_clock_that_jumped_changes_nothing_but_dates(
    model: Engine, sound: Path, wanted: NDArray[np.float32], tmp_path: Path, moment: int
) -> None:
    directory = tmp_path / "kv"
    shutil.copytree(sound, directory)
    rng = random.Random(moment)
    for path in [*directory.glob("v1-*/*"), *directory.glob("v1-*"), directory]:
        os.utime(path, (moment, moment + rng.randrange(-1, 2) if moment else moment))
    limits = OPTIONS | {"budget_bytes": 600_000, "write_budget_bytes": 1 << 30}
    store = model.keep_prefixes(directory, **limits)
    assert check_goes_on(model, wanted) == 700
    # What is used now is newer than all that was used "later".
    for seed in range(6):
        with model.session() as session:
            session.prefill(random_tokens(600, seed=seed))
        store.flush()
        assert store.entries()[0].position == 600
        assert store.stats().byte_count <= 600_000
    store = model.keep_prefixes(directory, **limits)
    with model.session() as session:
        assert session.rewind([*random_tokens(600, seed=5), 9]) == 600


@pytest.mark.parametrize("hours", [-100_000, -30, -1, 1, 30, 100_000])
def test_a_clock_that_jumped_does_not_block_writing_for_ever(
    model: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """A ledger from another time: at worst one more budget, or the rest of this one."""
    limits = OPTIONS | {"write_budget_bytes": 10_000_000}
    store = model.keep_prefixes(tmp_path / "kv", **limits)
    with model.session() as session:
        session.prefill(random_tokens(600, seed=1))
    store.flush()
    ledger = tmp_path / "kv" / "ledger"
    spent = int.from_bytes(ledger.read_bytes()[8:16], "little")
    assert spent == store.stats().bytes_written
    start = max(0, int(time.time()) - hours * 3600)
    words = start.to_bytes(8, "little") + spent.to_bytes(8, "little")
    ledger.write_bytes(words + checksum(words))
    store = model.keep_prefixes(tmp_path / "kv", **limits)
    left = store.stats().write_budget_left
    assert left == 10_000_000 - (0 if hours >= 24 else spent)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 24, b"\0" * 24, b"a" * 5000])
def test_a_damaged_ledger_is_begun_anew(model: Engine, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv" / "ledger").write_bytes(content)
    store = model.keep_prefixes(tmp_path / "kv", **(OPTIONS | {"write_budget_bytes": 10_000_000}))
    with model.session() as session:
        session.prefill(random_tokens(600, seed=1))
    store.flush()
    assert store.stats().states == 1


def checksum(data: bytes) -> bytes:
    """XXH64 of 16 bytes, from its description."""
    mask, turns = (1 << 64) - 1, ((1, 27, 11400714785074694791, 9650029242287828579),)
    primes = (11400714785074694791, 14029467366897019727, 1609587929392839161, 2870177450012600261)

    def rotated(x: int, by: int) -> int:
        return ((x << by) | (x >> (64 - by))) & mask

    value = (primes[3] + 0 + len(data)) & mask
    for at in range(0, len(data), 8):
        word = int.from_bytes(data[at : at + 8], "little")
        word = rotated(word * primes[1] & mask, 31) * primes[0] & mask
        value = (rotated(value ^ word, turns[0][1]) * primes[0] + turns[0][3]) & mask
    value = (value ^ value >> 33) * primes[1] & mask
    value = (value ^ value >> 29) * primes[2] & mask
    return (value ^ value >> 32).to_bytes(8, "little")


# ---------------------------------------------------------------------- company, and kills


def worker(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(WORKER), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def check_everything(directory: Path) -> int:
    """Every entry holds a known prompt, and goes on like a cold run; how many there are."""
    path = synthetic_path(TINY, MIX)
    reference = engine(path)
    with pyds4.Engine(path) as model:
        # Looks only: what it evaluates is not written.
        store = model.keep_prefixes(directory, fewest_tokens=1 << 40)
        entries = store.entries()
        known: dict[int, tuple[list[int], NDArray[np.float32]]] = {}
        for entry in entries:
            ids = store.tokens(entry.key)
            assert len(ids) == entry.position
            with model.session() as session:
                next_token = 9
                assert session.rewind([*ids, next_token]) == entry.position
                assert session.tokens == ids
                session.decode(next_token)
                first = ids[0]
                if first not in known or len(known[first][0]) < len(ids):
                    known[first] = (ids, cold(reference, ids))
                with reference.session() as other:
                    other.prefill(ids)
                    other.decode(next_token)
                    assert np.array_equal(session.logits, other.logits)
        assert store.stats().damaged_removed == 0
    return len(entries)


def kill_writers(directory: Path, kills: int) -> dict[str, int]:
    process = worker("killed", synthetic_path(TINY, MIX), directory, kills)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    counts: dict[str, int] = json.loads(output.splitlines()[-1])
    return counts


def test_a_killed_writer_loses_at_most_its_unfinished_file(tmp_path: Path) -> None:
    counts = kill_writers(tmp_path / "kv", 12)
    assert counts["kills"] == 12
    assert counts["damaged"] == 0
    assert check_everything(tmp_path / "kv") > 0


@pytest.mark.slow
def test_three_hundred_killed_writers_lose_at_most_their_unfinished_files(tmp_path: Path) -> None:
    counts = kill_writers(tmp_path / "kv", 300)
    assert counts["kills"] == 300
    assert counts["damaged"] == 0
    assert counts["leftovers"] > 0
    assert check_everything(tmp_path / "kv") > 0


def test_two_processes_share_a_directory(tmp_path: Path) -> None:
    directory, path = tmp_path / "kv", synthetic_path(TINY, MIX)
    budget = 700_000
    writers = [worker("write", path, directory, seed, budget) for seed in (1, 2)]
    for writer in writers:
        writer.communicate(timeout=300)
        assert writer.returncode == 0
    assert check_everything(directory) > 0
    assert sum(path.stat().st_size for path in directory.glob("v1-*/*")) <= 2 * budget


def test_what_one_process_keeps_another_finds_without_reopening(tmp_path: Path) -> None:
    directory, path = tmp_path / "kv", synthetic_path(TINY, MIX)
    with pyds4.Engine(path) as model:
        store = model.keep_prefixes(directory, **OPTIONS)
        with model.session() as session:
            assert session.rewind([*PROMPT, 9]) == 0
        other = worker("keep", path, directory, json.dumps(PROMPT))
        other.communicate(timeout=120)
        assert other.returncode == 0
        with model.session() as session:
            assert session.rewind([*PROMPT, 9]) == 700
        Store.open(directory).clear()
        with model.session() as session:
            assert session.rewind([*PROMPT, 9]) == 0
        assert store.entries() == []
