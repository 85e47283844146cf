"""chat: lines, commands, and what Ctrl-C does to an answer."""

from __future__ import annotations

import codecs
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_support import run

from pyds4.cli import conversation
from pyds4.cli.chat_input import join_message


def chat(*lines: str, words: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    outcome = run("chat", "--temperature", "0", *words, stdin="".join(f"{x}\n" for x in lines))
    assert outcome.status == 0
    return outcome.out.splitlines(), outcome.err.splitlines()


def test_chat_answers_line_after_line_and_reuses_the_prefix() -> None:
    out, err = chat("What is 12 + 30?", "Hello!")
    assert out[0] == "12 + 30 = 42"
    assert len(out) == 2
    assert "reused" not in err[0]
    assert "reused" in err[1]


def test_chat_forgets_on_reset(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    chat("Hello!", "/reset", "What is 1 + 1?", f"/save {path}", "/quit", "never asked")
    messages = json.loads(path.read_text())["messages"]
    assert [message["content"] for message in messages] == ["What is 1 + 1?", "1 + 1 = 2"]


def test_a_saved_chat_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    chat("Hello!", f"/save {path}", words=("--system", "Be kind.", "--think"))
    saved = json.loads(path.read_text())["messages"]
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    assert saved[2]["reasoning_content"]
    chat(f"/load {path}", "What is 1 + 1?", f"/save {path}")
    assert json.loads(path.read_text())["messages"][:3] == saved


def test_thinking_can_be_switched() -> None:
    out, err = chat("/think", "Hello!", "/think off", "Hello!")
    assert err[0] == "thinking"
    assert "not thinking" in err
    assert len(out) > 2  # reasoning, an empty line, two answers


def test_retry_answers_again(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    out, err = chat("/retry", "Hello!", "/retry", f"/save {path}")
    assert err[0] == "nothing was asked yet"
    assert out[0] == out[1]
    assert len(json.loads(path.read_text())["messages"]) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/frobnicate", "no command /frobnicate"),
        ("/think maybe", "on or off"),
        ("/effort enormous", "max or none"),
        ("/save", "file name"),
        ("/save /nowhere/x.json", "/nowhere/x.json"),
        ("/load /nowhere/x.json", "/nowhere/x.json"),
        ("/load /dev/null", "not a saved conversation"),
        ("/help", "/quit"),
    ],
)
def test_a_mistaken_command_is_told_and_the_chat_goes_on(line: str, said: str) -> None:
    out, err = chat(line, "What is 12 + 30?")
    assert said in "\n".join(err)
    assert out == ["12 + 30 = 42"]


@pytest.mark.parametrize(
    "messages",
    [None, [1], [{"role": "tool", "content": "x"}], [{"role": "user"}],
     [{"role": "user", "content": 1}], [{"role": "assistant", "content": "x"}]],
)  # fmt: skip
def test_only_conversations_are_loaded(messages: object, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"messages": messages}))
    out, err = chat(f"/load {path}", "What is 12 + 30?")
    assert str(path) in err[0]
    assert out == ["12 + 30 = 42"]


def test_a_message_that_does_not_fit_is_told_and_taken_back() -> None:
    out, err = chat("word " * 300, "What is 12 + 30?", words=("--context", "64"))
    assert "error: the prompt has" in err[0]
    assert out == ["12 + 30 = 42"]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, seen = conversation._View.show, iter(range(100))

    def show_and_interrupt(self: conversation._View, event: object) -> None:
        show(self, event)
        if next(seen) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(conversation._View, "show", show_and_interrupt)
    path = tmp_path / "chat.json"
    out, err = chat("Who are you?", f"/save {path}", "What is 12 + 30?")
    messages = json.loads(path.read_text())["messages"]
    assert "interrupted" in err[0]
    assert 0 < len(messages[1]["content"]) < 40
    assert out == [messages[1]["content"], "12 + 30 = 42"]


class Terminal:
    """A chat in a pseudo-terminal."""

    def __init__(self, home: Path) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyds4", "chat", "--temperature", "0"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "xterm", "XDG_STATE_HOME": str(home), "HOME": str(home)},
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""
        # A read may end within a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def wait_for(self, text: str) -> None:
        """Read until ``text`` appears in what was not waited for yet."""
        deadline = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self._read(0.5)
        self.seen = self.seen.split(text, 1)[1]

    def interrupt_until(self, text: str) -> None:
        """Ctrl-C; again while nothing happens, for Python's readline misses one now and then that
        comes between its look at signals and its wait for keys."""
        for _ in range(30):
            self.process.send_signal(signal.SIGINT)
            if self._read(2.0):
                break
        self.wait_for(text)

    def _read(self, timeout_s: float) -> bool:
        """Take in what comes within a time; whether anything did."""
        if not select.select([self._master], [], [], timeout_s)[0]:
            return False
        self.seen += self._decoder.decode(os.read(self._master, 65536))
        return True

    def enter(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


def test_chat_in_a_terminal(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    try:
        terminal.wait_for("/help")
        terminal.wait_for("› ")
        terminal.enter("What is 12 + 30?\n")
        terminal.wait_for("12 + 30 = 42")
        terminal.wait_for("tokens/s")
        terminal.wait_for("› ")
        terminal.interrupt_until("Ctrl-D or /quit")
        terminal.enter("/quit\n")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()
    (history,) = tmp_path.rglob("chat_history")
    assert "What is 12 + 30?" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def joined(text: str) -> list[str]:
    lines = iter(text.split("\n"))
    messages = []
    while (message := join_message(lambda continues: next(lines, None))) is not None:
        messages.append(message)
    return messages


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("a\nb", ["a", "b"]),
        ("a\\\nb\nc", ["a\nb", "c"]),
        ("a\\", ["a"]),
        ('"""\na\n\nb\n"""\nc', ["a\n\nb", "c"]),
        ('"""\na', ["a"]),
        ('say """', ['say """']),
    ],
)
def test_lines_become_messages(text: str, messages: list[str]) -> None:
    assert joined(text) == messages
