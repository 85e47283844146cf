"""What belongs together: a model file, its tokenizer, prompt profile, recipe and test vectors.

``NAME.gguf`` has its manifest beside it, ``NAME.gguf.manifest.json``. Files are bound by SHA-256;
because hashing 80 GB takes minutes, a load checks sizes and the tokenizer, `verify_manifest` all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError, ModelFileError
from ..model_file import ModelFile
from .source import raw_metadata

__all__ = [
    "BoundFile",
    "Manifest",
    "check_manifest",
    "file_sha256",
    "forget_manifest",
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
    """A file beside the manifest.

    ``modified_ns`` is the time of its last change when the digest was computed; a file with the
    same time and size is taken to be the same without reading it.
    """

    name: str
    bytes: int
    sha256: str
    modified_ns: int | None = None


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

    def content(self, folder: Path) -> str | None:
        """SHA-256 over the digests of the model's files; None when one may have changed since they
        were computed."""
        digest = hashlib.sha256()
        for bound in self.files:
            try:
                found = (folder / bound.name).stat()
            except OSError:
                return None
            if (found.st_size, found.st_mtime_ns) != (bound.bytes, bound.modified_ns):
                return None
            digest.update(f"{bound.bytes} {bound.sha256}\n".encode())
        return digest.hexdigest()


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
        recipe: What ``quantize_file`` noted in the file when None.
        vectors: Files beside the model.
        known: SHA-256 by file name where it was already verified; the rest is computed.

    Raises:
        InvalidArgumentError: vectors lie elsewhere.
    """
    file = ModelFile(model)
    for path in vectors:
        if path.resolve().parent != model.absolute().parent.resolve():
            raise InvalidArgumentError(f"{path} does not lie beside {model}: copy it there")
    noted = file.get("pyds4.quantize.recipe")
    recipe = recipe or (noted if isinstance(noted, str) else None)
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
    before = path.stat()
    digest = known.get(path.name) or file_sha256(path, progress)
    return BoundFile(path.name, before.st_size, digest, before.st_mtime_ns)


def write_manifest(model: Path, manifest: Manifest) -> Path:
    """Write it beside ``model``; complete or not at all."""
    path = manifest_path(model)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def forget_manifest(model: Path) -> bool:
    """Remove the manifest of a file that has been written anew; whether there was one."""
    path = manifest_path(model)
    there = path.exists()
    path.unlink(missing_ok=True)
    return there


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
    """Check everything, digests included, and note the files' times for later loads.

    Raises:
        ModelFileError: there is no manifest, or something differs; says what.
    """
    manifest = check_manifest(model, ModelFile(model))
    if manifest is None:
        raise ModelFileError(f"{manifest_path(model)} is missing: `pyds4 models --bind` writes it")
    times: dict[str, int] = {}
    for bound in (*manifest.files, *manifest.vectors):
        path = model.with_name(bound.name)
        if not path.is_file():
            raise ModelFileError(f"{path} is missing; {manifest_path(model).name} binds it")
        times[bound.name] = path.stat().st_mtime_ns
        found = file_sha256(path, progress)
        if found != bound.sha256:
            raise ModelFileError(
                f"{path}: SHA-256 is {found}, {manifest_path(model).name} binds {bound.sha256}"
            )
    fresh = tuple(replace(bound, modified_ns=times[bound.name]) for bound in manifest.files)
    if fresh != manifest.files:
        manifest = replace(manifest, files=fresh)
        with suppress(OSError):  # a directory that is only read stays as it is
            write_manifest(model, manifest)
    return manifest
