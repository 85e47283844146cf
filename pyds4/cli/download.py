"""``pyds4 download``: get a model from the hub."""

from __future__ import annotations

import argparse

from pyds4.cli.console import Progress, print_table, size
from pyds4.cli.failure import UsageError

EPILOG = """\
Files go to huggingface_hub's cache (HF_HOME), links to them and their manifests to the models
directory (PYDS4_MODELS). HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured. A transfer that
broke off is resumed; every file is checked against the SHA-256 that the hub names.

examples:
  pyds4 download                       what there is
  pyds4 download q2
  pyds4 download OWNER/REPOSITORY FILE.gguf
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("what", nargs="?", metavar="NAME", help="of the catalogue, or a repository")
    parser.add_argument("files", nargs="*", metavar="FILE", help="in the repository")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    parser.add_argument("--profile", choices=("preview", "0731"), help="of a file of your own")


def execute(arguments: argparse.Namespace) -> int:
    from pyds4.files.catalogue import artifacts, find_artifact
    from pyds4.files.download import download, download_artifact

    if arguments.what is None:
        rows = [
            [a.name, a.model, a.profile or "", ("" if a.exact else "~") + size(a.bytes), a.note]
            for a in artifacts()
        ]
        print_table(["name", "model", "profile", "size", ""], rows, right=(3,))
        return 0
    bars: dict[str, Progress] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in bars:
            for bar in bars.values():
                bar.close()
            bars[what] = Progress(what, "bytes")
        bars[what].update(done, total)

    try:
        if "/" not in arguments.what:
            if arguments.files:
                raise UsageError(f"{arguments.what!r} is no repository: expected OWNER/NAME")
            places = download_artifact(find_artifact(arguments.what), progress)
        elif not arguments.files:
            raise UsageError(f"which file of {arguments.what}?")
        else:
            places = download(
                arguments.what,
                arguments.files,
                revision=arguments.revision,
                profile=arguments.profile,
                progress=progress,
            )
    finally:
        for bar in bars.values():
            bar.close()
    for place in places:
        print(f"{place} ({size(place.stat().st_size)}, verified)")
    return 0
