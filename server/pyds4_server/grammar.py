"""Answers that must have a form: which tokens may come next, as a mask over the vocabulary.

llguidance keeps the state of a parser over bytes and says in microseconds which tokens go on from
it. What is here is how a schema becomes a grammar, once, and how a generation follows it.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from pyds4 import Tokenizer
from pyds4.errors import PyDS4Error

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_COMPILED = 64
"""Grammars kept ready: an agent sends the same schemas with every request."""

_WHITESPACE = "[ \\t\\n\\r]{0,40}"
"""Between the parts of a JSON text. Bounded, or a model that is at a loss emits blanks for ever."""

JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": _WHITESPACE, "lenient": True}
"""How JSON is read in grammars: keywords that cannot be enforced are passed over."""

Mask = NDArray[np.bool_]


class GrammarError(ValueError):
    """A schema that makes no grammar; the message says what is wrong with it."""


class FollowingError(PyDS4Error):
    """The grammar became too complex to follow, for instance a pattern that explodes."""


class Grammar:
    """A form that an answer must have. Immutable, so that requests may share one."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def begin(self) -> Following:
        """A fresh state, at the beginning."""
        return Following(self._matcher.deep_copy(), self._vocab_size)


class Following:
    """A text on its way along a grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> Mask:
        """Which tokens may come next, of shape (vocab_size,). EOS where the text may end.

        Raises:
            FollowingError: the grammar has become too complex.
        """
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(packed, count=self._vocab_size, bitorder="little").view(np.bool_)

    def advance(self, token: int) -> None:
        """Take ``token``, one of those that ``allowed`` gave.

        Raises:
            FollowingError: it was none of them, or the grammar has become too complex.
        """
        self._matcher.consume_token(token)
        self._check()

    def accepts(self, tokens: list[int]) -> bool:
        """Take all of ``tokens`` if they fit; else the state is of no more use."""
        return self._matcher.try_consume_tokens(tokens) == len(tokens)

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().split("\n", 1)[0]
            raise FollowingError(f"the required format could not be followed: {reason}")


class GrammarCompiler:
    """Makes grammars for one vocabulary. Any thread may call it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocab_size = tokenizer.vocab_size
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)))
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()

    def from_schema(self, schema: Mapping[str, Any], *, strict: bool) -> Grammar:
        """The JSON texts that fit ``schema``, properties in its order.

        Args:
            schema: A JSON schema.
            strict: Refuse keywords that cannot be enforced, instead of passing them over.

        Raises:
            GrammarError: it is no JSON schema, nothing fits it, or it is too large.
        """
        return self._grammar(_json_grammar(schema, strict=strict))

    def from_lark(self, lark: str) -> Grammar:
        """The texts of a grammar in llguidance's dialect of Lark.

        Raises:
            GrammarError: a schema in it is wrong.
        """
        return self._grammar(LLMatcher.grammar_from_lark(lark))

    def _grammar(self, source: str) -> Grammar:
        with self._lock:
            known = self._compiled.get(source)
            if known is not None:
                self._compiled.move_to_end(source)
                return known
        matcher = LLMatcher(self._tokenizer, source, log_level=0)
        if matcher.is_error():
            raise GrammarError(_first_line(matcher.get_error()))
        grammar = Grammar(matcher, self._vocab_size)
        with self._lock:
            self._compiled[source] = grammar
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return grammar


class _Vocabulary:
    """A tokenizer in the form llguidance reads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        count = tokenizer.vocab_size
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token) for token in range(count)]
        self.special_token_ids = [token for token in range(count) if tokenizer.is_special(token)]

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(plain, special=False)


def _json_grammar(schema: Mapping[str, Any], *, strict: bool) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(
            json.dumps(schema),
            overrides={**JSON_OPTIONS, "lenient": not strict},
        )
    except ValueError as error:
        raise GrammarError(_first_line(str(error))) from error


def check_schema(schema: Mapping[str, Any]) -> None:
    """Whether ``schema`` alone makes a grammar, for a message that can say which of many does not.

    Raises:
        GrammarError: it does not.
    """
    told = LLMatcher.validate_grammar(_json_grammar(schema, strict=False))
    if told and not told.startswith("WARNING"):
        raise GrammarError(_first_line(told))


def _first_line(message: str) -> str:
    return " ".join(message.split())[:300] or "the schema makes no sense"


_compilers: WeakKeyDictionary[Tokenizer, GrammarCompiler] = WeakKeyDictionary()
_compilers_lock = threading.Lock()


def compiler_for(tokenizer: Tokenizer) -> GrammarCompiler:
    """The compiler of a vocabulary: half a second for 129,280 tokens the first time."""
    with _compilers_lock:
        compiler = _compilers.get(tokenizer)
        if compiler is None:
            compiler = _compilers[tokenizer] = GrammarCompiler(tokenizer)
        return compiler
