"""Bytes <-> ids; text begins here.

Byte-level BPE, rebuilt from the vocabulary a GGUF file carries. A text is cut by three splits, each
seeing only the pieces the one before left over; one merged alternation would be wrong, because the
look-ahead in the last pattern must not see past its own piece. Every piece then becomes bytes,
every byte a printable stand-in character, and BPE merges those.

The `tokenizers` library does the merging. Added tokens (role markers, `<think>` and the like) are
kept out of it and matched here, so that ``special=False`` cannot produce one by any spelling:
that is what makes client text safe to put into a prompt.

Source: the tokenizer file published with the weights; GGUF keys ``tokenizer.ggml.*``.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import platformdirs
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as BPETokenizer
from tokenizers.models import BPE

from pyds4.errors import TokenizerError

SUPPORTED_PRE = ("joyai-llm", "deepseek-v3")
"""Values of ``tokenizer.ggml.pre`` that mean the split chain below."""

SPLITS = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+"
    "|\\s+(?!\\S)"
    "|\\s+",
)

# GGUF token types (tokenizer.ggml.token_type).
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5

_CACHE_MAGIC = b"pyds4-vocabulary-1"


def _byte_stand_ins() -> dict[int, str]:
    """The character that stands for each byte: itself where printable, else U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    table: dict[int, str] = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in printable:
            table[byte] = chr(0x100 + len(table) - len(printable))
    return table


_STAND_IN = _byte_stand_ins()
_BYTE_OF = {ord(char): byte for byte, char in _STAND_IN.items()}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF file says about its tokenizer, as read.

    Attributes:
        tokens: ``tokenizer.ggml.tokens``; the index is the id, normal tokens in stand-in
            characters, the others in plain text.
        merges: ``tokenizer.ggml.merges``, ``"left right"``, best first.
        token_types: ``tokenizer.ggml.token_type``, one per token.
        pre: ``tokenizer.ggml.pre``.
        add_bos: ``tokenizer.ggml.add_bos_token``. Never acted upon: BOS comes from the chat
            template, and a second one would put every prompt off distribution.
    """

    tokens: list[str]
    merges: list[str]
    token_types: list[int]
    pre: str
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    add_bos: bool = False

    def digest(self) -> str:
        """Hex SHA-256 of everything that decides how text is encoded."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """Every field as one JSON object in UTF-8."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(values, separators=(",", ":")).encode()


class IncrementalDecoder:
    """Turns ids into text one at a time, releasing only whole characters.

    A character may be spread over several tokens; its bytes are held back until it is complete.
    Bytes that can no longer become a character are released as U+FFFD. One per stream; not for
    sharing between threads.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that ``token`` completes; often empty in the middle of a character.

        Raises:
            TokenizerError: the vocabulary has no such id; the decoder is unchanged.
        """
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What is still held back, as U+FFFD: the stream ended inside a character."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class Tokenizer:
    """A vocabulary ready for use. Immutable once built, so any thread may call it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        _check(vocabulary)
        self._tokens = vocabulary.tokens
        self._types = vocabulary.token_types
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.pad_id = vocabulary.pad_id
        normal: dict[str, int] = {}
        self._added: dict[str, int] = {}
        for token, (text, kind) in enumerate(zip(self._tokens, self._types, strict=True)):
            if kind == _NORMAL:
                normal[text] = token
            elif kind in (_CONTROL, _USER_DEFINED) and text:
                self._added.setdefault(text, token)
        self._normal = normal
        self._added_pattern = re.compile(_longest_match(self._added)) if self._added else None
        self._bpe = _build_bpe(normal, vocabulary.merges)

    @classmethod
    def from_vocabulary(cls, vocabulary: Vocabulary) -> Tokenizer:
        """Build the tokenizer: about 0.15 s for 129,280 tokens.

        Raises:
            TokenizerError: an unknown pre-tokenizer or token type, lists that do not match, or
                a merge of tokens that do not exist.
        """
        return cls(vocabulary)

    @classmethod
    def cached(
        cls,
        key: str,
        read_vocabulary: Callable[[], Vocabulary],
        cache_dir: Path | None = None,
    ) -> Tokenizer:
        """The tokenizer for ``key``, without reading the vocabulary again if it was seen before.

        Building costs as much as reading any built form back, so what is worth keeping is the
        vocabulary itself: pulling 257,000 strings out of GGUF metadata is the slow part. The file
        is checked against its own SHA-256; a damaged one is ignored and written anew, and a cache
        directory that cannot be written is no error.

        Args:
            key: Whatever identifies the vocabulary, for instance the model file's path, size and
                modification time.
            read_vocabulary: Called on a miss.
            cache_dir: Defaults to the user's cache directory for pyds4.

        Raises:
            TokenizerError: as ``from_vocabulary``.
        """
        directory = cache_dir or Path(platformdirs.user_cache_dir("pyds4")) / "tokenizers"
        path = directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.vocab"
        vocabulary = _read_cache(path)
        if vocabulary is not None:
            with suppress(TokenizerError):
                return cls(vocabulary)
        vocabulary = read_vocabulary()
        tokenizer = cls(vocabulary)
        _write_cache(path, vocabulary)
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self._tokens)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The ids of ``text``; no BOS or EOS is added.

        Args:
            text: Any string; lone surrogates become U+FFFD.
            special: Recognise added tokens anywhere in the text, the longest first. False for
                text from outside: then no added token can come out, whatever is spelled.
        """
        text = _without_lone_surrogates(text)
        if not special or self._added_pattern is None:
            return self._encode_plain(text)
        ids: list[int] = []
        done = 0
        for match in self._added_pattern.finditer(text):
            ids += self._encode_plain(text[done : match.start()])
            ids.append(self._added[match.group()])
            done = match.end()
        return ids + self._encode_plain(text[done:])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, added tokens included; invalid UTF-8 becomes U+FFFD.

        Raises:
            TokenizerError: an id the vocabulary does not have.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of ``ids``, which may end inside a character.

        Raises:
            TokenizerError: an id the vocabulary does not have.
        """
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, token: int) -> bytes:
        """The bytes one id stands for.

        Raises:
            TokenizerError: the vocabulary has no such id.
        """
        if not 0 <= token < len(self._tokens):
            raise TokenizerError(
                f"token id {token} is outside the vocabulary of {len(self._tokens)}"
            )
        text = self._tokens[token]
        if self._types[token] != _NORMAL:
            return text.encode()
        return bytes(map(_BYTE_OF.__getitem__, map(ord, text)))

    def token_id(self, text: str) -> int | None:
        """The single id that stands for ``text``, or None; added tokens come first."""
        added = self._added.get(text)
        if added is not None:
            return added
        stand_in = "".join(map(_STAND_IN.__getitem__, _without_lone_surrogates(text).encode()))
        return self._normal.get(stand_in)

    def is_special(self, token: int) -> bool:
        """Whether ``token`` is an added token, one that plain text can never become."""
        return 0 <= token < len(self._types) and self._types[token] in (_CONTROL, _USER_DEFINED)

    def decoder(self) -> IncrementalDecoder:
        """A fresh decoder for one stream of ids."""
        return IncrementalDecoder(self)

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """The split chain of DeepSeek-V4, ending in bytes."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS]
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _check(vocabulary: Vocabulary) -> None:
    """Refuse a vocabulary that this tokenizer would read wrongly."""
    if vocabulary.pre not in SUPPORTED_PRE:
        raise TokenizerError(
            f"tokenizer.ggml.pre is {vocabulary.pre!r}; supported: {', '.join(SUPPORTED_PRE)}"
        )
    count = len(vocabulary.tokens)
    if len(vocabulary.token_types) != count:
        raise TokenizerError(
            f"tokenizer.ggml.token_type has {len(vocabulary.token_types)} entries "
            f"for {count} tokens"
        )
    known = {_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED}
    for token, kind in enumerate(vocabulary.token_types):
        if kind not in known:
            raise TokenizerError(f"token {token} has type {kind}; byte-level BPE has no such type")
    for name in ("bos_id", "eos_id", "pad_id"):
        token = getattr(vocabulary, name)
        if token is not None and not 0 <= token < count:
            raise TokenizerError(f"{name} {token} is outside the vocabulary of {count}")


def _build_bpe(normal: dict[str, int], merges: list[str]) -> BPETokenizer:
    missing = [byte for byte, char in _STAND_IN.items() if char not in normal]
    if missing:
        raise TokenizerError(f"no token for byte {missing[0]:#04x}: not a byte-level vocabulary")
    for text, token in normal.items():
        if not _BYTE_OF.keys() >= set(map(ord, text)):
            raise TokenizerError(f"token {token} {text!r} is not in byte-level characters")
    pairs: list[tuple[str, str]] = []
    for rank, merge in enumerate(merges):
        left, space, right = merge.partition(" ")
        if not space or left not in normal or right not in normal or left + right not in normal:
            raise TokenizerError(f"merge {rank} {merge!r} does not join two tokens into a third")
        pairs.append((left, right))
    bpe = BPETokenizer(BPE(normal, pairs))
    bpe.pre_tokenizer = pre_tokenizer()
    return bpe


def _longest_match(texts: Iterable[str]) -> str:
    """A pattern for the longest of ``texts``, as a prefix tree.

    A flat alternation of 1,283 tokens would be tried one by one at every `<`.
    """
    tree: dict[str, dict[str, object]] = {}
    for text in texts:
        node: dict[str, dict[str, object]] = tree
        for char in text:
            node = node.setdefault(char, {})  # type: ignore[assignment]
        node[""] = {}

    def pattern(node: dict[str, dict[str, object]]) -> str:
        branches = [
            re.escape(char) + pattern(child)  # type: ignore[arg-type]
            for char, child in node.items()
            if char
        ]
        if not branches:
            return ""
        body = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
        return f"(?:{body})?" if "" in node else body

    return pattern(tree)


def _without_lone_surrogates(text: str) -> str:
    """``text`` as valid Unicode: surrogate pairs joined, lone surrogates as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _read_cache(path: Path) -> Vocabulary | None:
    """The vocabulary at ``path``; None if there is none or it is damaged."""
    try:
        magic, checksum, payload = path.read_bytes().split(b"\n", 2)
        if magic != _CACHE_MAGIC or hashlib.sha256(payload).hexdigest().encode() != checksum:
            return None
        return Vocabulary(**json.loads(payload))
    except (OSError, ValueError, TypeError):
        return None


def _write_cache(path: Path, vocabulary: Vocabulary) -> None:
    """Write beside ``path`` and rename, so that no reader ever sees half a file."""
    payload = vocabulary.to_json()
    checksum = hashlib.sha256(payload).hexdigest().encode()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(b"\n".join((_CACHE_MAGIC, checksum, payload)))
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
