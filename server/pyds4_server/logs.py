"""Log lines for people or for machines. Neither ever holds a prompt, an answer or a key."""

from __future__ import annotations

import json
import logging
from typing import Literal


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(form: Literal["text", "json"], level: int = logging.INFO) -> None:
    """Send what the server logs to standard error. Safe to call twice."""
    handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("pyds4")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
