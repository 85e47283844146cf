"""The added tokens that structure a prompt. `｜` is U+FF5C and `▁` U+2581, not their ASCII kin."""

from __future__ import annotations

import re
from typing import Final

BOS: Final = "<｜begin▁of▁sentence｜>"
EOS: Final = "<｜end▁of▁sentence｜>"
USER: Final = "<｜User｜>"
ASSISTANT: Final = "<｜Assistant｜>"
LATEST_REMINDER: Final = "<｜latest_reminder｜>"
THINK: Final = "<think>"
END_THINK: Final = "</think>"
DSML: Final = "｜DSML｜"
"""Stands inside every tag of the tool-call markup: `<｜DSML｜invoke …>`."""

TASKS: Final = {
    "action": "<｜action｜>",
    "query": "<｜query｜>",
    "authority": "<｜authority｜>",
    "domain": "<｜domain｜>",
    "title": "<｜title｜>",
    "read_url": "<｜read_url｜>",
}
"""Quick tasks: the token after the user's turn that asks for something other than an answer."""

IN_TEMPLATE: Final = re.compile("|".join(map(re.escape, (DSML, END_THINK, THINK))))
"""The markers that occur inside the fixed texts of the template."""
