"""Messages -> prompt.

::

    BOS effort? system tools? ‹User› question
    ‹Assistant› <think> reasoning </think> answer calls? EOS
    ‹User› <tool_result>…</tool_result>
    ‹Assistant› <think>

The assistant's header belongs to the turn before it: it is written after a turn only when that
turn is the last or an assistant follows. A system message at the end thus gets no header, and the
model would continue the system's words; callers hoist such messages.

Source: ``encoding_dsv4.py`` published with the weights (April), and the effort table of the 0731
checkpoint; golden vectors ``render`` and ``render_0731``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from pyds4.chat import markers
from pyds4.chat.dsml import to_json, write_calls
from pyds4.chat.messages import (
    Message,
    Turn,
    declares_tools,
    drop_reasoning,
    last_user,
    merge,
    sort_results,
)
from pyds4.chat.prompt import Prompt, PromptWriter
from pyds4.errors import RenderError

ThinkingMode = Literal["chat", "thinking"]
Profile = Literal["preview", "0731"]

_TOOLS_HEAD: Final = """\
## Tools

You have access to a set of tools to help answer the user's question. \
You can invoke tools by writing a "<｜DSML｜tool_calls>" block like the following:

<｜DSML｜tool_calls>
<｜DSML｜invoke name="$TOOL_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$TOOL_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types \
(numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning \
inside <think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

"""
_TOOLS_TAIL: Final = (
    "\n\nYou MUST strictly follow the above defined tool name and parameter schemas "
    "to invoke tool calls.\n"
)
_RESPONSE_FORMAT: Final = (
    "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
)

_ABSOLUTE_MAXIMUM: Final = """\
Reasoning Effort: Absolute maximum with no shortcuts permitted.
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve \
the root cause, rigorously stress-testing your logic against all potential paths, edge cases, and \
adversarial scenarios.
Explicitly write out your entire deliberation process, documenting every intermediate step, \
considered alternative, and rejected hypothesis to ensure absolutely no assumption is left \
unchecked.

"""
_BEYOND_MAXIMUM: Final = """\
Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.
You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: \
exhaustively decompose the problem into its most fundamental components, trace every causal chain \
to its root, and resolve the underlying cause rather than any surface symptom.
Do not stop reasoning until you have independently verified the solution from multiple angles and \
are certain that no assumption remains unchecked and no error remains undiscovered.

"""

EFFORTS: Final[dict[str, dict[str | None, str]]] = {
    "preview": {None: "", "high": "", "max": _ABSOLUTE_MAXIMUM},
    "0731": {None: "", "low": "", "high": _ABSOLUTE_MAXIMUM, "max": _BEYOND_MAXIMUM},
}
"""What each reasoning effort puts in front of the first message, by checkpoint profile."""


def render(
    messages: Sequence[Message],
    *,
    thinking_mode: ThinkingMode,
    context: Sequence[Message] | None = None,
    drop_thinking: bool = True,
    add_default_bos_token: bool = True,
    reasoning_effort: str | None = None,
    profile: Profile = "preview",
) -> Prompt:
    """Render ``messages`` as the prompt that the model expects.

    Args:
        messages: OpenAI-style dictionaries with ``role`` one of system, developer, user, tool,
            assistant, latest_reminder. ``tools`` and ``response_format`` go on a system or
            developer message; ``reasoning_content``, ``tool_calls`` and ``wo_eos`` (leave the
            turn open) on an assistant; ``task`` on a user.
        thinking_mode: ``"thinking"`` opens the answer with ``<think>``, ``"chat"`` with
            ``</think>``.
        context: Messages rendered before; they decide order and indices but are not rendered.
        drop_thinking: Do not show reasoning from before the last user turn. Has no effect once
            any message declares tools.
        add_default_bos_token: Begin with BOS, unless there is ``context``.
        reasoning_effort: A key of ``EFFORTS[profile]``; matters only when thinking.
        profile: The checkpoint's template: ``"preview"`` (April) or ``"0731"``.

    Raises:
        RenderError: an option or a message that the template has no form for.
    """
    effort = _effort(thinking_mode, reasoning_effort, profile)
    earlier = merge(context or ())
    turns = sort_results([*earlier, *merge(messages)])
    first = len(earlier)
    keep_all = not drop_thinking or declares_tools(turns)
    thinking = thinking_mode == "thinking"
    if thinking and not keep_all:
        turns = drop_reasoning(turns)
        # Counted on the context alone, where a developer turn may still be the last user.
        first = len(drop_reasoning(earlier))

    out = PromptWriter()
    if add_default_bos_token and not context:
        out.marker(markers.BOS)
    renderer = _Renderer(out, turns, thinking=thinking, keep_all=keep_all)
    for index in range(first, len(turns)):
        if index == 0 and thinking:
            out.template(effort)
        renderer.turn(index)
    return out.prompt()


def _effort(thinking_mode: str, reasoning_effort: str | None, profile: str) -> str:
    """The effort text; every option is checked whether or not it matters here."""
    if thinking_mode not in ("chat", "thinking"):
        raise RenderError(f"thinking_mode is {thinking_mode!r}; known: chat, thinking")
    if profile not in EFFORTS:
        raise RenderError(f"profile is {profile!r}; known: {', '.join(EFFORTS)}")
    efforts = EFFORTS[profile]
    if reasoning_effort not in efforts:
        known = ", ".join(str(effort) for effort in efforts)
        raise RenderError(f"reasoning_effort is {reasoning_effort!r}; {profile} knows: {known}")
    return efforts[reasoning_effort]


class _Renderer:
    """Writes turns one by one, looking at their neighbours."""

    def __init__(
        self, out: PromptWriter, turns: Sequence[Turn], *, thinking: bool, keep_all: bool
    ) -> None:
        self._out = out
        self._turns = turns
        self._thinking = thinking
        self._keep_all = keep_all
        self._last_user = last_user(turns)

    def turn(self, index: int) -> None:
        turn = self._turns[index]
        role = turn.get("role")
        where = f"message {index} ({role})"
        if role == "system":
            self._out.text(turn.get("content") or "", f"{where}: content")
            self._appendices(turn, where)
        elif role == "developer":
            if not turn.get("content"):
                raise RenderError(f"{where} has no content")
            self._out.marker(markers.USER)
            self._out.text(turn["content"], f"{where}: content")
            self._appendices(turn, where)
        elif role == "user":
            self._out.marker(markers.USER)
            self._blocks(turn["content_blocks"], where)
        elif role == "latest_reminder":
            self._out.marker(markers.LATEST_REMINDER)
            self._out.text(_or_none(turn.get("content")), f"{where}: content")
        elif role == "assistant":
            self._assistant(index, turn, where)
        else:
            raise RenderError(f"message {index} has the unknown role {role!r}")
        following = self._turns[index + 1].get("role") if index + 1 < len(self._turns) else None
        if following in (None, "assistant", "latest_reminder"):
            self._transition(index, turn)

    def _appendices(self, turn: Turn, where: str) -> None:
        tools = turn.get("tools")
        if tools:
            self._out.template("\n\n" + _TOOLS_HEAD)
            for index, tool in enumerate(tools):
                try:
                    function = tool["function"]
                except (KeyError, TypeError) as error:
                    raise RenderError(f"{where}, tool {index} has no 'function'") from error
                schema = to_json(function, f"{where}, tool {index}")
                self._out.text(("\n" if index else "") + schema, where)
            self._out.template(_TOOLS_TAIL)
        if turn.get("response_format"):
            self._out.template(_RESPONSE_FORMAT)
            schema = to_json(turn["response_format"], f"{where}: response_format")
            self._out.text(schema, where)

    def _blocks(self, blocks: Sequence[Turn], where: str) -> None:
        for index, block in enumerate(blocks):
            if index:
                self._out.template("\n\n")
            if block["type"] == "text":
                self._out.text(block["text"], f"{where}: content")
            else:
                self._out.template("<tool_result>")
                self._out.text(_result_text(block["content"]), f"{where}: tool result")
                self._out.template("</tool_result>")

    def _assistant(self, index: int, turn: Turn, where: str) -> None:
        after_task = index > 0 and self._turns[index - 1].get("task") is not None
        if self._thinking and not after_task and (self._keep_all or index > self._last_user):
            self._out.text(turn.get("reasoning_content") or "", f"{where}: reasoning_content")
            self._out.marker(markers.END_THINK)
        self._out.text(turn.get("content") or "", f"{where}: content")
        if turn.get("tool_calls"):
            write_calls(self._out, turn["tool_calls"], where)
        if not turn.get("wo_eos"):
            self._out.marker(markers.EOS)

    def _transition(self, index: int, turn: Turn) -> None:
        """Open the turn that follows ``index``."""
        task = turn.get("task")
        if task is not None:
            if task not in markers.TASKS:
                known = ", ".join(markers.TASKS)
                raise RenderError(f"message {index} has the task {task!r}; known: {known}")
            if task == "action":
                self._out.marker(markers.ASSISTANT)
                self._out.marker(markers.THINK if self._thinking else markers.END_THINK)
            self._out.marker(markers.TASKS[task])
        elif turn.get("role") in ("user", "developer"):
            thinks = self._thinking and (self._keep_all or index >= self._last_user)
            self._out.marker(markers.ASSISTANT)
            self._out.marker(markers.THINK if thinks else markers.END_THINK)


def _result_text(content: object) -> object:
    """The text of a tool result: parts joined by blank lines, what is not text named."""
    if not isinstance(content, list):
        return _or_none(content)
    parts: list[str] = []
    for part in content:
        if not isinstance(part, dict):
            raise RenderError(f"a tool result holds {part!r}, not a content part")
        if part.get("type") == "text":
            parts.append(part.get("text", ""))
        else:
            parts.append(f"[Unsupported {part.get('type')}]")
    return "\n\n".join(parts)


def _or_none(content: object) -> object:
    """The published template prints a missing content as Python's None."""
    return "None" if content is None else content
