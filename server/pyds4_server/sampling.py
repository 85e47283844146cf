"""What a request may ask of the choice of tokens, and how it is done.

The engine samples by itself where a request asks for nothing but temperature and the usual cuts.
Everything else (penalties, bias, bans, forced tokens, log-probabilities) is applied here to the
logits of one position, in the order: bias, penalties, bans, then the sampler.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyds4 import Sampler
from pyds4_server.engine_api import Logits
from pyds4_server.events import TokenLogprob

SMALLEST = 1e-6
"""A temperature or a top_p below it leaves only the best token."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """The sampling fields of every protocol, under one set of names.

    ``presence_penalty`` and ``frequency_penalty`` count what was generated; ``repetition_penalty``
    (a divisor of positive logits, 1 is none) counts the prompt too.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The engine reckons in 32 bits, where what is smaller is 0 or divides to infinity.
        if self.temperature < SMALLEST:
            object.__setattr__(self, "temperature", 0.0)
        object.__setattr__(self, "top_p", max(self.top_p, SMALLEST))

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def needs_logits(self) -> bool:
        """Whether something is asked that the engine's own sampling does not do."""
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
        )


class Chosen(NamedTuple):
    token: int
    logprob: TokenLogprob | None


class TokenChooser:
    """Chooses the tokens of one sequence.

    Args:
        options: What the request asks.
        prompt: Its prompt, for the repetition penalty.
        vocab_size: Length of the logits.
        sampler: Draws from adjusted logits; holds the random state.
        top_logprobs: How many alternatives to report; None reports no log-probabilities.
    """

    def __init__(
        self,
        options: SamplingOptions,
        prompt: Collection[int],
        vocab_size: int,
        sampler: Sampler,
        top_logprobs: int | None = None,
    ) -> None:
        self._options = options
        self._sampler = sampler
        self._top_logprobs = top_logprobs
        self._counts: np.ndarray | None = None
        self._seen: np.ndarray | None = None
        if options.presence_penalty or options.frequency_penalty:
            self._counts = np.zeros(vocab_size, np.float32)
        if options.repetition_penalty != 1.0:
            self._seen = np.zeros(vocab_size, bool)
            self._seen[list(set(prompt))] = True
        self._bias = [
            (token, bias) for token, bias in options.logit_bias.items() if 0 <= token < vocab_size
        ]

    @property
    def needs_logits(self) -> bool:
        """Whether the engine's own sampling would not do."""
        return self._options.needs_logits or self._top_logprobs is not None

    def record(self, token: int) -> None:
        """Count a generated token, however it was chosen."""
        if self._counts is not None:
            self._counts[token] += 1
        if self._seen is not None:
            self._seen[token] = True

    def choose(
        self,
        logits: Logits,
        *,
        banned: Collection[int] = (),
        allowed: Collection[int] | None = None,
        mask: NDArray[np.bool_] | None = None,
        greedy: bool = False,
    ) -> Chosen:
        """Choose the next token.

        Args:
            logits: float32 (vocab_size,), not changed.
            banned: Tokens that must not come.
            allowed: When given, the only tokens that may come.
            mask: When given, (tokens,): what it leaves out or does not reach must not come.
            greedy: Take the best one whatever the temperature.
        """
        if allowed is not None and len(allowed) == 1:
            (token,) = allowed
            return Chosen(token, self._logprob(logits, token))
        adjusted = self._adjusted(logits, banned)
        if allowed is not None:
            keep = np.fromiter(allowed, np.int64, len(allowed))
            masked = np.full_like(adjusted, -np.inf)
            masked[keep] = adjusted[keep]
            adjusted = masked
        if mask is not None:
            adjusted = np.array(adjusted, np.float32)
            adjusted[: len(mask)][~mask[: len(adjusted)]] = -np.inf
            adjusted[len(mask) :] = -np.inf
        if greedy or self._options.is_greedy:
            token = int(np.argmax(adjusted))
        else:
            token = self._sampler.choose(adjusted)
        return Chosen(token, self._logprob(logits, token))

    def _adjusted(self, logits: Logits, banned: Collection[int]) -> Logits:
        options = self._options
        if not (banned or options.needs_logits):
            return logits
        adjusted = np.array(logits, np.float32)
        for token, bias in self._bias:
            adjusted[token] += bias
        if self._seen is not None:
            seen = adjusted[self._seen]
            penalty = options.repetition_penalty
            adjusted[self._seen] = seen * np.where(seen > 0, 1.0 / penalty, penalty)
        if self._counts is not None:
            adjusted -= options.frequency_penalty * self._counts
            adjusted -= options.presence_penalty * (self._counts > 0)
        if banned:
            adjusted[list(banned)] = -np.inf
        return adjusted

    def _logprob(self, logits: Logits, token: int) -> TokenLogprob | None:
        """Log-probabilities of the model itself, before anything the request asked."""
        count = self._top_logprobs
        if count is None:
            return None
        wide = logits.astype(np.float64)
        peak = wide.max()
        norm = peak + math.log(np.exp(wide - peak).sum())
        top: tuple[tuple[int, float], ...] = ()
        if count:
            best = np.argpartition(wide, -count)[-count:]
            best = best[np.argsort(-wide[best], kind="stable")]
            top = tuple((int(other), float(wide[other] - norm)) for other in best)
        return TokenLogprob(token, float(wide[token] - norm), top)
