"""Documents -> rows of token ids with weights, made by worker processes."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pyds4.chat import markers
from scripts.demo_model.config import WINDOW
from scripts.demo_model.corpus import Corpus, Document

EOS_ID, PAD_ID = 1, 2
_TEXT_WEIGHT, _ANSWER_WEIGHT = 3, 16
"""Plain text teaches less than answers do."""


class Encoded(NamedTuple):
    """A document as ids, with the weight of predicting each, and its answers [start, end)."""

    ids: NDArray[np.uint16]
    weights: NDArray[np.uint8]
    answers: list[tuple[int, int]]
    document: Document


class Rows(NamedTuple):
    """[rows, tokens] each: ids, number of the document, weight of the next token."""

    ids: NDArray[np.uint16]
    documents: NDArray[np.int16]
    weights: NDArray[np.uint8]


def encode(tokenizer: Tokenizer, documents: Sequence[Document], longest: int) -> list[Encoded]:
    """The documents that are no longer than ``longest`` tokens."""
    assistant = tokenizer.token_to_id(markers.ASSISTANT)
    encoded = []
    batch = tokenizer.encode_batch([one.text for one in documents], add_special_tokens=False)
    for document, encoding in zip(documents, batch, strict=True):
        ids = np.array(encoding.ids, np.uint16)
        if len(ids) > longest:
            continue
        weights = np.zeros(len(ids), np.uint8)
        answers: list[tuple[int, int]] = []
        if document.scored is None:
            weights[1:] = _TEXT_WEIGHT
        else:
            # An answer begins behind the header's two tokens and ends with EOS.
            starts, ends = np.flatnonzero(ids == assistant) + 2, np.flatnonzero(ids == EOS_ID)
            for index in document.scored:
                start = int(starts[index])
                end = int(ends[np.searchsorted(ends, start)]) + 1
                answers.append((start, end))
                weights[start:end] = _ANSWER_WEIGHT
        encoded.append(Encoded(ids, weights, answers, document))
    return encoded


def _blocks(document: Encoded) -> int:
    return -(-len(document.ids) // WINDOW) * WINDOW


def pack(documents: Sequence[Encoded], length: int) -> tuple[list[list[Encoded]], list[int]]:
    """Rows of ``length``, first fit, longest first, and what is left free in each."""
    rows: list[list[Encoded]] = []
    free: list[int] = []
    for document in sorted(documents, key=lambda one: -len(one.ids)):
        size = _blocks(document)
        for index, room in enumerate(free):
            if room >= size:
                rows[index].append(document)
                free[index] -= size
                break
        else:
            rows.append([document])
            free.append(length - size)
    return rows, free


def fill(rows: Sequence[Sequence[Encoded]], length: int) -> Rows:
    """Arrays of packed rows; every document starts at a multiple of 128."""
    shape = (len(rows), length)
    ids = np.full(shape, PAD_ID, np.uint16)
    documents, weights = np.zeros(shape, np.int16), np.zeros(shape, np.uint8)
    for row, members in enumerate(rows):
        at = 0
        for number, member in enumerate(members):
            size = len(member.ids)
            ids[row, at : at + size] = member.ids
            documents[row, at:] = number
            weights[row, at : at + size - 1] = member.weights[1:]
            at += _blocks(member)
    return Rows(ids, documents, weights)


def _joined(first: Rows, second: Rows) -> Rows:
    return Rows(
        np.concatenate((first.ids, second.ids)),
        np.concatenate((first.documents, second.documents)),
        np.concatenate((first.weights, second.weights)),
    )


def _work(
    out: Any,
    stop: Any,
    seed: str,
    length: int,
    tokenizer_json: str,
    prompts: Path | None,
    practice: Mapping[str, float],
) -> None:
    """A worker: rows that are nearly full go out, the rest waits for fitting documents."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tokenizer = Tokenizer.from_str(tokenizer_json)
    corpus = Corpus(seed, prompts, practice)
    waiting: list[Encoded] = []
    count = 160 if length <= 4096 else 96
    while not stop.is_set():
        drawn = [corpus.document(length) for _ in range(count)]
        rows, free = pack([*waiting, *encode(tokenizer, drawn, length)], length)
        limit = 0.04 * length
        full = [row for row, room in zip(rows, free, strict=True) if room < limit]
        rest = [row for row, room in zip(rows, free, strict=True) if room >= limit]
        if sum(map(len, rest)) > 120:
            full += rest[: len(rest) // 2]
            rest = rest[len(rest) // 2 :]
        waiting = [document for row in rest for document in row]
        if not full:
            continue
        item = fill(corpus.source.shuffled(full), length)
        while not stop.is_set():
            try:
                out.put(item, timeout=1)
                break
            except queue.Full:
                pass


class Feed:
    """Workers that fill rows of one length. Start it before the GPU is touched: it forks."""

    def __init__(
        self,
        length: int,
        workers: int,
        seed: str,
        tokenizer: Tokenizer,
        prompts: Path | None,
        practice: Mapping[str, float],
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._queue: Any = context.Queue(3 * workers)
        self._stop = context.Event()
        self._workers = [
            context.Process(
                target=_work,
                args=(
                    self._queue,
                    self._stop,
                    f"{seed}/{length}/{index}",
                    length,
                    tokenizer.to_str(),
                    prompts,
                    practice,
                ),
                daemon=True,
            )
            for index in range(workers)
        ]
        for worker in self._workers:
            worker.start()
        self._held: Rows | None = None

    def take(self, count: int) -> Rows:
        """The next ``count`` rows.

        Raises:
            queue.Empty: the workers made nothing for four minutes.
        """
        while self._held is None or len(self._held.ids) < count:
            more = self._queue.get(timeout=240)
            self._held = more if self._held is None else _joined(self._held, more)
        held = self._held
        self._held = Rows(held.ids[count:], held.documents[count:], held.weights[count:])
        return Rows(held.ids[:count], held.documents[:count], held.weights[:count])

    def close(self) -> None:
        """Stop the workers."""
        self._stop.set()
        for worker in self._workers:
            worker.terminate()
