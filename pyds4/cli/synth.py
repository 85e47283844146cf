"""``pyds4 synth``: synthetic models, for tests and benchmarks."""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyds4.cli import options
from pyds4.cli.console import Progress, note, rate, size
from pyds4.cli.failure import CommandError, UsageError

if TYPE_CHECKING:
    from pyds4.synth import Dimensions

EPILOG = """\
presets:
  tiny    one layer of each kind; loads in a blink
  mid     1.3 GiB, for measuring on a laptop
  flash   the dimensions of DeepSeek-V4 Flash (81 GiB; --layers 5 makes 10.7 GiB)
  pro     the dimensions of DeepSeek-V4 Pro

Tensor types: f32 f16 bf16 q8_0 q4_0 q2_k q3_k q4_k q5_k q6_k iq2_xxs mxfp4. The default mix is that
of the published 2-bit files. The weights are random: shapes, names and speed are those of a real
model, what it says is not.

examples:
  pyds4 synth mid mid.gguf
  pyds4 synth flash five.gguf --layers 5
  pyds4 synth flash directory --layers 3 --checkpoint official   (10.8 GB, for pyds4 convert)
  pyds4 synth tiny t.gguf --experts q4_k --dimension experts=32 --dimension vocab=1024
"""

_ROLES = ("embedding", "output", "dense", "small", "experts")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("preset", metavar="PRESET", help="tiny, mid, flash or pro")
    parser.add_argument("out", metavar="OUT", help="the GGUF file to write, or the directory")
    parser.add_argument(
        "--layers", type=options.integer(1), metavar="N", help="the first N layers only, or more"
    )
    parser.add_argument(
        "--checkpoint",
        choices=("official", "hf"),
        help="write a directory of safetensors, with the official names or transformers'",
    )
    parser.add_argument(
        "--dimension",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a dimension, such as experts=32 or ratios=0,4,128; may be repeated",
    )
    types = parser.add_argument_group("tensor types")
    types.add_argument("--embedding", default="f16", metavar="TYPE", help="default: f16")
    types.add_argument("--output", default="q8_0", metavar="TYPE", help="default: q8_0")
    types.add_argument(
        "--dense", default="q8_0", metavar="TYPE", help="attention and shared experts; q8_0"
    )
    types.add_argument(
        "--small", default="f16", metavar="TYPE", help="compressors, indexers, routers; f16"
    )
    types.add_argument(
        "--experts",
        default="iq2_xxs+q2_k",
        metavar="TYPE[+TYPE]",
        help="routed experts: gate and up + down (default: iq2_xxs+q2_k)",
    )
    parser.add_argument("--seed", type=options.integer(0), default=0, metavar="N", help="default 0")
    parser.add_argument("--name", default="synthetic deepseek4", metavar="TEXT", help="model name")
    parser.add_argument("-t", "--threads", type=options.integer(1, 1024), metavar="N")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--dry-run", action="store_true", help="only say how large it would be")


def execute(arguments: argparse.Namespace) -> int:
    from pyds4.synth import TensorTypes, dimensions, synthesize, synthetic_tensors

    chosen = dimensions(arguments.preset, arguments.layers, **_overrides(arguments.dimension))
    if arguments.checkpoint:
        return _checkpoint(arguments, chosen)
    types = TensorTypes.named(**{role: getattr(arguments, role) for role in _ROLES})
    out = Path(arguments.out)
    tensors = synthetic_tensors(chosen, types, arguments.seed)
    for tensor in tensors:
        tensor.check()
    data = sum(tensor.byte_count for tensor in tensors)
    described = f"{len(chosen.ratios)} layers, {len(tensors)} tensors, {size(data)}"
    if arguments.dry_run:
        print(f"{out}: {described}")
        return 0
    _check_target(out, data, replace=arguments.force)
    started = time.perf_counter()
    with Progress(f"writing {out.name}", "bytes") as progress:
        written = synthesize(
            out,
            chosen,
            types,
            seed=arguments.seed,
            name=arguments.name,
            threads=arguments.threads,
            progress=progress.update,
        )
    seconds = time.perf_counter() - started
    note(f"{out}: {described} in {seconds:.1f} s ({rate(written, seconds) / 1e6:.0f} MB/s)")
    return 0


def _checkpoint(arguments: argparse.Namespace, chosen: Dimensions) -> int:
    from pyds4.synth import checkpoint_bytes, synthesize_checkpoint

    out, style = Path(arguments.out), arguments.checkpoint
    described = f"{out}: {len(chosen.ratios)} layers, {size(checkpoint_bytes(chosen, style))}"
    if arguments.dry_run:
        print(described)
        return 0
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not arguments.force):
        raise CommandError(f"{out}: exists; --force writes into a directory that is not empty")
    started = time.perf_counter()
    with Progress(f"writing {out.name}", "bytes") as progress:
        written = synthesize_checkpoint(
            out, chosen, style=style, seed=arguments.seed, progress=progress.update
        )
    seconds = time.perf_counter() - started
    note(f"{described} in {seconds:.1f} s ({rate(written, seconds) / 1e6:.0f} MB/s)")
    return 0


def _overrides(words: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs with values of the type that the dimension has."""
    from pyds4.synth import Dimensions

    kinds = {field.name: str(field.type) for field in fields(Dimensions)}
    overrides: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in kinds:
            raise UsageError(
                f"--dimension {word}: expected NAME=VALUE with one of {', '.join(kinds)}"
            )
        try:
            if kinds[name].startswith("tuple"):
                overrides[name] = tuple(int(part) for part in value.split(","))
            else:
                overrides[name] = float(value) if kinds[name] == "float" else int(value)
        except ValueError:
            raise UsageError(f"--dimension {name}: not a number: {value!r}") from None
    return overrides


def _check_target(out: Path, data: int, *, replace: bool) -> None:
    """Refuse what would fail at the end or destroy something, before anything is written."""
    if out.is_dir():
        raise CommandError(f"{out}: is a directory")
    if out.exists() and not replace:
        raise CommandError(f"{out}: exists; --force replaces it")
    if not out.absolute().parent.is_dir():
        raise CommandError(f"{out}: there is no directory {out.absolute().parent}")
    free = shutil.disk_usage(out.absolute().parent).free
    if data > free:
        raise CommandError(f"{out}: needs {size(data)}, the disk has {size(free)} free")
