"""``pyds4 models``: what was downloaded."""

from __future__ import annotations

import argparse

from pyds4.cli.console import Progress, print_table, size

EPILOG = """\
examples:
  pyds4 models
  pyds4 models --check NAME    compare its files with their digests
  pyds4 models --remove NAME   also from huggingface_hub's cache
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", metavar="NAME", help="read it whole and verify its digests")
    action.add_argument("--remove", metavar="NAME", help="remove it and its copy in the cache")


def execute(arguments: argparse.Namespace) -> int:
    from pyds4.files.download import installed_models, models_directory, remove_model
    from pyds4.files.manifest import verify_manifest

    if arguments.remove:
        print(f"{arguments.remove}: {size(remove_model(arguments.remove))} came free")
        return 0
    if arguments.check:
        name = arguments.check.removesuffix(".gguf") + ".gguf"
        with Progress(f"check {name}", "bytes") as progress:
            verify_manifest(models_directory() / name, progress.update)
        print(f"{name}: every digest is as its manifest says")
        return 0
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
