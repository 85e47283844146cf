# mypy: ignore-errors
# ruff: noqa
"""All kernels as one source: MSL for Metal, CUDA C++ for NVRTC, C++ for the emulator.

usage: library.py metal|cuda|host -o FILE
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import mslc  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
KERNELS = os.path.join(mslc.ROOT, "swift", "Compute", "Metal")


def files():
    return sorted(os.path.join(KERNELS, f) for f in os.listdir(KERNELS) if f.endswith(".metal"))


def is_for_own_memory(path):
    """Kernels for devices with memory of their own, which Metal's have not."""
    return path.endswith(("_int8.metal", "_wide.metal"))


def metal(everything=False):
    seen = set()
    parts = []
    for path in files():
        if is_for_own_memory(path) and not everything:
            continue
        parts.append('#line 1 "%s"\n' % os.path.basename(path) + mslc.flatten(path, seen))
    return "\n".join(parts)


def shim(name):
    return open(os.path.join(HERE, "shim", name)).read()


def cuda():
    body, kernels = mslc.transform(metal(everything=True))
    body = body.replace("#include <metal_stdlib>", "")
    prefix = shim("metal_on_cuda.h").replace("#pragma once", "")
    return (
        prefix
        + shim("cuda/metal_stdlib")
        + "\nusing namespace metal;\n"
        + body
        + "\n"
        + mslc.rename(mslc.gen_cuda(kernels))
        + "\n"
    )


def host():
    body, kernels = mslc.transform(metal(everything=True))
    return '#include "metal_on_host.h"\n' + body + "\n" + mslc.rename(mslc.gen_host(kernels)) + "\n"


if __name__ == "__main__":
    text = {"metal": metal, "cuda": cuda, "host": host}[sys.argv[1]]()
    with open(sys.argv[sys.argv.index("-o") + 1], "w") as out:
        out.write(text)
