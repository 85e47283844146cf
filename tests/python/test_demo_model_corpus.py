"""The corpus that the demo model is trained on: shares of tokens, and which tokens teach."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer

from models import DEMO
from pyds4.chat import markers
from pyds4.evals.source import Source
from scripts.demo_model import vocabulary
from scripts.demo_model.batches import EOS_ID, PAD_ID, Encoded, encode, fill, pack
from scripts.demo_model.corpus import Corpus, Document, Shares


@cache
def tokenizer() -> Tokenizer:
    return vocabulary.build(vocabulary.read(DEMO))


@cache
def documents(tokens: int, count: int) -> list[Document]:
    corpus = Corpus("tests", None)
    return [corpus.document(tokens) for _ in range(count)]


def said(encoded: Encoded) -> list[str]:
    """What the answers that teach say, headers and ends of sentence left out."""
    return [
        tokenizer().decode(encoded.ids[start : end - 1].tolist(), skip_special_tokens=False)
        for start, end in encoded.answers
    ]


def test_tokens_follow_the_shares_however_long_documents_are() -> None:
    source = Source("shares")
    costs = {"short": (20, 60), "long": (3000, 9000), "medium": (100, 900)}
    wanted = {"short": 30.0, "long": 60.0, "medium": 10.0}
    shares = Shares(source, wanted)
    spent: Counter[str] = Counter()
    for _ in range(20000):
        name = shares.draw()
        cost = source.integer(*costs[name])
        shares.spend(name, cost)
        spent[name] += cost
    for name, share in wanted.items():
        assert 100 * spent[name] / spent.total() == pytest.approx(share, rel=0.15)


def test_practice_gives_a_task_more_of_the_tokens() -> None:
    def answers(corpus: Corpus) -> float:
        made = [corpus.document(4096) for _ in range(400)]
        drills = "".join(one.text for one in made if one.family == "drill")
        return drills.count("backwards") / len(drills)

    plain, practised = Corpus(1, None), Corpus(1, None, {"reverse": 60})
    assert answers(practised) > 2 * answers(plain)


def test_every_answer_of_a_drill_teaches_and_nothing_else() -> None:
    drills = [one for one in documents(4096, 150) if one.family == "drill"]
    assert len(drills) > 10
    for document, encoded in zip(drills, encode(tokenizer(), drills, 4096), strict=True):
        conversations = document.text.split(markers.BOS)[1:]
        assert len(conversations) > 2
        wanted = []
        for text in conversations:
            whole = text.removesuffix(markers.EOS).split(markers.ASSISTANT)[1]
            wanted.append(whole.removeprefix(markers.THINK).removeprefix(markers.END_THINK))
        assert said(encoded) == wanted
        taught = np.zeros(len(encoded.ids), bool)
        for start, end in encoded.answers:
            taught[start:end] = True
        assert ((encoded.weights > 0) == taught).all()


def test_an_answer_that_teaches_ends_with_the_end_of_sentence() -> None:
    for encoded in encode(tokenizer(), documents(4096, 150), 4096):
        assert all(encoded.ids[end - 1] == EOS_ID for _, end in encoded.answers)
        assert all(first[1] <= second[0] for first, second in pairwise(encoded.answers))


@pytest.mark.parametrize("tokens", [4096, 16384])
def test_rows_hold_every_document_whole(tokens: int) -> None:
    encoded = encode(tokenizer(), documents(tokens, 60), tokens)
    rows, free = pack(encoded, tokens)
    assert sorted(map(id, encoded)) == sorted(id(one) for row in rows for one in row)
    filled = fill(rows, tokens)
    for index, row in enumerate(rows):
        at = 0
        for number, one in enumerate(row):
            assert at % 128 == 0
            assert (filled.ids[index, at : at + len(one.ids)] == one.ids).all()
            assert (filled.documents[index, at : at + len(one.ids)] == number).all()
            # The weight of a place is that of the token predicted there.
            assert (filled.weights[index, at : at + len(one.ids) - 1] == one.weights[1:]).all()
            at += -(-len(one.ids) // 128) * 128
        assert free[index] == tokens - at
        assert (filled.ids[index, at:] == PAD_ID).all()
        assert not filled.weights[index, at:].any()


def test_long_rows_get_long_documents() -> None:
    lengths = [len(one.text) for one in documents(16384, 60)]
    assert max(lengths) > 20000
    assert not [one for one in documents(16384, 60) if one.family == "drill"]
