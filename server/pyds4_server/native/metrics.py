"""GET /metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from sanic import Blueprint, HTTPResponse, Request
from sanic.response import raw

from pyds4_server.counters import LATENCY_BOUNDS_S
from pyds4_server.http import service_of
from pyds4_server.service import Service

blueprint = Blueprint("metrics")


@blueprint.get("/metrics")
async def metrics(request: Request) -> HTTPResponse:
    """Everything the scheduler counts."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ServiceCollector(service_of(request)))
    return raw(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class _ServiceCollector(Collector):
    """Reads the counters at the moment they are asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        c = self._service.scheduler.counters
        yield GaugeMetricFamily("pyds4_sequences_active", "Answers in the batch.", value=c.active)
        yield GaugeMetricFamily("pyds4_requests_waiting", "Requests in the queue.", value=c.waiting)
        yield GaugeMetricFamily(
            "pyds4_sessions", "Sessions alive, idle ones included.", value=c.sessions
        )
        yield GaugeMetricFamily(
            "pyds4_context_tokens", "Positions of a session.", value=self._service.context_tokens
        )
        answers = CounterMetricFamily(
            "pyds4_answers", "Answers by how they ended.", labels=["outcome"]
        )
        answers.add_metric(["finished"], c.finished)
        answers.add_metric(["failed"], c.failed)
        answers.add_metric(["cancelled"], c.cancelled)
        yield answers
        prompt = CounterMetricFamily(
            "pyds4_prompt_tokens", "Prompt tokens by where they came from.", labels=["source"]
        )
        prompt.add_metric(["cache"], c.cached_tokens)
        prompt.add_metric(["prefill"], c.prefilled_tokens)
        yield prompt
        yield CounterMetricFamily("pyds4_decoded_tokens", "Tokens decoded.", value=c.decoded_tokens)
        yield CounterMetricFamily("pyds4_engine_steps", "Steps of the engine.", value=c.steps)
        yield CounterMetricFamily(
            "pyds4_engine_errors", "Steps that failed as a whole.", value=c.engine_errors
        )
        seconds = CounterMetricFamily(
            "pyds4_engine_seconds", "Time in steps; one that prefills is prefill.", labels=["phase"]
        )
        seconds.add_metric(["prefill"], c.prefill_s)
        seconds.add_metric(["decode"], c.decode_s)
        yield seconds
        yield self._first_token()

    def _first_token(self) -> Metric:
        counters = self._service.scheduler.counters
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip(
            (*map(str, LATENCY_BOUNDS_S), "+Inf"), counters.first_token_buckets, strict=True
        ):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(
            "pyds4_first_token_seconds",
            "From leaving the queue to the first token.",
            buckets=buckets,
            sum_value=counters.first_token_s,
        )
