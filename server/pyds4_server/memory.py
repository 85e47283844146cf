"""What the model wrote, for when a client sends it back a little different.

Clients return an assistant's turn re-serialised, retokenized, and often without its reasoning. Any
of that would change the prompt at that place, and everything cached after it would be lost. So
every turn is remembered as it was sampled, under the ids of its tool calls and under the prompt
it answered, and put back where a message says the same thing.
"""

from __future__ import annotations

import hashlib
import json
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyds4.chat import markers
from pyds4.kv import SampledTurn
from pyds4.tokenizer import Tokenizer
from pyds4_server.conversation import Conversation, Message, Rendered
from pyds4_server.events import CallEnd
from pyds4_server.generation import Turn
from pyds4_server.kept import Kept

MAX_TURNS = 4096


class TurnArchive:
    """Turns of earlier runs, in the kept `pyds4.kv.TurnStore`; empty without one.

    A turn is stored with the last id of its prompt, which tells the mode it was sampled in, in
    front of its own.
    """

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def remember(self, turn: Turn) -> None:
        """Keep ``turn`` before long; returns at once."""
        store = self._kept.turns
        if store is None or not turn.prompt:
            return
        calls = [
            {"id": call.id, "name": call.name, "arguments": call.arguments} for call in turn.calls
        ]
        sampled = SampledTurn(
            tokens=(turn.prompt[-1], *turn.tokens),
            content=turn.content,
            reasoning=turn.reasoning,
            calls=[{"is_whole": turn.is_whole}, *calls],
        )
        call_ids = [call.id for call in turn.calls]
        self._kept.in_background(store.remember, turn.prompt, sampled, call_ids)

    def recall(self, call_id: str) -> Turn | None:
        """The turn that made a tool call."""
        store = self._kept.turns
        return None if store is None else _turn(store.recall(call_id))

    def recall_answer(self, prompt: Sequence[int]) -> Turn | None:
        """The latest whole turn that answered ``prompt``."""
        store = self._kept.turns
        turn = None if store is None else _turn(store.recall_answer(prompt))
        return turn if turn is not None and turn.is_whole else None


def _turn(sampled: SampledTurn | None) -> Turn | None:
    if sampled is None or not sampled.tokens or not sampled.calls:
        return None
    notes, *calls = sampled.calls
    return Turn(
        prompt=sampled.tokens[:1],
        tokens=sampled.tokens[1:],
        is_whole=bool(notes.get("is_whole")),
        reasoning=sampled.reasoning,
        content=sampled.content,
        calls=[
            CallEnd(index, call["id"], call["name"], call["arguments"])
            for index, call in enumerate(calls)
        ],
    )


class TurnMemory:
    """The latest turns. Written by the scheduler's thread, read while prompts are made."""

    def __init__(self, tokenizer: Tokenizer, kept: Kept, limit: int = MAX_TURNS) -> None:
        self._archive = TurnArchive(kept)
        self._assistant = tokenizer.token_id(markers.ASSISTANT)
        self._eos = tokenizer.eos_id
        self._limit = limit
        self._lock = threading.Lock()
        self._by_call: OrderedDict[str, Turn] = OrderedDict()
        self._by_prompt: OrderedDict[bytes, Turn] = OrderedDict()

    def remember(self, turn: Turn) -> None:
        """Keep ``turn``; the oldest ones go when there are too many."""
        # A prompt is as long as the conversation; its last id is all that is asked for later.
        brief = replace(turn, prompt=tuple(turn.prompt[-1:]))
        with self._lock:
            for call in turn.calls:
                self._by_call[call.id] = brief
            if turn.is_whole:
                self._by_prompt[_digest(turn.prompt)] = brief
            for kept in (self._by_call, self._by_prompt):
                while len(kept) > self._limit:
                    kept.popitem(last=False)
        self._archive.remember(turn)

    def with_reasoning(self, conversation: Conversation) -> Conversation:
        """The conversation with the reasoning of turns whose client does not send it back."""
        messages = [self._reasoned(message) for message in conversation.messages]
        return replace(conversation, messages=messages)

    def _reasoned(self, message: Message) -> Message:
        if message["role"] != "assistant" or message.get("reasoning_content"):
            return message
        turn = self._turn_of_calls(message)
        if turn is None or not turn.reasoning:
            return message
        return message | {"reasoning_content": turn.reasoning}

    def replay(self, ids: Sequence[int], rendered: Rendered) -> list[int]:
        """``ids`` with every recognised assistant turn as it was sampled.

        Markers in ``ids`` come from the template alone, so the turns are what stands between the
        assistant's marker and EOS. Where they cannot be told apart nothing is changed.
        """
        spans = self._spans(ids)
        if len(spans) != len(rendered.turns):
            return list(ids)
        replayed: list[int] = []
        done = 0
        for (begin, end), message in zip(spans, rendered.turns, strict=True):
            replayed += ids[done : begin + 1]
            turn = self._turn_of_calls(message) or self._turn_after(replayed)
            same_mode = turn is not None and turn.prompt[-1] == ids[begin]
            if turn is not None and same_mode and turn.is_whole and _says_same(turn, message):
                replayed += turn.tokens
                done = end
            else:
                done = begin + 1
        return replayed + list(ids[done:])

    def _spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """For each finished assistant turn: where its opening marker and where its EOS stand."""
        spans: list[tuple[int, int]] = []
        begin: int | None = None
        for index, token in enumerate(ids):
            if token == self._assistant:
                begin = index + 1
            elif token == self._eos and begin is not None:
                spans.append((begin, index))
                begin = None
        return spans

    def _turn_of_calls(self, message: Message) -> Turn | None:
        ids = [call.get("id") or "" for call in message.get("tool_calls") or ()]
        with self._lock:
            for call_id in ids:
                turn = self._by_call.get(call_id)
                if turn is not None:
                    return turn
        archived = (self._archive.recall(call_id) for call_id in ids if call_id)
        return next((turn for turn in archived if turn is not None), None)

    def _turn_after(self, prompt: Sequence[int]) -> Turn | None:
        with self._lock:
            turn = self._by_prompt.get(_digest(prompt))
        return turn or self._archive.recall_answer(prompt)


def _says_same(turn: Turn, message: Message) -> bool:
    """Whether the client's message is this turn: its words, its calls, and no other reasoning."""
    if (message.get("content") or "").strip() != turn.content.strip():
        return False
    reasoning = message.get("reasoning_content")
    if reasoning and reasoning.strip() != turn.reasoning.strip():
        return False
    sent = [_call(call["function"]) for call in message.get("tool_calls") or ()]
    made = [(call.name, _parsed(call.arguments)) for call in turn.calls]
    return sent == made


def _call(function: Mapping[str, Any]) -> tuple[str, Any]:
    return function["name"], _parsed(function["arguments"])


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _digest(ids: Iterable[int]) -> bytes:
    return hashlib.blake2b(array("i", ids).tobytes(), digest_size=16).digest()
