"""Messages -> prompt, completion -> message."""

from pyds4.chat.parser import parse
from pyds4.chat.prompt import Prompt, Segment
from pyds4.chat.template import EFFORTS, render

__all__ = [
    "EFFORTS",
    "Prompt",
    "Segment",
    "parse",
    "render",
]
