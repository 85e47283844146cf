"""The inside of a tool-call block, as it streams in.

Reads from the opening wrapper, or an invoke without one, to where the block ends. A value ends at
the first closing parameter tag that another tag follows: one inside a value is just text. When a
value is never closed but its invoke is, the invoke's closing tag ends it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum, auto

from pyds4.chat.arguments import ArgumentsWriter, ToolSchema
from pyds4.chat.events import (
    ContentDelta,
    Event,
    ToolArgumentsDelta,
    ToolCallAborted,
    ToolCallEnd,
    ToolCallStart,
)
from pyds4.chat.markers import END_THINK
from pyds4.chat.pending import End, Pending
from pyds4.chat.tags import Partial, Tag

_BLANK = re.compile(r"\s*")


class _At(Enum):
    BLOCK = auto()
    INVOKE = auto()
    VALUE = auto()


class _Call:
    """The invoke being read."""

    def __init__(self, index: int, name: str, schema: ToolSchema | None) -> None:
        self.index = index
        self.name = name
        self.arguments = ArgumentsWriter(schema)
        self.body: list[str] = []
        self.source: list[str] = []
        self.events: list[Event] = [ToolCallStart(index, name)]


class BlockReader:
    """Turns the markup of one block after another into events.

    ``step()`` is called while ``inside``; it returns whether it came any further.
    """

    def __init__(
        self,
        pending: Pending,
        tools: Mapping[str, ToolSchema],
        emit: Callable[[Event], None],
        *,
        buffer_calls: bool,
    ) -> None:
        self._pending = pending
        self._tools = tools
        self._emit = emit
        self._buffer_calls = buffer_calls
        self._at = _At.BLOCK
        self._wrapped = False
        self._call: _Call | None = None
        self._hold: int | None = None
        self._started = 0
        self.inside = False
        self.complete = 0
        """Calls whose invoke was closed."""
        self.truncated = False
        """Whether the stream ended, or the next call began, before something was closed."""

    @property
    def in_syntax(self) -> bool:
        """Between tags, where only markup can come; inside a value anything can."""
        return self.inside and self._at is not _At.VALUE

    def enter(self, *, wrapped: bool) -> None:
        """Begin a block; the pending text starts behind its wrapper, or at a lone invoke."""
        self.inside = True
        self._wrapped = wrapped
        self._at = _At.BLOCK

    def step(self) -> bool:
        """Read on; False when more text is needed, or none will come."""
        if self._at is _At.BLOCK:
            return self._between_calls()
        if self._at is _At.INVOKE:
            return self._between_parameters()
        return self._value()

    # --- between calls -------------------------------------------------------------------------

    def _between_calls(self) -> bool:
        pending = self._pending
        start = _BLANK.match(pending.text).end()  # type: ignore[union-attr]
        if start == len(pending.text) or pending.eos_tail(start):
            if pending.final:
                self.truncated |= self._wrapped
                pending.drop(0, len(pending.text))
            return False
        if pending.text.startswith(END_THINK, start):
            pending.drop(0, start + len(END_THINK))
            return True
        if pending.may_become(start, END_THINK):
            return False
        following = pending.after_blanks(start)
        if isinstance(following, Partial):
            return False
        if isinstance(following, End):
            self.truncated = True
            pending.drop(0, len(pending.text))
            return False
        if not isinstance(following, Tag) or following.kind == "parameter":
            # Text where only calls belong: the wrapper was never closed.
            self.inside = False
        elif following.kind == "invoke":
            pending.drop(0, start)
            self._open(following._replace(end=following.end - start))
        else:
            pending.drop(0, following.end)
            self.inside = following.kind != "block_end"
        return True

    def _open(self, tag: Tag) -> None:
        name = tag.name
        if name not in self._tools and name.partition('"')[0] in self._tools:
            name = name.partition('"')[0]
        self._call = _Call(self._started, name, self._tools.get(name))
        self._started += 1
        self._at = _At.INVOKE
        self._take(tag.end)
        if not self._buffer_calls:
            self._emit(self._call.events[0])

    # --- between parameters --------------------------------------------------------------------

    def _between_parameters(self) -> bool:
        pending, call = self._pending, self._current
        at = pending.text.find("<", pending.scan)
        while at >= 0:
            tag = pending.tag(at)
            if isinstance(tag, Partial):
                pending.scan = at
                return False
            if tag is not None:
                call.body.append(self._take(at))
                self._tag_in_invoke(tag._replace(end=tag.end - at))
                return True
            at = pending.text.find("<", at + 1)
        pending.scan = len(pending.text)
        if pending.final:
            self._abort(len(pending.text))
        return False

    def _tag_in_invoke(self, tag: Tag) -> None:
        call = self._current
        if tag.kind == "parameter":
            self._take(tag.end)
            self._deliver(call.arguments.open(tag.name, tag.is_string))
            self._at = _At.VALUE
            self._hold = None
        elif tag.kind == "invoke_end":
            self._take(tag.end)
            self._close()
        elif tag.kind == "parameter_end":
            self._take(tag.end)
        else:
            self._abort(0)

    def _close(self) -> None:
        call = self._current
        fragment, left = call.arguments.finish("".join(call.body))
        self._deliver(fragment)
        end = ToolCallEnd(call.index, call.name, call.arguments.json)
        for event in [*call.events, end] if self._buffer_calls else [end]:
            self._emit(event)
        self.complete += 1
        self._leave_invoke()
        if left.strip():
            self._emit(ContentDelta(left.strip()))

    def _abort(self, count: int) -> None:
        """Give the call up, together with ``count`` pending characters."""
        call = self._current
        self._take(count)
        self.truncated = True
        if not self._buffer_calls:
            self._emit(ToolCallAborted(call.index, call.name, "".join(call.source)))
        self._leave_invoke()

    def _leave_invoke(self) -> None:
        self._call = None
        self._at = _At.BLOCK
        self.inside = self._wrapped

    # --- inside a value ------------------------------------------------------------------------

    def _value(self) -> bool:
        pending = self._pending
        at = pending.text.find("<", pending.scan)
        while at >= 0:
            tag = pending.tag(at)
            if isinstance(tag, Partial):
                return self._wait_in_value(at)
            if tag is not None and tag.kind == "invoke_end" and self._hold is None:
                self._hold = at
            if tag is not None and tag.kind == "parameter_end":
                following = pending.after_blanks(tag.end)
                if isinstance(following, Partial):
                    return self._wait_in_value(at)
                if isinstance(following, End) or _ends_value(following):
                    if self._hold is not None and self._swallowed_another_call(self._hold):
                        self._close_unclosed(self._hold)
                    else:
                        self._close_value(at, tag.end)
                    return True
            at = pending.text.find("<", at + 1)
        if not pending.final:
            return self._wait_in_value(len(pending.text))
        if self._hold is not None:
            self._close_unclosed(self._hold)
            return True
        self._abort(len(pending.text))
        return False

    def _wait_in_value(self, at: int) -> bool:
        """Everything before ``at`` is looked at; pass on what is certain to be part of the value.

        One newline stays back: if the value turns out unclosed, it belongs to the markup.
        """
        pending, call = self._pending, self._current
        pending.scan = at
        if self._hold is None and call.arguments.streams:
            certain = at - pending.text.endswith("\n", 0, at)
            self._deliver(call.arguments.text(self._take(certain)))
        return False

    def _swallowed_another_call(self, hold: int) -> bool:
        """Whether the value ran past the end of its own invoke into the next one."""
        pending = self._pending
        end = pending.tag(hold)
        following = pending.after_blanks(end.end) if isinstance(end, Tag) else None
        if not isinstance(following, Tag) or following.kind != "invoke":
            return False
        inner = pending.after_blanks(following.end)
        return following.name in self._tools and isinstance(inner, Tag)

    def _close_value(self, length: int, end: int) -> None:
        call = self._current
        value = self._take(length)
        self._take(end - length)
        self._deliver(call.arguments.close(value))
        self._at = _At.INVOKE
        self._pending.scan = 0

    def _close_unclosed(self, hold: int) -> None:
        length = hold - self._pending.text.endswith("\n", 0, hold)
        self._close_value(length, hold)

    # -------------------------------------------------------------------------------------------

    @property
    def _current(self) -> _Call:
        assert self._call is not None
        return self._call

    def _take(self, count: int) -> str:
        taken = self._pending.take(count)
        self._current.source.append(taken)
        return taken

    def _deliver(self, fragment: str) -> None:
        if not fragment:
            return
        event = ToolArgumentsDelta(self._current.index, fragment)
        if self._buffer_calls:
            self._current.events.append(event)
        else:
            self._emit(event)


def _ends_value(following: object) -> bool:
    """Whether a closing parameter tag before ``following`` is markup and not part of the value."""
    return isinstance(following, Tag) and following.kind != "block"
