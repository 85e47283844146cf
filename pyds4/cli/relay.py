"""Work in a second thread, so that Ctrl-C is answered at once.

Python looks at signals between two of its own instructions, and a prefill is one long call into the
engine. The main thread therefore waits here, where it can be interrupted, and tells the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from pyds4.errors import PyDS4Error, SessionCancelled

if TYPE_CHECKING:
    from pyds4.session import Session

T = TypeVar("T")


class _End:
    """The last thing a worker sends: how it ended."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def relay(session: Session, work: Callable[[], Iterator[T]]) -> Generator[T, None, None]:
    """The items of ``work()``, made in another thread; ``work`` uses ``session``.

    Interrupted or closed, it cancels the session, waits for the worker and leaves the session ready
    for use. Consume it under ``contextlib.closing``.
    """
    queue: SimpleQueue[T | _End] = SimpleQueue()

    def run() -> None:
        try:
            for item in work():
                queue.put(item)
        except BaseException as error:
            queue.put(_End(error))
        else:
            queue.put(_End(None))

    worker = threading.Thread(target=run, name="pyds4-worker", daemon=True)
    worker.start()
    try:
        while not isinstance(item := queue.get(), _End):
            yield item
    except BaseException:
        session.cancel()
        _settle(session, queue)
        raise
    worker.join()
    if item.error is not None:
        raise item.error


def _settle(session: Session, queue: SimpleQueue[T | _End]) -> None:
    """Wait for the end of cancelled work and see that the cancellation does not outlive it."""
    while not isinstance(item := queue.get(), _End):
        pass
    if not isinstance(item.error, SessionCancelled):
        # The work ended before it noticed: the next call is cancelled instead, so make one.
        try:
            session.decode(0)
        except PyDS4Error:
            return


def call(session: Session, work: Callable[[], T]) -> T:
    """``work()`` in another thread, with the same promise."""

    def once() -> Iterator[T]:
        yield work()

    result, *_ = relay(session, once)
    return result
