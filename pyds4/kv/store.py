"""Prefixes in a directory: attach one to an engine, or look after it without."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs

from pyds4._native import check, ffi, lib, text
from pyds4.errors import ClosedError, NoSuchKeyError

if TYPE_CHECKING:
    from pyds4.engine import Engine
    from pyds4.session import Progress

DEFAULT_BUDGET_BYTES = 64 << 30
DEFAULT_RESERVE_BYTES = 1 << 30
FEWEST_TOKENS = 256


def default_directory() -> Path:
    """Where prefixes are kept unless said otherwise: the user's cache directory."""
    return Path(platformdirs.user_cache_dir("pyds4")) / "kv"


@dataclass(frozen=True, slots=True)
class Entry:
    """A place one can go on from.

    Attributes:
        key: 40 hexadecimal digits, for ``pin`` and ``delete``.
        identity: Of the model it belongs to.
        position: Tokens that need not be evaluated again.
        byte_count: Of its own state.
        chain_bytes: With all the rows it stands on, which it may share with others.
        made_s, used_s: Seconds since 1970.
        pinned: Never evicted.
        anchor: A place where timelines part; evicted last.
    """

    key: str
    identity: str
    position: int
    byte_count: int
    chain_bytes: int
    made_s: int
    used_s: int
    pinned: bool
    anchor: bool


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What is in a directory, and what this process did with it.

    Attributes:
        byte_count, files, states, blocks: What is there; a block is 128 tokens.
        hits, misses, bytes_read, bytes_written, states_written: Since it was opened.
        over_budget: Saves not made for want of budget or room.
        write_errors: Saves that the system refused; ``last_error`` says why.
        evicted: Files removed for room.
        damaged_removed, leftovers_removed: Files removed because they were not what their name
            says, or were left by a writer that died.
        waiting, given_up: Saves under way; given up because the disk was too slow.
        write_budget_left: Bytes of the 24 hours' budget; None: no limit.
        last_error: The latest reason not to write, or "".
    """

    byte_count: int
    files: int
    states: int
    blocks: int
    hits: int
    misses: int
    bytes_read: int
    bytes_written: int
    states_written: int
    over_budget: int
    write_errors: int
    evicted: int
    damaged_removed: int
    leftovers_removed: int
    waiting: int
    given_up: int
    write_budget_left: int | None
    last_error: str


class Store:
    """A directory of kept prefixes. Made by ``Engine.keep_prefixes`` or `Store.open`."""

    def __init__(self, handle: Any, directory: Path, engine: Engine | None = None) -> None:
        self._handle: Any = ffi.gc(handle, lib.pyds4_kv_free)
        self.directory = directory
        self._engine = engine

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], budget_bytes: int = DEFAULT_BUDGET_BYTES
    ) -> Store:
        """Look after an existing directory, all models in it, without an engine.

        Raises:
            StoreError: there is no such directory, or it cannot be read.
        """
        path = Path(directory).expanduser()
        out = ffi.new("pyds4_kv **")
        check(lib.pyds4_kv_open(os.fsencode(path), budget_bytes, out))
        return cls(out[0], path)

    @classmethod
    def attach(
        cls,
        engine: Engine,
        directory: str | os.PathLike[str] | None = None,
        *,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        write_budget_bytes: int = 0,
        reserve_bytes: int = DEFAULT_RESERVE_BYTES,
        fewest_tokens: int = FEWEST_TOKENS,
    ) -> Store:
        """Keep the engine's prefixes in ``directory`` from now on, and use those that are there.

        Ends of prompts are written by themselves once they are ``fewest_tokens`` behind what is
        there; ends of turns when ``Session.save`` is called. Writing is never waited for.

        Args:
            engine: Whose prefixes; what other models left there is kept apart.
            directory: None for `default_directory`. Made when missing, for its owner alone.
            budget_bytes: Of the whole directory, all models together.
            write_budget_bytes: In 24 hours; 0 for no limit.
            reserve_bytes: Of the file system, left to others.
            fewest_tokens: Fewer new tokens are not worth a write.

        Raises:
            StoreError: the directory can be neither made nor read.
        """
        path = default_directory() if directory is None else Path(directory).expanduser()
        name = ffi.new("char[]", os.fsencode(path))
        options = ffi.new("pyds4_kv_options *")
        options.struct_size = ffi.sizeof("pyds4_kv_options")
        options.directory = name
        options.budget_bytes, options.write_budget_bytes = budget_bytes, write_budget_bytes
        options.reserve_bytes, options.fewest_tokens = reserve_bytes, fewest_tokens
        check(lib.pyds4_engine_kv_attach(engine.handle, options))
        out = ffi.new("pyds4_kv **")
        check(lib.pyds4_engine_kv(engine.handle, out))
        store = cls(out[0], path, engine)
        _open_stores.add(store)
        return store

    @property
    def handle(self) -> Any:
        if self._handle is None:
            raise ClosedError("the store is closed")
        return self._handle

    def entries(self) -> list[Entry]:
        """Every place one can go on from, latest use first: the engine's, or without one all."""
        capacity = 256
        while True:
            native = ffi.new("pyds4_kv_entry[]", capacity)
            count = ffi.new("size_t *")
            check(lib.pyds4_kv_list(self.handle, native, capacity, count))
            if count[0] <= capacity:
                break
            capacity = 2 * count[0]
        return [
            Entry(
                key=text(c.key),
                identity=text(c.identity),
                position=c.position,
                byte_count=c.byte_count,
                chain_bytes=c.chain_bytes,
                made_s=c.made_s,
                used_s=c.used_s,
                pinned=bool(c.pinned),
                anchor=bool(c.anchor),
            )
            for c in native[0 : count[0]]
        ]

    def tokens(self, key: str) -> list[int]:
        """The ids before an entry.

        Raises:
            NoSuchKeyError: it is not, or no longer, here.
        """
        count = ffi.new("size_t *")
        check(lib.pyds4_kv_tokens(self.handle, key.encode(), ffi.NULL, 0, count))
        ids = np.empty(count[0], np.int32)
        pointer = ffi.cast("int32_t *", ids.ctypes.data)
        check(lib.pyds4_kv_tokens(self.handle, key.encode(), pointer, ids.size, count))
        found: list[int] = ids.tolist()
        return found

    def pin(self, key: str, pinned: bool = True) -> None:
        """Keep an entry, and all it stands on, from eviction; or no longer.

        Raises:
            NoSuchKeyError: it is not here.
            StoreError: the mark cannot be written.
        """
        check(lib.pyds4_kv_pin(self.handle, key.encode(), int(pinned)))

    def delete(self, key: str) -> int:
        """Remove an entry and the rows that nothing else stands on; returns the bytes freed.

        Raises:
            NoSuchKeyError: it is not here.
        """
        freed = ffi.new("uint64_t *")
        check(lib.pyds4_kv_delete(self.handle, key.encode(), freed))
        return int(freed[0])

    def clear(self) -> int:
        """Remove everything that is not pinned; returns the bytes freed."""
        freed = ffi.new("uint64_t *")
        check(lib.pyds4_kv_delete(self.handle, ffi.NULL, freed))
        return int(freed[0])

    def stats(self) -> StoreStats:
        """What is there, and what happened since it was opened."""
        out = ffi.new("pyds4_kv_stats *")
        lib.pyds4_kv_statistics(self.handle, out)
        numbers = {
            name: int(getattr(out, name))
            for name in StoreStats.__slots__
            if name not in ("write_budget_left", "last_error")
        }
        left = int(out.write_budget_left)
        return StoreStats(
            **numbers,
            write_budget_left=None if left < 0 else left,
            last_error=text(out.last_error),
        )

    def warm(self, tokens: Sequence[int], progress: Progress | None = None) -> int:
        """Have ``tokens`` ready: evaluate what is not kept yet, and keep it, pinned.

        Args:
            tokens: The prefix; shorter ones than ``fewest_tokens`` are evaluated but not kept.
            progress: Called now and then with tokens done and tokens in all.

        Returns:
            How many tokens had to be evaluated.

        Raises:
            ClosedError: the store was opened without an engine.
            ContextFullError, TokenOutOfRangeError: as ``Session.prefill``.
        """
        if self._engine is None:
            raise ClosedError("a store opened without an engine cannot evaluate")
        with self._engine.session() as session:
            reused = session.prefill(tokens, progress)
            session.save()
        self.flush()
        self.pin_longest(tokens)
        return len(tokens) - reused

    def pin_longest(self, tokens: Sequence[int]) -> Entry | None:
        """Pin the entry that holds most of ``tokens``; None when none does."""
        ids = list(tokens)
        fitting = [entry for entry in self.entries() if entry.position <= len(ids)]
        for entry in sorted(fitting, key=lambda entry: -entry.position):
            try:
                if self.tokens(entry.key) == ids[: entry.position]:
                    self.pin(entry.key)
                    return entry
            except NoSuchKeyError:  # evicted meanwhile
                continue
        return None

    def flush(self) -> None:
        """Wait until everything that is to be kept is on disk."""
        if self._engine is not None:
            lib.pyds4_engine_kv_flush(self._engine.handle)

    def close(self) -> None:
        """Let go of the directory; an engine that keeps its prefixes there goes on doing so."""
        handle, self._handle = self._handle, None
        if handle is not None:
            ffi.release(handle)


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


@atexit.register
def _flush_all() -> None:
    """What was saved last must not be lost to the end of the program."""
    for store in list(_open_stores):
        try:
            store.flush()
        except ClosedError:
            continue
