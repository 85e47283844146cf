"""run and chat: what people see of an answer, and what Ctrl-C does to it."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cli_support import DEMO, error_of, run
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import pyds4
from pyds4.cli import conversation
from pyds4.cli.chat_input import join_message
from pyds4.cli.markdown import MarkdownView, split_blocks
from pyds4.cli.relay import call, relay

SUM = ("-p", "What is 12 + 30?", "--temperature", "0")

# run


def test_run_prints_the_answer_and_nothing_else() -> None:
    assert run("run", *SUM) == (0, "12 + 30 = 42\n", "")


def test_run_reads_the_prompt_from_standard_input() -> None:
    outcome = run("run", "--temperature", "0", stdin="What is 12 + 30?")
    assert outcome.out == "12 + 30 = 42\n"


def test_reasoning_goes_to_standard_error() -> None:
    outcome = run("run", *SUM, "--think")
    assert outcome.out == "12 + 30 = 42\n"
    assert "42" in outcome.err
    assert "think>" not in outcome.err + outcome.out


def test_json_tells_everything_about_an_answer() -> None:
    outcome = run("run", *SUM, "--think", "--json", "--system", "Be brief.")
    report = json.loads(outcome.out)
    assert report["content"] == "12 + 30 = 42"
    assert "42" in report["reasoning"]
    assert report["model"] == "pyds4 demo"
    assert report["finish_reason"] == "stop"
    assert report["usage"]["completion_tokens"] > 10
    assert report["timings"]["decode_tokens_per_s"] > 0
    assert outcome.err == ""


def test_an_answer_that_is_cut_off_says_so() -> None:
    report = json.loads(run("run", *SUM, "--max-tokens", 3, "--json").out)
    assert report["finish_reason"] == "length"
    assert report["usage"]["completion_tokens"] == 3
    assert "12 + 30 = 42".startswith(report["content"])


def test_the_last_token_that_fits_is_no_cut_when_the_model_stops_there() -> None:
    whole = json.loads(run("run", *SUM, "--json").out)
    count = whole["usage"]["completion_tokens"]
    report = json.loads(run("run", *SUM, "--json", "--max-tokens", count + 1).out)
    assert report == whole | {"timings": report["timings"]}


def test_raw_text_goes_to_the_model_as_it_stands() -> None:
    report = json.loads(run("run", "--raw", "-p", "one two", "-n", 1, "--json").out)
    with pyds4.Engine(DEMO) as engine:
        assert report["usage"]["prompt_tokens"] == len(engine.tokenizer.encode("one two"))


def test_the_same_seed_gives_the_same_answer() -> None:
    words = ("run", "-p", "Tell me a story", "--seed", 5, "-n", 20)
    assert run(*words).out == run(*words).out


def test_verbose_says_what_it_took() -> None:
    assert "tokens/s" in run("run", *SUM, "--verbose").err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["-p", "x", "--raw", "--system", "y"], 2, "--raw"),
        (["-p", "", "--raw"], 2, "empty"),
        (["-p", "x", "--temperature", "-1"], 1, "temperature"),
        (["-p", "x", "--top-p", "0"], 1, "top_p"),
        (["-p", "x", "--effort", "low"], 1, "low"),
        (["-p", "x", "--context", "2"], 1, "context of 2"),
        (["-p", "x", "--context", "100000"], 1, "8192"),
        (["-p", "x", "--backend", "metal"], 1, "metal"),
    ],
)
def test_run_says_what_it_cannot_do(words: list[str], status: int, said: str) -> None:
    assert said in error_of("run", *words, status=status)


# relay


def fresh_logits(engine: pyds4.Engine, ids: list[int]) -> bytes:
    with engine.session() as session:
        session.prefill(ids)
        return session.logits.tobytes()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_a_session_is_as_good_as_new_after_an_interruption(taken: int) -> None:
    with pyds4.Engine(DEMO) as engine, engine.session() as session:
        ids = engine.tokenizer.encode("Tell me a story about a dog. " * 20)
        stream = relay(session, lambda: pyds4.generate(session, ids, stop_ids=()))
        with closing(stream) as tokens:
            for _ in range(taken):
                next(tokens)
        other = ids[:40]
        session.prefill(other)
        assert session.logits.tobytes() == fresh_logits(engine, other)


def test_a_cancellation_that_came_too_late_does_not_hit_the_next_call() -> None:
    with pyds4.Engine(DEMO) as engine, engine.session() as session:

        def work() -> Iterator[int]:
            session.prefill([5, 6, 7])
            yield 1

        with closing(relay(session, work)) as items:
            assert next(items) == 1
            time.sleep(0.05)  # let the worker end
        session.prefill([5, 6, 7, 8])
        assert session.logits.tobytes() == fresh_logits(engine, [5, 6, 7, 8])


def test_errors_of_the_worker_arrive() -> None:
    with pyds4.Engine(DEMO) as engine, engine.session() as session:
        with pytest.raises(pyds4.TokenOutOfRangeError):
            call(session, lambda: session.prefill([10**6]))
        assert call(session, lambda: session.prefill([1])) == 0


# chat


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

    def wait_for(self, text: str) -> None:
        """Read until ``text`` appears in what was not waited for yet."""
        deadline = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._master], [], [], 0.5)[0]:
                self.seen += os.read(self._master, 65536).decode(errors="replace")
        self.seen = self.seen.split(text, 1)[1]

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
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("Ctrl-D or /quit")
        terminal.wait_for("› ")
        terminal.enter("/quit\n")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()
    (history,) = tmp_path.rglob("chat_history")
    assert "What is 12 + 30?" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


# what is entered


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


# markdown

PIECES = st.sampled_from(["word ", "\n", "\n\n", "```", "```py\n", "~~~~\n", "  - x", "# h\n", "`"])
DOCUMENTS = st.lists(PIECES, max_size=30).map("".join)


@given(DOCUMENTS)
def test_blocks_are_cut_without_losing_a_character(text: str) -> None:
    finished, rest = split_blocks(text)
    assert finished + rest == text
    assert split_blocks(finished)[1] == ""
    assert split_blocks(rest)[0] == "" or rest.startswith("\n")


@given(DOCUMENTS, st.data())
def test_blocks_are_the_same_however_the_text_arrives(text: str, data: st.DataObject) -> None:
    whole, rest = split_blocks(text)
    cut = data.draw(st.integers(0, len(text)))
    first, left = split_blocks(text[:cut])
    second, last = split_blocks(left + text[cut:])
    assert (first + second, last) == (whole, rest)


def test_a_code_fence_is_one_block() -> None:
    text = "Look:\n\n```py\na = 1\n\nb = 2\n```\nmore"
    assert split_blocks(text) == (text[:-4], "more")
    assert split_blocks(text[:-8])[0] == "Look:\n\n"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.from_regex(r"[a-z]{1,12}", fullmatch=True), min_size=1, max_size=30))
def test_every_word_of_a_streamed_answer_is_printed_for_good_once(words: list[str]) -> None:
    text = "\n\n".join(" ".join(words[i : i + 5]) for i in range(0, len(words), 5))
    file = io.StringIO()
    view = MarkdownView(Console(file=file, force_terminal=True, width=60, color_system=None))
    for at in range(0, len(text), 3):
        view.feed(text[at : at + 3])
    view.finish()
    # What the live region showed is erased again, line by line.
    screen = Screen()
    screen.write(file.getvalue())
    assert screen.text().split() == words


class Screen:
    """Just enough of a terminal: line feeds, carriage returns, cursor up, erase line."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = 0

    def write(self, text: str) -> None:
        at = 0
        while at < len(text):
            char = text[at]
            if char == "\x1b":
                end = at + 2
                while not text[end].isalpha():
                    end += 1
                if text[end] == "A":
                    self.row -= int(text[at + 2 : end])
                elif text[end] == "K":
                    self.lines[self.row] = ""
                at = end
            elif char == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif char != "\r":
                self.lines[self.row] += char
            at += 1

    def text(self) -> str:
        return "\n".join(self.lines)
