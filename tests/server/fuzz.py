"""Throws malformed requests at every endpoint of the OpenAPI document: python tests/server/fuzz.py

Needs schemathesis (PyPI) on PATH; options are passed on to it. The engine is fake, everything else
real. Fails on any answer of 500 and above, and on one that takes longer than half a minute.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "server")]

from server_fakes import FakeEngine  # noqa: E402
from server_harness import serving_in_background  # noqa: E402

EXAMPLES = 400
"""For each operation, besides 4,000 requests that are always the same: above 10,000 in all."""


def main(options: list[str]) -> int:
    """The exit status of schemathesis."""
    with serving_in_background(FakeEngine(["Hello!"])) as url:
        return subprocess.run(
            [
                *("schemathesis", "run", f"{url}/openapi.json"),
                *("--mode", "all", "--phases", "coverage,fuzzing", "-n", str(EXAMPLES)),
                *("--checks", "not_a_server_error", "--max-response-time", "30"),
                *("--request-timeout", "60", "--suppress-health-check", "all"),
                *("--continue-on-failure", "--generation-database", "none", *options),
            ],
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
