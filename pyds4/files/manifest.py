"""What belongs together: a model file, its tokenizer, prompt profile, recipe and test vectors.

``NAME.gguf`` has its manifest beside it, ``NAME.gguf.manifest.json``. Files are bound by SHA-256;
because hashing 80 GB takes minutes, a load checks sizes and the tokenizer, `verify_manifest` all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ModelFileError
from ..model_file import ModelFile
from .source import raw_metadata

__all__ = [
    "BoundFile",
    "Manifest",
    "check_manifest",
    "file_sha256",
    "make_manifest",
    "manifest_path",
    "read_manifest",
    "tokenizer_sha256",
    "verify_manifest",
    "write_manifest",
]

_VERSION = 1
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BoundFile:
    """A file beside the manifest."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Attributes:
    files: The model's, in order.
    tokenizer_sha256: Of the ``tokenizer.ggml.*`` entries as they stand in the file.
    profile: Prompt profile ("preview", "0731"); None when not known.
    recipe: How it was quantised.
    vectors: Captured answers it is checked against.
    origin: Where it came from, such as ``REPOSITORY@REVISION``.
    """

    files: tuple[BoundFile, ...]
    tokenizer_sha256: str
    profile: str | None = None
    recipe: str | None = None
    vectors: tuple[BoundFile, ...] = field(default=())
    origin: str | None = None
    version: int = _VERSION


def manifest_path(model: Path) -> Path:
    return model.with_name(model.name + ".manifest.json")


def file_sha256(path: Path, progress: Progress | None = None) -> str:
    """Of a whole file, in hexadecimal."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    buffer = bytearray(8 << 20)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
            done += count
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()


def tokenizer_sha256(file: ModelFile) -> str:
    """Of tokens, types, merges and special ids, whatever their order in the file."""
    digest = hashlib.sha256()
    entries = raw_metadata(file)
    for key in sorted(key for key in entries if key.startswith("tokenizer.ggml.")):
        value = entries[key].encode()
        digest.update(f"{key}\0{len(value)}\0".encode())
        digest.update(value)
    return digest.hexdigest()


def make_manifest(
    model: Path,
    *,
    profile: str | None = None,
    recipe: str | None = None,
    vectors: tuple[Path, ...] = (),
    origin: str | None = None,
    known: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """The manifest of a model file (of all parts of a split one).

    Args:
        known: SHA-256 by file name where it was already verified; the rest is computed.
    """
    file = ModelFile(model)
    bound = tuple(_bind(Path(path), known or {}, progress) for path in file.paths)
    return Manifest(
        files=bound,
        tokenizer_sha256=tokenizer_sha256(file),
        profile=profile,
        recipe=recipe,
        vectors=tuple(_bind(path, {}, None) for path in vectors),
        origin=origin,
    )


def _bind(path: Path, known: dict[str, str], progress: Progress | None) -> BoundFile:
    digest = known.get(path.name) or file_sha256(path, progress)
    return BoundFile(path.name, path.stat().st_size, digest)


def write_manifest(model: Path, manifest: Manifest) -> Path:
    """Write it beside ``model``; complete or not at all."""
    path = manifest_path(model)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def read_manifest(model: str | os.PathLike[str]) -> Manifest | None:
    """The manifest beside ``model``; None when there is none.

    Raises:
        ModelFileError: it is there and not a manifest.
    """
    path = manifest_path(Path(model))
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != _VERSION:
            raise ValueError(f"version {data['version']}, expected {_VERSION}")
        for key in ("files", "vectors"):
            data[key] = tuple(BoundFile(**entry) for entry in data[key])
        return Manifest(**data)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: not a manifest: {error}") from None


def check_manifest(model: str | os.PathLike[str], file: ModelFile) -> Manifest | None:
    """What can be checked in no time: sizes, the tokenizer; for every load.

    Raises:
        ModelFileError: ``model`` is not what its manifest binds; says what differs.
    """
    manifest = read_manifest(model)
    if manifest is None:
        return None
    sizes = {Path(path).name: Path(path).stat().st_size for path in file.paths}
    where = manifest_path(Path(model))
    for bound in manifest.files:
        found = sizes.get(bound.name)
        if found != bound.bytes:
            raise ModelFileError(
                f"{bound.name}: {where.name} binds {bound.bytes} bytes, found {found}; download "
                f"it again, or remove {where} if the change is yours"
            )
    if tokenizer_sha256(file) != manifest.tokenizer_sha256:
        raise ModelFileError(
            f"{Path(model).name}: its tokenizer is not the one that {where.name} binds; download "
            f"it again, or remove {where} if the change is yours"
        )
    return manifest


def verify_manifest(model: Path, progress: Progress | None = None) -> Manifest:
    """Check everything, digests included.

    Raises:
        ModelFileError: there is no manifest, or something differs; says what.
    """
    manifest = check_manifest(model, ModelFile(model))
    if manifest is None:
        raise ModelFileError(f"{manifest_path(model)} is missing")
    for bound in (*manifest.files, *manifest.vectors):
        path = model.with_name(bound.name)
        if not path.is_file():
            raise ModelFileError(f"{path} is missing; {manifest_path(model).name} binds it")
        found = file_sha256(path, progress)
        if found != bound.sha256:
            raise ModelFileError(
                f"{path}: SHA-256 is {found}, {manifest_path(model).name} binds {bound.sha256}"
            )
    return manifest
