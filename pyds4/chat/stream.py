"""Completion -> events while the model is still writing.

Text may be cut anywhere; the events add up to the same. What the strict parser accepts as a
finished message comes out equal. Beyond that this reader survives what models really emit:

- a tool block before ``</think>``: a complete block that calls a declared tool ends the
  reasoning, a mere mention of the markup does not, nor does a block ``</think>`` interrupts;
- an invoke without wrapper, other spellings of the tags (``tags``), values that are never closed
  (``calls``), values of the wrong kind (``arguments``);
- closing tags with nothing to close, ``</think>`` among them, which vanish; one that is quoted, or
  has its ``<think>`` beside it, is text;
- ``<think>`` as the first word of an answer, whatever the prompt said.

Markup counts only if tools were declared. Outside it no text is dropped but EOS at the end and
blanks next to a call: clients lose those, and replaying the turn would then differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto
from typing import Any

from pyds4.chat.arguments import ToolSchema, tool_schemas
from pyds4.chat.calls import BlockReader
from pyds4.chat.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallAborted,
    coalesced,
)
from pyds4.chat.markers import DSML, END_THINK, THINK
from pyds4.chat.pending import End, Pending
from pyds4.chat.tags import Partial, Tag, match_tag
from pyds4.errors import InvalidArgumentError

_CLOSERS = ("block_end", "invoke_end", "parameter_end")
_QUOTES = ("`", '"', "'")


class _Found(Enum):
    """What became of a ``<`` in running text."""

    LITERAL = auto()
    UNDECIDED = auto()
    HANDLED = auto()


class StreamParser:
    """Reads one completion. Not for sharing between threads."""

    def __init__(
        self,
        thinking_mode: str,
        *,
        tools: Iterable[Mapping[str, Any]] | None = None,
        prefill: str = "",
        buffer_calls: bool = False,
    ) -> None:
        """
        Args:
            thinking_mode: How the prompt ended: ``"thinking"`` after ``<think>``, ``"chat"``
                after ``</think>``.
            tools: The tools declared to the model; without any, markup is ordinary text.
            prefill: What the prompt already holds of this answer, after that marker. It decides
                the meaning of what follows and is not reported again.
            buffer_calls: Report a call only once its invoke is closed, so that
                ``ToolCallAborted`` never occurs.

        Raises:
            InvalidArgumentError: an unknown thinking mode.
        """
        if thinking_mode not in ("chat", "thinking"):
            raise InvalidArgumentError(f"thinking_mode is {thinking_mode!r}; known: chat, thinking")
        self._tools = tool_schemas(tools or ())
        self._buffer_calls = buffer_calls
        self._pending = Pending()
        self._events: list[Event] = []
        self._blocks = BlockReader(
            self._pending, self._tools, self._emit, buffer_calls=buffer_calls
        )
        self._reasoning = thinking_mode == "thinking"
        self._at_start = True
        self._blank = True
        self._after_call = False
        self._last_char = ""
        self._open_thinks = 0
        self._cut_off = False
        self._probe: _Probe | None = None
        if prefill:
            self.feed(prefill)
            self._pending.mute()

    @property
    def in_reasoning(self) -> bool:
        """Before ``</think>``."""
        return self._reasoning

    @property
    def in_tool_call(self) -> bool:
        """Inside a block or an invoke."""
        return self._blocks.inside

    @property
    def in_dsml_syntax(self) -> bool:
        """Whether the next character continues markup, and not a parameter's value or text.

        A sampler is greedy here: a tag has one right spelling.
        """
        if self._blocks.in_syntax:
            return True
        if self._probe is not None:
            return self._probe.in_dsml_syntax
        if not self._tools:
            return False
        text = self._pending.text
        at = text.rfind("<")
        if at < self._pending.scan:
            return False
        tag = match_tag(text, at)
        if isinstance(tag, Partial):
            return tag.committed
        return tag is not None and not text[tag.end :].strip()

    @property
    def complete_calls(self) -> int:
        """Calls whose invoke was closed."""
        return self._blocks.complete

    @property
    def truncated(self) -> bool:
        """Whether markup was left open: an invoke, a block, or the tag that begins one.

        If the token limit ended the stream, its finish reason is then ``length`` even when
        there are complete calls.
        """
        return self._blocks.truncated or self._cut_off

    def feed(self, text: str) -> list[Event]:
        """What ``text`` settles.

        Raises:
            InvalidArgumentError: after ``finish()``.
        """
        if self._pending.final:
            raise InvalidArgumentError("feed() after finish()")
        self._pending.text += text
        return self._run()

    def finish(self) -> list[Event]:
        """The stream has ended, with or without EOS: settle all that is left."""
        if self._pending.final:
            return []
        self._pending.final = True
        return self._run()

    def _run(self) -> list[Event]:
        while self._step():
            pass
        events, self._events = coalesced(self._events), []
        return events

    def _step(self) -> bool:
        if self._blocks.inside:
            moved = self._blocks.step()
            if self._blocks.inside:
                return moved
            self._begin_content(after_call=True)
            self._left_block()
            return True
        if not self._pending.text:
            return False
        if self._at_start:
            if self._pending.may_become(0, THINK):
                return False
            self._at_start = False
            if self._pending.text.startswith(THINK):
                self._pending.drop(0, len(THINK))
                self._reasoning = True
        return self._running_text(self._in_reasoning if self._reasoning else self._in_content)

    def _left_block(self) -> None:
        """A block is behind us; ``_Probe`` watches for this."""

    def _emit(self, event: Event) -> None:
        self._events.append(event)

    # --- running text --------------------------------------------------------------------------

    def _running_text(self, look: Callable[[int], _Found]) -> bool:
        """Pass text on up to the first ``<`` that is more than text; True if that was handled."""
        pending = self._pending
        at = pending.text.find("<", pending.scan)
        while at >= 0:
            found = look(at)
            if found is _Found.HANDLED:
                return True
            if found is _Found.UNDECIDED:
                self._release(at)
                return False
            at = pending.text.find("<", at + 1)
        self._release(len(pending.text))
        return False

    def _release(self, count: int) -> None:
        """Pass on the text before ``count``, but nothing that a call might still claim."""
        pending = self._pending
        pending.scan = count
        if self._tools and not pending.final:
            count = _without_blank_line(pending.text, count)
            if not self._reasoning and self._blank and not pending.text[:count].strip():
                return
        self._pass_on(count)

    def _pass_on(self, count: int) -> None:
        if not count:
            return
        pending = self._pending
        passed = pending.text[:count]
        if not self._reasoning:
            if self._blank and self._after_call and not passed.strip():
                pending.drop(0, count)
                return
            self._blank &= not passed.strip()
        self._last_char = passed[-1]
        news = pending.take(count)
        if news:
            self._emit(ReasoningDelta(news) if self._reasoning else ContentDelta(news))

    def _begin_content(self, *, after_call: bool) -> None:
        self._reasoning = False
        self._blank = True
        self._after_call = after_call
        self._last_char = ""
        self._pending.scan = 0

    def _enter_block(self, at: int, tag: Tag) -> _Found:
        """Calls begin at ``at``; the blank line before them is theirs, and so is blank content."""
        pending = self._pending
        before = _without_blank_line(pending.text, at)
        if not self._blank or pending.text[:before].strip():
            self._pass_on(before)
            at -= before
            tag = tag._replace(end=tag.end - before)
        wrapped = tag.kind == "block"
        pending.drop(0, tag.end if wrapped else at)
        pending.scan = 0
        self._blocks.enter(wrapped=wrapped)
        return _Found.HANDLED

    # --- reasoning -----------------------------------------------------------------------------

    def _in_reasoning(self, at: int) -> _Found:
        pending = self._pending
        if pending.text.startswith(END_THINK, at):
            self._pass_on(at)
            pending.drop(0, len(END_THINK))
            self._begin_content(after_call=False)
            return _Found.HANDLED
        if pending.may_become(at, END_THINK):
            return _Found.UNDECIDED
        if pending.eos_tail(at):
            return self._end_of_text(at)
        if not self._tools:
            return _Found.LITERAL
        tag = pending.tag(at)
        if isinstance(tag, Partial):
            return _Found.UNDECIDED
        if tag is None or tag.kind not in ("block", "invoke"):
            return _Found.LITERAL
        return self._call_before_end_of_reasoning(at)

    def _call_before_end_of_reasoning(self, at: int) -> _Found:
        """A second parser reads ahead and says whether a whole call to a declared tool follows."""
        pending = self._pending
        if self._probe is None:
            self._probe = _Probe(self._tools)
        end = pending.text.find(END_THINK, at)
        self._probe.follow(pending.text[at : end if end >= 0 else None])
        is_call = self._probe.verdict
        if is_call is None and end >= 0:
            is_call = False
        elif is_call is None and pending.final:
            is_call = self._probe.verdict_at_end()
        if is_call is None:
            return _Found.UNDECIDED
        self._probe = None
        if not is_call:
            return _Found.LITERAL
        before = _without_blank_line(pending.text, at)
        self._pass_on(before)
        pending.drop(0, at - before)
        self._begin_content(after_call=False)
        return _Found.HANDLED

    def _end_of_text(self, at: int) -> _Found:
        """EOS, unless text follows after all."""
        if not self._pending.final:
            return _Found.UNDECIDED
        self._pending.drop(at, len(self._pending.text))
        return _Found.LITERAL

    # --- content -------------------------------------------------------------------------------

    def _in_content(self, at: int) -> _Found:
        pending = self._pending
        if pending.text.startswith(END_THINK, at):
            if self._open_thinks or self._quoted(at):
                self._open_thinks = max(0, self._open_thinks - 1)
                return _Found.LITERAL
            return self._vanish(at, at + len(END_THINK))
        if pending.text.startswith(THINK, at):
            self._open_thinks += 1
            return _Found.LITERAL
        if pending.may_become(at, END_THINK, THINK):
            return _Found.UNDECIDED
        if pending.eos_tail(at):
            return self._end_of_text(at)
        if not self._tools:
            return _Found.LITERAL
        tag = match_tag(pending.text, at)
        if isinstance(tag, Partial):
            if not pending.final:
                return _Found.UNDECIDED
            return self._cut_off_tag(at) if tag.committed else _Found.LITERAL
        if tag is None or tag.kind == "parameter":
            return _Found.LITERAL
        if tag.kind in _CLOSERS:
            return _Found.LITERAL if self._quoted(at) else self._vanish(at, tag.end)
        return self._opening(at, tag)

    def _opening(self, at: int, tag: Tag) -> _Found:
        """A wrapper must be followed by an invoke; a lone invoke must name a declared tool."""
        following = self._pending.after_blanks(tag.end)
        if isinstance(following, Partial):
            return _Found.UNDECIDED
        if tag.kind == "block":
            if isinstance(following, End):
                return self._cut_off_tag(at)
            if isinstance(following, Tag) and following.kind == "invoke":
                return self._enter_block(at, tag) if self._accepts(following) else _Found.LITERAL
            if isinstance(following, Tag) and following.kind == "block_end":
                return self._vanish(at, following.end)
            return _Found.LITERAL
        if tag.name not in self._tools:
            return _Found.LITERAL
        if isinstance(following, End):
            return self._cut_off_tag(at)
        body = self._pending.text[tag.end :].lstrip()
        if body.startswith("{") or (
            isinstance(following, Tag) and following.kind in ("parameter", "invoke_end")
        ):
            return self._enter_block(at, tag)
        return _Found.LITERAL

    def _accepts(self, invoke: Tag) -> bool:
        """Inside a wrapper any name is a call; whether the tool exists is the client's to say."""
        return True

    def _vanish(self, start: int, end: int) -> _Found:
        """Drop markup from the middle of text and look on from there."""
        self._pending.drop(start, end)
        self._pending.scan = start
        return _Found.HANDLED

    def _cut_off_tag(self, at: int) -> _Found:
        """The stream ended inside the first tags of a block: markup, if it stands like a block.

        Only with the true marker, a token of its own; other spellings are too likely mere text.
        """
        pending = self._pending
        blank = self._blank and not pending.text[:at].strip()
        stands_alone = blank or pending.text.endswith("\n\n", 0, at)
        if not stands_alone or not pending.text.startswith("<" + DSML, at):
            return _Found.LITERAL
        self._cut_off = True
        pending.drop(0 if blank else at - 2, len(pending.text))
        pending.scan = len(pending.text)
        return _Found.HANDLED

    def _quoted(self, at: int) -> bool:
        """Whether a quotation mark or backtick stands right before ``at``."""
        return (self._pending.text[at - 1] if at else self._last_char) in _QUOTES


class _Probe(StreamParser):
    """Reads a candidate ahead, to say what comes first: a whole call or anything else."""

    def __init__(self, tools: Mapping[str, ToolSchema]) -> None:
        super().__init__("chat")
        self._tools.update(tools)
        self._at_start = False
        self._seen = 0
        self.verdict: bool | None = None

    def follow(self, text: str) -> None:
        """Read the candidate, which has grown since the last time."""
        self.feed(text[self._seen :])
        self._seen = max(self._seen, len(text))

    def verdict_at_end(self) -> bool:
        """The verdict if no more text comes: a closed invoke then stands for its block."""
        self.finish()
        return self.complete_calls > 0 if self.verdict is None else self.verdict

    def _accepts(self, invoke: Tag) -> bool:
        return invoke.name in self._tools

    def _emit(self, event: Event) -> None:
        if self.verdict is None and isinstance(event, ContentDelta | ToolCallAborted):
            self.verdict = False

    def _left_block(self) -> None:
        if self.verdict is None:
            self.verdict = self.complete_calls > 0


def _without_blank_line(text: str, count: int) -> int:
    """``count`` less the newlines, two at most, that end ``text[:count]``."""
    for _ in range(2):
        if count and text[count - 1] == "\n":
            count -= 1
    return count
