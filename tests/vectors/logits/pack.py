"""Packs the golden logits from NAME.npz as the oracle's script writes them.

python tests/vectors/logits/pack.py FOLDER    (with tests/ on PYTHONPATH)
"""

from __future__ import annotations

import io
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np
from golden import FOLDER, pack

# Steps of 2^-16 add an error of 2e-6 to logits with a spread of 2, far below the bound of 2e-5;
# 2^-10 adds 1.4e-4 where the bound is 1e-3.
BITS = {"a": 16, "b": 16, "a_hca16": 16, "a.qat": 10, "b.qat": 10}


def main(folder: Path) -> None:
    for name, bits in BITS.items():
        original = np.load(folder / f"{name}.npz")
        prompts = np.load(folder / f"{name.removesuffix('.qat')}.npz")
        kept: dict[str, Any] = {}
        for key in prompts.files:
            if key.endswith("_tokens"):
                n = int(key[1:].split("_")[0])
                kept |= pack(original, prompts[key], n, bits)
        plain = io.BytesIO()
        np.savez(plain, allow_pickle=False, **kept)
        (FOLDER / f"{name}.npz.xz").write_bytes(lzma.compress(plain.getvalue(), preset=9))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
