"""Finished responses, for ``previous_response_id``. In memory, bounded, gone with the process."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from pyds4_server.errors import ApiError
from pyds4_server.responses import protocol as p


class UnknownResponseError(ApiError):
    """No such response: never stored, deleted, or too long ago."""

    status = 404
    code = "response_not_found"

    def __init__(self, identity: str, param: str | None = None) -> None:
        super().__init__(f"Response with id {identity!r} not found.", param=param)


@dataclass(frozen=True, slots=True)
class Stored:
    """A response with everything that led to it."""

    response: p.Response
    items: list[p.Item]


class ResponseStore:
    """The latest ``limit`` responses."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stored: OrderedDict[str, Stored] = OrderedDict()

    def put(self, stored: Stored) -> None:
        """Keep a response; the oldest one goes if there are too many."""
        self._stored[stored.response.id] = stored
        while len(self._stored) > self._limit:
            self._stored.popitem(last=False)

    def get(self, identity: str, param: str | None = None) -> Stored:
        """A response by id.

        Raises:
            UnknownResponseError: there is none.
        """
        stored = self._stored.get(identity)
        if stored is None:
            raise UnknownResponseError(identity, param)
        return stored

    def delete(self, identity: str) -> None:
        """Forget a response.

        Raises:
            UnknownResponseError: there is none.
        """
        self.get(identity)
        del self._stored[identity]
