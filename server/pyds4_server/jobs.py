"""The bridge between the scheduler's thread and the event loop.

A `Job` is one request in the scheduler. A `Subscription` is one client waiting for it on the event
loop; identical requests may share a job, and a job without subscribers is abandoned.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from pyds4_server.events import Failed, Finished, Prefilled, Update
from pyds4_server.generation import GenerationRequest


class Job:
    """A request and everyone who waits for it. All but ``is_cancelled`` belongs to the loop.

    Attributes:
        is_cancelled: Nobody waits any more; the scheduler drops it.
        is_over: Every choice has ended.
        has_failed: It ended in an error; asked again, it is worth another try.
        expiry: When a finished job is forgotten at the latest.
        is_delivered: A client has seen all of it, and what happened is not kept any longer.
    """

    def __init__(self, request: GenerationRequest, on_settled: Callable[[Job], None]) -> None:
        self.request = request
        self.is_cancelled = False
        self.expiry: asyncio.TimerHandle | None = None
        self._on_settled = on_settled
        self._subscriptions: list[Subscription] = []
        self._log: list[Update] = []
        self._open_choices = request.n
        self.is_over = False
        self.is_delivered = False
        self.has_failed = False

    def subscribe(self) -> Subscription:
        """A subscription that begins with everything that happened so far."""
        subscription = Subscription(self)
        subscription.push(self._log)
        self._subscriptions.append(subscription)
        return subscription

    def publish(self, updates: list[Update]) -> None:
        """Hand ``updates`` to all subscribers. On the loop's thread."""
        for update in updates:
            if isinstance(update.event, Finished):
                self._open_choices -= 1
            elif isinstance(update.event, Failed):
                self._open_choices = 0
                self.has_failed = True
        self.is_over = self._open_choices <= 0
        if self.request.identity is not None:
            self._log += [u for u in updates if not isinstance(u.event, Prefilled)]
        for subscription in self._subscriptions:
            subscription.push(updates)

    def unsubscribe(self, subscription: Subscription, *, delivered: bool) -> None:
        """One client less; without any, the work ends within one step of the engine.

        Once an answer reached its client as a whole nobody will ask for it again.
        """
        self.is_delivered |= delivered
        if delivered:
            self._log.clear()
            self._on_settled(self)
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        if not self._subscriptions and not self.is_over and not self.is_cancelled:
            self.is_cancelled = True
            self._on_settled(self)


class Subscription:
    """What one client sees of a job. Belongs to the event loop."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._updates: deque[Update] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.progress: Prefilled | None = None
        """The latest word on the prefill, for keep-alives; None while in the queue."""

    def push(self, updates: list[Update]) -> None:
        """Add ``updates`` and wake the reader."""
        for update in updates:
            if isinstance(update.event, Prefilled):
                self.progress = update.event
        self._updates.extend(updates)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self, timeout_s: float | None = None) -> list[Update]:
        """Everything new; empty if ``timeout_s`` passed with nothing new."""
        if not self._updates:
            loop = asyncio.get_running_loop()
            waiter = self._waiter = loop.create_future()
            timer = None
            if timeout_s is not None:
                timer = loop.call_later(timeout_s, _resolve, waiter)
            try:
                await waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        updates = list(self._updates)
        self._updates.clear()
        return updates

    def close(self, *, delivered: bool = False) -> None:
        """Nobody listens any more. Closing again changes nothing."""
        self._job.unsubscribe(self, delivered=delivered)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
