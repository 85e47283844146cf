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
        yield from self._kept()

    def _kept(self) -> Iterable[Metric]:
        """The caches, named for the place they are in."""
        stored = GaugeMetricFamily(
            "pyds4_cache_bytes", "Prefixes kept beside open sessions.", labels=["place"]
        )
        lookups = CounterMetricFamily(
            "pyds4_cache_lookups", "Looks for a prefix.", labels=["place", "result"]
        )
        evicted = CounterMetricFamily(
            "pyds4_cache_evicted", "Prefixes or files removed for room.", labels=["place"]
        )
        memory, disk = self._service.kept.memory_stats(), self._service.kept.disk_stats()
        for place, stats in (("memory", memory), ("disk", disk)):
            if stats is not None:
                stored.add_metric([place], stats.byte_count)
                lookups.add_metric([place, "hit"], stats.hits)
                lookups.add_metric([place, "miss"], stats.misses)
                evicted.add_metric([place], stats.evicted)
        yield from (stored, lookups, evicted)
        if disk is None:
            return
        moved = CounterMetricFamily(
            "pyds4_disk_cache_moved_bytes", "Read from and written to disk.", labels=["direction"]
        )
        moved.add_metric(["read"], disk.bytes_read)
        moved.add_metric(["written"], disk.bytes_written)
        yield moved
        lost = CounterMetricFamily(
            "pyds4_disk_cache_not_written", "Saves that were not made.", labels=["why"]
        )
        lost.add_metric(["over_budget"], disk.over_budget)
        lost.add_metric(["error"], disk.write_errors)
        lost.add_metric(["disk_too_slow"], disk.given_up)
        yield lost

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
