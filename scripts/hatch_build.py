"""Wheel build hook: builds the engine's library with SwiftPM and puts it into the package.

A wheel carries the library, the header that cffi parses and the demo model; an editable install
gets the first two in ``pyds4/_lib`` of the checkout.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "libpyds4.dylib" if sys.platform == "darwin" else "libpyds4.so"
DEMO_MODEL = Path("models") / "pyds4-demo-q4_k.gguf"
NO_SWIFT = """\
The engine is written in Swift, and no `swift` was found on PATH.
  macOS   install Xcode 26 or newer, or its command line tools: xcode-select --install
  Linux   https://www.swift.org/install/linux  (Swift 6.3 or newer)
"""


class SwiftBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        if shutil.which("swift") is None:
            raise RuntimeError(NO_SWIFT)
        command = [
            "swift",
            "build",
            "-c",
            "release",
            "--product",
            "pyds4",
            "--package-path",
            self.root,
        ]
        if subprocess.run(command, check=False).returncode != 0:
            raise RuntimeError("`" + " ".join(command) + "` failed; its messages are above")
        library = root / ".build" / "release" / LIBRARY
        header = root / "swift" / "CPyDS4" / "include" / "pyds4.h"
        if version == "editable":
            place = root / "pyds4" / "_lib"
            place.mkdir(exist_ok=True)
            # A running process may have the old library mapped: replace it, do not rewrite it.
            fresh = place / (LIBRARY + ".new")
            shutil.copyfile(library, fresh)
            fresh.rename(place / LIBRARY)
        else:
            build_data["force_include"].update(
                {
                    str(library): f"pyds4/_lib/{LIBRARY}",
                    str(header): "pyds4/_lib/pyds4.h",
                    str(root / DEMO_MODEL): f"pyds4/models/{DEMO_MODEL.name}",
                }
            )
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
