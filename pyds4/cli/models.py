"""``pyds4 models``: what was downloaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyds4.cli.console import Progress, print_table, size
from pyds4.cli.failure import UsageError

EPILOG = """\
examples:
  pyds4 models
  pyds4 models --check NAME    compare its files with their digests
  pyds4 models --remove NAME   also from huggingface_hub's cache
  pyds4 models --bind FILE --profile 0731 --vectors captured.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--check", metavar="NAME", help="read a name or file whole, verify its digests"
    )
    action.add_argument("--remove", metavar="NAME", help="remove it and its copy in the cache")
    action.add_argument("--bind", metavar="FILE", help="write the manifest of a file of your own")
    binding = parser.add_argument_group("what --bind binds, besides the file and its tokenizer")
    binding.add_argument("--profile", choices=("preview", "0731"), help="prompt format")
    binding.add_argument("--recipe", metavar="TEXT", help="default: what pyds4 quantize noted")
    binding.add_argument(
        "--vectors", action="append", default=[], metavar="FILE", help="captured answers, beside it"
    )


def execute(arguments: argparse.Namespace) -> int:
    from pyds4.files.download import (
        find_installed,
        installed_models,
        models_directory,
        remove_model,
    )
    from pyds4.files.manifest import make_manifest, verify_manifest, write_manifest

    if arguments.remove:
        print(f"{arguments.remove}: {size(remove_model(arguments.remove))} came free")
        return 0
    if arguments.check:
        model = Path(arguments.check)
        if not model.is_file():
            model = find_installed(arguments.check).path
        with Progress(f"check {model.name}", "bytes") as progress:
            verify_manifest(model, progress.update)
        print(f"{model.name}: every digest is as its manifest says")
        return 0
    if arguments.bind:
        model, vectors = Path(arguments.bind), tuple(map(Path, arguments.vectors))
        with Progress(f"bind {model.name}", "bytes") as progress:
            manifest = make_manifest(
                model,
                profile=arguments.profile,
                recipe=arguments.recipe,
                vectors=vectors,
                progress=progress.update,
            )
        print(
            f"{write_manifest(model, manifest)} binds {size(sum(f.bytes for f in manifest.files))}"
        )
        return 0
    if arguments.profile or arguments.recipe or arguments.vectors:
        raise UsageError("--profile, --recipe and --vectors go with --bind FILE")
    found = installed_models()
    if not found:
        print(f"no models in {models_directory()}; `pyds4 download` lists what there is")
        return 0
    rows = [
        [
            model.path.name,
            size(model.bytes),
            model.manifest.profile or "",
            model.manifest.recipe or "",
            f"missing: {', '.join(model.missing)}" if model.missing else str(model.path),
        ]
        for model in found
    ]
    print_table(["model", "size", "profile", "recipe", "path"], rows, right=(1,))
    return 0
