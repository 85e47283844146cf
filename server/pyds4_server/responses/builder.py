"""A response growing item by item, for both ways of sending it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from pyds4_server.collect import Answer, failure
from pyds4_server.events import Failed, Finished
from pyds4_server.responses import convert
from pyds4_server.responses import protocol as p
from pyds4_server.responses.naming import ToolNames


class ResponseBuilder:
    """The response object of one request.

    Args:
        request: What was asked, most of which is echoed.
        raw_tools: The tools as they were sent.
        names: The tools by the names the model sees.
    """

    def __init__(
        self, request: p.ResponsesRequest, raw_tools: Sequence[dict[str, Any]], names: ToolNames
    ) -> None:
        self.request = request
        self.names = names
        self.seals_reasoning = "reasoning.encrypted_content" in (request.include or ())
        reasoning = request.reasoning or p.Reasoning()
        self.summarises = bool(reasoning.summary or reasoning.generate_summary)
        choice = request.tool_choice
        self.response = p.Response(
            id=f"resp_{secrets.token_hex(16)}",
            object="response",
            created_at=int(time.time()),
            completed_at=None,
            status="in_progress",
            background=False,
            error=None,
            incomplete_details=None,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            metadata=request.metadata or {},
            model=request.model,
            output=[],
            parallel_tool_calls=request.parallel_tool_calls is not False,
            previous_response_id=request.previous_response_id,
            prompt_cache_key=request.prompt_cache_key,
            reasoning=p.ReasoningOut(
                effort=reasoning.effort, summary=reasoning.summary or reasoning.generate_summary
            ),
            store=request.store is not False,
            temperature=1.0 if request.temperature is None else request.temperature,
            text=_text(request.text),
            tool_choice=(
                json.loads(choice.model_dump_json(exclude_unset=True))
                if isinstance(choice, p.ToolChoice)
                else choice or "auto"
            ),
            tools=list(raw_tools),
            top_p=1.0 if request.top_p is None else request.top_p,
            truncation="disabled",
            usage=None,
            user=request.user,
        )

    def reasoning_item(self, identity: str, text: str) -> p.ReasoningItem:
        """Finished reasoning: as a summary where one was asked for, else as it is."""
        item = p.ReasoningItem(type="reasoning", id=identity, summary=[])
        if self.summarises:
            item.summary = [p.SummaryText(type="summary_text", text=text)]
        else:
            item.content = [p.ReasoningText(type="reasoning_text", text=text)]
        if self.seals_reasoning:
            item.encrypted_content = convert.seal(text)
        return item

    def message_item(
        self, identity: str, text: str, logprobs: list[Any] | None = None
    ) -> p.MessageItem:
        """A finished message."""
        part = p.OutputText(type="output_text", text=text, annotations=[], logprobs=logprobs or [])
        return p.MessageItem(
            type="message", id=identity, status="completed", role="assistant", content=[part]
        )

    def add_answer(self, answer: Answer, logprobs: list[Any] | None) -> None:
        """Everything at once."""
        if answer.reasoning:
            self.response.output.append(self.reasoning_item(new_id("rs"), answer.reasoning))
        if answer.content:
            self.response.output.append(self.message_item(new_id("msg"), answer.content, logprobs))
        for call in answer.calls:
            self.response.output.append(convert.call_item(call, new_id("fc"), self.names))

    def finish(self, event: Finished) -> None:
        """It went well, as far as it went."""
        response = self.response
        response.usage = convert.usage(event.usage)
        response.completed_at = int(time.time())
        if event.reason in ("length", "repetition"):
            response.status = "incomplete"
            response.incomplete_details = p.IncompleteDetails(reason="max_output_tokens")
        else:
            response.status = "completed"

    def fail(self, event: Failed) -> None:
        """It did not."""
        error = failure(event)
        self.response.status = "failed"
        self.response.error = p.ErrorOut(code="server_error", message=error.message)


def new_id(prefix: str) -> str:
    """An id as OpenAI writes them."""
    return f"{prefix}_{secrets.token_hex(16)}"


def _text(sent: p.TextConfig | None) -> dict[str, Any]:
    if sent is None or sent.format is None:
        return {"format": {"type": "text"}}
    return {"format": json.loads(sent.format.model_dump_json(exclude_unset=True, by_alias=True))}
