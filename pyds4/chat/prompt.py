"""A rendered prompt that remembers which of its text is structure.

The published template pastes client text between its markers, so a client can spell a marker and
end its own turn. Here markers are separate segments: they are encoded by id, and everything
between them without added tokens. For text that spells no marker the ids are those of the
published pipeline, because neighbouring text stays one piece for the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pyds4.chat.markers import IN_TEMPLATE
from pyds4.errors import RenderError, TokenizerError
from pyds4.tokenizer import Tokenizer


class Segment(NamedTuple):
    """A piece of a prompt: one marker, or the text between two of them."""

    text: str
    is_marker: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """What ``render`` returns. No two neighbouring segments are both text."""

    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """The prompt as the published encoder writes it."""
        return "".join(segment.text for segment in self.segments)

    def token_ids(self, tokenizer: Tokenizer) -> list[int]:
        """The prompt's ids, in which added tokens come from markers alone.

        Raises:
            TokenizerError: the vocabulary lacks a marker this prompt needs.
        """
        ids: list[int] = []
        for segment in self.segments:
            if not segment.is_marker:
                ids += tokenizer.encode(segment.text, special=False)
                continue
            token = tokenizer.token_id(segment.text)
            if token is None:
                raise TokenizerError(f"the vocabulary has no token for {segment.text}")
            ids.append(token)
        return ids


class PromptWriter:
    """Collects segments, joining text that follows text."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []

    def marker(self, text: str) -> None:
        """One added token."""
        self._segments.append(Segment(text, is_marker=True))

    def text(self, text: object, where: str) -> None:
        """Text from outside, in which nothing is a marker.

        Raises:
            RenderError: ``text`` is no string; the message begins with ``where``.
        """
        if not isinstance(text, str):
            raise RenderError(f"{where} is {type(text).__name__}, not text")
        if not text:
            return
        if self._segments and not self._segments[-1].is_marker:
            text = self._segments.pop().text + text
        self._segments.append(Segment(text, is_marker=False))

    def template(self, text: str) -> None:
        """Our own words, in which the template's markers are markers."""
        done = 0
        for match in IN_TEMPLATE.finditer(text):
            self.text(text[done : match.start()], "template")
            self.marker(match.group())
            done = match.end()
        self.text(text[done:], "template")

    def prompt(self) -> Prompt:
        """Everything written so far."""
        return Prompt(tuple(self._segments))
