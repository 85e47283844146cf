"""Token ids on their way to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np
import numpy.typing as npt

from pyds4.errors import InvalidArgumentError, TokenOutOfRangeError

Tokens = Sequence[int] | npt.NDArray[np.int32]


def token_array(tokens: Tokens, vocab_size: int) -> npt.NDArray[np.int32]:
    """Ids as the C ABI takes them.

    Raises:
        TokenOutOfRangeError: an id outside 0 … ``vocab_size - 1``; names it and its index.
        InvalidArgumentError: not a flat list of integers.
    """
    if len(tokens) == 0:
        return np.empty(0, np.int32)
    try:
        wide = np.asarray(tokens)
    except ValueError as error:
        raise InvalidArgumentError("tokens: expected a flat list of ids") from error
    if wide.ndim != 1:
        raise InvalidArgumentError(f"tokens: expected a flat list of ids, found {wide.ndim} axes")
    if wide.dtype.kind not in "iu":  # or among them an integer that no numpy type holds
        for index, token in enumerate(tokens):
            if not isinstance(token, Integral) or isinstance(token, bool):
                raise InvalidArgumentError(
                    f"tokens: expected ids, found {token!r} at index {index}"
                )
        wide = np.array(tokens, dtype=object)
    bad = np.flatnonzero((wide < 0) | (wide >= vocab_size))
    if bad.size:
        index = int(bad[0])
        raise TokenOutOfRangeError(
            f"token {tokens[index]} at index {index} is not an id from 0 to {vocab_size - 1}"
        )
    return wide.astype(np.int32)
