"""Known ids by the text they stand for.

What the model sampled often tokenizes differently when a client sends the text back: then the ids
differ from those that were evaluated, and everything behind them would be evaluated again. Here
the prompt is compared as text with what is known, and where the text is the same the known ids
are taken; only what is new is tokenized.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence

from pyds4.chat import Prompt
from pyds4.errors import TokenizerError
from pyds4.tokenizer import Tokenizer

_OPEN, _CLOSE = b"\xff", b"\xfe"
"""Around a marker: bytes that UTF-8 text never has, so that text cannot pass for a marker."""


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
        self._known: OrderedDict[int, tuple[bytes, list[tuple[int, int]], list[int]]] = (
            OrderedDict()
        )
        self._serial = 0

    def add(self, tokens: Sequence[int]) -> None:
        """Remember a timeline: a prompt and what was sampled behind it. A shorter known one that it
        continues is replaced."""
        ids = list(tokens)
        spelled, edges = self._spell(ids)
        with self._lock:
            for serial, (old, _, _) in list(self._known.items()):
                if spelled.startswith(old):
                    del self._known[serial]
            self._serial += 1
            self._known[self._serial] = (spelled, edges, ids)
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
            best: tuple[int, int, list[int]] = (0, 0, [])
            best_serial = None
            for serial, (old, edges, ids) in self._known.items():
                common = common_prefix(old, spelled)
                at, count = _last_edge(edges, common, places)
                if count > best[1]:
                    best, best_serial = (at, count, ids), serial
            if best_serial is not None:
                self._known.move_to_end(best_serial)
        at, count, ids = best
        out, done = ids[:count], 0
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

    def _spell(self, ids: list[int]) -> tuple[bytes, list[tuple[int, int]]]:
        """The bytes of ids, and the places around markers: (bytes, ids) from the start."""
        spelled, edges = bytearray(), [(0, 0)]
        for count, token in enumerate(ids):
            if self._tokenizer.is_special(token):
                edges.append((len(spelled), count))
                spelled += _OPEN + self._tokenizer.token_bytes(token) + _CLOSE
                edges.append((len(spelled), count + 1))
            else:
                spelled += self._tokenizer.token_bytes(token)
        return bytes(spelled), edges


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
