"""pyds4: a local inference engine for DeepSeek-V4.

    import pyds4

    engine = pyds4.Engine("model.gguf")
    for token in pyds4.generate(engine, "Once upon a time", max_tokens=20):
        print(token.text, end="")
"""

from pyds4 import chat, errors
from pyds4._native import lib as _lib
from pyds4._native import text as _text
from pyds4.engine import Engine, ModelConfig, StepItem, StepResult
from pyds4.errors import (
    BackendError,
    ChatError,
    ClosedError,
    ContextFullError,
    InvalidArgumentError,
    MemoryLimitError,
    ModelFileError,
    ParseError,
    PyDS4Error,
    RenderError,
    SessionCancelled,
    TokenizerError,
    TokenOutOfRangeError,
    UnsupportedModelError,
)
from pyds4.generation import Token, generate
from pyds4.model_file import MemoryNeed, ModelFile, TensorInfo
from pyds4.sampling import GREEDY, Sampler, Sampling
from pyds4.session import Session
from pyds4.tokenizer import Tokenizer, Vocabulary

__version__ = _text(_lib.pyds4_version())

__all__ = [
    "GREEDY",
    "BackendError",
    "ChatError",
    "ClosedError",
    "ContextFullError",
    "Engine",
    "InvalidArgumentError",
    "MemoryLimitError",
    "MemoryNeed",
    "ModelConfig",
    "ModelFile",
    "ModelFileError",
    "ParseError",
    "PyDS4Error",
    "RenderError",
    "Sampler",
    "Sampling",
    "Session",
    "SessionCancelled",
    "StepItem",
    "StepResult",
    "TensorInfo",
    "Token",
    "TokenOutOfRangeError",
    "Tokenizer",
    "TokenizerError",
    "UnsupportedModelError",
    "Vocabulary",
    "__version__",
    "chat",
    "errors",
    "generate",
]
