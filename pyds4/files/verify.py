"""Does a model still say what it should: against a text, another file, or captured answers.

Everything is measured on the distribution of the next token at every position, fed with the text
itself: negative log likelihood, agreement of the likeliest tokens, and KL divergence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..chat.markers import ASSISTANT, END_THINK, THINK
from ..chat.template import Profile
from ..engine import Engine, StepItem
from ..errors import InvalidArgumentError
from ..session import Session

__all__ = [
    "Comparison",
    "Score",
    "VectorReport",
    "compare_models",
    "compare_vectors",
    "score_text",
]

Rows = NDArray[np.float64]
Progress = Callable[[int, int], None]
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Score:
    """How likely a text is to a model. ``nll`` in nats a token, ``top1`` from 0 to 1."""

    tokens: int
    nll: float
    top1: float

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.nll))


@dataclass(frozen=True)
class Comparison:
    """A model against a reference on the same text; KL is of reference to model, in nats.

    Attributes:
        top1: Share of positions where both find the same token likeliest.
        top_k: Mean share of the reference's ``k`` likeliest that are among the model's.
        kl_99: 99th percentile of KL over positions.
    """

    model: Score
    reference: Score
    top1: float
    top_k: float
    k: int
    kl_mean: float
    kl_99: float
    kl_max: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class VectorReport:
    """A model against captured answers of an API.

    Attributes:
        nll: Of the captured tokens, nats a token; ``reference_nll`` is what the API said.
        top1: Share of steps where the likeliest token is the API's, by bytes.
        top_k: Mean share of the captured candidates that are as far up in the model's order.
        logprob_error: Mean absolute difference of log probabilities over captured candidates.
        unknown: Candidates whose bytes are no token of the vocabulary.
    """

    vectors: int
    steps: int
    nll: float
    reference_nll: float
    top1: float
    top_k: float
    logprob_error: float
    unknown: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def score_text(
    engine: Engine,
    documents: Sequence[Sequence[int]],
    *,
    answers: bool = False,
    progress: Progress | None = None,
) -> Score:
    """Score sequences of token ids, each from an empty context.

    Args:
        answers: Only what stands in answers: behind the assistant's marker, up to the end of the
            turn. Models are trained on nothing else of a conversation.

    Raises:
        InvalidArgumentError: there is nothing to score.
    """
    tokens, nll, hits = 0, 0.0, 0
    for ids, rows in _positions(engine, documents, answers, progress):
        tokens += len(rows)
        nll -= float(rows[np.arange(len(rows)), ids].sum())
        hits += int((rows.argmax(1) == ids).sum())
    _need(tokens)
    return Score(tokens, nll / tokens, hits / tokens)


def compare_models(
    model: Engine,
    reference: Engine,
    documents: Sequence[Sequence[int]],
    *,
    k: int = 10,
    answers: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Run both over the same texts; ``answers`` as for ``score_text``.

    Raises:
        InvalidArgumentError: their vocabularies differ, or there is nothing to score.
    """
    if model.config.vocab_size != reference.config.vocab_size:
        raise InvalidArgumentError(
            f"the vocabularies differ: {model.config.vocab_size} tokens in {model.path}, "
            f"{reference.config.vocab_size} in {reference.path}"
        )
    nll, hits, tokens, same, shared = np.zeros(2), np.zeros(2), 0, 0, 0.0
    divergence = []
    pairs = zip(
        _positions(model, documents, answers, progress),
        _positions(reference, documents, answers),
        strict=True,
    )
    for (ids, p), (_, q) in pairs:
        at = np.arange(len(ids))
        tokens += len(ids)
        for side, rows in enumerate((p, q)):
            nll[side] -= rows[at, ids].sum()
            hits[side] += (rows.argmax(1) == ids).sum()
        same += int((p.argmax(1) == q.argmax(1)).sum())
        ours, theirs = (np.argpartition(-rows, k - 1, axis=1)[:, :k] for rows in (p, q))
        shared += sum(len(np.intersect1d(a, b)) / k for a, b in zip(ours, theirs, strict=True))
        divergence.append((np.exp(q) * (q - p)).sum(1))
    _need(tokens)
    kl = np.maximum(np.concatenate(divergence), 0)
    scores = [
        Score(tokens, float(nll[side] / tokens), float(hits[side] / tokens)) for side in (0, 1)
    ]
    return Comparison(
        model=scores[0],
        reference=scores[1],
        top1=same / tokens,
        top_k=shared / tokens,
        k=k,
        kl_mean=float(kl.mean()),
        kl_99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
    )


def _positions(
    engine: Engine,
    documents: Sequence[Sequence[int]],
    answers: bool,
    progress: Progress | None = None,
) -> Iterator[tuple[NDArray[np.int64], Rows]]:
    """(next ids, log probabilities [n, vocabulary]) in pieces of at most 64 positions."""
    total, done = sum(len(document) for document in documents), 0
    for document in documents:
        scored = _answers(engine, document) if answers else np.ones(len(document), np.bool_)
        with engine.session() as session:
            for start in range(0, len(document) - 1, _ROWS_AT_ONCE):
                fed = document[start : min(start + _ROWS_AT_ONCE, len(document) - 1)]
                here = slice(start + 1, start + 1 + len(fed))
                rows, kept = _log_probabilities(session, fed), scored[here]
                yield np.asarray(document[here], np.int64)[kept], rows[kept]
                done += len(fed)
                if progress is not None:
                    progress(done, total)


def _answers(engine: Engine, document: Sequence[int]) -> NDArray[np.bool_]:
    """Which tokens stand in answers."""
    token_id = engine.tokenizer.token_id
    opening, end = token_id(ASSISTANT), engine.tokenizer.eos_id
    # What follows the assistant's marker says how to answer and is part of the prompt.
    modes = {token_id(THINK), token_id(END_THINK)}
    inside, out = False, np.zeros(len(document), np.bool_)
    for index, token in enumerate(document):
        starts = index > 0 and document[index - 1] == opening
        out[index] = inside and not (starts and token in modes)
        inside = token == opening or (inside and token != end)
    return out


def _need(tokens: int) -> None:
    if not tokens:
        raise InvalidArgumentError("nothing to score: no answers in these texts")


def _log_probabilities(session: Session, tokens: Sequence[int]) -> Rows:
    result = session.engine.step([StepItem(session, tokens, all_logits=True)])[0]
    if result.error is not None:
        raise result.error
    assert result.logits is not None
    rows = result.logits.astype(np.float64)
    rows -= rows.max(1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(1, keepdims=True))
    return rows


# Captured answers


def compare_vectors(engine: Engine, path: Path, *, profile: Profile = "preview") -> VectorReport:
    """Compare with answers captured from an API; tokens are matched by their bytes.

    The file is ``{"vectors": [{"prompt": TEXT or "messages": […], "tokens": [{"bytes": […],
    "logprob": …, "top_logprobs": [{"bytes": […], "logprob": …}, …]}, …]}, …]}``; ``token`` (text)
    stands in where there are no ``bytes``, and ``tokens`` may be the ``logprobs`` object of a chat
    completion.

    Raises:
        InvalidArgumentError: the file is not of that form; names what and where.
    """
    try:
        vectors = json.loads(path.read_text(encoding="utf-8"))["vectors"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError(f"{path}: not a file of vectors: {error!r}") from None
    ids_of: dict[bytes, int] = {}
    for token in range(engine.tokenizer.vocab_size):
        ids_of.setdefault(engine.tokenizer.token_bytes(token), token)
    sums, steps, unknown = np.zeros(5), 0, 0
    candidates = 0
    for index, vector in enumerate(vectors):
        try:
            prompt = _prompt_ids(engine, vector, profile)
            tokens = _token_list(vector)
            spelled = [_token_bytes(token) for token in tokens]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(f"{path}: vector {index}: {error!r}") from None
        missing = next((text for text in spelled if text not in ids_of), None)
        if missing is not None:
            raise InvalidArgumentError(
                f"{path}: vector {index}: {missing!r} is no token of {engine.path}"
            )
        answer = [ids_of[text] for text in spelled]
        with engine.session() as session:
            session.prefill(prompt)
            rows = [_normalised(session.logits)]
            for token in answer[:-1]:
                session.decode(token)
                rows.append(_normalised(session.logits))
        for token, row, captured in zip(answer, rows, tokens, strict=True):
            steps += 1
            sums[0] -= row[token]
            sums[1] -= captured.get("logprob", np.nan)
            listed = [
                (ids_of.get(_token_bytes(entry)), float(entry["logprob"]))
                for entry in captured.get("top_logprobs", [])
            ]
            known = [(id, value) for id, value in listed if id is not None]
            unknown += len(listed) - len(known)
            if not known:
                continue
            best = max(known, key=lambda pair: pair[1])[0]
            sums[2] += int(row.argmax()) == best
            order = np.argpartition(-row, len(known) - 1)[: len(known)]
            sums[3] += len(np.intersect1d(order, [id for id, _ in known])) / len(known)
            sums[4] += sum(abs(row[id] - value) for id, value in known)
            candidates += len(known)
    if not steps:
        raise InvalidArgumentError(f"{path}: holds no tokens")
    mean = sums / steps
    return VectorReport(
        vectors=len(vectors),
        steps=steps,
        nll=float(mean[0]),
        reference_nll=float(mean[1]),
        top1=float(mean[2]),
        top_k=float(mean[3]),
        logprob_error=float(sums[4] / max(candidates, 1)),
        unknown=unknown,
    )


def _normalised(logits: NDArray[np.float32]) -> Rows:
    row = logits.astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    return row


def _prompt_ids(engine: Engine, vector: dict[str, Any], profile: Profile) -> list[int]:
    if "messages" in vector:
        from ..chat import render

        mode = vector.get("thinking_mode", "chat")
        prompt = render(vector["messages"], thinking_mode=mode, profile=profile)
        return prompt.token_ids(engine.tokenizer)
    return engine.tokenizer.encode(vector["prompt"])


def _token_list(vector: dict[str, Any]) -> list[dict[str, Any]]:
    tokens = vector["tokens"]
    tokens = tokens["content"] if isinstance(tokens, dict) else tokens
    if not tokens:
        raise ValueError("no tokens")
    return list(tokens)


def _token_bytes(entry: dict[str, Any]) -> bytes:
    spelled = entry.get("bytes")
    return bytes(spelled) if spelled is not None else str(entry["token"]).encode()
