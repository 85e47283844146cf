"""``pyds4 quantize``: a GGUF file in smaller types, or with tensors of other files."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from pyds4.cli.console import Progress, note, print_table, size
from pyds4.cli.convert import add_recipe
from pyds4.cli.failure import UsageError

EPILOG = """\
recipes: q2 (IQ2_XXS gate and up, Q2_K down), q2-q4 (the last six layers q4), q2_k, q3, q4 (Q4_K),
q5, q6, q8, mxfp4, f16 for the routed experts, the rest as in published files; exact changes only
what --tensor says. Tensors that are quantised already are kept unless a rule names them.
--take copies tensors as they are in another file.

examples:
  pyds4 quantize model-q8.gguf model-q2.gguf --recipe q2 --imatrix model.imatrix.gguf
  pyds4 quantize model.gguf out.gguf --tensor 'blk.0-5.ffn_*_exps.weight=q4_k'
  pyds4 quantize model-q2.gguf out.gguf --take 'blk.42.*=model-q4.gguf'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("source", metavar="IN.gguf", help="a GGUF file, or the first of its parts")
    parser.add_argument(
        "out",
        metavar="OUT.gguf",
        help="the file to write; replaced if it exists, gone on with after a kill",
    )
    add_recipe(parser, "exact")
    parser.add_argument(
        "--take", action="append", default=[], metavar="PATTERN=FILE", help="may be repeated"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the types and the size, write nothing"
    )


def execute(arguments: argparse.Namespace) -> int:
    from pyds4.files.imatrix import read_importance
    from pyds4.files.quantize import plan_types, quantize_file
    from pyds4.files.recipes import recipe
    from pyds4.model_file import ModelFile

    take = {}
    for rule in arguments.take:
        pattern, equals, path = rule.partition("=")
        if not (pattern and equals and path):
            raise UsageError(f"--take {rule!r}: expected PATTERN=FILE")
        take[pattern] = path
    began = time.monotonic()
    if arguments.dry_run:
        file = ModelFile(arguments.source)
        layers = file.get("deepseek4.block_count")
        chosen = recipe(
            arguments.recipe, layers if isinstance(layers, int) else 0, arguments.tensor
        )
        changes = plan_types(file, chosen)
    else:
        with Progress("quantize", "bytes") as progress:
            changes = quantize_file(
                arguments.source,
                arguments.out,
                recipe_name=arguments.recipe,
                rules=arguments.tensor,
                importance=read_importance(arguments.imatrix) if arguments.imatrix else None,
                take=take,
                threads=arguments.threads,
                progress=progress.update,
                say=note,
            )
    groups: dict[tuple[str, str], list[int]] = {}
    for change in changes:
        new = change.type.name.lower()
        group = groups.setdefault((change.tensor.type, new), [0, 0, 0])
        group[0] += 1
        group[1] += change.tensor.byte_count
        group[2] += change.byte_count
    rows = [
        [old, new, str(count), size(before), size(after)]
        for (old, new), (count, before, after) in sorted(groups.items())
    ]
    print_table(["from", "to", "tensors", "before", "after"], rows, right=(2, 3, 4))
    if arguments.dry_run:
        print(f"\n{size(sum(change.byte_count for change in changes))} of tensors")
    else:
        seconds = time.monotonic() - began
        print(f"\n{arguments.out}: {size(Path(arguments.out).stat().st_size)} in {seconds:.1f} s")
    return 0
