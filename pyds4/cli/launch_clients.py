"""What each coding agent needs to hear to use this server.

One function an agent, from the server to a plan. Run: Claude Code 2.1 and Codex 0.163. Written from
their documentation: opencode 1.18, Pi 0.74.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

PROVIDER = "pyds4"

IDLE_TIMEOUT_MS = 600_000
"""How long an agent may wait for a word. The server is never silent that long."""


class Server(NamedTuple):
    """A server that answers.

    ``url`` has no slash at its end; ``context`` is in tokens; ``key`` is any word where the server
    asks for none.
    """

    url: str
    model: str
    context: int
    key: str

    @property
    def answer_tokens(self) -> int:
        """A limit for one answer that leaves the prompt most of the context."""
        return min(32_000, max(1, self.context // 4))

    @property
    def compact_at(self) -> int:
        """Where a conversation should be shortened: an answer must still fit behind it."""
        return max(1, min(self.context * 85 // 100, self.context - self.answer_tokens // 2))


@dataclass(frozen=True)
class Plan:
    """How to start an agent: what to run, in which environment, beside which files."""

    command: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    files: dict[Path, str] = field(default_factory=dict)


class Client(NamedTuple):
    """An agent: its name for people, its program, how to get it, and its plan."""

    title: str
    command: str
    install: str
    plan: Callable[[Server], Plan]


def _claude(server: Server) -> Plan:
    """Everything by variables. A key of Anthropic's would win over the token, so it goes."""
    environment = {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_AUTH_TOKEN": server.key}
    for kind in ("", "DEFAULT_OPUS_", "DEFAULT_SONNET_", "DEFAULT_HAIKU_"):
        environment[f"ANTHROPIC_{kind}MODEL"] = server.model
    environment |= {
        "CLAUDE_CODE_SUBAGENT_MODEL": server.model,
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(server.context),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(server.answer_tokens),
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "API_TIMEOUT_MS": str(IDLE_TIMEOUT_MS),
    }
    removed = ("ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX")
    return Plan("claude", environment=environment, removed=removed)


def _codex(server: Server) -> Plan:
    """Options over the user's config.toml; each value is TOML, of which JSON strings are a part."""
    provider = f"model_providers.{PROVIDER}"
    settings: dict[str, Any] = {
        "model": server.model,
        "model_provider": PROVIDER,
        "model_context_window": server.context,
        "model_auto_compact_token_limit": server.compact_at,
        f"{provider}.name": PROVIDER,
        f"{provider}.base_url": f"{server.url}/v1",
        f"{provider}.wire_api": "responses",
        f"{provider}.env_key": "PYDS4_API_KEY",
        f"{provider}.stream_idle_timeout_ms": IDLE_TIMEOUT_MS,
    }
    options = tuple(
        word for name, value in settings.items() for word in ("-c", f"{name}={json.dumps(value)}")
    )
    return Plan("codex", arguments=options, environment={"PYDS4_API_KEY": server.key})


def _opencode(server: Server) -> Plan:
    """A configuration in a variable, which opencode lays over the user's files."""
    model = f"{PROVIDER}/{server.model}"
    limit = {"context": server.context, "output": server.answer_tokens}
    known = {"name": server.model, "reasoning": True, "tool_call": True, "limit": limit}
    configuration = {
        "model": model,
        "small_model": model,
        "provider": {
            PROVIDER: {
                "npm": "@ai-sdk/openai-compatible",
                "name": PROVIDER,
                "options": {"baseURL": f"{server.url}/v1", "apiKey": server.key},
                "models": {server.model: known},
            }
        },
    }
    return Plan("opencode", environment={"OPENCODE_CONFIG_CONTENT": json.dumps(configuration)})


def _pi(server: Server) -> Plan:
    """Pi knows providers only from a file in its directory, so it gets a directory of ours."""
    import platformdirs

    directory = Path(platformdirs.user_data_dir("pyds4")) / "clients" / "pi"
    model = {
        "id": server.model,
        "name": server.model,
        "reasoning": True,
        "input": ["text"],
        "cost": dict.fromkeys(("input", "output", "cacheRead", "cacheWrite"), 0),
        "contextWindow": server.context,
        "maxTokens": server.answer_tokens,
    }
    provider = {
        "baseUrl": f"{server.url}/v1",
        "api": "openai-completions",
        "apiKey": server.key,
        "models": [model],
    }
    return Plan(
        "pi",
        arguments=("--provider", PROVIDER, "--model", server.model),
        environment={"PI_CODING_AGENT_DIR": str(directory)},
        files={
            directory / "models.json": json.dumps({"providers": {PROVIDER: provider}}, indent=2)
        },
    )


CLIENTS = {
    "claude": Client("Claude Code", "claude", "npm install -g @anthropic-ai/claude-code", _claude),
    "codex": Client("Codex", "codex", "npm install -g @openai/codex", _codex),
    "opencode": Client("opencode", "opencode", "npm install -g opencode-ai", _opencode),
    "pi": Client("Pi", "pi", "npm install -g @earendil-works/pi-coding-agent", _pi),
}
"""The agents by the name they have on the command line."""
