"""Messages as a client sends them -> turns as the template renders them.

Three steps, each of them the published encoder's, losses included:

1. ``merge``: tool results become blocks of a user turn, neighbouring users become one turn. A
   user's own ``tools``, ``response_format`` and ``content_blocks`` are lost on the way, and so is
   the ``task`` of a user who joins an earlier one.
2. ``sort_results``: parallel tool results go into the order of the calls they answer.
3. ``drop_reasoning``: before the last user turn, reasoning is not shown again.

Source: ``encoding_dsv4.py`` published with the weights; golden vectors ``render``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyds4.errors import RenderError

Message = Mapping[str, Any]
Turn = dict[str, Any]

_KEPT_ROLES = ("user", "system", "tool", "latest_reminder", "direct_search_results")


def merge(messages: Sequence[Message]) -> list[Turn]:
    """Turns in which every user carries ``content_blocks`` and no ``tool`` role is left."""
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RenderError(f"message {index} is not an object: {message!r}")
        role = message.get("role")
        last = turns[-1] if turns and turns[-1].get("role") == "user" else None
        if role == "tool":
            block = {
                "type": "tool_result",
                "tool_use_id": message.get("tool_call_id", ""),
                "content": message.get("content", ""),
            }
            if last is None:
                turns.append({"role": "user", "content_blocks": [block]})
            else:
                last["content_blocks"].append(block)
        elif role == "user":
            block = {"type": "text", "text": message.get("content", "")}
            if last is None or last.get("task") is not None:
                turns.append(
                    {"role": "user", "content_blocks": [block], "task": message.get("task")}
                )
            else:
                last["content_blocks"].append(block)
        else:
            turns.append(dict(message))
    return turns


def sort_results(turns: Sequence[Turn]) -> list[Turn]:
    """The same turns with each user's tool results in call order.

    The order is that of the latest assistant turn with calls. An id it does not know counts as 0
    (the sort is stable), calls without ids leave the order alone, and text blocks keep their slots.
    """
    order: dict[str, int] = {}
    sorted_turns: list[Turn] = []
    for turn in turns:
        calls = turn.get("tool_calls")
        if turn.get("role") == "assistant" and calls:
            order = {}
            for position, call in enumerate(calls):
                call_id = call.get("id") or call.get("function", {}).get("id", "")
                if call_id:
                    order[call_id] = position
        elif turn.get("role") == "user" and order:
            turn = turn | {"content_blocks": _sorted_blocks(turn["content_blocks"], order)}
        sorted_turns.append(turn)
    return sorted_turns


def _sorted_blocks(blocks: list[Turn], order: Mapping[str, int]) -> list[Turn]:
    results = [block for block in blocks if block["type"] == "tool_result"]
    results.sort(key=lambda block: order.get(block["tool_use_id"], 0))
    following = iter(results)
    return [next(following) if block["type"] == "tool_result" else block for block in blocks]


def last_user(turns: Sequence[Turn]) -> int:
    """Index of the last user or developer turn, -1 without one. Tool results are user turns."""
    for index in range(len(turns) - 1, -1, -1):
        if turns[index].get("role") in ("user", "developer"):
            return index
    return -1


def drop_reasoning(turns: Sequence[Turn]) -> list[Turn]:
    """The turns without what is not shown again once the user has spoken.

    Before the last user turn, assistants lose their reasoning; developers and unknown roles go.
    """
    last = last_user(turns)
    kept: list[Turn] = []
    for index, turn in enumerate(turns):
        if index >= last or turn.get("role") in _KEPT_ROLES:
            kept.append(turn)
        elif turn.get("role") == "assistant":
            kept.append({key: value for key, value in turn.items() if key != "reasoning_content"})
    return kept


def declares_tools(turns: Sequence[Turn]) -> bool:
    """Whether any turn brings tools along; then reasoning is kept throughout."""
    return any(turn.get("tools") for turn in turns)
