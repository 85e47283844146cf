"""Published model files by short name; the data are in ``catalogue.json`` beside this file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files as resource_files

from ..errors import InvalidArgumentError

__all__ = ["Artifact", "artifacts", "find_artifact"]


@dataclass(frozen=True)
class Artifact:
    """One entry.

    Attributes:
        name: What `pyds4 download` takes.
        model: "flash" or "pro", a key of ``pyds4.synth.PRESETS``.
        profile: Prompt profile of the checkpoint; None for a drafter.
        repository: On the hub.
        files: In the repository, in order; empty for the whole repository (a checkpoint).
        bytes: Of all files; see ``exact``.
        exact: Whether ``bytes`` is exact, or rounded from what the publisher says.
        recipe: How it was quantised, a name of ``pyds4.files.recipes``.
        drafter: Name of the artifact that drafts for it.
        sha256: Of each file, where known in advance.
    """

    name: str
    model: str
    profile: str | None
    repository: str
    files: tuple[str, ...]
    bytes: int
    exact: bool
    recipe: str | None
    drafter: str | None
    note: str
    sha256: tuple[str, ...] = ()


@lru_cache
def artifacts() -> tuple[Artifact, ...]:
    """Every entry, in the order of the file."""
    text = (resource_files(__package__) / "catalogue.json").read_text(encoding="utf-8")
    found = []
    for entry in json.loads(text)["artifacts"]:
        entry["files"] = tuple(entry["files"])
        entry["sha256"] = tuple(entry.get("sha256", ()))
        found.append(Artifact(**entry))
    return tuple(found)


def find_artifact(name: str) -> Artifact:
    """The entry called ``name``.

    Raises:
        InvalidArgumentError: there is none; the message lists what there is.
    """
    for artifact in artifacts():
        if artifact.name == name:
            return artifact
    known = ", ".join(artifact.name for artifact in artifacts())
    raise InvalidArgumentError(
        f"no model called {name!r} in the catalogue; there are {known} (or give REPOSITORY FILE)"
    )
