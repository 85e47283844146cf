"""Every error pyds4 raises on purpose.

::

    PyDS4Error
    ├── ModelFileError            the file cannot be read as GGUF: names file, offset, expectation
    ├── UnsupportedModelError     a good file, but not a model this engine runs
    ├── BackendError              the device failed or is missing
    ├── MemoryLimitError          the model, or a context of this size, does not fit
    ├── TokenOutOfRangeError      a token id the vocabulary does not have       (also ValueError)
    ├── ContextFullError          the session has no room for these tokens
    ├── SessionCancelled          cancel() was called while work was under way
    ├── ClosedError               used after close()
    ├── InvalidArgumentError      an argument no model could make sense of      (also ValueError)
    ├── StoreError                the directory of kept prefixes cannot be used
    ├── NoSuchKeyError            no prefix of that key is kept                 (also KeyError)
    └── ChatError                 the text side
        ├── RenderError           messages that cannot become a prompt          (also ValueError)
        ├── ParseError            a completion that breaks the format           (also ValueError)
        └── TokenizerError        a vocabulary or an id the tokenizer cannot use

Mistakes inside pyds4 are not in this tree: they surface as ordinary Python exceptions.
"""

from __future__ import annotations


class PyDS4Error(Exception):
    """Root of the tree: ``except PyDS4Error`` catches everything the world can do to us."""


class ModelFileError(PyDS4Error):
    """The model file is missing, truncated or malformed."""


class UnsupportedModelError(PyDS4Error):
    """The file is sound but describes a model, a layer or a tensor type that is not supported."""


class BackendError(PyDS4Error):
    """The compute device failed, or the backend asked for does not exist here."""


class MemoryLimitError(PyDS4Error):
    """There is not enough memory for the weights or for a context of the size asked for."""


class TokenOutOfRangeError(PyDS4Error, ValueError):
    """A token id lies outside the vocabulary."""


class ContextFullError(PyDS4Error):
    """The tokens do not fit into the session's context; the session is unchanged."""


class SessionCancelled(PyDS4Error):
    """``cancel()`` stopped the call; ``position`` says how far the session came."""


class ClosedError(PyDS4Error):
    """The engine or session was used after ``close()``."""


class InvalidArgumentError(PyDS4Error, ValueError):
    """An argument has a value that no model could make sense of."""


class StoreError(PyDS4Error):
    """The directory of kept prefixes cannot be made, read or written; says which call refused."""


class NoSuchKeyError(PyDS4Error, KeyError):
    """No prefix of that key is kept: it never was, or it was evicted or deleted."""

    __str__ = Exception.__str__  # KeyError's would put quotes around the message


class ChatError(PyDS4Error):
    """Something is wrong with text: messages, completions or the vocabulary."""


class RenderError(ChatError, ValueError):
    """The messages or options cannot be rendered as a prompt."""


class ParseError(ChatError, ValueError):
    """The completion does not follow the format that the strict parser demands."""


class TokenizerError(ChatError):
    """The vocabulary cannot be used, or an id or text does not belong to it."""
