"""Exact match inside the training process, for all families at once.

A greedy run reproduces an answer exactly when every most likely token along the true answer is
right, so one pass over packed samples answers for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pyds4.evals import families
from scripts.demo_model.batches import Encoded, Rows, encode, fill, pack
from scripts.demo_model.corpus import Document

Predict = Callable[[Rows], NDArray[np.int32]]
"""Rows -> most likely next token at each place, [rows, tokens]."""


def samples(tokenizer: Tokenizer, per_family: int, longest: int) -> list[tuple[str, Encoded]]:
    """``per_family`` samples of each family and mode, keyed ``family/mode``."""
    drawn: list[tuple[str, Encoded]] = []
    for family in families.FAMILIES:
        for thinking in (False, True):
            documents = []
            for number in range(per_family):
                sample = families.make(family, f"held-out/{number}", thinking)
                documents.append(Document(family, sample.prompt().text, sample.scored()))
            mode = "thinking" if thinking else "chat"
            encoded = encode(tokenizer, documents, longest)
            drawn += [(f"{family}/{mode}", one) for one in encoded]
    return drawn


def evaluate(
    predict: Predict, drawn: list[tuple[str, Encoded]], length: int, rows_at_once: int
) -> tuple[dict[str, list[int]], list[dict[str, Any]]]:
    """[right, all] answers by key, and some of the mistakes."""
    keys = {id(one): key for key, one in drawn}
    rows, _ = pack([one for _, one in drawn], length)
    while len(rows) % rows_at_once:
        rows.append([])
    counts: dict[str, list[int]] = {}
    mistakes: list[dict[str, Any]] = []
    for start in range(0, len(rows), rows_at_once):
        members = rows[start : start + rows_at_once]
        predicted = predict(fill(members, length))
        for row, documents in enumerate(members):
            at = 0
            for document in documents:
                ids = document.ids.astype(np.int32)
                key = keys[id(document)]
                for first, end in document.answers:
                    guess = predicted[row, at + first - 1 : at + end - 1]
                    wrong = np.flatnonzero(guess != ids[first:end])
                    tally = counts.setdefault(key, [0, 0])
                    tally[0] += not len(wrong)
                    tally[1] += 1
                    if len(wrong):
                        mistake = {
                            "key": key,
                            "before": ids[max(0, first - 60) : first].tolist(),
                            "wanted": ids[first:end].tolist(),
                            "at": int(wrong[0]),
                            "got": int(guess[wrong[0]]),
                        }
                        mistakes.append(mistake)
                at += -(-len(ids) // 128) * 128
    return counts, mistakes
