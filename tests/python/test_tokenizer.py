"""The tokenizer against golden vectors, and what it does with input nobody should send."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chat_vectors import cases, load, tiny_vocabulary, tokenizer, v4_vocabulary
from hypothesis import given
from hypothesis import strategies as st

from pyds4.errors import TokenizerError
from pyds4.tokenizer import Tokenizer, Vocabulary, pre_tokenizer

BOTH = pytest.mark.parametrize("name", ["tiny", "v4"])


@BOTH
def test_encoding_agrees_with_the_published_tokenizer(name: str) -> None:
    for case in cases(f"tokenize_{name}"):
        assert tokenizer(name).encode(case["text"]) == case["ids"], case["id"]


@BOTH
def test_plain_encoding_agrees_with_the_published_tokenizer(name: str) -> None:
    for case in cases(f"tokenize_{name}"):
        expected = case.get("ids_plain", case["ids"])
        assert tokenizer(name).encode(case["text"], special=False) == expected, case["id"]


@BOTH
def test_decoding_gives_the_text_back(name: str) -> None:
    for case in cases(f"tokenize_{name}"):
        assert case["decode_equals_text"]
        assert tokenizer(name).decode(case["ids"]) == case["text"], case["id"]
        assert tokenizer(name).decode_bytes(case["ids"]) == case["text"].encode(), case["id"]


def test_splits_agree_with_the_published_tokenizer() -> None:
    split = pre_tokenizer()
    checked = 0
    for case in cases("tokenize_v4"):
        if "pieces" in case:
            text = case["text"]
            spans = [span for _, span in split.pre_tokenize_str(text)]
            assert [text[start:end] for start, end in spans] == case["pieces"], case["id"]
            checked += 1
    assert checked > 400


def test_split_patterns_use_the_published_character_classes() -> None:
    """A class shows in what a character does between two letters, two signs and two digits."""
    split = pre_tokenizer()

    def pieces(text: str) -> int:
        return len(split.pre_tokenize_str(text))

    def behaviour(char: str) -> tuple[int, ...]:
        return (pieces(f"a{char}a"), pieces(f"§{char}§"), pieces(f"1{char}1"), pieces(f" {char}"))

    sample = {"N": "5", "LM": "b", "PS": "§", "CJK": "中"}
    expected = {name: behaviour(char) for name, char in sample.items()}
    assert len(set(expected.values())) == len(expected)
    for first, last, name in load("unicode_classes")["ranges"]:
        if name in expected:
            # ASCII punctuation has a rule of its own: it sticks to the letters after it.
            for point in {first, (first + last) // 2, last} - set(range(0x80)):
                assert behaviour(chr(point)) == expected[name], f"U+{point:04X} as {name}"


@pytest.mark.parametrize("pre", ["joyai-llm", "deepseek-v3"])
def test_both_names_of_the_split_chain_are_accepted(pre: str) -> None:
    vocabulary = dataclasses.replace(tiny_vocabulary(), pre=pre)
    assert Tokenizer.from_vocabulary(vocabulary).encode("1234 ab") == tokenizer("tiny").encode(
        "1234 ab"
    )


@given(st.text())
def test_plain_encoding_never_produces_an_added_token(text: str) -> None:
    made = tokenizer("tiny")
    for spelled in (text, f"<｜User｜>{text}</think>", f"{text}｜DSML｜<｜end▁of▁sentence｜>"):
        ids = made.encode(spelled, special=False)
        assert not any(map(made.is_special, ids))
        assert made.decode(ids) == spelled


@given(st.text())
def test_any_text_survives_a_round_trip(text: str) -> None:
    assert tokenizer("tiny").decode(tokenizer("tiny").encode(text)) == text


def test_lone_surrogates_become_replacement_characters() -> None:
    made = tokenizer("tiny")
    assert made.decode(made.encode("a\ud800b")) == "a\ufffdb"
    assert made.decode(made.encode("\ud83d\ude00", special=False)) == "😀"


@BOTH
def test_known_ids_are_where_the_format_says(name: str) -> None:
    made = tokenizer(name)
    assert (made.token_id("<｜begin▁of▁sentence｜>"), made.bos_id) == (0, 0)
    assert (made.token_id("<｜end▁of▁sentence｜>"), made.eos_id) == (1, 1)
    assert made.token_id("no single token is this long") is None
    assert made.token_id(" the") == made.encode(" the")[0]
    if name == "v4":
        assert made.vocab_size == 129_280
        assert made.token_id("<｜User｜>") == 128_803
        assert made.token_id("｜DSML｜") == 128_825


@pytest.mark.parametrize("token", [-1, 2010, 1 << 40])
def test_an_unknown_id_is_named_in_the_error(token: int) -> None:
    made = tokenizer("tiny")
    for call in (made.token_bytes, made.decoder().feed, lambda t: made.decode([5, t])):
        with pytest.raises(TokenizerError, match=str(token)):
            call(token)


def _broken(**changes: Any) -> Vocabulary:
    return dataclasses.replace(tiny_vocabulary(), **changes)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (_broken(pre="llama-bpe"), "'llama-bpe'"),
        (_broken(token_types=[1]), "1 entries for 2010 tokens"),
        (_broken(token_types=[6, *tiny_vocabulary().token_types[1:]]), "token 0 has type 6"),
        (_broken(merges=["Ġ Ġ", "nope"]), "merge 1 'nope'"),
        (_broken(merges=["zz zz"]), "merge 0 'zz zz'"),
        (_broken(eos_id=2010), "eos_id 2010"),
        (_broken(tokens=["b a d", *tiny_vocabulary().tokens[1:]], token_types=[1] * 2010), "token"),
        (
            _broken(tokens=[], token_types=[], merges=[], bos_id=None, eos_id=None, pad_id=None),
            "0x",
        ),
    ],
)
def test_a_vocabulary_it_would_misread_is_refused(vocabulary: Vocabulary, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_vocabulary(vocabulary)


@pytest.mark.parametrize("case", cases("stream_decode"), ids=lambda case: "-")
def test_incremental_decoding_releases_whole_characters_only(case: dict[str, Any]) -> None:
    made = tokenizer(case["vocabulary"])
    decoder = made.decoder()
    released = ""
    for token, raw, expected in zip(
        case["ids"], case["token_bytes_hex"], case["emittable_text"], strict=True
    ):
        assert made.token_bytes(token).hex() == raw
        released += decoder.feed(token)
        assert released == expected
    assert released + decoder.finish() == case["text"]


def test_a_stream_that_ends_inside_a_character_finishes_with_a_replacement() -> None:
    made = tokenizer("tiny")
    decoder = made.decoder()
    first_byte = next(t for t in range(made.vocab_size) if made.token_bytes(t) == b"\xc3")
    assert decoder.feed(first_byte) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.finish() == ""


@given(st.lists(st.integers(0, 2009)))
def test_incremental_decoding_adds_up_to_the_whole(ids: list[int]) -> None:
    made = tokenizer("tiny")
    decoder = made.decoder()
    assert "".join(map(decoder.feed, ids)) + decoder.finish() == made.decode(ids)


def test_threads_may_share_a_tokenizer() -> None:
    made = tokenizer("tiny")
    texts = [f"{case['text']} {number}" for number, case in enumerate(cases("tokenize_tiny"))]
    expected = [made.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(made.encode, texts * 4)) == expected * 4


# --- the cache ---------------------------------------------------------------------------------


class _Source:
    """A vocabulary that counts how often it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> Vocabulary:
        self.reads += 1
        return tiny_vocabulary()


def test_a_cached_vocabulary_is_read_once(tmp_path: Path) -> None:
    source = _Source()
    first = Tokenizer.cached("model", source, tmp_path)
    second = Tokenizer.cached("model", source, tmp_path)
    assert source.reads == 1
    assert first.encode("Hello <think>") == second.encode("Hello <think>")
    assert (second.bos_id, second.eos_id, second.pad_id) == (0, 1, 1)
    Tokenizer.cached("another", source, tmp_path)
    assert source.reads == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "json"])
def test_a_damaged_cache_is_ignored_and_rebuilt(tmp_path: Path, damage: str) -> None:
    source = _Source()
    Tokenizer.cached("model", source, tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(
        {
            "truncate": content[:-5],
            "flip": content[:-100] + b"#" + content[-99:],
            "empty": b"",
            "json": b"[]",
        }[damage]
    )
    made = Tokenizer.cached("model", source, tmp_path)
    assert source.reads == 2
    assert made.encode("Hello") == tokenizer("tiny").encode("Hello")
    assert file.read_bytes() == content


def test_no_partial_file_is_left_behind(tmp_path: Path) -> None:
    Tokenizer.cached("model", tiny_vocabulary, tmp_path)
    assert [file.suffix for file in tmp_path.iterdir()] == [".vocab"]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    made = Tokenizer.cached("model", tiny_vocabulary, blocked / "inside")
    assert made.vocab_size == 2010
    assert os.listdir(tmp_path) == ["file"]


def test_the_digest_follows_every_field() -> None:
    plain = tiny_vocabulary()
    changed = dataclasses.replace(plain, add_bos=True)
    assert plain.digest() == dataclasses.replace(plain).digest() != changed.digest()
    assert len({v.digest() for v in (plain, v4_vocabulary(), changed)}) == 3
