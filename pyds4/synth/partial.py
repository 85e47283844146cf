"""A large file on its way: under another name until it is whole, and gone on with after a kill.

``PATH.partial`` holds the bytes, ``PATH.partial.journal`` says how far they can be trusted: a line
that names what they are made from, then a line for every stretch that has reached the disk. Bytes
are synchronised before the journal speaks of them, and all of them before the file gets its name,
so neither a killed process nor a failing machine leaves a file that looks finished.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["PartialFile"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class PartialFile:
    """One file being written.

    Args:
        target: Its name in the end; replaced if it exists.
        header: Its first bytes, written at once.
        total: Its size.
        identity: Of everything its bytes are made from. An earlier run's part of the same identity
            is gone on with; None: never.

    Attributes:
        done: What the earlier run's last ``checkpoint`` counted; 0 when it starts anew.
        story: What became of an earlier run, in a sentence; None when there was none.

    Raises:
        OSError: the place cannot be written, has too little room, or another process writes the
            same file; says which and what to do.
    """

    def __init__(
        self, target: Path, header: bytes, total: int, identity: str | None = None
    ) -> None:
        self.target, self.total, self.identity = target, total, identity
        self.path = target.with_name(target.name + ".partial")
        self.journal = target.with_name(target.name + ".partial.journal")
        self.done, self.story = 0, None
        if target.is_dir():
            raise OSError(f"{target} is a directory: give the name of a file in it")
        self._descriptor = self._open()
        try:
            earlier = os.fstat(self._descriptor).st_size
            if earlier:
                self.done = self._resumable(header, earlier)
                self.story = (
                    f"{self.path} of an earlier run is gone on with"
                    if self.done
                    else f"{self.path} of an earlier run cannot be gone on with (another input, "
                    "recipe or version, or too little of it): starting anew"
                )
            if not self.done:
                self._begin(header)
        except BaseException:
            self.close(keep=True)
            raise

    def write(self, data: memoryview, offset: int) -> None:
        """All of ``data`` at ``offset``; from any thread."""
        try:
            # A single pwrite may take less than it was given (2 GiB at most on Linux).
            while len(data):
                written = os.pwrite(self._descriptor, data, offset)
                data = data[written:]
                offset += written
        except OSError as error:
            raise self._named(error) from error

    def checkpoint(self, done: int) -> None:
        """Everything that ``done`` counts has been written: bring it to the disk, then say so."""
        if self.identity is None:
            return
        _synchronise(self._descriptor)
        with self.journal.open("ab") as file:
            file.write(json.dumps({"done": done}).encode() + b"\n")
            file.flush()
            _synchronise(file.fileno())

    def finish(self) -> None:
        """Every byte stands: give the file its name."""
        os.fsync(self._descriptor)
        self.path.replace(self.target)
        self.close(keep=True)
        self.journal.unlink(missing_ok=True)
        with suppress(OSError):  # not every file system synchronises directories
            directory = os.open(self.target.absolute().parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def close(self, *, keep: bool) -> None:
        """Let go of it; without ``keep`` nothing is left behind."""
        if not keep:
            self.path.unlink(missing_ok=True)
            self.journal.unlink(missing_ok=True)
        os.close(self._descriptor)

    # Opening

    def _open(self) -> int:
        parent = self.target.absolute().parent
        while True:
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise self._named(error, parent) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(descriptor)
                raise OSError(
                    f"{self.target} is being written by another process: wait for it, or end it"
                ) from error
            except OSError:
                pass  # a file system without locks
            # Between the two calls another process may have finished it and renamed it.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self.path), os.fstat(descriptor)):
                    return descriptor
            os.close(descriptor)

    def _resumable(self, header: bytes, size: int) -> int:
        """How far the earlier run's bytes can be trusted."""
        if self.identity is None or size != self.total:
            return 0
        try:
            lines = self.journal.read_bytes().split(b"\n")
        except OSError:
            return 0
        done = 0
        for index, line in enumerate(lines[:-1]):  # behind the last newline: a line cut short
            try:
                entry: dict[str, Any] = json.loads(line)
                if index == 0 and entry != self._first_entry():
                    return 0
                done = max(done, int(entry.get("done", 0)))
            except (ValueError, AttributeError):
                return 0
        if os.pread(self._descriptor, len(header), 0) != header:
            return 0
        return done

    def _first_entry(self) -> dict[str, Any]:
        return {"version": 1, "identity": self.identity, "bytes": self.total}

    def _begin(self, header: bytes) -> None:
        self.journal.unlink(missing_ok=True)
        os.ftruncate(self._descriptor, 0)
        free = shutil.disk_usage(self.target.absolute().parent).free
        if self.total > free:
            self.path.unlink(missing_ok=True)
            raise OSError(
                f"{self.target} needs {_gib(self.total)}, the disk has {_gib(free)} free: make "
                "room, or choose another place"
            )
        try:
            _reserve(self._descriptor, self.total)
            self.write(memoryview(header), 0)
            if self.identity is not None:
                first = json.dumps(self._first_entry()).encode() + b"\n"
                self.journal.write_bytes(first)
        except OSError as error:
            self.path.unlink(missing_ok=True)
            self.journal.unlink(missing_ok=True)
            raise self._named(error) from error

    def _named(self, error: OSError, parent: Path | None = None) -> OSError:
        """``error`` with the file it is about and what to do."""
        if error.errno in _FULL:
            again = "; what is there is gone on with" if self.identity is not None else ""
            return OSError(
                f"{self.target}: {os.strerror(error.errno or 0)} ({_gib(self.total)} are needed): "
                f"make room, or raise the limit, and run it again{again}"
            )
        if parent is not None and not parent.is_dir():
            return OSError(f"{self.target}: there is no directory {parent}")
        if error.errno in _FORBIDDEN:
            return OSError(
                f"{self.target} cannot be written: {os.strerror(error.errno or 0)}: choose "
                "another place"
            )
        return error


def _reserve(descriptor: int, size: int) -> None:
    """Take the room now, so that a full disk is noticed at once and not in an hour.

    The system call itself: where a file system lacks it, libc's `posix_fallocate` would write to
    every block instead.
    """
    if size and sys.platform == "linux":
        reserve = ctypes.CDLL(None, use_errno=True).fallocate
        reserve.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        if reserve(descriptor, 0, 0, size) and ctypes.get_errno() in _FULL:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.ftruncate(descriptor, size)


def _synchronise(descriptor: int) -> None:
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"
