"""``pyds4 imatrix``: measure which inputs of each matrix matter."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyds4.cli import options
from pyds4.cli.console import Progress

EPILOG = """\
TEXT is UTF-8 text, or a .jsonl file of {"messages": […]} or {"text": …} a line; take what the model
will be used for. The result is in llama.cpp's GGUF form. A run that was stopped goes on where its
file was last written (every 16 sequences). Runs on the CPU.

example:
  pyds4 imatrix model-q8.gguf chats.jsonl model.imatrix.gguf
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="a GGUF file, the less quantised the better")
    parser.add_argument("text", metavar="TEXT", help="what to run through it")
    parser.add_argument("out", metavar="OUT.gguf", help="the importance matrix")
    parser.add_argument(
        "--chunk", type=options.integer(2), default=512, metavar="N",
        help="tokens read in one go, from an empty context (default: 512)",
    )  # fmt: skip
    parser.add_argument("--limit", type=options.integer(1), metavar="N", help="sequences in all")
    parser.add_argument(
        "--profile", choices=("preview", "0731"), help="default: the manifest's, else preview"
    )
    parser.add_argument("-t", "--threads", type=options.integer(1, 1024), metavar="N")


def execute(arguments: argparse.Namespace) -> int:
    from pyds4.engine import Engine
    from pyds4.files.corpus import read_corpus
    from pyds4.files.imatrix import collect

    profile = options.profile(arguments)
    with Engine(arguments.model, backend="cpu", threads=arguments.threads) as engine:
        documents = read_corpus(
            Path(arguments.text), engine.tokenizer, chunk=arguments.chunk, profile=profile
        )
        with Progress("imatrix") as progress:
            result = collect(
                engine,
                documents[: arguments.limit],
                Path(arguments.out),
                dataset=Path(arguments.text).name,
                progress=progress.update,
            )
    unseen = sum(int((counts == 0).sum()) for counts in result.counts.values())
    print(
        f"{arguments.out}: {len(result.sums)} tensors, {result.chunks} sequences"
        + (f"; {unseen} matrices (experts) saw nothing" if unseen else "")
    )
    return 0
