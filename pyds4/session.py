"""One timeline of tokens."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyds4._native import check, ffi, lib
from pyds4._tokens import Tokens, token_array
from pyds4.errors import ClosedError, ContextFullError
from pyds4.kv.prefixes import Resume, last_resume

if TYPE_CHECKING:
    from pyds4.engine import Engine

Progress = Callable[[int, int], None]
"""Called with tokens done and tokens in all."""


class Session:
    """One timeline: its tokens, their attention memory, the logits after the last one.

    Made by `Engine.session`. One call at a time; `cancel` and `position` may be used meanwhile.
    """

    PROGRESS_TOKENS = 512

    def __init__(self, engine: Engine, handle: Any) -> None:
        self.engine = engine
        self._handle: Any = ffi.gc(handle, lib.pyds4_session_free)

    @property
    def handle(self) -> Any:
        if self._handle is None:
            raise ClosedError("the session is closed")
        return self._handle

    # What it holds

    @property
    def position(self) -> int:
        """Tokens taken in. Never waits for a running step."""
        return int(lib.pyds4_session_position(self.handle))

    @property
    def context_size(self) -> int:
        """Tokens it may hold."""
        return int(lib.pyds4_session_context(self.handle))

    @property
    def byte_count(self) -> int:
        """Bytes of attention memory in use; what forks share is counted in each."""
        return int(lib.pyds4_session_byte_count(self.handle))

    @property
    def tokens(self) -> list[int]:
        """The ids taken in so far."""
        count = self.position
        out = np.empty(count, np.int32)
        check(lib.pyds4_session_tokens(self.handle, ffi.cast("int32_t *", out.ctypes.data), count))
        ids: list[int] = out.tolist()
        return ids

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """Scores of the next token: a new float32 array of shape (vocab_size,).

        Raises:
            InvalidArgumentError: nothing was evaluated since it was made or rewound.
        """
        out = np.empty(self.engine.config.vocab_size, np.float32)
        check(lib.pyds4_session_logits(self.handle, ffi.cast("float *", out.ctypes.data), out.size))
        return out

    # Going on

    def prefill(self, tokens: Tokens, progress: Progress | None = None) -> int:
        """Bring the session to the end of ``tokens`` and return how many were already there.

        Only what follows the longest prefix it can go on from is evaluated; ``self.logits`` is
        then for the next token. The GIL is released meanwhile.

        Args:
            tokens: The whole prompt, not just the new turn.
            progress: Called after every 512 tokens or so with (tokens done, tokens in all).

        Raises:
            ContextFullError: ``tokens`` is longer than ``context_size``; nothing changed.
            TokenOutOfRangeError: an id outside the vocabulary; nothing changed.
            SessionCancelled: ``cancel()`` was called; ``position`` says how far it came.
            InvalidArgumentError: ``tokens`` is empty.
        """
        from pyds4.engine import StepItem

        handle = self.handle
        ids = token_array(tokens, self.engine.config.vocab_size)
        is_done = self.position == ids.size and self.tokens == ids.tolist()
        if progress is None or is_done or ids.size < self.PROGRESS_TOKENS:
            reused = ffi.new("size_t *")
            pointer = ffi.cast("const int32_t *", ids.ctypes.data)
            check(lib.pyds4_session_prefill(handle, pointer, ids.size, reused))
            return int(reused[0])
        if ids.size > self.context_size:
            raise ContextFullError(
                f"{ids.size} tokens do not fit the session's context of {self.context_size}"
            )
        kept = self.rewind(ids)
        at = kept
        progress(at, ids.size)
        while at < ids.size:
            end = min((at // self.PROGRESS_TOKENS + 1) * self.PROGRESS_TOKENS, ids.size)
            result = self.engine.step([StepItem(self, ids[at:end])])[0]
            if result.error is not None:
                raise result.error
            at = end
            progress(at, ids.size)
        return kept

    def decode(self, token: int) -> None:
        """Take in one more token; ``self.logits`` is then for the one after it.

        Raises:
            ContextFullError, TokenOutOfRangeError: nothing changed.
            SessionCancelled: ``cancel()`` was called.
        """
        handle = self.handle
        ids = token_array([token], self.engine.config.vocab_size)
        check(lib.pyds4_session_decode(handle, int(ids[0])))

    def rewind(self, tokens: Tokens, *, whole: bool = False) -> int:
        """Go back to the longest prefix of ``tokens`` it can go on from, and return its length.

        At most ``len(tokens) - 1``, so that something is left to evaluate; with ``whole`` all of
        them where the logits behind them are known. Nothing is evaluated: a session can go on from
        where it is, from the ends of earlier prompts and from some boundaries between, and from
        those of other sessions when the engine keeps prefixes.
        """
        handle = self.handle
        ids = token_array(tokens, self.engine.config.vocab_size)
        kept = ffi.new("size_t *")
        pointer = ffi.cast("const int32_t *", ids.ctypes.data)
        call = lib.pyds4_session_recall if whole else lib.pyds4_session_rewind
        check(call(handle, pointer, ids.size, kept))
        return int(kept[0])

    @property
    def resume(self) -> Resume:
        """What the last ``rewind`` or ``prefill`` found: how much, from where, and why not more."""
        return last_resume(self.handle)

    def save(self) -> None:
        """Keep where it stands, in memory and on disk, for the end of a turn. Returns at once.

        Does nothing while the engine keeps no prefixes.
        """
        check(lib.pyds4_session_save(self.handle))

    def fork(self) -> Session:
        """A second session with the same past; attention memory is shared until one writes."""
        out = ffi.new("pyds4_session **")
        check(lib.pyds4_session_fork(self.handle, out))
        return Session(self.engine, out[0])

    def cancel(self) -> None:
        """Stop what it is doing, or the next thing it would do, with `SessionCancelled`.

        From any thread; returns at once. Harmless after ``close()``.
        """
        handle = self._handle
        if handle is not None:
            lib.pyds4_session_cancel(handle)

    def close(self) -> None:
        """Give its memory back; it cannot be used afterwards.

        A call under way in another thread holds on to it and finishes first.
        """
        self._handle = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()
