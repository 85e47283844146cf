"""Get model files from the hub, and know that they arrived whole.

The transfer is huggingface_hub's: its cache, its token, resuming, parallel parts where it has
them. What is added: room on the disk is checked first, and the SHA-256 that the hub names is
compared with what lies on the disk. A verified file has a manifest in the models directory, which
holds links into the cache.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from ..errors import InvalidArgumentError, ModelFileError, PyDS4Error
from .catalogue import Artifact
from .manifest import (
    Manifest,
    file_sha256,
    make_manifest,
    manifest_path,
    read_manifest,
    write_manifest,
)

__all__ = [
    "DownloadError",
    "InstalledModel",
    "download",
    "download_artifact",
    "find_installed",
    "installed_models",
    "models_directory",
    "remove_model",
]

Progress = Callable[[str, int, int], None]
"""Called with what is going on, bytes done, bytes in all."""

MODELS_VARIABLE = "PYDS4_MODELS"


class DownloadError(PyDS4Error):
    """The hub refused, the connection broke for good, or a file did not arrive whole."""


@dataclass(frozen=True)
class InstalledModel:
    """A downloaded model; ``bytes`` of all its parts, ``missing`` parts that are gone."""

    path: Path
    bytes: int
    manifest: Manifest
    missing: tuple[str, ...]


def models_directory() -> Path:
    """``$PYDS4_MODELS``, else pyds4's place among the user's data."""
    named = os.environ.get(MODELS_VARIABLE)
    return Path(named) if named else user_data_path("pyds4") / "models"


def download_artifact(artifact: Artifact, progress: Progress | None = None) -> list[Path]:
    """Get an entry of the catalogue; its model file comes first."""
    if not artifact.files:
        raise InvalidArgumentError(
            f"{artifact.name} is a whole checkpoint: get it with `hf download "
            f"{artifact.repository}` and turn it into a GGUF file with `pyds4 convert`"
        )
    return download(
        artifact.repository,
        artifact.files,
        profile=artifact.profile,
        recipe=artifact.recipe,
        expected=dict(zip(artifact.files, artifact.sha256, strict=False)),
        progress=progress,
    )


def download(
    repository: str,
    files: Sequence[str],
    *,
    revision: str | None = None,
    profile: str | None = None,
    recipe: str | None = None,
    expected: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Get ``files`` and return their places in the models directory.

    Resumes what an earlier call began; what is there and verified is not fetched again. With
    HF_HUB_OFFLINE set, only files in the cache are used.

    Args:
        expected: SHA-256 by file name where it is known beforehand.

    Raises:
        DownloadError: names what failed and what to do.
        OSError: too little room, said before anything is fetched; the disk cannot be written.
    """
    from huggingface_hub import constants

    folder = models_directory()
    folder.mkdir(parents=True, exist_ok=True)
    offline = (
        constants.is_offline_mode()
        if hasattr(constants, "is_offline_mode")
        else (constants.HF_HUB_OFFLINE)
    )
    promised = {} if offline else {file: _promise(repository, file, revision) for file in files}
    _check_room(repository, promised, revision)
    done, known, commit = [], {}, None
    for file in files:
        promise = promised.get(file)
        wanted = (expected or {}).get(file)
        cached = _fetch(repository, file, revision, promise, progress)
        digest = promise.sha256 if promise else None
        if digest and wanted and digest != wanted:
            raise DownloadError(
                f"{repository}: the hub's {file} has SHA-256 {digest}, the catalogue has {wanted}: "
                "the file was replaced"
            )
        known[Path(file).name] = _verified(cached, repository, file, digest or wanted, progress)
        commit = promise.commit if promise else commit
        place = folder / Path(file).name
        _link(cached, place)
        done.append(place)
    if done[0].suffix == ".gguf":
        origin = f"{repository}@{commit or revision or 'main'}"
        manifest = make_manifest(
            done[0], profile=profile, recipe=recipe, origin=origin, known=known
        )
        write_manifest(done[0], manifest)
    return done


@dataclass(frozen=True)
class _Promise:
    """What the hub says about a file before it is fetched."""

    bytes: int
    sha256: str | None
    commit: str | None


def _promise(repository: str, file: str, revision: str | None) -> _Promise:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    def ask() -> Any:
        return get_hf_file_metadata(hf_hub_url(repository, file, revision=revision))

    found = _talk(ask, repository, file)
    tag = (found.etag or "").strip('"')
    # Large files are tagged with their SHA-256, small ones with a git hash.
    digest = tag if len(tag) == 64 and all(c in "0123456789abcdef" for c in tag) else None
    return _Promise(found.size or 0, digest, found.commit_hash)


def _check_room(repository: str, promised: dict[str, _Promise], revision: str | None) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    cache = Path(constants.HF_HUB_CACHE)
    needed = 0
    for file, promise in promised.items():
        found = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(found, str):
            continue
        needed += promise.bytes - _begun(cache, repository, promise)
    place = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OSError(
            f"{place} has {free / 2**30:.2f} GiB free, {repository} needs {needed / 2**30:.2f} "
            "GiB more: make room, or set HF_HOME to another disk"
        )


def _begun(cache: Path, repository: str, promise: _Promise) -> int:
    """Bytes of an unfinished transfer that will be resumed."""
    blobs = cache / f"models--{repository.replace('/', '--')}" / "blobs"
    part = blobs / f"{promise.sha256}.incomplete"
    return min(part.stat().st_size, promise.bytes) if part.is_file() else 0


def _fetch(
    repository: str,
    file: str,
    revision: str | None,
    promise: _Promise | None,
    progress: Progress | None,
) -> Path:
    from huggingface_hub import hf_hub_download

    bars = _bars(file, promise.bytes if promise else 0, progress)
    return Path(
        _talk(
            lambda: hf_hub_download(repository, file, revision=revision, tqdm_class=bars),
            repository,
            file,
        )
    )


def _bars(file: str, total: int, progress: Progress | None) -> Any:
    """huggingface_hub's progress bar, which tells ``progress`` instead of drawing."""
    from huggingface_hub import utils

    base: Any = utils.tqdm  # type: ignore[attr-defined]  # public, but not re-exported

    class Bar(base):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options["disable"] = True
            self._done = int(options.get("initial") or 0)
            super().__init__(*arguments, **options)

        def update(self, n: float | None = 1) -> bool | None:
            self._done += int(n or 0)
            if progress is not None:
                progress(file, self._done, total)
            return None

    return Bar


def _verified(
    cached: Path, repository: str, file: str, digest: str | None, progress: Progress | None
) -> str:
    """The SHA-256 of a file in the cache; a wrong file is removed from it."""
    blob = cached.resolve()
    earlier = models_directory() / Path(file).name
    with suppress(PyDS4Error):
        manifest = read_manifest(earlier)
        if manifest and earlier.exists() and earlier.resolve() == blob:
            for bound in manifest.files:
                same = bound.name == earlier.name and bound.bytes == blob.stat().st_size
                if same and digest in (None, bound.sha256):
                    return bound.sha256

    def checking(done: int, total: int) -> None:
        if progress is not None:
            progress(f"check {file}", done, total)

    found = file_sha256(blob, checking)
    if digest is not None and found != digest:
        cached.unlink()
        blob.unlink(missing_ok=True)
        raise DownloadError(
            f"{repository}: {file} arrived with SHA-256 {found}, expected {digest}; the copy was "
            "removed: download it again"
        )
    return found


def _link(cached: Path, place: Path) -> None:
    fresh = place.with_name(place.name + ".partial")
    fresh.unlink(missing_ok=True)
    blob = cached.resolve()
    try:
        fresh.symlink_to(blob)
    except OSError:
        if sys.platform != "win32":
            raise
        os.link(blob, fresh)
    fresh.replace(place)


def _talk(ask: Callable[[], Any], repository: str, file: str) -> Any:
    """What the hub's client raises, in one line that says what to do."""
    from huggingface_hub import errors

    try:
        return ask()
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repository} asks for its conditions to be accepted: do so on its page, then set "
            f"HF_TOKEN or run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"{repository} does not exist, or is private and needs a token (HF_TOKEN, or "
            "`hf auth login`)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{repository} has no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        raise DownloadError(
            f"{repository}: {file} is not in the cache, and the hub cannot be reached or is "
            f"switched off (HF_HUB_OFFLINE): {error.__cause__ or 'offline'}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise DownloadError(f"{repository} has no file {file}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        advice = {
            401: "the token is not accepted: set HF_TOKEN or run `hf auth login`",
            403: "the token may not read this repository",
            429: "the hub asks for patience: try again in some minutes; a token raises the limit",
        }.get(status, "try again; what has arrived is kept")
        raise DownloadError(f"{repository}: {file}: status {status}: {advice}") from error
    except OSError as error:
        if isinstance(error.errno, int) and error.errno:  # the disk, not the hub
            raise
        raise DownloadError(f"{repository}: {file}: {error}; what has arrived is kept") from error
    except Exception as error:
        # The client's HTTP library differs between versions and has a tree of its own.
        if type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise DownloadError(
                f"{repository}: {file}: the connection failed ({error or type(error).__name__}); "
                "run it again to resume"
            ) from error
        raise


# What is here


def installed_models() -> list[InstalledModel]:
    """Every model with a manifest in the models directory, by name."""
    found = []
    suffix = ".manifest.json"
    for path in sorted(models_directory().glob(f"*{suffix}")):
        model = path.with_name(path.name.removesuffix(suffix))
        manifest = read_manifest(model)
        if manifest is None:
            continue
        missing = [b.name for b in manifest.files if not model.with_name(b.name).exists()]
        size = sum(bound.bytes for bound in manifest.files)
        found.append(InstalledModel(model, size, manifest, tuple(missing)))
    return found


def find_installed(name: str) -> InstalledModel:
    """The model whose file is called ``name``, with or without ``.gguf``.

    Raises:
        ModelFileError: there is none; lists what there is.
    """
    found = installed_models()
    for model in found:
        if model.path.name in (name, f"{name}.gguf"):
            return model
    known = ", ".join(model.path.name for model in found) or "none"
    raise ModelFileError(f"no model {name!r} in {models_directory()}; there are {known}")


def remove_model(name: str) -> int:
    """Remove a model, its manifest and its copy in the cache; return the bytes that came free.

    Args:
        name: Of the model's file, with or without ``.gguf``.

    Raises:
        ModelFileError: no such model.
    """
    model, freed = find_installed(name), 0
    for bound in model.manifest.files:
        place = model.path.with_name(bound.name)
        blob = place.resolve()
        if blob.is_file():
            freed += blob.stat().st_size
            if blob != place:
                _remove_snapshots(blob)
                blob.unlink()
        place.unlink(missing_ok=True)
    manifest_path(model.path).unlink()
    return freed


def _remove_snapshots(blob: Path) -> None:
    """The cache's own links to a blob that is about to go."""
    for link in (blob.parent.parent / "snapshots").glob("*/**/*"):
        if link.is_symlink() and link.resolve() == blob:
            link.unlink()
