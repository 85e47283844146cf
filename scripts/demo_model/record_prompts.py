"""Record what agents really send: ``python -m scripts.demo_model.record_prompts LOG [PORT]``.

Serves chat completions on loopback, appends every request to LOG as a line of JSON, and answers
from a script: first a call of the first tool with plausible arguments, then a plain sentence. Point
an agent's base URL at it, let it run a task, and write the prompts worth training on to the file
that ``train --prompts`` takes::

    {"shell": [{"system": "…", "user": "… {task} …", "submit": "last command"}],
     "agent": [{"system": "…", "tools": [{"purpose": "read", "schema": {…}, "names": {…}}]}]}

``purpose`` and the keys of ``names`` are those of ``pyds4.evals.toolbox``. Other people's prompts
are not ours to publish: neither the log nor that file belongs into the repository.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PATH = "config.ini"
SHELL = ("cat config.ini", "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The assistant message for a request."""
    tools = [tool["function"] for tool in request.get("tools") or ()]
    rounds = sum(message["role"] == "tool" for message in request.get("messages", ()))
    shell_only = len(tools) == 1 and tools[0]["name"] == "bash"
    if not tools or rounds >= (len(SHELL) if shell_only else 1):
        return {"role": "assistant", "content": "The port is 8080."}
    required = tools[0].get("parameters", {}).get("required", ())
    arguments = {"command": SHELL[rounds]} if shell_only else dict.fromkeys(required, PATH)
    call = {
        "id": f"call_{rounds}",
        "type": "function",
        "function": {"name": tools[0]["name"], "arguments": json.dumps(arguments)},
    }
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def body(request: dict[str, Any]) -> tuple[str, bytes]:
    """Content type and bytes of the whole response, streamed or not."""
    message = answer(request)
    finish = "tool_calls" if message.get("tool_calls") else "stop"
    head = {"id": "recorded", "created": 0, "model": "recorder"}
    if not request.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": finish}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        return "application/json", json.dumps(whole).encode()
    delta = dict(message)
    if "tool_calls" in delta:
        delta["tool_calls"] = [{"index": 0, **call} for call in delta["tool_calls"]]
    choices = (
        {"index": 0, "delta": delta, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": finish},
    )
    chunks = [
        json.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]})
        for choice in choices
    ]
    return "text/event-stream", "".join(f"data: {c}\n\n" for c in [*chunks, "[DONE]"]).encode()


class Recorder(BaseHTTPRequestHandler):
    """Answers POSTs; ``log`` is the file that requests go to."""

    protocol_version = "HTTP/1.1"
    log: Path

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on the terminal."""

    def do_POST(self) -> None:
        """Record and answer one request."""
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.log.open("a", encoding="utf-8") as log:
            print(json.dumps({"path": self.path, "request": request}), file=log)
        kind, content = body(request)
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    """Serve until Ctrl-C."""
    Recorder.log = Path(sys.argv[1])
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8099
    ThreadingHTTPServer(("127.0.0.1", port), Recorder).serve_forever()


if __name__ == "__main__":
    main()
