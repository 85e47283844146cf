"""``pyds4 launch``: a coding agent with the settings it needs for this server.

The agent's own configuration stays as it is: settings go through environment variables and
options, and where an agent reads only files, into a directory of ours.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import NoReturn

from pyds4.cli.console import note
from pyds4.cli.failure import CommandError, UsageError
from pyds4.cli.launch_clients import CLIENTS, Plan
from pyds4.cli.launch_server import find, started

EPILOG = """\
Arguments after -- go to the agent. Keys come from --api-key or PYDS4_API_KEY.

examples:
  pyds4 launch claude
  pyds4 launch codex --url http://127.0.0.1:8080 -- exec "fix the failing test"
  pyds4 launch claude --serve --model model.gguf
  pyds4 launch opencode --print
"""

DEFAULT_URL = "http://127.0.0.1:8000"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.usage = "pyds4 launch CLIENT [options] [-- ARGUMENT ...]"
    parser.add_argument(
        "client", choices=sorted(CLIENTS), metavar="CLIENT", help=", ".join(CLIENTS)
    )
    parser.add_argument(
        "--url", default=DEFAULT_URL, help=f"where the server is (default: {DEFAULT_URL})"
    )
    parser.add_argument(
        "--print",
        dest="only_print",
        action="store_true",
        help="print the settings as shell commands and run nothing",
    )
    parser.add_argument("--api-key", metavar="KEY", help="a key that the server accepts")
    parser.add_argument(
        "--serve",
        action="store_true",
        help="start a server on a free port for as long as the agent runs",
    )
    parser.add_argument(
        "-m", "--model", metavar="FILE", help="with --serve: the model (default: as for serve)"
    )


def execute(arguments: argparse.Namespace) -> int:
    client = CLIENTS[arguments.client]
    passed: list[str] = arguments.passed
    key = arguments.api_key or os.environ.get("PYDS4_API_KEY", "").split(",")[0].strip() or None
    if arguments.serve and arguments.only_print:
        raise UsageError("--print starts nothing: leave --serve out")
    if arguments.model and not arguments.serve:
        raise UsageError("--model needs --serve: a running server has its model already")
    if arguments.serve and arguments.url != DEFAULT_URL:
        raise UsageError("--serve starts a server of its own: leave --url out")
    if arguments.only_print:
        print(as_shell(client.plan(find(arguments.url, key)), passed))
        return 0
    program = shutil.which(client.command)
    if program is None:
        raise CommandError(
            f"{client.title} is not installed (no {client.command!r} on PATH): {client.install}"
        )
    if not arguments.serve:
        server = find(arguments.url, key)
        plan = client.plan(server)
        write_files(plan)
        note(f"{client.title} uses {server.model} at {server.url}")
        sys.stdout.flush()
        _become(program, [program, *plan.arguments, *passed], environment(plan, os.environ))
    with started(arguments.model, key) as server:
        return _run(program, client.plan(server), passed)


def _become(program: str, words: list[str], environment: dict[str, str]) -> NoReturn:
    os.execve(program, words, environment)


def _run(program: str, plan: Plan, passed: list[str]) -> int:
    """Run the agent beside our server; Ctrl-C is the agent's to handle."""
    write_files(plan)
    process = subprocess.Popen(
        [program, *plan.arguments, *passed], env=environment(plan, os.environ)
    )
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the terminal sent it to the agent too
        except SystemExit:  # a signal ends us, and with us the agent's server
            process.terminate()
            raise


def environment(plan: Plan, current: Mapping[str, str]) -> dict[str, str]:
    """The agent's environment: ours, without what would lead it elsewhere."""
    kept = {name: value for name, value in current.items() if name not in plan.removed}
    return kept | plan.environment


def write_files(plan: Plan) -> None:
    """Write the files of a plan, readable by their owner only: they hold the key.

    Raises:
        OSError: a directory or a file cannot be written.
    """
    for path, text in plan.files.items():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        written = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            with open(written, "w", encoding="utf-8", opener=_private) as file:
                file.write(text)
            written.replace(path)  # another launch may read it just now
        finally:
            written.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def as_shell(plan: Plan, passed: list[str]) -> str:
    """The plan as commands for a shell."""
    lines = [f"unset {name}" for name in plan.removed]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in plan.environment.items()]
    for path, text in plan.files.items():
        lines.append(f"mkdir -p {shlex.quote(str(path.parent))}")
        lines.append(f"cat > {shlex.quote(str(path))} <<'EOF'\n{text.rstrip()}\nEOF")
    lines.append(shlex.join([plan.command, *plan.arguments, *passed]))
    return "\n".join(lines)
