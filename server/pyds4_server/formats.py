"""What form the answer to a conversation must have, as grammars."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from pyds4 import Tokenizer
from pyds4.chat import markers
from pyds4_server.conversation import Conversation, Rendered
from pyds4_server.errors import InvalidRequestError
from pyds4_server.grammar import Grammar, GrammarError, check_schema, compiler_for
from pyds4_server.strict_calls import call_grammar


class Formats(NamedTuple):
    """The forms an answer must have: its text, and the tool calls in it."""

    text: Grammar | None = None
    calls: Grammar | None = None


FREE = Formats()
"""Nothing is demanded."""


async def formats_of(
    conversation: Conversation, rendered: Rendered, tokenizer: Tokenizer
) -> Formats:
    """The forms that a conversation demands; compiled off the event loop.

    Raises:
        InvalidRequestError: a schema makes no sense, or the beginning of the answer that the
            conversation ends with does not fit it.
    """
    if not (conversation.response_format is not None or conversation.strict_tools):
        return FREE
    return await asyncio.to_thread(_formats, conversation, rendered, tokenizer)


def _formats(conversation: Conversation, rendered: Rendered, tokenizer: Tokenizer) -> Formats:
    return Formats(
        _text_format(conversation, rendered, tokenizer), _call_format(conversation, tokenizer)
    )


def _text_format(
    conversation: Conversation, rendered: Rendered, tokenizer: Tokenizer
) -> Grammar | None:
    schema, param = conversation.response_format, conversation.format_param
    if schema is None:
        return None
    compiler = compiler_for(tokenizer)
    try:
        grammar = compiler.from_schema(schema, strict=conversation.is_format_strict)
    except GrammarError as error:
        raise InvalidRequestError(f"{param}: {error}", param=param) from error
    begun = begun_text(rendered.thinking, rendered.prefill)
    if begun and not grammar.begin().accepts(tokenizer.encode(begun, special=False)):
        raise InvalidRequestError(
            f"the last message begins an answer that does not fit {param}", param="messages"
        )
    return grammar


def begun_text(thinking: bool, prefill: str) -> str:
    """What a prompt already holds of the answer's text, without blanks in front."""
    if thinking:
        prefill = prefill.partition(markers.END_THINK)[2]
    return prefill.lstrip()


def _call_format(conversation: Conversation, tokenizer: Tokenizer) -> Grammar | None:
    dsml = tokenizer.token_id(markers.DSML)
    if not conversation.strict_tools or conversation.tool_choice == "none" or dsml is None:
        return None
    for index, tool in enumerate(conversation.tools):
        function = tool["function"]
        if function["name"] in conversation.strict_tools:
            try:
                check_schema(function.get("parameters") or {})
            except GrammarError as error:
                where = f"tools[{index}].parameters"
                raise InvalidRequestError(f"{where}: {error}", param=where) from error
    try:
        return compiler_for(tokenizer).from_lark(
            call_grammar(conversation.tools, conversation.strict_tools, dsml)
        )
    except GrammarError as error:
        raise InvalidRequestError(f"tools: {error}", param="tools") from error
