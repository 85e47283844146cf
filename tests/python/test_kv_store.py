"""Prefixes on disk: what survives a restart, what it costs, who may see it."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import pyds4
from models import F32, MIX, TINY, cold, engine, random_tokens, synthetic_path
from pyds4.engine import Engine
from pyds4.errors import ClosedError, NoSuchKeyError, StoreError
from pyds4.kv import Store
from pyds4.session import Session
from pyds4.synth import dimensions

ROOMY = dimensions("tiny", yarn_factor=16.0)
"""The tiny model with room for 16,384 tokens."""
LONG = random_tokens(3000, seed=1)
OTHER = random_tokens(3000, seed=2)
SMALL = {"reserve_bytes": 0, "fewest_tokens": 1}

Open = Callable[..., tuple[Engine, Store]]


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Open]:
    """Opens an engine as after a restart: nothing in memory, the same directory."""
    opened: list[Engine] = []

    def open_engine(path: Path | None = None, **options: int) -> tuple[Engine, Store]:
        model = pyds4.Engine(path or synthetic_path(TINY, MIX))
        opened.append(model)
        return model, model.keep_prefixes(tmp_path / "kv", **(SMALL | options))

    yield open_engine
    for model in opened:
        model.close()


def same_as_cold(session: Session) -> bool:
    reference = engine(synthetic_path(TINY, MIX))
    return bool(np.array_equal(session.logits, cold(reference, session.tokens)[-1]))


def keep(model: Engine, store: Store, tokens: list[int]) -> int:
    """Evaluate and keep a prompt; how much was there already."""
    with model.session() as session:
        reused = session.prefill(tokens)
    store.flush()
    return reused


# ---------------------------------------------------------------------- restarts


def test_two_engines_of_one_process_may_keep_the_same_prompts_at_once(fresh: Open) -> None:
    stores = [fresh(), fresh()]
    prompts = [random_tokens(400, seed=100 + number) for number in range(12)]
    both = threading.Barrier(2)

    def work(model: Engine, store: Store) -> None:
        for prompt in prompts:
            with model.session() as session:
                session.prefill(prompt)
                both.wait()
            store.flush()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, *each) for each in stores]:
            done.result()
    for _, store in stores:
        assert store.stats().last_error == ""
    model, _ = fresh()
    for prompt in prompts:
        with model.session() as session:
            assert session.prefill([*prompt, 1]) == len(prompt)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 16, 17, 127, 128, 129, 511, 512, 513, 700])
def test_a_restart_goes_on_where_the_prompt_ended(fresh: Open, length: int) -> None:
    keep(*fresh(), LONG[:length])
    model, _ = fresh()
    with model.session() as session:
        # Fewer than 32 tokens are computed sooner than they are read.
        assert session.prefill(LONG[: length + 30]) == (length if length >= 32 else 0)
        assert same_as_cold(session)
        for token in LONG[length + 30 : length + 35]:
            session.decode(token)
        assert same_as_cold(session)


def test_the_end_of_a_turn_is_kept_when_asked(fresh: Open) -> None:
    model, store = fresh()
    with model.session() as session:
        session.prefill(LONG[:300])
        for token in LONG[300:340]:
            session.decode(token)
        session.save()
    store.flush()
    model, _ = fresh()
    with model.session() as session:
        assert session.rewind(LONG[:500]) == 340
        assert session.resume.source == "disk"
        assert session.resume.bytes_read > 0


def test_a_prompt_evaluated_in_steps_is_kept_at_its_end_only(fresh: Open) -> None:
    model, store = fresh()
    with model.session() as session:
        session.prefill(LONG[:2000], progress=lambda done, total: None)
    store.flush()
    assert [entry.position for entry in store.entries()] == [2000]


def test_nothing_short_is_written(fresh: Open) -> None:
    model, store = fresh(fewest_tokens=256)
    keep(model, store, LONG[:255])
    assert store.entries() == []
    keep(model, store, LONG[:256])
    assert [entry.position for entry in store.entries()] == [256]


def test_another_model_finds_nothing(fresh: Open) -> None:
    keep(*fresh(), LONG[:600])
    other, store = fresh(synthetic_path(TINY, F32, seed=9))
    with other.session() as session:
        assert session.prefill(LONG[:600]) == 0
    store.flush()
    assert len(list((store.directory).glob("v1-*"))) == 2
    assert len(Store.open(store.directory).entries()) == 2


def test_roundings_are_part_of_the_identity(tmp_path: Path) -> None:
    path = synthetic_path(TINY, MIX)
    rounded, plain = pyds4.Engine(path), pyds4.Engine(path, roundings=False)
    keep(rounded, rounded.keep_prefixes(tmp_path / "kv", **SMALL), LONG[:600])
    plain.keep_prefixes(tmp_path / "kv", **SMALL)
    with plain.session() as session:
        assert session.prefill(LONG[:600]) == 0


# ---------------------------------------------------------------------- what it costs


def test_agents_that_share_a_beginning_store_it_once(fresh: Open) -> None:
    shared = LONG[:2560]
    prompts = [shared + OTHER[at : at + 200] for at in (0, 200, 400)]
    model, store = fresh()
    keep(model, store, prompts[0])
    alone = store.stats()
    for prompt in prompts[1:]:
        keep(model, store, prompt)
    both = store.stats()
    # The two others add what is theirs: at most two blocks of rows each, not the shared twenty.
    assert alone.blocks == 21
    assert both.blocks <= alone.blocks + 2 * 2
    model, _ = fresh()
    with model.session() as session:
        assert session.prefill(shared + OTHER[600:700]) == 2560
        assert same_as_cold(session)


def test_a_growing_conversation_costs_little_more_than_its_end(fresh: Open) -> None:
    turns, tokens = 8, random_tokens(8_000, seed=5)
    model, store = fresh(synthetic_path(ROOMY, MIX), fewest_tokens=256)
    with model.session() as session:
        for turn in range(1, turns + 1):
            session.prefill(tokens[: turn * 1000])
    store.flush()
    left, written = store.stats().byte_count, store.stats().bytes_written
    end = store.entries()[0].chain_bytes
    assert left <= 1.5 * end
    assert written <= 2.5 * end


def test_the_budget_holds_and_the_latest_stays(fresh: Open) -> None:
    model, store = fresh(budget_bytes=500_000)
    for seed in range(8):
        keep(model, store, random_tokens(1000, seed=seed))
        assert store.stats().byte_count <= 500_000
    assert store.stats().evicted > 0
    model, _ = fresh()
    with model.session() as session:
        assert session.rewind([*random_tokens(1000, seed=7), 9]) == 1000


def test_what_is_pinned_stays(fresh: Open) -> None:
    model, store = fresh(budget_bytes=500_000)
    keep(model, store, LONG[:1000])
    key = store.entries()[0].key
    store.pin(key)
    for seed in range(8):
        keep(model, store, random_tokens(1000, seed=seed))
    model, store = fresh(budget_bytes=500_000)
    assert [entry.key for entry in store.entries() if entry.pinned] == [key]
    with model.session() as session:
        assert session.rewind(LONG[:1001]) == 1000


def test_the_place_where_timelines_part_outlives_their_ends(fresh: Open) -> None:
    model, store = fresh(budget_bytes=500_000)
    model.prefixes.budget_bytes = 1 << 28
    shared = LONG[:1000]
    for at in (0, 200):
        keep(model, store, shared + OTHER[at : at + 200])
    assert [entry.position for entry in store.entries() if entry.anchor] == [1000]
    for seed in range(6):
        keep(model, store, random_tokens(1000, seed=seed))
    assert [entry.position for entry in store.entries() if entry.anchor] == [1000]


def test_other_models_make_room_when_theirs_is_older(fresh: Open) -> None:
    keep(*fresh(budget_bytes=500_000), LONG[:1000])
    model, store = fresh(synthetic_path(TINY, F32, seed=9), budget_bytes=500_000)
    for seed in range(4):
        keep(model, store, random_tokens(1000, seed=seed))
    total = sum(path.stat().st_size for path in store.directory.glob("v1-*/*"))
    assert total <= 500_000
    assert store.stats().evicted > 0


def test_the_write_budget_is_not_exceeded_and_survives_a_restart(fresh: Open) -> None:
    model, store = fresh(write_budget_bytes=400_000)
    for seed in range(5):
        keep(model, store, random_tokens(1000, seed=seed))
    stats = store.stats()
    assert stats.bytes_written <= 400_000
    assert stats.over_budget > 0
    assert "write budget" in stats.last_error
    model, store = fresh(write_budget_bytes=400_000)
    left = store.stats().write_budget_left
    assert left is not None
    assert left <= 400_000 - stats.bytes_written


def test_the_reserve_of_the_file_system_is_left_alone(fresh: Open) -> None:
    model, store = fresh(reserve_bytes=1 << 60)
    keep(model, store, LONG[:600])
    assert store.entries() == []
    assert "reserve" in store.stats().last_error


# ---------------------------------------------------------------------- looking after it


def test_entries_tell_what_they_hold(fresh: Open) -> None:
    model, store = fresh()
    keep(model, store, LONG[:600])
    keep(model, store, OTHER[:300])
    assert [entry.position for entry in store.entries()] == [300, 600]
    assert store.tokens(store.entries()[1].key) == LONG[:600]
    assert store.tokens(store.entries()[0].key) == OTHER[:300]


def test_delete_removes_what_nothing_else_stands_on(fresh: Open) -> None:
    model, store = fresh()
    keep(model, store, LONG[:1024])
    keep(model, store, LONG[:1024] + OTHER[:200])
    longer, shorter = sorted(store.entries(), key=lambda entry: -entry.position)
    freed = store.delete(longer.key)
    assert freed > longer.byte_count
    assert store.tokens(shorter.key) == LONG[:1024]
    with pytest.raises(NoSuchKeyError):
        store.tokens(longer.key)
    store.delete(shorter.key)
    assert store.stats().byte_count == 0


def test_a_wrong_key_is_refused(fresh: Open) -> None:
    _, store = fresh()
    with pytest.raises(NoSuchKeyError, match="0000"):
        store.pin("0" * 40)
    with pytest.raises(pyds4.InvalidArgumentError, match="40 hexadecimal"):
        store.delete("../../etc/passwd")


def test_a_directory_is_looked_after_without_a_model(fresh: Open) -> None:
    model, store = fresh()
    keep(model, store, LONG[:600])
    keep(model, store, OTHER[:600])
    looking = Store.open(store.directory)
    first, second = looking.entries()
    looking.pin(first.key)
    assert looking.clear() == second.chain_bytes
    assert [entry.key for entry in store.entries()] == [first.key]
    with pytest.raises(ClosedError):
        looking.warm(LONG[:10])


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        Store.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        engine(synthetic_path(TINY, MIX)).keep_prefixes(tmp_path / "file")


def test_warm_pins_what_its_own_model_kept(tmp_path: Path) -> None:
    path = synthetic_path(TINY, F32)
    identities = []
    for roundings in (True, False):
        with pyds4.Engine(path, roundings=roundings) as model:
            store = model.keep_prefixes(tmp_path, reserve_bytes=0)
            store.warm(LONG[:700])
            identities.append(model.identity.hex())
            assert {entry.identity for entry in store.entries()} == {model.identity.hex()}
    pinned = [entry.identity for entry in Store.open(tmp_path).entries() if entry.pinned]
    assert sorted(pinned) == sorted(identities)


def test_warm_evaluates_keeps_and_pins(fresh: Open) -> None:
    _, store = fresh()
    assert store.warm(LONG[:700]) == 700
    assert store.warm(LONG[:700]) == 0
    assert [(entry.position, entry.pinned) for entry in store.entries()] == [(700, True)]


def test_only_the_owner_may_look(fresh: Open, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        model, store = fresh(write_budget_bytes=1 << 30)
        keep(model, store, LONG[:600])
        store.pin(store.entries()[0].key)
    finally:
        os.umask(before)
    paths = [tmp_path / "kv", *(tmp_path / "kv").rglob("*")]
    assert len(paths) >= 5
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


# ---------------------------------------------------------------------- the format


def test_keys_are_chained_sha1_over_identity_and_tokens(fresh: Open) -> None:
    """The format of a rows file, read by its description: see ChunkFile.swift."""
    model, store = fresh()
    keep(model, store, LONG[:640])
    (path,) = store.directory.glob("v1-*/*.rows")
    data = path.read_bytes()
    magic, version, kind, identity, key, parent, flags, start, count, payload, _ = struct.unpack(
        "<8sII20s20s20sIQQQQ", data[:112]
    )
    assert (magic, version, kind, flags, start, count) == (b"pyds4kv\n", 1, 1, 0, 0, 640)
    assert path.parent.name == f"v1-{identity.hex()}"
    assert identity == parent
    tokens = np.frombuffer(data[112 : 112 + 4 * count], "<i4")
    assert tokens.tolist() == LONG[:640]
    chained: bytes = identity
    for block in tokens.reshape(-1, 128):
        chained = hashlib.sha1(chained + block.astype("<i4").tobytes()).digest()
    assert chained == key
    assert path.stem == key.hex()
    assert len(data) == 112 + 4 * count + 8 + 5 * (payload + 8)
    state = hashlib.sha1(b"state" + chained + np.array(LONG[640:640], "<i4").tobytes()).hexdigest()
    assert (path.parent / f"{state}.state").exists()
