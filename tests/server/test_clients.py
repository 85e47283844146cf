"""Real agents through whole sessions: a question, a tool call of theirs, its result, an answer.

The model's words are prepared; everything else is real. Skipped where an agent is not installed:
Claude Code comes with PyPI's ``claude-agent-sdk``, Codex with ``openai-codex-cli-bin``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from server_fakes import FakeEngine
from server_harness import Served, serving

SECRET = "8471"
QUESTION = "Read note.txt and tell me the secret number"
CONTEXT = 200_000


def _bundled(module: str, pattern: str) -> str | None:
    """A program inside an installed package."""
    spec = importlib.util.find_spec(module)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for found in Path(place).glob(pattern):
            if found.is_file() and os.access(found, os.X_OK):
                return str(found)
    return None


CLAUDE = shutil.which("claude") or _bundled("claude_agent_sdk", "_bundled/claude")
CODEX = shutil.which("codex") or _bundled("codex_cli_bin", "**/codex")


def call(name: str, **arguments: str) -> str:
    parameters = "\n".join(
        f'<｜DSML｜parameter name="{key}" string="true">{value}</｜DSML｜parameter>'
        for key, value in arguments.items()
    )
    return (
        f'\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="{name}">\n{parameters}\n'
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
    )


def scripted(tool: str, **arguments: str) -> Any:
    """Calls ``tool`` for the question, answers with what its result says, and is brief else."""

    def answer(prompt: str) -> str:
        thought = "Let me look.</think>" if prompt.endswith("<think>") else ""
        turn = prompt.rsplit("<｜User｜>", 1)[-1]
        if "<tool_result>" in turn:
            said = re.search(r"secret number is (\d+)", turn)
            return f"{thought}It is {said[1] if said else 'unknown'}."
        if QUESTION in turn and f'{{"name": "{tool}"' in prompt:
            return f"{thought}I look.{call(tool, **arguments)}"
        return f"{thought}Notes"

    return answer


async def run(command: list[str], folder: Path, **environment: str) -> str:
    """Standard output of an agent that has nothing of this machine but ``folder``."""
    (folder / "note.txt").write_text(f"the secret number is {SECRET}\n")
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder / "home")} | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 120)
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, err.decode()
    return out.decode()


def reuse(served: Served) -> float:
    """The part of all prompt tokens that was cached."""
    counters = served.service.scheduler.counters
    return counters.cached_tokens / counters.prompt_tokens


@pytest.mark.skipif(CLAUDE is None, reason="Claude Code is not installed")
async def test_claude_code_completes_a_session(tmp_path: Path) -> None:
    assert CLAUDE is not None
    read = scripted("Read", file_path=str(tmp_path / "note.txt"))
    async with serving(FakeEngine(read, context=CONTEXT)) as served:
        told = await run(
            [CLAUDE, "-p", QUESTION, "--output-format", "json", "--allowedTools", "Read"],
            tmp_path,
            ANTHROPIC_BASE_URL=served.url,
            ANTHROPIC_AUTH_TOKEN="any",
            ANTHROPIC_MODEL="pyds4",
            ANTHROPIC_DEFAULT_HAIKU_MODEL="pyds4",
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
            CLAUDE_CODE_MAX_CONTEXT_TOKENS=str(CONTEXT),
        )
        result = json.loads(told)
        assert result["result"] == f"It is {SECRET}."
        assert result["num_turns"] == 2
        assert not result["is_error"]
        assert reuse(served) > 0.45


@pytest.mark.skipif(CODEX is None, reason="Codex is not installed")
async def test_codex_completes_a_session(tmp_path: Path) -> None:
    assert CODEX is not None
    (tmp_path / "home").mkdir()
    look = scripted("exec_command", cmd="cat note.txt")
    async with serving(FakeEngine(look, context=CONTEXT)) as served:
        provider = f'{{name="pyds4",base_url="{served.url}/v1",wire_api="responses",env_key="KEY"}}'
        told = await run(
            [
                *(CODEX, "exec", "--json", "--skip-git-repo-check"),
                "--dangerously-bypass-approvals-and-sandbox",
                *("-c", 'model="pyds4"', "-c", 'model_provider="pyds4"'),
                *("-c", f"model_providers.pyds4={provider}"),
                *("-c", f"model_context_window={CONTEXT}"),
                QUESTION,
            ],
            tmp_path,
            KEY="any",
        )
        events = [json.loads(line) for line in told.splitlines()]
        said = [
            event["item"]["text"]
            for event in events
            if event.get("item", {}).get("type") == "agent_message"
        ]
        assert said[-1] == f"It is {SECRET}."
        assert events[-1]["type"] == "turn.completed"
        assert reuse(served) > 0.45
