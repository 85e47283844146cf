"""Text that has arrived but whose meaning is not settled yet."""

from __future__ import annotations

from typing import NamedTuple

from pyds4.chat.markers import EOS
from pyds4.chat.tags import Partial, Tag, match_tag


class End(NamedTuple):
    """Nothing but blanks and EOS until the stream's end."""


class Text(NamedTuple):
    """Something that is no tag."""


class Pending:
    """The unsettled end of a stream.

    ``scan`` marks how far the text was looked at without finding anything: everything before it
    is settled as ordinary text, which keeps long values from being searched again and again.
    """

    def __init__(self) -> None:
        self.text = ""
        self.scan = 0
        self.final = False
        self._muted = 0

    def mute(self) -> None:
        """Take what is here as known to the client: it decides the meaning of what follows."""
        self._muted = len(self.text)

    def take(self, count: int) -> str:
        """Remove ``count`` characters and return what of them is news to the client."""
        news = self.text[min(self._muted, count) : count]
        self.drop(0, count)
        return news

    def drop(self, start: int, end: int) -> None:
        """Remove ``text[start:end]``."""
        self.text = self.text[:start] + self.text[end:]
        self._muted -= max(0, min(self._muted, end) - start)
        self.scan -= max(0, min(self.scan, end) - start)

    def tag(self, at: int) -> Tag | Partial | None:
        """What stands at the ``<`` at ``at``; nothing is partial once the stream has ended."""
        found = match_tag(self.text, at)
        return None if self.final and isinstance(found, Partial) else found

    def after_blanks(self, at: int) -> Tag | Partial | End | Text:
        """What follows at ``at``: a tag, text, the stream's end, or not known yet (``Partial``)."""
        while at < len(self.text) and self.text[at].isspace():
            at += 1
        if at == len(self.text) or self.eos_tail(at):
            return End() if self.final else Partial(committed=False)
        found = match_tag(self.text, at)
        if isinstance(found, Partial) and self.final:
            return End()  # a tag cut short: what opened before it was markup, not text
        return found or Text()

    def may_become(self, at: int, *markers: str) -> bool:
        """Whether the text from ``at`` to the end is a proper beginning of one of ``markers``."""
        length = len(self.text) - at
        return not self.final and any(
            length < len(marker) and marker.startswith(self.text[at:]) for marker in markers
        )

    def eos_tail(self, at: int) -> bool:
        """Whether from ``at`` on there is only EOS, the last perhaps not complete.

        EOS in the middle of a stream is text that spells it: generation stops at the real one.
        """
        while self.text.startswith(EOS, at):
            at += len(EOS)
            if at == len(self.text):
                return True
        return self.may_become(at, EOS)
