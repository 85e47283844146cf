"""Keeping one answer in the forms its request demands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyds4_server.constraint import OneOf
from pyds4_server.formats import Formats
from pyds4_server.grammar import Following, Mask


class Form:
    """Which tokens may come next of an answer, outside of its reasoning.

    ::

        text ──── the demanded format ──── EOS
          └ instead of it, from the first token on: a block of calls ──── EOS

    Args:
        formats: What is demanded.
        begun: Tokens of the text that the prompt already holds; they fit.
        openings: All ways to open a call instead; None if no call may come.
        dsml: The id of the marker behind which a block of calls has its format.
    """

    def __init__(
        self,
        formats: Formats,
        begun: Sequence[int],
        openings: Callable[[], OneOf] | None,
        dsml: int | None,
    ) -> None:
        self._formats = formats
        self._openings = openings
        self._dsml = dsml
        self._text = formats.text.begin() if formats.text is not None else None
        self._calls: Following | None = None
        self._is_untouched = not begun
        if self._text is not None and begun:
            self._text.accepts(list(begun))

    @property
    def is_binding(self) -> bool:
        """Whether the next token cannot be any."""
        return self._text is not None or self._calls is not None

    def mask(self) -> Mask | None:
        """The tokens that may come next; None if any may.

        Raises:
            FollowingError: the format is too complex.
        """
        if self._calls is not None:
            return self._calls.allowed()
        if self._text is None:
            return None
        mask = self._text.allowed()
        if self._is_untouched and self._openings is not None:
            mask = mask.copy()
            mask[list(self._openings().allowed())] = True
        return mask

    def take(self, token: int) -> OneOf | None:
        """Take the next token; gives the rest of a call's opening if it began one.

        Raises:
            FollowingError: the format is too complex.
        """
        if self._calls is not None:
            self._calls.advance(token)
        elif token == self._dsml and self._formats.calls is not None:
            self._text, self._calls = None, self._formats.calls.begin()
        elif self._text is not None:
            if self._is_untouched and self._openings is not None:
                self._is_untouched = False
                if not self._text.allowed()[token]:
                    self._text = None
                    opening = self._openings()
                    opening.advance(token)
                    return opening
            self._is_untouched = False
            self._text.advance(token)
        return None

    def begin_with(self, tokens: Sequence[int]) -> None:
        """The text began in the token that ended the reasoning."""
        if self._text is not None and tokens and not self._text.accepts(list(tokens)):
            # It was no marker but its spelling, and what hung on it has no place in the format.
            assert self._formats.text is not None
            self._text = self._formats.text.begin()
