"""Recognising tool-call tags in text that is still arriving.

Besides the form the encoder writes, this accepts what models are seen to write: ASCII bars, a
space after the bar, ``function_calls`` (V3.2) and ``calls`` for the wrapper, attributes in another
order or without quotes, ``string="True"`` or no ``string`` at all.
"""

from __future__ import annotations

import re
from itertools import product
from typing import Final, Literal, NamedTuple

Kind = Literal["block", "block_end", "invoke", "invoke_end", "parameter", "parameter_end"]


class Tag(NamedTuple):
    """A whole tag; ``end`` is the index after its ``>``."""

    kind: Kind
    end: int
    name: str = ""
    is_string: bool | None = None


class Partial(NamedTuple):
    """What may become a tag once more text arrives; ``committed`` once the marker is whole."""

    committed: bool


_KINDS: Final[dict[str, Kind]] = {
    "tool_calls": "block",
    "function_calls": "block",
    "calls": "block",
    "invoke": "invoke",
    "parameter": "parameter",
}
_ENDS: Final[dict[Kind, Kind]] = {
    "block": "block_end",
    "invoke": "invoke_end",
    "parameter": "parameter_end",
}
# The published parser takes a newline between `<` and `/` of a closing tag; so do we.
_HEADS: Final = [
    "".join(parts)
    for parts in product(("<", "</", "<\n/"), "｜|", ("DSML",), "｜|", ("", " "), _KINDS)
]
_HEAD: Final = re.compile(
    r"<(\n?/)?[｜|]DSML[｜|] ?(tool_calls|function_calls|calls|invoke|parameter)"
)
_PREFIXES: Final = {head[:length] for head in _HEADS for length in range(1, len(head))}
_LONGEST: Final = max(map(len, _HEADS))
_COMMITTED: Final = re.compile(r"<(\n?/)?[｜|]DSML[｜|]")

# An opening tag longer than this, or with a newline inside an attribute, is prose.
_MAX_ATTRIBUTES: Final = 1024
_INVOKE: Final = re.compile(r"""\s+name=(?:"([^\n]*)"|'([^\n]*)'|([^\s"'>]+))\s*""")
_PARAMETER: Final = re.compile(r'\s+name="([^\n]*)" string="(true|false)"\s*')
_ATTRIBUTE: Final = re.compile(r"""\s+([\w-]+)=(?:"([^"\n]*)"|'([^'\n]*)'|([^\s"'>]+))""")
_BROKEN: Final = re.compile(r"\s*\S.*\n")


def match_tag(text: str, at: int) -> Tag | Partial | None:
    """The tag that begins with the ``<`` at ``at``, or the beginning of one, or None."""
    head = _HEAD.match(text, at)
    if head is None:
        if len(text) - at < _LONGEST and text[at:] in _PREFIXES:
            return Partial(_COMMITTED.match(text, at) is not None)
        return None
    kind = _KINDS[head.group(2)]
    if head.group(1) or kind == "block":
        end = head.end()
        while end < len(text) and text[end].isspace():
            end += 1
        if end == len(text):
            return Partial(committed=True)
        if text[end] != ">":
            return None
        return Tag(_ENDS[kind] if head.group(1) else kind, end + 1)
    return _match_attributes(text, head.end(), kind)


def _match_attributes(text: str, at: int, kind: Kind) -> Tag | Partial | None:
    """An opening tag from behind its keyword; the first ``>`` that makes sense ends it.

    A name may itself contain quotes and ``>``, which nothing escapes.
    """
    if at < len(text) and not text[at].isspace():
        return None
    broken = _BROKEN.match(text, at)
    limit = min(len(text), at + _MAX_ATTRIBUTES, broken.end() if broken else len(text))
    close = text.find(">", at, limit)
    while close >= 0:
        if kind == "invoke":
            named = _INVOKE.fullmatch(text, at, close)
            if named:
                return Tag(kind, close + 1, named[1] or named[2] or named[3] or "")
        else:
            found = _parameter(text, at, close)
            if found:
                return found
        close = text.find(">", close + 1, limit)
    if broken or len(text) - at >= _MAX_ATTRIBUTES:
        return None
    return Partial(committed=True)


def _parameter(text: str, at: int, close: int) -> Tag | None:
    exact = _PARAMETER.fullmatch(text, at, close)
    if exact:
        return Tag("parameter", close + 1, exact[1], exact[2] == "true")
    attributes: dict[str, str] = {}
    while match := _ATTRIBUTE.match(text, at, close):
        attributes[match[1]] = match[2] or match[3] or match[4] or ""
        at = match.end()
    if "name" not in attributes or text[at:close].strip():
        return None
    is_string = {"true": True, "false": False}.get(attributes.get("string", "").lower())
    return Tag("parameter", close + 1, attributes["name"], is_string)
