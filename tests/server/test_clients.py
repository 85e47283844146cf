"""Real agents through whole sessions: a question, a tool call of theirs, its result, an answer.

The model's words are prepared; everything else is real. Skipped where an agent is not installed:
Claude Code comes with PyPI's ``claude-agent-sdk``, Codex with ``openai-codex-cli-bin``, the others
with ``aider-chat``, ``mini-swe-agent``, ``llm``, ``pydantic-ai-slim[openai,anthropic]`` and
``openai-agents``. They may be in virtual environments of their own, which ``PYDS4_CLIENTS`` lists
as PATH lists directories.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from server_fakes import FakeEngine
from server_harness import Served, serving

SECRET = "8471"
QUESTION = "Read note.txt and tell me the secret number"
CONTEXT = 200_000
PATIENCE_S = 300


ENVIRONMENTS = [
    Path(sys.prefix),
    *map(Path, filter(None, os.environ.get("PYDS4_CLIENTS", "").split(os.pathsep))),
]


def _program(name: str, inside: str | None = None) -> str | None:
    """A program of a virtual environment: beside its Python, or ``inside`` an installed package."""
    for environment in ENVIRONMENTS:
        beside = [environment / "bin" / name]
        packaged = environment.glob(f"lib/python*/site-packages/{inside}") if inside else ()
        for found in (*beside, *packaged):
            if found.is_file() and os.access(found, os.X_OK):
                return str(found)
    return None


def _python_with(package: str) -> str | None:
    """The Python of an environment that has ``package``."""
    for environment in ENVIRONMENTS:
        if any(environment.glob(f"lib/python*/site-packages/{package}/__init__.py")):
            return str(environment / "bin" / "python")
    return None


CLAUDE = shutil.which("claude") or _program("claude", "claude_agent_sdk/_bundled/claude")
CODEX = shutil.which("codex") or _program("codex", "codex_cli_bin/bin/codex")
AIDER, MINI, LLM = _program("aider"), _program("mini"), _program("llm")
PYDANTIC_AI, AGENTS = _python_with("pydantic_ai"), _python_with("agents")


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
    (folder / "home").mkdir(exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder / "home")} | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise
    assert process.returncode == 0, f"{err.decode()}\n{out.decode()}"
    return out.decode()


def launch(served: Served, name: str, program: str, *words: str) -> tuple[list[str], str]:
    """The command line that starts an agent as users do, and the PATH it needs."""
    own = [sys.executable, "-m", "pyds4", "launch", name, "--url", served.url, "--", *words]
    return own, f"{Path(program).parent}{os.pathsep}{os.environ['PATH']}"


def openai_variables(served: Served) -> dict[str, str]:
    base = f"{served.url}/v1"
    return {"OPENAI_BASE_URL": base, "OPENAI_API_BASE": base, "OPENAI_API_KEY": "any"}


def reuse(served: Served) -> float:
    """The part of all prompt tokens that was cached."""
    counters = served.service.scheduler.counters
    return counters.cached_tokens / counters.prompt_tokens


@pytest.mark.skipif(CLAUDE is None, reason="Claude Code is not installed")
async def test_claude_code_completes_a_session(tmp_path: Path) -> None:
    assert CLAUDE is not None
    read = scripted("Read", file_path=str(tmp_path / "note.txt"))
    async with serving(FakeEngine(read, context=CONTEXT)) as served:
        words = ("-p", QUESTION, "--output-format", "json", "--allowedTools", "Read")
        command, path = launch(served, "claude", CLAUDE, *words)
        result = json.loads(await run(command, tmp_path, PATH=path))
        assert result["result"] == f"It is {SECRET}."
        assert result["num_turns"] == 2
        assert not result["is_error"]
        assert reuse(served) > 0.45


@pytest.mark.skipif(CODEX is None, reason="Codex is not installed")
async def test_codex_completes_a_session(tmp_path: Path) -> None:
    assert CODEX is not None
    look = scripted("exec_command", cmd="cat note.txt")
    async with serving(FakeEngine(look, context=CONTEXT)) as served:
        free = "--dangerously-bypass-approvals-and-sandbox"
        words = ("exec", "--json", "--skip-git-repo-check", free, QUESTION)
        command, path = launch(served, "codex", CODEX, *words)
        told = await run(command, tmp_path, PATH=path)
        events = [json.loads(line) for line in told.splitlines()]
        said = [
            event["item"]["text"]
            for event in events
            if event.get("item", {}).get("type") == "agent_message"
        ]
        assert said[-1] == f"It is {SECRET}."
        assert events[-1]["type"] == "turn.completed"
        assert reuse(served) > 0.45


@pytest.mark.skipif(AIDER is None, reason="aider is not installed")
async def test_aider_edits_a_file(tmp_path: Path) -> None:
    assert AIDER is not None
    edit = "I change it.\n\nnote.txt\n```\nthe secret number is 17\n```\n"
    async with serving(FakeEngine([edit], context=CONTEXT)) as served:
        words = "--yes-always --no-git --no-check-update --no-analytics --no-show-model-warnings"
        command = [AIDER, "--model", "openai/pyds4", "--edit-format", "whole", *words.split()]
        command += ["--message", "Make it 17", "note.txt"]
        await run(command, tmp_path, **openai_variables(served))
        assert (tmp_path / "note.txt").read_text() == "the secret number is 17\n"


@pytest.mark.skipif(MINI is None, reason="mini-swe-agent is not installed")
async def test_mini_swe_agent_completes_a_task(tmp_path: Path) -> None:
    assert MINI is not None
    done = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"

    def answer(prompt: str) -> str:
        turn = prompt.rsplit("<｜User｜>", 1)[-1]
        seen = re.search(r"secret number is (\d+)", turn)
        command = f"{done} && echo {seen[1]}" if seen else "cat note.txt"
        return f"I look.{call('bash', command=command)}"

    async with serving(FakeEngine(answer, context=CONTEXT)) as served:
        command = [MINI, "-m", "openai/pyds4", "-t", QUESTION, "-y", "--exit-immediately"]
        await run(
            [*command, "-l", "0", "-o", "out.json"],
            tmp_path,
            MSWEA_CONFIGURED="true",
            MSWEA_COST_TRACKING="ignore_errors",
            **openai_variables(served),
        )
        result = json.loads((tmp_path / "out.json").read_text())["info"]
        assert result["exit_status"] == "Submitted"
        assert result["submission"].strip() == SECRET


@pytest.mark.skipif(LLM is None, reason="llm is not installed")
async def test_llm_calls_a_function(tmp_path: Path) -> None:
    assert LLM is not None
    async with serving(FakeEngine(scripted("look", file="note.txt"))) as served:
        models = [{"model_id": "pyds4", "model_name": "pyds4", "api_base": f"{served.url}/v1"}]
        models[0] |= {"supports_tools": True}  # type: ignore[dict-item]
        (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
        function = "def look(file: str) -> str:\n    return open(file).read()\n"
        command = [LLM, "-m", "pyds4", "--functions", function, QUESTION]
        told = await run(command, tmp_path, LLM_USER_PATH=str(tmp_path), OPENAI_API_KEY="any")
        assert told.strip().endswith(f"It is {SECRET}.")


PYDANTIC_AI_SESSION = """
import sys

from pydantic_ai import Agent

agent = Agent(sys.argv[1])

@agent.tool_plain
def look(file: str) -> str:
    return open(file).read()

print(agent.run_sync(sys.argv[2]).output)
"""

AGENTS_SESSION = """
import asyncio, sys
from agents import Agent, Runner, function_tool, set_default_openai_api, set_tracing_disabled

set_tracing_disabled(True)
set_default_openai_api(sys.argv[1])

@function_tool
def look(file: str) -> str:
    return open(file).read()

async def main() -> None:
    agent = Agent(name="a", instructions="Help.", model="pyds4", tools=[look])
    print((await Runner.run(agent, sys.argv[2])).final_output)
    streamed = Runner.run_streamed(agent, sys.argv[2])
    async for event in streamed.stream_events():
        pass
    print(streamed.final_output)

asyncio.run(main())
"""


@pytest.mark.skipif(PYDANTIC_AI is None, reason="pydantic-ai is not installed")
@pytest.mark.parametrize(
    "model", ["openai-chat:pyds4", "openai-responses:pyds4", "anthropic:pyds4"]
)
async def test_pydantic_ai_completes_a_session(tmp_path: Path, model: str) -> None:
    assert PYDANTIC_AI is not None
    async with serving(FakeEngine(scripted("look", file="note.txt"))) as served:
        told = await run(
            [PYDANTIC_AI, "-c", PYDANTIC_AI_SESSION, model, QUESTION],
            tmp_path,
            ANTHROPIC_BASE_URL=served.url,
            ANTHROPIC_API_KEY="any",
            **openai_variables(served),
        )
        assert told.strip() == f"It is {SECRET}."


@pytest.mark.skipif(AGENTS is None, reason="the OpenAI Agents SDK is not installed")
@pytest.mark.parametrize("api", ["chat_completions", "responses"])
async def test_openai_agents_complete_a_session(tmp_path: Path, api: str) -> None:
    assert AGENTS is not None
    async with serving(FakeEngine(scripted("look", file="note.txt"))) as served:
        command = [AGENTS, "-c", AGENTS_SESSION, api, QUESTION]
        told = await run(command, tmp_path, **openai_variables(served))
        assert told.split("\n")[:2] == [f"It is {SECRET}."] * 2
