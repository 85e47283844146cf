"""Processes that the tests of the store start, and kill.

kv_worker.py keep MODEL DIRECTORY TOKENS          keep one prompt
kv_worker.py write MODEL DIRECTORY SEED BUDGET    keep and use prompts for a while
kv_worker.py killed MODEL DIRECTORY KILLS         start writers and kill each while it writes
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable

import numpy as np

import pyds4

OPTIONS = {"reserve_bytes": 0, "fewest_tokens": 1}


def tokens(count: int, seed: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(8, 512, count).tolist()
    return found


def keep(model: str, directory: str, ids: str) -> None:
    engine = pyds4.Engine(model)
    store = engine.keep_prefixes(directory, **OPTIONS)
    with engine.session() as session:
        session.prefill(json.loads(ids))
    store.flush()


def write(model: str, directory: str, seed: str, budget: str) -> None:
    """Half of the prompts are those of any other writer, so both write, use and evict the same."""
    engine = pyds4.Engine(model)
    store = engine.keep_prefixes(directory, **(OPTIONS | {"budget_bytes": int(budget)}))
    rng = random.Random(int(seed))
    for _ in range(25):
        prompt = tokens(700, rng.choice([100, 101, 102, int(seed)]))
        with engine.session() as session:
            session.prefill(prompt[: rng.randrange(130, 700)])
            session.save()
            session.prefill(prompt)
        if rng.random() < 0.2:
            entries = store.entries()
            if entries:
                with contextlib.suppress(pyds4.errors.NoSuchKeyError):
                    store.delete(rng.choice(entries).key)
    store.flush()


def write_until_killed(model: str, directory: str, seed: int, pipe: int) -> None:
    """Saves after every token: the disk never rests."""
    engine = pyds4.Engine(model, threads=1)
    store = engine.keep_prefixes(directory, **(OPTIONS | {"budget_bytes": 700_000}))
    stats = store.stats()
    rng = random.Random(seed)
    prompt = tokens(1200, rng.randrange(4))
    with engine.session() as session:
        session.prefill(prompt[: rng.randrange(100, 400)])
        store.flush()
        os.write(pipe, f"{stats.damaged_removed} {stats.leftovers_removed}\n".encode())
        for token in prompt[session.position :]:
            session.decode(token)
            session.save()
    store.flush()


def killed(model: str, directory: str, kills: str) -> None:
    rng = random.Random(1)
    damaged = leftovers = done = 0
    for turn in range(int(kills)):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read_end)
            write_until_killed(model, directory, turn, write_end)
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as lines:
            found = lines.readline().split()
        damaged, leftovers = damaged + int(found[0]), leftovers + int(found[1])
        time.sleep(rng.random() * 0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
    print(json.dumps({"kills": done, "damaged": damaged, "leftovers": leftovers}))


if __name__ == "__main__":
    jobs: dict[str, Callable[..., None]] = {"keep": keep, "write": write, "killed": killed}
    jobs[sys.argv[1]](*sys.argv[2:])
