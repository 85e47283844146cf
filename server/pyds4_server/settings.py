"""Every knob of the server, with its unit and its default."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """How the server listens, schedules and answers.

    Names carry their unit. Every field may come from ``pyds4 serve`` flags or its config file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Where it listens.
    host: str = "127.0.0.1"
    port: int = Field(
        default=8000, ge=0, le=65535, description="0 lets the system choose a free port."
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Host headers accepted besides loopback names; '*' accepts any."
    )
    cors_origins: tuple[str, ...] = Field(
        default=(), description="Origins that browsers may call from; empty keeps CORS off."
    )

    # Who may use it.
    api_keys: tuple[str, ...] = Field(
        default=(), repr=False, description="Accepted keys; empty asks none."
    )
    api_key_file: Path | None = Field(
        default=None, description="One key a line; '#' starts a comment."
    )

    # What it serves.
    model_name: str | None = Field(
        default=None, description="Name in /v1/models; default: the file's."
    )
    model_aliases: tuple[str, ...] = Field(
        default=(), description="Further names accepted in requests."
    )
    strict_model: bool = Field(
        default=False,
        description="Refuse unknown model names with 404 instead of serving this model.",
    )
    context_tokens: int | None = Field(
        default=None,
        ge=2,
        description="Positions of a session; default: the model's own context length.",
    )
    effort_profile: Literal["preview", "0731"] | None = Field(
        default=None,
        description="What the checkpoint's efforts are; default: what its manifest binds, or "
        "preview.",
    )
    default_thinking: bool = Field(
        default=False, description="Think when the request does not say."
    )
    default_max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="For requests without a limit; default: up to the context's end.",
    )

    # How work is divided.
    max_active: int = Field(default=16, ge=1, description="Sequences in the batch at once.")
    max_waiting: int = Field(
        default=64, ge=0, description="Requests in the queue before 429 or 529."
    )
    max_sessions: int = Field(
        default=24,
        ge=1,
        description="Sessions kept alive, idle ones included; never below max_active.",
    )
    prefill_chunk_tokens: int = Field(
        default=128, ge=1, description="Prompt tokens in a step that also decodes."
    )
    prefill_idle_chunk_tokens: int = Field(
        default=512, ge=1, description="Prompt tokens in a step with nothing to decode."
    )
    retry_after_s: int = Field(default=2, ge=1, description="Sent with 429 and 529.")

    # What is kept of conversations.
    disk_cache: bool = Field(
        default=True, description="Keep prefixes of conversations on disk, across restarts."
    )
    disk_cache_directory: Path | None = Field(
        default=None, description="Where; default: the user's cache directory."
    )
    disk_cache_gib: float | None = Field(
        default=None,
        gt=0,
        description="GiB on disk; default: a quarter of what is free, at most 64.",
    )
    disk_cache_daily_write_gib: float = Field(
        default=100.0, ge=0, description="GiB written in 24 hours; 0 sets no limit."
    )
    memory_cache_gib: float | None = Field(
        default=None,
        ge=0,
        description="GiB of prefixes in memory beside open sessions; default: a sixteenth of the "
        "memory, at most 2.",
    )

    # How it answers.
    keepalive_s: float = Field(default=10.0, gt=0, description="Longest silence on an open stream.")
    patience_s: float = Field(
        default=60.0,
        gt=0,
        description="Before an answer in one piece sends its headers, and then blanks.",
    )
    finished_ttl_s: float = Field(
        default=60.0,
        ge=0,
        description="How long a finished answer waits for a client that retries.",
    )
    repetition_guard: bool = Field(
        default=True, description="End a sequence that only repeats itself."
    )
    max_body_bytes: int = Field(default=32 << 20, ge=1024)
    stored_responses: int = Field(
        default=256, ge=0, description="Answers kept for previous_response_id."
    )
    shutdown_grace_s: float = Field(
        default=5.0, ge=0, description="Time for streams to end at shutdown."
    )
    log_format: Literal["text", "json"] = "text"

    def keys(self) -> tuple[str, ...]:
        """All accepted API keys, those of the key file included.

        Raises:
            OSError: the key file cannot be read.
        """
        if self.api_key_file is None:
            return self.api_keys
        lines = self.api_key_file.read_text("utf-8").splitlines()
        stripped = (line.split("#", 1)[0].strip() for line in lines)
        return (*self.api_keys, *(key for key in stripped if key))
