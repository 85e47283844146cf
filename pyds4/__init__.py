"""pyds4: a local inference engine for DeepSeek-V4.

    import pyds4

    engine = pyds4.Engine("model.gguf")
    for token in pyds4.generate(engine, "Once upon a time", max_tokens=20):
        print(token.text, end="")

Names are imported when they are first used: the engine's library is loaded only by what needs it,
so that ``pyds4 --help``, the tokenizer and the chat template do without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyds4 import chat, errors
    from pyds4.engine import Engine, ModelConfig, StepItem, StepResult
    from pyds4.errors import (
        BackendError,
        ChatError,
        ClosedError,
        ContextFullError,
        InvalidArgumentError,
        MemoryLimitError,
        ModelFileError,
        NoSuchKeyError,
        ParseError,
        PyDS4Error,
        RenderError,
        SessionCancelled,
        StoreError,
        TokenizerError,
        TokenOutOfRangeError,
        UnsupportedModelError,
    )
    from pyds4.generation import Token, generate
    from pyds4.model_file import MemoryNeed, ModelFile, TensorInfo
    from pyds4.sampling import GREEDY, Sampler, Sampling
    from pyds4.session import Session
    from pyds4.tokenizer import Tokenizer, Vocabulary

    __version__: str

_SOURCES = {
    "engine": ("Engine", "ModelConfig", "StepItem", "StepResult"),
    "errors": (
        "BackendError",
        "ChatError",
        "ClosedError",
        "ContextFullError",
        "InvalidArgumentError",
        "MemoryLimitError",
        "ModelFileError",
        "NoSuchKeyError",
        "ParseError",
        "PyDS4Error",
        "RenderError",
        "SessionCancelled",
        "StoreError",
        "TokenOutOfRangeError",
        "TokenizerError",
        "UnsupportedModelError",
    ),
    "generation": ("Token", "generate"),
    "model_file": ("MemoryNeed", "ModelFile", "TensorInfo"),
    "sampling": ("GREEDY", "Sampler", "Sampling"),
    "session": ("Session",),
    "tokenizer": ("Tokenizer", "Vocabulary"),
}
_MODULE_OF = {name: module for module, names in _SOURCES.items() for name in names}

if not TYPE_CHECKING:  # else a type checker would believe in any name

    def __getattr__(name: str) -> Any:
        value: Any
        if name in _MODULE_OF:
            value = getattr(import_module(f"pyds4.{_MODULE_OF[name]}"), name)
        elif name in ("chat", "errors"):
            value = import_module(f"pyds4.{name}")
        elif name == "__version__":
            native = import_module("pyds4._native")
            value = native.text(native.lib.pyds4_version())
        else:
            raise AttributeError(f"module 'pyds4' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
    "NoSuchKeyError",
    "ParseError",
    "PyDS4Error",
    "RenderError",
    "Sampler",
    "Sampling",
    "Session",
    "SessionCancelled",
    "StepItem",
    "StepResult",
    "StoreError",
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
