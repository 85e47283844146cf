"""Known ids by the text they stand for.

What the model sampled often tokenizes differently when a client sends the text back: then the ids
differ from those that were evaluated, and everything behind them would be evaluated again. Here
the prompt is compared as text with what is known, and where the text is the same the known ids
are taken; only what is new is tokenized.
"""

from __future__ import annotations

import itertools
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from pyds4.chat import Prompt
from pyds4.errors import TokenizerError
from pyds4.tokenizer import Tokenizer

_OPEN, _CLOSE = b"\xff", b"\xfe"
"""Around a marker: bytes that UTF-8 text never has, so that text cannot pass for a marker."""


@dataclass(frozen=True, slots=True)
class _Timeline:
    """Ids and the bytes they stand for.

    ``edges`` are the places around markers, (bytes, ids) from the start.
    """

    ids: array[int]
    spelled: bytes
    edges: list[tuple[int, int]]


class Timelines:
    """The latest ``limit`` timelines, each the ids of a session and the bytes they stand for.

    A prompt takes known ids from its start to the last marker up to which it is the same, so
    nothing is cut inside of a text: what stands between two markers is either known ids or
    tokenized whole. Any thread may call any method.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int = 64) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self._lock = threading.Lock()
        self._known: OrderedDict[int, _Timeline] = OrderedDict()
        self._serial = 0

    def add(self, tokens: Sequence[int]) -> None:
        """Remember a timeline: a prompt and what was sampled behind it. A shorter known one that it
        continues is replaced, and costs the new tokens alone."""
        ids = array("i", tokens)
        with self._lock:
            known = list(self._known.values())
        new = self._spelled(ids, max(known, key=lambda old: _continued(old, ids), default=None))
        with self._lock:
            for serial, old in list(self._known.items()):
                if new.spelled.startswith(old.spelled):
                    del self._known[serial]
            self._serial += 1
            self._known[self._serial] = new
            while len(self._known) > self._limit:
                self._known.popitem(last=False)

    def ids(self, prompt: Prompt) -> tuple[list[int], int]:
        """The prompt's ids, known ones where the text is the same, and how many are known.

        Raises:
            TokenizerError: the vocabulary lacks a marker this prompt needs.
        """
        pieces = [_piece(segment.text, segment.is_marker) for segment in prompt.segments]
        spelled = b"".join(pieces)
        places = {0, *itertools.accumulate(len(piece) for piece in pieces)}
        with self._lock:
            at, count, best, best_serial = 0, 0, array("i"), None
            for serial, old in self._known.items():
                common = common_prefix(old.spelled, spelled)
                edge = _last_edge(old.edges, common, places)
                if edge[1] > count:
                    (at, count), best, best_serial = edge, old.ids, serial
            if best_serial is not None:
                self._known.move_to_end(best_serial)
        out, done = best[:count].tolist(), 0
        for segment, piece in zip(prompt.segments, pieces, strict=True):
            start, done = done, done + len(piece)
            if start < at:
                continue
            if not segment.is_marker:
                out += self._tokenizer.encode(segment.text, special=False)
                continue
            token = self._tokenizer.token_id(segment.text)
            if token is None:
                raise TokenizerError(f"the vocabulary has no token for {segment.text}")
            out.append(token)
        return out, count

    def _spelled(self, ids: array[int], known: _Timeline | None) -> _Timeline:
        """``ids`` with their bytes; what continues ``known`` is spelled from there."""
        done = 0 if known is None else _continued(known, ids)
        spelled, edges = bytearray(), [(0, 0)]
        if known is not None and done:
            spelled, edges = bytearray(known.spelled), list(known.edges)
        for count, token in enumerate(ids[done:], done):
            if self._tokenizer.is_special(token):
                edges.append((len(spelled), count))
                spelled += _OPEN + self._tokenizer.token_bytes(token) + _CLOSE
                edges.append((len(spelled), count + 1))
            else:
                spelled += self._tokenizer.token_bytes(token)
        return _Timeline(ids, bytes(spelled), edges)


def _continued(known: _Timeline, ids: array[int]) -> int:
    """How many ids ``known`` has, if ``ids`` begin with all of them; otherwise none."""
    count = len(known.ids)
    return count if ids[:count] == known.ids else 0


def _piece(text: str, is_marker: bool) -> bytes:
    spelled = text.encode("utf-8", "replace")
    return _OPEN + spelled + _CLOSE if is_marker else spelled


def _last_edge(edges: list[tuple[int, int]], at: int, places: set[int]) -> tuple[int, int]:
    """The last edge up to ``at`` where a piece of the prompt begins as well."""
    low, high = 0, len(edges) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if edges[middle][0] <= at:
            low = middle
        else:
            high = middle - 1
    while edges[low][0] not in places:
        low -= 1
    return edges[low]


def common_prefix(left: bytes, right: bytes) -> int:
    """Length of the common beginning, by halving: slices compare at C speed."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
