"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from server_harness import Serve, Served, serving


@pytest.fixture
def serve() -> Serve:
    """Serve an engine within an ``async with`` block."""
    return serving


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A server whose engine says hello."""
    async with serving() as server:
        yield server
