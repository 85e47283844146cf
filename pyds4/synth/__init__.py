"""Synthetic models: valid DeepSeek-V4 GGUF files of any size with random weights.

``synthesize(path, dimensions("tiny"))`` writes one; ``fixtures`` has the models behind the golden
logits. Shapes, names and metadata are those of real files, so other engines load them too; the
text they produce means nothing.
"""

from .blocks import RANDOM_TYPES, random_blocks
from .checkpoint import checkpoint_bytes, synthesize_checkpoint
from .model import Dimensions, Fill, Role, TensorPlan, plan
from .presets import PRESETS, dimensions
from .synthesize import TensorTypes, synthesize, synthetic_tensors, tensor_type
from .writer import Progress, Tensor, Typed, write_gguf

__all__ = [
    "PRESETS",
    "RANDOM_TYPES",
    "Dimensions",
    "Fill",
    "Progress",
    "Role",
    "Tensor",
    "TensorPlan",
    "TensorTypes",
    "Typed",
    "checkpoint_bytes",
    "dimensions",
    "plan",
    "random_blocks",
    "synthesize",
    "synthesize_checkpoint",
    "synthetic_tensors",
    "tensor_type",
    "write_gguf",
]
