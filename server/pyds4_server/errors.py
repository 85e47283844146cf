"""Failures a client is told about, before they take a protocol's shape.

Each carries a status and a message; ``openai.convert.error_body`` and its Anthropic sibling turn
them into what an SDK of that protocol raises.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class ApiError(Exception):
    """A request that cannot be served.

    Attributes:
        status: HTTP status, as OpenAI has it; Anthropic's 529 is made of 429 where it is written.
        code: OpenAI's machine-readable code.
        param: The field at fault.
        retry_after_s: Sent as ``Retry-After``.
    """

    status = 400
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status


class InvalidRequestError(ApiError):
    """Something in the request makes no sense; ``param`` says where."""


class AuthenticationError(ApiError):
    """No key, or a wrong one."""

    status = 401
    code = "invalid_api_key"


class HostError(ApiError):
    """The Host header names another machine: a page somewhere reaches for this server."""

    status = 403
    code = "host_not_allowed"


class UnknownModelError(ApiError):
    """The model asked for is not the one served."""

    status = 404
    code = "model_not_found"


class PromptTooLongError(ApiError):
    """The prompt does not fit into the context; clients compact and try again."""

    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int, limit: int) -> None:
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, your messages "
            f"resulted in {prompt_tokens} tokens. Please reduce the length of the messages.",
            param="messages",
        )
        self.prompt_tokens = prompt_tokens
        self.limit = limit


class OverloadedError(ApiError):
    """The queue is full; the client may come back."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(
            f"The server is busy: {waiting} requests are waiting already. Please retry.",
            retry_after_s=retry_after_s,
        )


class ShuttingDownError(ApiError):
    """The server is going away."""

    status = 503
    code = "server_shutting_down"

    def __init__(self) -> None:
        super().__init__("The server is shutting down.", retry_after_s=5)


class NotReadyError(ApiError):
    """The model is still being loaded."""

    status = 503
    code = "model_loading"

    def __init__(self) -> None:
        super().__init__("The model is still loading.", retry_after_s=2)


class GenerationFailedError(ApiError):
    """The engine failed while the answer was made."""

    status = 500
    code = "engine_error"


def describe_validation(errors: Iterable[Any]) -> tuple[str, str | None]:
    """Pydantic's findings as one message, and the path of the first field at fault."""
    parts: list[str] = []
    first: str | None = None
    for error in errors:
        path = _path(error["loc"])
        first = first or path
        message = error["msg"].removeprefix("Value error, ")
        parts.append(f"{path}: {message}" if path else message)
        if len(parts) == 4:
            break
    return "; ".join(parts) or "The request is malformed.", first


_TYPES = frozenset({"bool", "dict", "float", "int", "list", "none", "str"})


def _path(location: Iterable[str | int]) -> str | None:
    """``messages[0].content`` from Pydantic's location, without the names of union members."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.replace("_", "").isalnum() and part.islower() and part not in _TYPES:
            path += f".{part}" if path else part
    return path or None
