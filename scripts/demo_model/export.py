"""Weights from a training -> GGUF: ``python -m scripts.demo_model.export OUT_DIR START NEW``."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import torch

from scripts.demo_model import gguf_file, vocabulary
from scripts.demo_model.architecture import Model
from scripts.demo_model.config import Config


def load(folder: Path) -> tuple[Model, dict[str, Any]]:
    """The model whose pieces lie in ``folder``, and what is known about its training."""
    pieces = sorted(folder.glob("weights.*.bin"), key=lambda path: int(path.suffixes[-2][1:]))
    raw = b"".join(path.read_bytes() for path in pieces)
    saved = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=False)
    model = Model(Config(**saved["config"]))
    weights = {k: v.float() if v.is_floating_point() else v for k, v in saved.pop("model").items()}
    model.load_state_dict(weights)
    for block in model.blocks:
        if block.hashed:
            block.fill_hash_mask()
    return model.eval(), saved


def main() -> None:
    """Write NEW from the weights in OUT_DIR and the vocabulary of START."""
    folder, start, new = map(Path, sys.argv[1:4])
    model, known = load(folder)
    about = (
        "Tiny model of the DeepSeek-V4 architecture, trained for pyds4; toy tasks only; "
        f"{known['tokens'] / 1e6:.0f} M tokens in its last training."
    )
    gguf_file.write(new, model, vocabulary.read(start), "pyds4 demo", about)
    print(f"{new}: {new.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
