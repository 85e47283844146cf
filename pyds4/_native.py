"""The one module that imports cffi: loads the engine's library and turns its statuses into errors.

The library is looked for in this order: ``PYDS4_LIBRARY`` (a path), beside this file (where a wheel
and an editable install put it), and SwiftPM's build folder of a source checkout.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import cffi

from pyds4 import errors

_NAME = "libpyds4.dylib" if sys.platform == "darwin" else "libpyds4.so"
_PACKAGE = Path(__file__).resolve().parent


def _candidates() -> list[Path]:
    named = os.environ.get("PYDS4_LIBRARY")
    if named:
        return [Path(named)]
    build = _PACKAGE.parent / ".build"
    return [_PACKAGE / "_lib" / _NAME, build / "release" / _NAME, build / "debug" / _NAME]


def _declarations() -> str:
    """The part of pyds4.h between its markers: from the wheel, or from the source checkout."""
    shipped = _PACKAGE / "_lib" / "pyds4.h"
    source = _PACKAGE.parent / "swift" / "CPyDS4" / "include" / "pyds4.h"
    header = (source if source.exists() else shipped).read_text(encoding="utf-8")
    begin, end = "/* BEGIN DECLARATIONS */", "/* END DECLARATIONS */"
    return header[header.index(begin) + len(begin) : header.index(end)]


def _load() -> tuple[Any, Any, Path]:
    ffi = cffi.FFI()
    ffi.cdef(_declarations())
    tried = _candidates()
    for path in tried:
        if path.exists():
            return ffi, ffi.dlopen(str(path)), path
    places = "\n  ".join(str(path) for path in tried)
    raise ImportError(
        f"the pyds4 engine library was not found at\n  {places}\n"
        "Build it with `swift build -c release`, or install the package with pip."
    )


ffi, lib, library_path = _load()

_ERRORS: dict[int, type[errors.PyDS4Error]] = {
    lib.PYDS4_INVALID_ARGUMENT: errors.InvalidArgumentError,
    lib.PYDS4_FILE_NOT_FOUND: errors.ModelFileError,
    lib.PYDS4_BAD_FILE: errors.ModelFileError,
    lib.PYDS4_UNSUPPORTED_MODEL: errors.UnsupportedModelError,
    lib.PYDS4_BACKEND_UNAVAILABLE: errors.BackendError,
    lib.PYDS4_OUT_OF_MEMORY: errors.MemoryLimitError,
    lib.PYDS4_TOKEN_OUT_OF_RANGE: errors.TokenOutOfRangeError,
    lib.PYDS4_CONTEXT_FULL: errors.ContextFullError,
    lib.PYDS4_CANCELLED: errors.SessionCancelled,
    lib.PYDS4_NO_LOGITS: errors.InvalidArgumentError,
    lib.PYDS4_STORE_FAILED: errors.StoreError,
    lib.PYDS4_NO_SUCH_KEY: errors.NoSuchKeyError,
}


def error_for(status: int, message: str) -> errors.PyDS4Error:
    """The exception that stands for a failing status."""
    return _ERRORS.get(status, errors.PyDS4Error)(message)


def check(status: int) -> None:
    """Raise what a call's status stands for, with the message it left for this thread."""
    if status != lib.PYDS4_OK:
        raise error_for(status, text(lib.pyds4_last_error()))


def text(pointer: Any) -> str:
    """A C string as Python text."""
    return ffi.string(pointer).decode("utf-8", "replace") if pointer else ""
