"""One answer in the making: sampled tokens in, events out.

::

    token ─▶ text (whole characters) ─▶ StreamParser ─▶ reasoning │ content │ tool calls ─▶ events
                                                                   └▶ stop strings

Everything here runs on the scheduler's thread, between two steps of the engine.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pyds4.chat import (
    ContentDelta,
    ReasoningDelta,
    StreamParser,
    ToolArgumentsDelta,
    ToolCallAborted,
    ToolCallEnd,
    ToolCallStart,
    markers,
)
from pyds4.tokenizer import Tokenizer
from pyds4_server.constraint import OneOf
from pyds4_server.engine_api import Logits
from pyds4_server.events import (
    CallAborted,
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    Event,
    FinishReason,
    Reasoning,
    TokenLogprob,
)
from pyds4_server.form import Form
from pyds4_server.formats import FREE, Formats, begun_text
from pyds4_server.repetition import RepetitionGuard
from pyds4_server.sampling import SamplingOptions, TokenChooser
from pyds4_server.stop_strings import StopStrings

ToolChoice = Literal["auto", "none", "required"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request is, for clients that give up and send it again.

    Attributes:
        key: Equal for equal requests.
        may_join: An equal one that still runs may answer this one.
        may_reuse: One that is finished may, too: the client says that it asks again.
    """

    key: str
    may_join: bool
    may_reuse: bool


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request, whatever the protocol it came by.

    Attributes:
        prompt: Token ids, at least one.
        chat: Parse the answer as a chat turn; False passes the text on as it is.
        thinking: The prompt opened this answer with ``<think>``.
        scored: The end of the prompt, taken token by token like an answer, so that its
            log-probabilities are reported; it is not in ``prompt``, but counts in ``max_tokens``.
        prefill: What the prompt already holds of the answer, after that marker.
        buffer_calls: Report a call only once it is whole; for answers that are not streamed.
        tools: The declared tools in OpenAI's form, for the parser.
        tool_choice: ``required`` forces a call of one of ``callable_names``.
        callable_names: Tools that a forced call may name.
        formats: The forms that its text and its calls must have.
        parallel_calls: False ends the turn after the first call.
        max_tokens: Limit on generated tokens.
        thinking_tokens: Limit on reasoning tokens; then ``</think>`` is forced.
        stop: Strings that end the visible text.
        sampling: See ``SamplingOptions``.
        top_logprobs: Alternatives to report for each content token; None reports nothing.
        n: Independent answers to the prompt.
        call_id_prefix: How this protocol begins the ids of tool calls.
        identity: What makes this request equal to another; see ``service.identity_of``.
        on_turn: Told about every answer, on the scheduler's thread.
    """

    prompt: Sequence[int]
    max_tokens: int
    chat: bool = True
    thinking: bool = False
    scored: Sequence[int] = ()
    prefill: str = ""
    buffer_calls: bool = False
    tools: Sequence[dict[str, Any]] = ()
    tool_choice: ToolChoice = "auto"
    callable_names: Sequence[str] = ()
    formats: Formats = FREE
    parallel_calls: bool = True
    thinking_tokens: int | None = None
    stop: Sequence[str] = ()
    sampling: SamplingOptions = SamplingOptions()  # noqa: RUF009 (frozen)
    top_logprobs: int | None = None
    n: int = 1
    call_id_prefix: str = "call_"
    identity: Identity | None = None
    on_turn: Callable[[Turn], None] | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer as it came, for recognising it when a client sends it back.

    ``tokens`` are the sampled ids without EOS; ``is_whole`` says that the model ended the turn.
    """

    prompt: Sequence[int]
    tokens: Sequence[int]
    is_whole: bool
    reasoning: str
    content: str
    calls: Sequence[CallEnd]


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The ids that structure an answer; None where a vocabulary lacks them."""

    end_think: int | None
    dsml: int | None
    stops: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> SpecialTokens:
        """The markers of ``tokenizer``. A model that opens the next turn has ended its own."""
        stops = {tokenizer.eos_id, tokenizer.bos_id, tokenizer.token_id(markers.USER)}
        return cls(
            end_think=tokenizer.token_id(markers.END_THINK),
            dsml=tokenizer.token_id(markers.DSML),
            stops=frozenset(token for token in stops if token is not None),
        )


class Generation:
    """The state of one answer.

    Attributes:
        tokens: Sampled so far, the ending one included.
        finish_reason: None while it runs.
        stop_sequence: The stop string that ended it, if one did.
        reasoning_tokens: How many of ``tokens`` were reasoning.
    """

    def __init__(
        self,
        request: GenerationRequest,
        tokenizer: Tokenizer,
        special: SpecialTokens,
        chooser: TokenChooser,
        guard: RepetitionGuard | None = None,
    ) -> None:
        self.request = request
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.stop_sequence: str | None = None
        self.reasoning_tokens = 0
        self._tokenizer = tokenizer
        self._special = special
        self._chooser = chooser
        self._guard = guard
        self._decoder = tokenizer.decoder()
        self._stops = StopStrings(request.stop)
        self._parser = _parser(request) if request.chat else None
        self._is_thinking = self._parser is not None and self._parser.in_reasoning
        self._ids: list[str] = []
        self._calls: list[CallEnd] = []
        self._was_aborted = False
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._blank = ""
        self._logprobs: list[TokenLogprob] = []
        self._opening: OneOf | None = None
        if request.tool_choice == "required" and not self._is_thinking:
            self._opening = self._openings()
        if request.scored:
            self._opening = OneOf([request.scored])
        self._form = self._required_form()
        self._always_banned: frozenset[int] = frozenset()
        if request.chat and request.tool_choice == "none" and special.dsml is not None:
            self._always_banned = frozenset({special.dsml})

    # Choosing

    @property
    def engine_may_sample(self) -> bool:
        """Whether the next token needs nothing that only ``choose`` does."""
        return not (
            self._chooser.needs_logits
            or self._always_banned
            or self._forced() is not None
            or self._binding_form() is not None
            or self._banned()
        )

    @property
    def wants_greedy(self) -> bool:
        """Whether the next token is markup: its one right form beats a drawn one."""
        return self._parser is not None and self._parser.in_dsml_syntax

    def choose(self, logits: Logits) -> int:
        """Choose the next token; ``accept`` it next."""
        forced, form = self._forced(), self._binding_form()
        token, logprob = self._chooser.choose(
            logits,
            banned=self._banned(),
            allowed=forced,
            mask=form.mask() if form is not None and forced is None else None,
            greedy=self.wants_greedy,
        )
        if logprob is not None:
            self._logprobs.append(logprob)
        return token

    def _forced(self) -> Collection[int] | None:
        if self._opening is not None:
            return self._opening.allowed()
        budget = self.request.thinking_tokens
        if self._is_thinking and budget is not None and self.reasoning_tokens >= budget:
            return None if self._special.end_think is None else (self._special.end_think,)
        return None

    def _banned(self) -> frozenset[int]:
        must_call = self.request.tool_choice == "required" and not self._ids
        return self._always_banned | self._special.stops if must_call else self._always_banned

    def _required_form(self) -> Form | None:
        """The form that the request demands. A call that must come leaves no place for a text."""
        request = self.request
        text, calls = request.formats
        if request.tool_choice == "required":
            text = None
        if text is None and calls is None:
            return None
        begun = begun_text(request.thinking, request.prefill)
        may_call = bool(request.tools) and request.tool_choice == "auto"
        names = [tool["function"]["name"] for tool in request.tools]
        return Form(
            Formats(text, calls),
            self._tokenizer.encode(begun, special=False) if begun else (),
            (lambda: self._openings(names)) if may_call else None,
            self._special.dsml,
        )

    def _binding_form(self) -> Form | None:
        """The form that the next token must keep."""
        if self._form is None or self._is_thinking or not self._form.is_binding:
            return None
        return self._form

    def _openings(self, names: Sequence[str] | None = None) -> OneOf:
        """The token sequences that open a call, one for each tool that may be called."""
        encode = self._tokenizer.encode
        return OneOf(
            [
                encode(f'\n\n<{markers.DSML}tool_calls>\n<{markers.DSML}invoke name="')
                + encode(f'{name}">\n', special=False)
                for name in (self.request.callable_names if names is None else names)
            ]
        )

    # Taking in

    def accept(self, token: int) -> list[Event]:
        """Take the token that comes next; ``finish_reason`` is set if it was the last one."""
        self.tokens.append(token)
        self._chooser.record(token)
        if self._opening is not None:
            self._opening.advance(token)
            if self._opening.is_complete:
                self._opening = None
        if len(self.tokens) <= len(self.request.scored):
            return self._score(token)
        if token in self._special.stops:
            return self._finish("stop", is_whole=token == self._tokenizer.eos_id)
        events: list[Event] = []
        was_thinking = self._is_thinking
        if was_thinking:
            self.reasoning_tokens += 1
        elif self._form is not None:
            self._opening = self._form.take(token) or self._opening
        self._text(self._decoded(token), events)
        if was_thinking and self._parser is not None and not self._parser.in_reasoning:
            self._is_thinking = False
            if self.request.tool_choice == "required" and not self._parser.in_tool_call:
                self._opening = self._openings()
            if self._form is not None:
                begun = "".join(event.text for event in events if isinstance(event, Content))
                self._form.begin_with(self._tokenizer.encode(begun, special=False))
        if self._stops.matched is not None:
            self.stop_sequence = self._stops.matched
            return events + self._finish("stop_sequence")
        if self._calls and not self.request.parallel_calls:
            return events + self._finish("tool_calls")
        if len(self.tokens) >= self.request.max_tokens:
            return events + self._finish("length")
        if self._guard is not None and self._guard.repeats(self.tokens):
            return events + self._finish("repetition")
        return events

    def _score(self, token: int) -> list[Event]:
        """A token of the prompt: shown as it is, and nothing in it ends the answer."""
        text = self._decoder.feed(token)
        events: list[Event] = []
        if text:
            self._emit(text, events)
        if len(self.tokens) >= self.request.max_tokens:
            events += self._finish("length")
        return events

    def end(self, reason: FinishReason) -> list[Event]:
        """End it from outside: the context is full."""
        return self._finish(reason)

    def _decoded(self, token: int) -> str:
        if self._parser is None and self._tokenizer.is_special(token):
            return ""
        return self._decoder.feed(token)

    def _text(self, text: str, events: list[Event]) -> None:
        if self._parser is None:
            self._show(text, events)
            return
        for event in self._parser.feed(text):
            self._translate(event, events)

    def _translate(self, event: Any, events: list[Event]) -> None:
        """One event of the parser as events of ours."""
        if isinstance(event, ReasoningDelta):
            self._logprobs.clear()
            self._reasoning.append(event.text)
            events.append(Reasoning(event.text))
        elif isinstance(event, ContentDelta):
            self._show(event.text, events)
        elif isinstance(event, ToolCallStart):
            self._close_text(events)
            self._ids.append(self.request.call_id_prefix + secrets.token_hex(12))
            events.append(CallStart(event.index, self._ids[event.index], event.name))
        elif isinstance(event, ToolArgumentsDelta):
            events.append(CallArguments(event.index, event.fragment))
        elif isinstance(event, ToolCallEnd):
            end = CallEnd(event.index, self._ids[event.index], event.name, event.arguments)
            self._calls.append(end)
            events.append(end)
        elif isinstance(event, ToolCallAborted):
            self._was_aborted = True
            events.append(CallAborted(event.index))

    def _show(self, text: str, events: list[Event]) -> None:
        """Visible text. Blanks at its beginning wait until something else comes."""
        if self._stops.matched is not None:
            return
        text = self._stops.feed(text)
        if not self._content:
            text = self._blank + text
            self._blank = ""
            if not text.strip() and self.request.chat:
                self._blank = text
                return
        if text:
            self._emit(text, events)

    def _emit(self, text: str, events: list[Event]) -> None:
        self._content.append(text)
        events.append(Content(text, tuple(self._logprobs)))
        self._logprobs.clear()

    def _close_text(self, events: list[Event]) -> None:
        """A call begins: release what the stop strings held, drop blanks before it."""
        held = self._stops.finish() if self._stops.matched is None else ""
        if self._content and held:
            self._emit(held, events)
        elif held.strip():
            self._emit(self._blank + held, events)
        self._blank = ""
        self._logprobs.clear()

    # Ending

    def _finish(self, reason: FinishReason, *, is_whole: bool = False) -> list[Event]:
        events: list[Event] = []
        rest = self._decoder.finish()
        if self._parser is not None:
            for event in [*(self._parser.feed(rest) if rest else ()), *self._parser.finish()]:
                self._translate(event, events)
        elif rest:
            self._show(rest, events)
        if self._stops.matched is None:
            held = self._blank + self._stops.finish()
            if held and not self._ids:
                self._emit(held, events)
        self.finish_reason = self._settled(reason)
        if self.request.on_turn is not None:
            self.request.on_turn(self._turn(is_whole))
        return events

    def _settled(self, reason: FinishReason) -> FinishReason:
        """A turn with calls ends in ``tool_calls``, but never one that broke off inside a call."""
        if reason != "stop" or self._parser is None:
            return reason
        if self._was_aborted or (self._parser.truncated and not self._calls):
            return "length"
        return "tool_calls" if self._calls else "stop"

    def _turn(self, is_whole: bool) -> Turn:
        return Turn(
            prompt=self.request.prompt,
            tokens=self.tokens[:-1] if is_whole else self.tokens,
            is_whole=is_whole,
            reasoning="".join(self._reasoning),
            content="".join(self._content),
            calls=tuple(self._calls),
        )


def _parser(request: GenerationRequest) -> StreamParser:
    """Calls are looked for only where tools were declared and may be called."""
    tools = list(request.tools) if request.tools and request.tool_choice != "none" else None
    return StreamParser(
        "thinking" if request.thinking else "chat",
        tools=tools,
        prefill=request.prefill,
        buffer_calls=request.buffer_calls,
    )
