"""What the scheduler counts. Plain numbers, written by its thread alone and read by anyone."""

from __future__ import annotations

LATENCY_BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the time-to-first-token histogram."""


class Counters:
    """Totals since the start, and the state of this moment."""

    def __init__(self) -> None:
        # This moment.
        self.active = 0
        self.waiting = 0
        self.sessions = 0
        # Totals.
        self.finished = 0
        self.failed = 0
        self.cancelled = 0
        self.engine_errors = 0
        self.steps = 0
        self.step_s = 0.0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.prefilled_tokens = 0
        self.prefill_s = 0.0
        self.decoded_tokens = 0
        self.decode_s = 0.0
        self.first_token_s = 0.0
        self.first_token_buckets = [0] * (len(LATENCY_BOUNDS_S) + 1)

    def step(self, took_s: float, *, decoded: int, prefilled: int) -> None:
        """One step of the engine. A step that also prefills counts as prefill time."""
        self.steps += 1
        self.step_s += took_s
        self.decoded_tokens += decoded
        self.prefilled_tokens += prefilled
        if prefilled:
            self.prefill_s += took_s
        else:
            self.decode_s += took_s

    def latency(self, first_token_s: float) -> None:
        """Time from a request's start to its first token."""
        self.first_token_s += first_token_s
        for index, bound in enumerate(LATENCY_BOUNDS_S):
            if first_token_s <= bound:
                self.first_token_buckets[index] += 1
                return
        self.first_token_buckets[-1] += 1
