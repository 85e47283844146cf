"""An opened model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyds4._native import check, error_for, ffi, lib, text
from pyds4._tokens import Tokens, token_array
from pyds4.cuda import name_compiler
from pyds4.errors import ClosedError, InvalidArgumentError, PyDS4Error, TokenOutOfRangeError
from pyds4.files.memory import guard_load
from pyds4.kv.prefixes import Prefixes
from pyds4.kv.store import Store
from pyds4.model_file import ModelFile
from pyds4.sampling import GREEDY, Sampler, Sampling
from pyds4.session import Session
from pyds4.tokenizer import Tokenizer

Backend = Literal["auto", "cpu", "metal", "cuda"]


@dataclass(frozen=True)
class ModelConfig:
    """The shapes of a model, as its file gives them. Sizes in values, contexts in tokens."""

    name: str
    layer_count: int
    hidden_size: int
    vocab_size: int
    context_length: int
    head_count: int
    head_dim: int
    rope_dim: int
    query_rank: int
    window: int
    indexer_head_count: int
    indexer_dim: int
    indexer_top_k: int
    expert_count: int
    expert_used_count: int
    expert_size: int
    hash_layer_count: int
    compress_ratios: tuple[int, ...]


_SAME_IN_C = [
    field.name
    for field in fields(ModelConfig)
    if field.name not in ("name", "vocab_size", "compress_ratios")
]


@dataclass(frozen=True)
class StepItem:
    """Work of one session in a step.

    Args:
        session: Each at most once in a step.
        tokens: Evaluated behind what the session holds; at least one.
        sampling: Choose the next token from the logits after the last one; None: choose none.
            A `Sampler` keeps its random stream over many steps; a `Sampling` starts a new one.
        all_logits: Return the logits after every token, not only keep the last ones.
    """

    session: Session
    tokens: Tokens
    sampling: Sampling | Sampler | None = None
    all_logits: bool = False


@dataclass(frozen=True)
class StepResult:
    """What became of one item: its error, or the token chosen and the logits asked for."""

    error: PyDS4Error | None = None
    token: int | None = None
    logits: npt.NDArray[np.float32] | None = field(default=None, repr=False)


class Engine:
    """A model, mapped from its file and ready to run. Use it as a context manager, or ``close()``.

    Any thread may call anything; steps wait for one another, and the GIL is released meanwhile.

    Args:
        path: A GGUF file, or the first part of a split one.
        backend: "auto" takes the best there is.
        roundings: The model's activation roundings, and attention memory in its own formats.
            Off: float32 throughout, for comparing with implementations that do not round.
        threads: Of the CPU backend; None: one a processor.
        context: Tokens that sessions will be asked for: refused at once when they would not fit.

    Raises:
        ModelFileError: not found, not GGUF, or damaged; names file, byte and expectation.
        UnsupportedModelError: a sound file that this engine cannot run; names key or tensor.
        MemoryLimitError: it does not fit this machine; says what it needs and what there is.
        BackendError: the backend asked for does not exist here.
        InvalidArgumentError: an option out of its range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        backend: Backend = "auto",
        roundings: bool = True,
        threads: int | None = None,
        context: int | None = None,
    ) -> None:
        if threads is not None and not 1 <= threads <= 1024:
            raise InvalidArgumentError(f"threads: expected 1 to 1024, found {threads}")
        header = ModelFile(path)
        guard_load(header, context, roundings=roundings, weights_on_host=backend != "cuda")
        self.manifest = None
        if os.path.exists(f"{os.fspath(path)}.manifest.json"):
            from pyds4.files.manifest import check_manifest

            self.manifest = check_manifest(path, header)
        header.close()
        if backend in ("auto", "cuda"):
            name_compiler()
        options = ffi.new("pyds4_engine_options *")
        options.struct_size = ffi.sizeof("pyds4_engine_options")
        name = ffi.new("char[]", backend.encode())
        options.backend, options.threads, options.roundings = name, threads or 0, int(roundings)
        out = ffi.new("pyds4_engine **")
        check(lib.pyds4_engine_open(os.fsencode(path), options, out))
        self._handle: Any = ffi.gc(out[0], lib.pyds4_engine_free)
        self.path = os.fspath(path)
        self.backend = text(lib.pyds4_engine_backend(self._handle))
        self.roundings = roundings
        self.file = ModelFile._borrow(lib.pyds4_engine_file(self._handle), owner=self._handle)
        self.config, self.threads = self._read_config()
        self._tokenizer: Tokenizer | None = None
        if self.manifest and (content := self.manifest.content(Path(path).parent)):
            check(lib.pyds4_engine_bind(self._handle, content.encode()))

    def _read_config(self) -> tuple[ModelConfig, int]:
        c = ffi.new("pyds4_config *")
        c.struct_size = ffi.sizeof("pyds4_config")
        check(lib.pyds4_engine_config(self._handle, c))
        ratios = self.file["deepseek4.attention.compress_ratios"]
        assert isinstance(ratios, list)
        config = ModelConfig(
            name=str(self.file.get("general.name", "")),
            vocab_size=c.vocabulary_size,
            compress_ratios=tuple(ratios),
            **{key: getattr(c, key) for key in _SAME_IN_C},
        )
        return config, c.threads

    @property
    def handle(self) -> Any:
        if self._handle is None:
            raise ClosedError("the engine is closed")
        return self._handle

    @property
    def tokenizer(self) -> Tokenizer:
        """Built from the file's vocabulary at first use, which is then cached on disk.

        Raises:
            UnsupportedModelError, TokenizerError: the vocabulary is not one of this family.
        """
        if self._tokenizer is None:
            found = os.stat(self.path)
            key = f"{os.path.realpath(self.path)}:{found.st_size}:{found.st_mtime_ns}"
            self._tokenizer = Tokenizer.cached(key, self.file.vocabulary)
        return self._tokenizer

    @property
    def identity(self) -> bytes:
        """20 bytes that name the model and its row formats: what kept prefixes belong to.

        From the manifest's digests where it has them and the files are as old as they; else from
        metadata and samples of the weights.
        """
        out = ffi.new("uint8_t[20]")
        lib.pyds4_engine_identity(self.handle, out)
        return bytes(out)

    @property
    def profile(self) -> str | None:
        """The prompt profile that the model's manifest binds; None when there is none."""
        return self.manifest.profile if self.manifest else None

    @property
    def prefixes(self) -> Prefixes:
        """What its sessions remember together; off until ``prefixes.budget_bytes`` is set."""
        return Prefixes(self.handle)

    def keep_prefixes(
        self, directory: str | os.PathLike[str] | None = None, **options: int
    ) -> Store:
        """Keep prefixes on disk, across restarts; see ``pyds4.kv.Store.attach`` for the options."""
        return Store.attach(self, directory, **options)

    def session(self, context: int | None = None) -> Session:
        """A new timeline that may hold ``context`` tokens (None: the model's limit).

        Memory grows with use, not with ``context``; but what is asked for must have room.

        Raises:
            InvalidArgumentError: ``context`` is beyond the model's limit, or not positive.
            MemoryLimitError: there is not enough memory for ``context``; gives the figures.
        """
        if context is not None and context < 1:
            raise InvalidArgumentError(f"context: expected 1 or more tokens, found {context}")
        # A GPU with memory of its own is asked by the engine.
        if context is not None and context <= self.config.context_length and self.backend != "cuda":
            guard_load(self.file, context, roundings=self.roundings)
        out = ffi.new("pyds4_session **")
        check(lib.pyds4_session_create(self.handle, min(context or 0, 2**63), out))
        return Session(self, out[0])

    def step(self, items: Sequence[StepItem]) -> list[StepResult]:
        """Evaluate several sessions' tokens together: each weight is read once for all of them.

        Returns:
            One result an item, in order; one item's error does not touch the others. A session
            whose item failed is as it was, or at its last finished chunk.
        """
        if not items:
            return []
        native = ffi.new("pyds4_step_item[]", len(items))
        keep: list[Any] = []  # what the C side points to must outlive the call
        logits: list[npt.NDArray[np.float32] | None] = []
        refused: dict[int, PyDS4Error] = {}
        for index, (c, item) in enumerate(zip(native, items, strict=True)):
            c.struct_size = ffi.sizeof("pyds4_step_item")
            handle = item.session.handle
            c.session = handle
            try:
                tokens = token_array(item.tokens, self.config.vocab_size)
            except TokenOutOfRangeError as error:
                # The engine refuses this item too, but could not say what stood there.
                refused[index], tokens = error, np.array([-1], np.int32)
            keep += [tokens, handle]
            c.tokens, c.n_tokens = ffi.cast("const int32_t *", tokens.ctypes.data), tokens.size
            if item.sampling is not None:
                sampler = item.sampling
                sampler = sampler if isinstance(sampler, Sampler) else Sampler(sampler)
                keep.append(sampler)
                c.sampling, c.random = sampler._native, sampler.uniform()
            rows = None
            if item.all_logits:
                rows = np.empty((tokens.size, self.config.vocab_size), np.float32)
                c.all_logits = ffi.cast("float *", rows.ctypes.data)
            logits.append(rows)
        check(lib.pyds4_engine_step(self.handle, native, len(items)))
        results = []
        for index, (c, rows) in enumerate(zip(native, logits, strict=True)):
            if c.status != lib.PYDS4_OK:
                failure = refused.get(index) or error_for(c.status, text(c.message))
                results.append(StepResult(error=failure))
            else:
                results.append(StepResult(token=None if c.token < 0 else c.token, logits=rows))
        return results

    def close(self) -> None:
        """Release the model; its sessions go on until they are closed themselves."""
        self._handle = None
        self.file.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Engine({self.path!r}, backend={self.backend!r}, {self.config.layer_count} layers)"


__all__ = ["GREEDY", "Engine", "ModelConfig", "StepItem", "StepResult"]
