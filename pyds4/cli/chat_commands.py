"""The commands of a chat: lines that begin with a slash."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyds4.cli.console import note

if TYPE_CHECKING:
    from pyds4.cli.conversation import Conversation

HELP = """\
  /help            this list
  /reset           forget the conversation
  /retry           answer the last message again
  /system TEXT     set the system message; without TEXT, take it away
  /think [on|off]  reason before answering
  /effort LEVEL    low, high, max or none
  /save FILE       write the conversation as JSON
  /load FILE       continue a conversation that was saved
  /quit            leave
"""


class Commands:
    """Carries out slash commands on a conversation."""

    def __init__(self, conversation: Conversation) -> None:
        self._chat = conversation
        self._known: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "reset": self._reset,
            "retry": self._retry,
            "system": self._system,
            "think": self._think,
            "effort": self._effort,
            "save": self._save,
            "load": self._load,
        }

    def run(self, line: str) -> bool:
        """Carry out ``line``; False when the chat is to end. Mistakes are told, not raised."""
        name, _, rest = line[1:].partition(" ")
        if name in ("quit", "exit"):
            return False
        command = self._known.get(name)
        if command is None:
            note(f"no command /{name}; /help lists them")
        else:
            command(rest.strip())
        return True

    def _help(self, rest: str) -> None:
        note(HELP.rstrip("\n"))

    def _reset(self, rest: str) -> None:
        self._chat.turns.clear()
        note("forgotten")

    def _retry(self, rest: str) -> None:
        if not self._chat.retry():
            note("nothing was asked yet")

    def _system(self, rest: str) -> None:
        self._chat.system = rest or None
        note("system message set" if rest else "no system message")

    def _think(self, rest: str) -> None:
        if rest not in ("", "on", "off"):
            note(f"/think: expected on or off, found {rest!r}")
            return
        on = rest == "on" if rest else not self._chat.style.thinking
        self._chat.style = replace(self._chat.style, thinking=on)
        note("thinking" if on else "not thinking")

    def _effort(self, rest: str) -> None:
        from pyds4.chat import EFFORTS

        profile = self._chat.style.profile
        known = [name for name in EFFORTS[profile] if name is not None]
        if rest not in (*known, "none"):
            note(f"/effort: expected {', '.join(known)} or none, found {rest!r}")
            return
        effort = None if rest == "none" else rest
        thinking = self._chat.style.thinking or effort is not None
        self._chat.style = replace(self._chat.style, effort=effort, thinking=thinking)
        note(f"effort {rest}")

    def _save(self, rest: str) -> None:
        if not rest:
            note("/save: a file name is missing")
            return
        text = json.dumps({"messages": self._chat.messages}, ensure_ascii=False, indent=2)
        try:
            Path(rest).expanduser().write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            note(f"/save {rest}: {error.strerror}")
        else:
            note(f"saved to {rest}")

    def _load(self, rest: str) -> None:
        try:
            messages = json.loads(Path(rest).expanduser().read_text(encoding="utf-8"))["messages"]
            roles = [message["role"] for message in messages]
            contents = [message["content"] for message in messages]
        except OSError as error:
            note(f"/load {rest}: {error.strerror}")
            return
        except (ValueError, TypeError, KeyError):
            note(f"/load {rest}: not a saved conversation")
            return
        known = roles[:1] in ([], ["system"], ["user"])
        if not known or not set(roles[1:]) <= {"user", "assistant"}:
            note(f"/load {rest}: not a saved conversation")
            return
        if not all(isinstance(content, str) for content in contents):
            note(f"/load {rest}: a message is not text")
            return
        has_system = roles[:1] == ["system"]
        self._chat.system = contents[0] if has_system else None
        self._chat.turns = messages[1:] if has_system else messages
        note(f"{len(self._chat.turns)} messages loaded")
