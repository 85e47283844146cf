"""The HTTP server of pyds4: OpenAI's and Anthropic's protocols on one local engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pyds4_server.app import create_app
from pyds4_server.serving import UnsafeBindError, running, serve_engine, serve_loading
from pyds4_server.settings import Settings

__all__ = [
    "Settings",
    "UnsafeBindError",
    "create_app",
    "running",
    "serve",
    "serve_engine",
    "serve_loading",
]


def serve(
    model: str | Path,
    *,
    backend: Literal["auto", "cpu", "metal", "cuda"] = "auto",
    roundings: bool = True,
    threads: int | None = None,
    on_ready: Callable[[str], None] | None = None,
    **settings: Any,
) -> None:
    """Open ``model`` and serve it until SIGINT or SIGTERM.

    Args:
        model: A GGUF file.
        backend: See `pyds4.Engine`, as ``roundings`` and ``threads``.
        on_ready: Called with the base URL once requests are accepted.
        **settings: Fields of `Settings`, for instance ``host`` and ``port``.

    Raises:
        PyDS4Error: the model cannot be opened.
        pydantic.ValidationError: a setting that does not exist or has a wrong value.
        UnsafeBindError: the address is not loopback and no API key is set.
        OSError: the address cannot be bound, or the key file cannot be read.
    """
    import pyds4

    checked = Settings(**settings)
    opened: list[pyds4.Engine] = []

    def load() -> pyds4.Engine:
        opened.append(
            pyds4.Engine(
                model,
                backend=backend,
                roundings=roundings,
                threads=threads,
                context=checked.context_tokens,
            )
        )
        return opened[0]

    try:
        serve_loading(checked, load, on_ready)
    finally:
        for engine in opened:
            engine.close()
