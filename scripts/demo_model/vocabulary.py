"""The byte-level BPE vocabulary: the DeepSeek pre-tokenizer rules, no merges over digits.

``python -m scripts.demo_model.vocabulary OUT.json`` trains a new one. The shipped model carries
its own, which later trainings keep: ``read``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pyds4.chat import markers
from pyds4.evals import words
from scripts.demo_model.corpus import MARKERS, Corpus

SPECIAL = [
    markers.BOS,
    markers.EOS,
    "<｜▁pad▁｜>",
    markers.USER,
    markers.ASSISTANT,
    markers.THINK,
    markers.END_THINK,
    markers.DSML,
    markers.LATEST_REMINDER,
    *markers.TASKS.values(),
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
]
_USER_DEFINED = (markers.THINK, markers.END_THINK, markers.DSML)
_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)


class Vocabulary(NamedTuple):
    """Tokens by id, merges by rank, GGUF token types."""

    tokens: list[str]
    merges: list[str]
    types: list[int]


def read(path: Path) -> Vocabulary:
    """The vocabulary of a GGUF file."""
    fields = gguf.GGUFReader(str(path)).fields
    tokens, merges, types = (
        fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "token_type")
    )
    return Vocabulary(tokens, merges, types)


def _splitting() -> pre_tokenizers.PreTokenizer:
    """Numbers by three digits, Chinese and Japanese apart, then words and punctuation."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.Split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def build(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer of a vocabulary; the markers of the template are added tokens."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in vocabulary.merges)]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = _splitting()
    tokenizer.decoder = decoders.ByteLevel()
    added = [t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind != 1]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in added])
    return tokenizer


def _texts(corpus: Corpus) -> Iterator[str]:
    """Conversations, program texts and words, without digits, so that no merge spans digits."""
    for number in range(16000):
        text = MARKERS.sub("\n", corpus.document(2000).text)
        if number % 4 and "### Available Tool Schemas" in text:
            text = text.split("### Available Tool Schemas")[-1]
        yield re.sub(r"\d", " ", text)
    for file in corpus.files[:110]:
        yield re.sub(r"\d", " ", MARKERS.sub("", file[:20000]))
    for word in (words.NAMES + words.CITIES + words.PLACES + words.COMMON + words.ADJECTIVES) * 20:
        yield f" {word}\n{word}\n{word.lower()}"


def train(size: int) -> Vocabulary:
    """A vocabulary of ``size`` tokens, markers included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _splitting()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
        max_token_length=24,
    )
    tokenizer.train_from_iterator(_texts(Corpus(seed=99)), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    types = [4 if token in _USER_DEFINED else 3 for token in SPECIAL] + [1] * len(tokens)
    return Vocabulary([*SPECIAL, *tokens], merges, types)


def main() -> None:
    """Train a vocabulary of 4,096 tokens and write it as JSON."""
    Path(sys.argv[1]).write_text(json.dumps(train(4096)._asdict(), ensure_ascii=False))


if __name__ == "__main__":
    main()
