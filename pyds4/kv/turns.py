"""What the model wrote, exactly as it was sampled, across restarts.

Clients send an assistant's turn back re-serialised, retokenized and often without its reasoning.
The ids that were sampled, found again by the ids of the turn's tool calls or by the prompt it
answered, keep the prefix what it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BUSY_TIMEOUT_S = 30.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    id INTEGER PRIMARY KEY,
    model BLOB NOT NULL,           -- whose ids they are
    prompt BLOB NOT NULL,          -- digest of the ids it answered
    tokens BLOB NOT NULL,          -- little-endian i32
    content TEXT NOT NULL,
    reasoning TEXT NOT NULL,
    raw TEXT NOT NULL,
    calls TEXT NOT NULL,           -- JSON, as given
    checksum BLOB NOT NULL,
    made_s REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS turns_prompt ON turns (model, prompt);
CREATE TABLE IF NOT EXISTS calls (
    model BLOB NOT NULL,
    call_id TEXT NOT NULL,
    turn INTEGER NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
    PRIMARY KEY (model, call_id)
) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class SampledTurn:
    """One finished assistant turn.

    Attributes:
        tokens: The ids as sampled, from behind the assistant's opening to its end inclusive.
        content: The visible answer.
        reasoning: What stood before it.
        raw: The whole text, calls in their own markup included.
        calls: What the server wants to find again about the calls; anything JSON holds.
    """

    tokens: tuple[int, ...]
    content: str = ""
    reasoning: str = ""
    raw: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)


class TurnStore:
    """Sampled turns in one SQLite file. Any thread may call any method.

    Losing it costs prefixes, never answers: a file that turns out damaged is set aside and a new
    one begun, and a turn whose checksum is wrong is not returned.

    Args:
        path: The file; ``:memory:`` to keep nothing. Made for its owner alone.
        model: Whose ids they are, such as ``Engine.identity``; others' turns are not seen.
        limit: Turns kept; the oldest go first.
    """

    def __init__(self, path: str | os.PathLike[str], model: bytes, limit: int = 65536) -> None:
        self._path = os.fspath(path)
        self._model = model
        self._limit = limit
        self._lock = threading.Lock()
        self._added = 0
        if self._path == ":memory:":
            self._db = self._open()
            return
        Path(self._path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One process at a time begins a file or sets one aside: the second of two that found the
        # same damage would otherwise set the first one's new file aside.
        with _locked(f"{self._path}.lock"):
            try:
                self._db = self._open()
            except sqlite3.DatabaseError as error:
                if _primary_code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise
                self._set_aside()
                self._db = self._open()

    def _set_aside(self) -> None:
        os.replace(self._path, f"{self._path}.damaged")
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path + suffix)

    def _open(self) -> sqlite3.Connection:
        """Open the file, waiting for as long as another process has it busy.

        Changing to the write-ahead log, and the log's recovery, answer "busy" at once, whatever
        timeout the connection has.
        """
        give_up = time.monotonic() + _BUSY_TIMEOUT_S
        while True:
            try:
                return self._open_once()
            except sqlite3.OperationalError as error:
                busy = _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                if not busy or time.monotonic() > give_up:
                    raise
            time.sleep(0.02)

    def _open_once(self) -> sqlite3.Connection:
        if self._path != ":memory:":
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None
        )
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA foreign_keys = ON")
            db.executescript(_SCHEMA)
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    def remember(
        self,
        prompt: Sequence[int],
        turn: SampledTurn,
        call_ids: Iterable[str] = (),
    ) -> None:
        """Keep a turn under the prompt it answered and the ids of its tool calls.

        A disk that refuses is no reason for an answer to fail: the turn is then not kept.
        """
        tokens = _pack(turn.tokens)
        calls = json.dumps(turn.calls, ensure_ascii=False)
        checksum = _checksum(tokens, turn.content, turn.reasoning, turn.raw, calls)
        row = (self._model, _digest(prompt), tokens, turn.content, turn.reasoning, turn.raw, calls)
        with (
            self._lock,
            contextlib.suppress(sqlite3.Error, UnicodeEncodeError),
            self._transaction(),
        ):
            cursor = self._db.execute(
                "INSERT INTO turns (model, prompt, tokens, content, reasoning, raw, calls,"
                " checksum, made_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, checksum, time.time()),
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO calls (model, call_id, turn) VALUES (?, ?, ?)",
                [(self._model, call_id, cursor.lastrowid) for call_id in call_ids],
            )
            self._added += 1
            if self._added % 64 == 1:
                self._db.execute(
                    "DELETE FROM turns WHERE id <= (SELECT max(id) FROM turns) - ?", (self._limit,)
                )

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def recall(self, call_id: str) -> SampledTurn | None:
        """The turn that made a tool call, or None."""
        return self._one(
            "SELECT t.* FROM calls c JOIN turns t ON t.id = c.turn"
            " WHERE c.model = ? AND c.call_id = ?",
            call_id,
        )

    def recall_answer(self, prompt: Sequence[int]) -> SampledTurn | None:
        """The latest turn that answered a prompt, or None."""
        return self._one(
            "SELECT * FROM turns WHERE model = ? AND prompt = ? ORDER BY id DESC LIMIT 1",
            _digest(prompt),
        )

    def _one(self, query: str, argument: str | bytes) -> SampledTurn | None:
        try:
            with self._lock:
                row = self._db.execute(query, (self._model, argument)).fetchone()
        except (sqlite3.Error, UnicodeEncodeError):
            return None
        if row is None:
            return None
        _, _, _, tokens, content, reasoning, raw, calls, checksum, _ = row
        if checksum != _checksum(tokens, content, reasoning, raw, calls):
            return None
        ids = array("i")
        ids.frombytes(tokens)
        return SampledTurn(tuple(ids), content, reasoning, raw, json.loads(calls))

    def __len__(self) -> int:
        with self._lock:
            query = "SELECT count(*) FROM turns WHERE model = ?"
            return int(self._db.execute(query, (self._model,)).fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # A file system without locks still serves a single process.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _primary_code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _pack(ids: Iterable[int]) -> bytes:
    return array("i", ids).tobytes()


def _digest(ids: Iterable[int]) -> bytes:
    return hashlib.blake2b(_pack(ids), digest_size=20).digest()


def _checksum(tokens: bytes, *texts: str) -> bytes:
    digest = hashlib.blake2b(tokens, digest_size=16)
    for text in texts:
        spelled = text.encode("utf-8", "surrogatepass")
        digest.update(len(spelled).to_bytes(8, "little") + spelled)
    return digest.digest()
