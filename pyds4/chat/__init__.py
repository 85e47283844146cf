"""Messages -> prompt, completion -> message."""

from pyds4.chat.prompt import Prompt, Segment
from pyds4.chat.template import EFFORTS, render

__all__ = [
    "EFFORTS",
    "Prompt",
    "Segment",
    "render",
]
