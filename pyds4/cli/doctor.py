"""``pyds4 doctor``: what this machine can run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pyds4.cli import options
from pyds4.cli.console import print_table, size

EPILOG = """\
Exits with 0 when every model looked at can run here at some context, with 1 when one cannot.

examples:
  pyds4 doctor
  pyds4 doctor --json ~/models/*.gguf
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "models", nargs="*", metavar="FILE", help="default: the default model and those downloaded"
    )
    parser.add_argument(
        "--port", type=options.integer(1, 65535), default=8000, help="of the server (default: 8000)"
    )
    parser.add_argument("--no-disk", action="store_true", help="do not measure reading speed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def execute(arguments: argparse.Namespace) -> int:
    from pyds4.default_model import find_model
    from pyds4.files.doctor import examine
    from pyds4.files.download import installed_models

    models = [Path(model) for model in arguments.models]
    if not models:
        models = list(dict.fromkeys([find_model(), *(model.path for model in installed_models())]))
    report = examine(models, port=arguments.port, disk=not arguments.no_disk)
    status = 1 if report.problems else 0
    if arguments.json:
        print(json.dumps(report.as_json(), indent=2))
        return status
    machine, memory = report.machine, report.machine.memory
    print(f"machine    {machine.processor}, {machine.processors} processors, {machine.system}")
    print(
        f"memory     {size(memory.available)} of {size(memory.total)} available "
        f"(limit: {memory.limit})"
    )
    gpus = ", ".join(f"{name} {size(total)}" if total else name for name, total in machine.gpus)
    print(f"GPU        {gpus or 'none'}")
    features = " ".join(machine.features) or "none that kernels use"
    print(f"kernels    {machine.instruction_set} (processor: {features})")
    print(f"backend    {report.backend or 'known when a model is loaded'}")
    print(f"library    {machine.library}")
    print(f"port       {report.port} is {'free' if report.port_is_free else 'in use'}")
    print()
    rows = []
    for file in [*report.files, *report.catalogue]:
        # Of what is not here, only how far it would go.
        shown = [file.largest_context or next(iter(file.fits), 0)] if not file.path else file.fits
        for context in shown:
            fit = file.fits[context]
            need = fit.need
            rows.append(
                [file.name if file.path else f"{file.name} (to download)", f"{context:,}"]
                + [size(part) for part in (need.weights, need.kv, need.buffers, need.total)]
                + [fit.verdict.value]
            )
    headers = ["file", "context", "weights", "attention", "buffers", "in all", ""]
    print_table(headers, rows, right=(1, 2, 3, 4, 5))
    for file in report.files:
        if file.read_bytes_per_s:
            print(f"\n{file.path} is read at {size(file.read_bytes_per_s)}/s")
    print(f"""
clients of `pyds4 serve` on this port:
  Claude Code   ANTHROPIC_BASE_URL=http://127.0.0.1:{report.port}
  OpenAI API    OPENAI_BASE_URL=http://127.0.0.1:{report.port}/v1""")
    for problem in report.problems:
        print(f"\nproblem: {problem}")
    return status
