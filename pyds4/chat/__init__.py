"""Messages -> prompt, completion -> message."""

from pyds4.chat.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCallAborted,
    ToolCallEnd,
    ToolCallStart,
)
from pyds4.chat.parser import parse
from pyds4.chat.prompt import Prompt, Segment
from pyds4.chat.stream import StreamParser
from pyds4.chat.template import EFFORTS, render

__all__ = [
    "EFFORTS",
    "ContentDelta",
    "Event",
    "Prompt",
    "ReasoningDelta",
    "Segment",
    "StreamParser",
    "ToolArgumentsDelta",
    "ToolCallAborted",
    "ToolCallEnd",
    "ToolCallStart",
    "parse",
    "render",
]
