"""``pyds4 convert``: an original checkpoint as a GGUF file."""

from __future__ import annotations

import argparse
import time
from collections import Counter

from pyds4.cli import options
from pyds4.cli.console import Progress, note, size

EPILOG = """\
recipes: mxfp4 keeps the original 4-bit experts bit for bit and stores the rest as published files
do; exact loses nothing anywhere; q2, q2-q4, q2_k, q3, q4, q5, q6, q8 quantise the routed experts.
--tensor overrides a recipe by tensor name, with * and layer ranges.

examples:
  pyds4 convert DeepSeek-V4-Flash/ flash-mxfp4.gguf
  pyds4 convert DeepSeek-V4-Flash/ flash-q2.gguf --recipe q2 --imatrix flash.imatrix.gguf
  pyds4 convert checkpoint/ out.gguf --recipe q2 --tensor 'blk.37-42.ffn_*_exps.weight=q4_k'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "checkpoint", metavar="DIR", help="config.json, tokenizer.json, safetensors"
    )
    parser.add_argument(
        "out",
        metavar="OUT.gguf",
        help="the file to write; replaced if it exists, gone on with after a kill",
    )
    parser.add_argument("--name", help="of the model (default: the directory's)")
    add_recipe(parser, "mxfp4")


def add_recipe(parser: argparse.ArgumentParser, default: str) -> None:
    """What ``convert`` and ``quantize`` say about types."""
    parser.add_argument(
        "--recipe", default=default, metavar="NAME", help=f"see below (default: {default})"
    )
    parser.add_argument(
        "--tensor", action="append", default=[], metavar="PATTERN=TYPE", help="may be repeated"
    )
    parser.add_argument("--imatrix", metavar="FILE", help="importance, from pyds4 imatrix")
    parser.add_argument(
        "-t", "--threads", type=options.integer(1, 1024), metavar="N",
        help="default: one a processor, at most 16",
    )  # fmt: skip


def execute(arguments: argparse.Namespace) -> int:
    from pyds4.files.convert import convert_checkpoint
    from pyds4.files.imatrix import read_importance

    began = time.monotonic()
    with Progress("convert", "bytes") as progress:
        done = convert_checkpoint(
            arguments.checkpoint,
            arguments.out,
            recipe_name=arguments.recipe,
            rules=arguments.tensor,
            importance=read_importance(arguments.imatrix) if arguments.imatrix else None,
            name=arguments.name,
            threads=arguments.threads,
            progress=progress.update,
            say=note,
        )
    counts = Counter(type.name.lower() for type in done.types.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    seconds = time.monotonic() - began
    print(f"{arguments.out}: {size(done.byte_count)} in {seconds:.1f} s; tensors: {kinds}")
    if done.skipped:
        note(f"left out: {len(done.skipped)} tensors of drafters, such as {done.skipped[0]}")
    return 0
