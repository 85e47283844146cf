"""The strict parser against the published one."""

from __future__ import annotations

from typing import Any

import pytest
from chat_vectors import cases

from pyds4.chat import parse
from pyds4.errors import ParseError


@pytest.mark.parametrize("case", cases("parse"), ids=lambda case: case["id"])
def test_completions_parse_as_published(case: dict[str, Any]) -> None:
    if "expected_error" in case:
        with pytest.raises(ParseError):
            parse(case["completion_text"], case["thinking_mode"])
    else:
        found = parse(case["completion_text"], case["thinking_mode"])
        assert found == case["expected_message"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Hello", "does not end in EOS"),
        ("Hello<｜end▁of▁sentence｜>more", "text after EOS: 'more'"),
        ("a</think>b<｜end▁of▁sentence｜>", "the marker </think> inside the content"),
        (
            "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=f>\n</｜DSML｜invoke>",
            "malformed invoke: ' name=f",
        ),
        ("\n\n<｜DSML｜tool_calls> x", "between calls, got '> x'"),
    ],
)
def test_an_error_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse(text, "chat")


def test_a_long_quotation_is_cut() -> None:
    with pytest.raises(ParseError) as caught:
        parse("\n\n<｜DSML｜tool_calls>" + "x" * 10_000, "chat")
    assert len(str(caught.value)) < 150
