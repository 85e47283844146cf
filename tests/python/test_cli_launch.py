"""launch: a coding agent gets the settings that lead it to this server, and nothing is overwritten.

The agents are small programs that write down how they were started.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import DEMO, error_of, run
from server_fakes import FakeEngine
from server_harness import serving_in_background

CONTEXT = 100_000
AGENTS = ("claude", "codex", "opencode", "pi")

_RECORDER = """#!{python}
import json, os, sys
with open({record!r}, "w") as file:
    json.dump({{"arguments": sys.argv[1:], "environment": dict(os.environ)}}, file)
sys.exit(7)
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving_in_background(FakeEngine(context=CONTEXT)) as url:
        yield url


class Agents:
    """Programs named as the agents are, in a directory that is all of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "record.json"
        (folder / "bin").mkdir()
        for name in AGENTS:
            program = folder / "bin" / name
            program.write_text(_RECORDER.format(python=sys.executable, record=str(self.record)))
            program.chmod(0o755)

    def environment(self, **more: str) -> dict[str, str]:
        home = {"HOME": str(self.folder / "home"), "XDG_DATA_HOME": str(self.folder / "data")}
        kept = {name: os.environ[name] for name in ("PYDS4_LIBRARY",) if name in os.environ}
        return kept | home | {"PATH": str(self.folder / "bin"), "LANG": "C.UTF-8"} | more

    def launch(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pyds4", "launch", *words],
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def seen(self) -> tuple[list[str], dict[str, str]]:
        told = json.loads(self.record.read_text())
        return told["arguments"], told["environment"]


@pytest.fixture
def agents(tmp_path: Path) -> Agents:
    return Agents(tmp_path)


def test_claude_gets_its_variables_and_no_key_of_anthropics(agents: Agents, url: str) -> None:
    done = agents.launch(
        *("claude", "--url", f"{url}/v1/", "--api-key", "secret", "--", "-p", "hi", "--", "x"),
        ANTHROPIC_API_KEY="theirs",
    )
    assert done.returncode == 7, done.stderr
    arguments, environment = agents.seen()
    assert arguments == ["-p", "hi", "--", "x"]
    assert environment["ANTHROPIC_BASE_URL"] == url
    assert environment["ANTHROPIC_AUTH_TOKEN"] == "secret"
    assert environment["ANTHROPIC_MODEL"] == "fake-v4"
    assert environment["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == "fake-v4"
    assert environment["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == str(CONTEXT)
    assert "ANTHROPIC_API_KEY" not in environment


def test_codex_gets_its_provider_as_options(agents: Agents, url: str) -> None:
    assert agents.launch("codex", "--url", url, "--", "exec", "--json", "hi").returncode == 7
    arguments, environment = agents.seen()
    at = arguments.index("exec")
    assert arguments[at:] == ["exec", "--json", "hi"]
    assert arguments[:at:2] == ["-c"] * (at // 2)
    settings = tomllib.loads("\n".join(arguments[1:at:2]))
    provider = settings["model_providers"]["pyds4"]
    assert settings["model_provider"] == "pyds4"
    assert settings["model"] == "fake-v4"
    assert settings["model_context_window"] == CONTEXT
    assert CONTEXT // 2 < settings["model_auto_compact_token_limit"] < CONTEXT
    assert provider["base_url"] == f"{url}/v1"
    assert provider["wire_api"] == "responses"
    assert environment[provider["env_key"]]


def test_opencode_gets_a_configuration_in_a_variable(agents: Agents, url: str) -> None:
    assert agents.launch("opencode", "--url", url, PYDS4_API_KEY="one,two").returncode == 7
    arguments, environment = agents.seen()
    told = json.loads(environment["OPENCODE_CONFIG_CONTENT"])
    provider = told["provider"]["pyds4"]
    assert arguments == []
    assert told["model"] == told["small_model"] == "pyds4/fake-v4"
    assert provider["options"] == {"baseURL": f"{url}/v1", "apiKey": "one"}
    assert provider["models"]["fake-v4"]["limit"]["context"] == CONTEXT


def test_pi_gets_a_directory_of_ours(agents: Agents, url: str) -> None:
    assert agents.launch("pi", "--url", url, "--api-key", "secret").returncode == 7
    arguments, environment = agents.seen()
    directory = Path(environment["PI_CODING_AGENT_DIR"])
    path = directory / "models.json"
    provider = json.loads(path.read_text())["providers"]["pyds4"]
    assert arguments == ["--provider", "pyds4", "--model", "fake-v4"]
    assert provider["baseUrl"] == f"{url}/v1"
    assert provider["models"][0]["contextWindow"] == CONTEXT
    assert path.stat().st_mode & 0o077 == 0
    assert [entry.name for entry in directory.iterdir()] == ["models.json"]
    assert not (agents.folder / "home").exists()


@pytest.mark.parametrize("name", AGENTS)
def test_print_runs_nothing_but_says_all_of_it(agents: Agents, url: str, name: str) -> None:
    done = agents.launch(name, "--url", url, "--print", "--", "it's", "$HOME")
    assert done.returncode == 0, done.stderr
    assert not agents.record.exists()
    assert not (agents.folder / "data").exists()
    assert shlex.split(done.stdout.splitlines()[-1])[-2:] == ["it's", "$HOME"]
    script = {"PATH": f"{agents.folder / 'bin'}:/usr/bin:/bin"}
    ran = subprocess.run(["sh", "-c", done.stdout], env=agents.environment(**script), check=False)
    assert ran.returncode == 7
    by_hand = agents.seen()
    assert agents.launch(name, "--url", url, "--", "it's", "$HOME").returncode == 7
    by_launch = agents.seen()
    assert by_hand[0] == by_launch[0]
    changed = set(by_launch[1]) - set(agents.environment())
    assert {k: v for k, v in by_hand[1].items() if k in changed - {"LC_CTYPE"}} == {
        k: v for k, v in by_launch[1].items() if k in changed - {"LC_CTYPE"}
    }


def test_an_agent_that_is_missing_is_named_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    told = error_of("launch", "codex")
    assert "Codex is not installed" in told
    assert "npm install -g @openai/codex" in told


def test_no_server_says_how_to_start_one() -> None:
    told = error_of("launch", "claude", "--print", "--url", "http://127.0.0.1:1")
    assert "no server at http://127.0.0.1:1" in told
    assert "pyds4 serve" in told


@pytest.mark.parametrize("wrong", ["localhost:8000", "http://", "http://a:b", "ftp://a"])
def test_a_url_that_is_none_is_refused(wrong: str) -> None:
    assert "--url" in error_of("launch", "claude", "--print", "--url", wrong, status=2)


def test_a_missing_key_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYDS4_API_KEY", raising=False)
    with serving_in_background(FakeEngine(), api_keys=("secret",)) as url:
        told = error_of("launch", "claude", "--print", "--url", url)
        assert "wants an API key" in told
        assert run("launch", "claude", "--print", "--url", url, "--api-key", "secret").status == 0


@pytest.mark.parametrize(
    "words",
    [("--print", "--serve"), ("--model", "x.gguf"), ("--serve", "--url", "http://127.0.0.1:1")],
)
def test_options_that_contradict_each_other_are_refused(words: tuple[str, ...]) -> None:
    error_of("launch", "claude", *words, status=2)


def test_serve_starts_a_server_for_the_agents_time(agents: Agents) -> None:
    done = agents.launch("claude", "--serve", "--model", DEMO, "--", "hello")
    assert done.returncode == 7, done.stderr
    arguments, environment = agents.seen()
    assert arguments == ["hello"]
    assert environment["ANTHROPIC_MODEL"] == Path(DEMO).stem
    gone = error_of("launch", "claude", "--print", "--url", environment["ANTHROPIC_BASE_URL"])
    assert "no server at" in gone


def test_a_server_that_does_not_start_says_why(agents: Agents) -> None:
    done = agents.launch("claude", "--serve", "--model", str(agents.folder / "none.gguf"))
    assert done.returncode == 1
    assert "the server did not start" in done.stderr
    assert "none.gguf" in done.stderr
    assert not agents.record.exists()


def test_a_killed_launch_ends_its_server(agents: Agents) -> None:
    """The agent reports where the server is and waits; then launch is ended from outside."""
    waiting = agents.folder / "bin" / "claude"
    waiting.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        "print(os.environ['ANTHROPIC_BASE_URL'], flush=True)\nsys.stdin.read()\n"
    )
    launch = subprocess.Popen(
        [sys.executable, "-m", "pyds4", "launch", "claude", "--serve", "--model", DEMO],
        env=agents.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert launch.stdin is not None
    assert launch.stdout is not None
    try:
        url = launch.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        launch.send_signal(signal.SIGTERM)
        assert launch.wait(120) == 128 + signal.SIGTERM
        assert launch.stdout.read() == ""  # the agent, which held it open, is gone too
        assert "no server at" in error_of("launch", "claude", "--print", "--url", url)
    finally:
        launch.kill()
        launch.stdin.close()
        launch.stdout.close()
        launch.wait()


def test_answers_of_another_program_are_recognised(tmp_path: Path) -> None:
    import http.server
    import threading

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "llama"}]}')

        def log_message(self, *ignored: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert "not as pyds4" in error_of("launch", "pi", "--print", "--url", url)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
