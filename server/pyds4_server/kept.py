"""What conversations leave behind for later ones, across requests and restarts.

Prefixes in memory and on disk are the engine's (`pyds4.kv`); here they are opened with the server's
settings, told when a turn has ended, and asked about. Nothing here makes a request fail: a cache
that cannot be had is a warning, and the server computes.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pyds4.errors import PyDS4Error
from pyds4.files.memory import machine_memory
from pyds4.kv import Entry, PrefixStats, Store, StoreStats, Timelines, TurnStore, default_directory
from pyds4_server.settings import Settings

log = logging.getLogger("pyds4.kept")

GIB = 1 << 30
TURNS_FILE = "turns.sqlite"
TIMELINES = 64
"""Latest timelines whose text is compared with a prompt's before it is tokenized."""


@runtime_checkable
class KeepsPrefixes(Protocol):
    """An engine whose sessions can go on from each other's prefixes: `pyds4.Engine`."""

    @property
    def prefixes(self) -> Any: ...
    @property
    def identity(self) -> bytes: ...
    def keep_prefixes(self, directory: Any = None, **options: int) -> Store: ...


class Saveable(Protocol):
    """A session that can be kept where it stands; see `pyds4.Session.save`."""

    def save(self) -> None: ...


class Kept:
    """One engine's kept prefixes, turns and timelines. Any thread may call any method.

    What takes time is done by a thread of its own, in the order it was asked for.

    Attributes:
        store: Prefixes on disk; None when they are not kept there.
        turns: Turns as they were sampled, likewise.
        timelines: Ids of known texts.
    """

    def __init__(self, settings: Settings, engine: Any) -> None:
        self.timelines = Timelines(engine.tokenizer, TIMELINES)
        self.store: Store | None = None
        self.turns: TurnStore | None = None
        self._engine = engine if isinstance(engine, KeepsPrefixes) else None
        self._is_closed = False
        self._worker = ThreadPoolExecutor(1, "pyds4-kept")
        if self._engine is None:
            return
        self._engine.prefixes.budget_bytes = memory_budget(settings)
        if not settings.disk_cache:
            return
        directory = (settings.disk_cache_directory or default_directory()).expanduser()
        try:
            self.store = self._engine.keep_prefixes(
                directory,
                budget_bytes=disk_budget(settings, directory),
                write_budget_bytes=int(settings.disk_cache_daily_write_gib * GIB),
            )
        except (PyDS4Error, OSError) as error:
            log.warning("conversations are not kept on disk: %s", error)
            return
        try:
            self.turns = TurnStore(directory / TURNS_FILE, self._engine.identity)
        except (OSError, sqlite3.Error) as error:
            log.warning("turns are not kept as they were sampled: %s", error)
        self.in_background(self._learn, self.store)

    def turn_ended(self, session: Saveable, tokens: Sequence[int]) -> None:
        """A turn is complete: keep where ``session`` stands, and the ids of its text."""
        self.save(session)
        self.in_background(self.timelines.add, list(tokens))

    def save(self, session: Saveable) -> None:
        """Keep where ``session`` stands, in memory and on disk. Returns at once."""
        if self._engine is not None:
            session.save()

    def in_background(self, work: Callable[..., object], *arguments: Any) -> None:
        """Do ``work`` after what was asked for before; what it raises goes to the log."""
        try:
            self._worker.submit(_logged, work, *arguments)
        except RuntimeError:
            log.debug("asked for work while shutting down")

    def memory_stats(self) -> PrefixStats | None:
        """What is kept in memory beside open sessions; None where the engine cannot."""
        if self._engine is None:
            return None
        stats = self._engine.prefixes.stats()
        assert isinstance(stats, PrefixStats)
        return stats

    def disk_stats(self) -> StoreStats | None:
        """What is kept on disk; None when nothing is."""
        return None if self.store is None else self.store.stats()

    def entries(self) -> list[Entry]:
        """Places on disk that this model's conversations can go on from, latest use first."""
        return [] if self.store is None else self.store.entries()

    def flush(self) -> None:
        """Wait until everything asked for so far is done and on disk."""
        self._worker.submit(int).result()
        if self.store is not None:
            self.store.flush()

    def close(self) -> None:
        """Finish what is under way and let go of the files. Closing again changes nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self.flush()
        self._worker.shutdown()
        if self.turns is not None:
            self.turns.close()

    def _learn(self, store: Store) -> None:
        """Take in the texts of what an earlier process left, the latest last."""
        timelines: list[list[int]] = []
        for entry in sorted(store.entries()[: 4 * TIMELINES], key=lambda entry: -entry.position):
            try:
                ids = store.tokens(entry.key)
            except PyDS4Error:  # evicted meanwhile
                continue
            if not any(known[: len(ids)] == ids for known in timelines):
                timelines.append(ids)
        for ids in timelines[:TIMELINES]:
            self.timelines.add(ids)


def memory_budget(settings: Settings) -> int:
    """Bytes for prefixes in memory: as set, or a sixteenth of the memory and at most 2 GiB."""
    if settings.memory_cache_gib is not None:
        return int(settings.memory_cache_gib * GIB)
    return min(2 * GIB, machine_memory().total // 16)


def disk_budget(settings: Settings, directory: Path) -> int:
    """Bytes for prefixes on disk: as set, or a quarter of what is free or theirs, at most 64 GiB.

    Raises:
        OSError: the file system cannot be asked.
    """
    if settings.disk_cache_gib is not None:
        return int(settings.disk_cache_gib * GIB)
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    taken = sum(_size(path) for path in directory.glob("v1-*/*"))
    return min(64 * GIB, max(GIB, (shutil.disk_usage(place).free + taken) // 4))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another process has just renamed or evicted it
        return 0


def _logged(work: Callable[..., object], *arguments: Any) -> None:
    try:
        work(*arguments)
    except Exception:
        log.exception("what a conversation leaves behind could not be kept")
