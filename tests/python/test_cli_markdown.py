"""Answers formatted while they are written."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pyds4.cli.markdown import MarkdownView, split_blocks

PIECES = st.sampled_from(["word ", "\n", "\n\n", "```", "```py\n", "~~~~\n", "  - x", "# h\n", "`"])
DOCUMENTS = st.lists(PIECES, max_size=30).map("".join)


@given(DOCUMENTS)
def test_blocks_are_cut_without_losing_a_character(text: str) -> None:
    finished, rest = split_blocks(text)
    assert finished + rest == text
    assert split_blocks(finished)[1] == ""
    assert split_blocks(rest)[0] == "" or rest.startswith("\n")


@given(DOCUMENTS, st.data())
def test_blocks_are_the_same_however_the_text_arrives(text: str, data: st.DataObject) -> None:
    whole, rest = split_blocks(text)
    cut = data.draw(st.integers(0, len(text)))
    first, left = split_blocks(text[:cut])
    second, last = split_blocks(left + text[cut:])
    assert (first + second, last) == (whole, rest)


def test_a_code_fence_is_one_block() -> None:
    text = "Look:\n\n```py\na = 1\n\nb = 2\n```\nmore"
    assert split_blocks(text) == (text[:-4], "more")
    assert split_blocks(text[:-8])[0] == "Look:\n\n"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.from_regex(r"[a-z]{1,12}", fullmatch=True), min_size=1, max_size=30))
def test_every_word_of_a_streamed_answer_is_printed_for_good_once(words: list[str]) -> None:
    text = "\n\n".join(" ".join(words[i : i + 5]) for i in range(0, len(words), 5))
    file = io.StringIO()
    view = MarkdownView(Console(file=file, force_terminal=True, width=60, color_system=None))
    for at in range(0, len(text), 3):
        view.feed(text[at : at + 3])
    view.finish()
    # What the live region showed is erased again, line by line.
    screen = Screen()
    screen.write(file.getvalue())
    assert screen.text().split() == words


class Screen:
    """Just enough of a terminal: line feeds, carriage returns, cursor up, erase line."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = 0

    def write(self, text: str) -> None:
        at = 0
        while at < len(text):
            char = text[at]
            if char == "\x1b":
                end = at + 2
                while not text[end].isalpha():
                    end += 1
                if text[end] == "A":
                    self.row -= int(text[at + 2 : end])
                elif text[end] == "K":
                    self.lines[self.row] = ""
                at = end
            elif char == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif char != "\r":
                self.lines[self.row] += char
            at += 1

    def text(self) -> str:
        return "\n".join(self.lines)
