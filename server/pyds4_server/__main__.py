"""`python -m pyds4_server MODEL`: the server with default settings; `pyds4 serve` has them all."""

from __future__ import annotations

import argparse

from pyds4_server import serve


def main() -> None:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser(prog="pyds4_server", description=__doc__)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    serve(
        arguments.model,
        host=arguments.host,
        port=arguments.port,
        on_ready=lambda url: print(f"{url} is ready", flush=True),
    )


if __name__ == "__main__":
    main()
