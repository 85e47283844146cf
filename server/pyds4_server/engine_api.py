"""What the server needs of an engine, and nothing more.

`pyds4.Engine` satisfies these protocols; the tests' fake engine does too, which is how the
scheduler, the parser and the protocol code run in tests exactly as they do in production.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyds4.errors import PyDS4Error
from pyds4.kv import Resume
from pyds4.tokenizer import Tokenizer

Logits = NDArray[np.float32]


class ModelConfigLike(Protocol):
    """The part of the model's configuration that clients are told about."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...


class SessionLike(Protocol):
    """One timeline of tokens. Used by one thread at a time."""

    @property
    def position(self) -> int: ...
    @property
    def logits(self) -> Logits: ...
    def rewind(self, tokens: Sequence[int], *, whole: bool = False) -> int:
        """Keep the longest prefix of ``tokens`` the session can resume from; its length.

        All of them only if ``whole``, and then ``logits`` are those behind the last one.
        """
        ...

    @property
    def resume(self) -> Resume:
        """What the last ``rewind`` found."""
        ...

    def save(self) -> None:
        """Keep where it stands for others, if the engine keeps prefixes. Returns at once."""
        ...

    def fork(self) -> Any: ...
    def close(self) -> None: ...


class StepResultLike(Protocol):
    """What became of one item: an error, a sampled token, or neither."""

    @property
    def error(self) -> PyDS4Error | None: ...
    @property
    def token(self) -> int | None: ...


class EngineLike(Protocol):
    """An opened model. ``step`` blocks and is called from one thread."""

    @property
    def config(self) -> ModelConfigLike: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    def session(self, context: int | None = None) -> Any: ...
    def step(self, items: Sequence[Any]) -> Sequence[StepResultLike]: ...
