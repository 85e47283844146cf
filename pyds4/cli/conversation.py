"""The state of a chat: what was said, how answers are asked for, and one answer after another."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

from pyds4.cli.answer import Answer, Style, stream_events
from pyds4.cli.console import Progress, is_terminal, note
from pyds4.cli.failure import one_line
from pyds4.cli.markdown import MarkdownView, PlainView, TextView
from pyds4.errors import PyDS4Error

if TYPE_CHECKING:
    from rich.console import Console

    from pyds4.sampling import Sampling
    from pyds4.session import Session


class Conversation:
    """Messages, and a session that remembers them as far as it can."""

    def __init__(
        self,
        session: Session,
        screen: Console,
        sampling: Sampling,
        style: Style,
        system: str | None = None,
        *,
        plain: bool = False,
    ) -> None:
        self.session = session
        self.style = style
        self.system = system
        self.turns: list[dict[str, Any]] = []
        self._screen = screen
        self._sampling = sampling
        self._formats = is_terminal(sys.stdout) and not plain

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Everything so far, the system message first."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns]

    def ask(self, text: str) -> None:
        """Add a user's message and show the answer. A failure is told and takes it back."""
        self.turns.append({"role": "user", "content": text})
        self.answer()

    def retry(self) -> bool:
        """Answer the last message again; whether there is one."""
        while self.turns and self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        if not self.turns:
            return False
        self.answer()
        return True

    def answer(self) -> None:
        """Answer what stands last."""
        answer, view = Answer(), _View(self._screen, self._formats)
        stream = None
        try:
            with Progress("prefill") as progress:
                stream = stream_events(
                    self.session,
                    self.messages,
                    answer,
                    style=self.style,
                    sampling=self._sampling,
                    progress=progress.update,
                )
                with closing(stream) as events:
                    for event in events:
                        progress.close()
                        view.show(event)
        except KeyboardInterrupt:
            pass
        except PyDS4Error as error:
            view.finish()
            self.turns.pop()
            note(f"error: {one_line(error)}")
            return
        view.finish()
        if answer.output_tokens == 0 and answer.finish_reason == "interrupted":
            self.turns.pop()
            note("interrupted; the message is not part of the conversation")
            return
        turn: dict[str, Any] = {"role": "assistant", "content": view.content}
        if view.reasoning:
            turn["reasoning_content"] = view.reasoning
        self.turns.append(turn)
        note(answer.summary())


class _View:
    """An answer on the screen: reasoning dim, content formatted if the screen can."""

    def __init__(self, screen: Console, formats: bool) -> None:
        self.content = self.reasoning = ""
        self._screen = screen
        self._formats = formats
        self._text: TextView | None = None

    def show(self, event: object) -> None:
        from pyds4.chat import ContentDelta, ReasoningDelta

        if isinstance(event, ReasoningDelta):
            self.reasoning += event.text
            self._screen.print(event.text, style="dim", end="", markup=False, soft_wrap=True)
            self._screen.file.flush()
        elif isinstance(event, ContentDelta):
            self.content += event.text
            if self._text is None:
                if self.reasoning:
                    self._screen.print("\n")
                self._text = (
                    MarkdownView(self._screen) if self._formats else PlainView(self._screen)
                )
            self._text.feed(event.text)

    def finish(self) -> None:
        """Leave the cursor at the beginning of a line."""
        if self._text is not None:
            self._text.finish()
            self._text = None
        elif self.reasoning:
            self._screen.print()
