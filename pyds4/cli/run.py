"""``pyds4 run``: one prompt, one answer."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

from pyds4.cli import options
from pyds4.cli.answer import Answer, Style, stream_events, stream_tokens, style
from pyds4.cli.console import Progress, is_terminal, note
from pyds4.cli.failure import UsageError

if TYPE_CHECKING:
    from pyds4.session import Session

EPILOG = """\
The answer goes to standard output as it is made; reasoning goes to standard error.

examples:
  pyds4 run -p "What is 12 + 30?"
  pyds4 run --json < question.txt
  pyds4 run --raw -p "Once upon a time" --max-tokens 50
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="default: standard input")
    parser.add_argument(
        "--raw", action="store_true", help="continue the text as it stands, without chat template"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object when the answer is complete"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="say what it took, on standard error"
    )
    options.add_model(parser)
    options.add_answering(parser)
    options.add_sampling(parser)
    options.add_engine(parser)


def execute(arguments: argparse.Namespace) -> int:
    chosen, how = options.sampling(arguments), style(arguments)
    if arguments.raw and (arguments.system or how.thinking):
        raise UsageError("--raw has no chat template for --system, --think or --effort")
    prompt = _prompt(arguments.prompt)
    answer = Answer()
    with options.open_engine(arguments) as engine, engine.session(arguments.context) as session:
        output = _Output(quiet=arguments.json)
        with Progress("prefill") as progress:
            output.before_first = progress.close
            if arguments.raw:
                _continue_text(session, prompt, answer, how, chosen, progress, output)
            else:
                messages = [{"role": "user", "content": prompt}]
                if arguments.system is not None:
                    messages.insert(0, {"role": "system", "content": arguments.system})
                _answer_messages(session, messages, answer, how, chosen, progress, output)
        name = engine.config.name
    if arguments.json:
        print(json.dumps(_report(answer, output, name), ensure_ascii=False, indent=2))
    else:
        output.end()
    if arguments.verbose:
        note(answer.summary())
    return 0


def _prompt(given: str | None) -> str:
    if given is not None:
        return given
    if is_terminal(sys.stdin):
        raise UsageError("no prompt: give -p TEXT, or text on standard input")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not text: {error}") from None


class _Output:
    """Collects the answer and, unless quiet, shows it meanwhile."""

    def __init__(self, quiet: bool) -> None:
        self.content = ""
        self.reasoning = ""
        self._quiet = quiet
        self._dims = is_terminal(sys.stderr)
        self.before_first: Any = None

    def _begin(self) -> None:
        if self.before_first is not None:
            self.before_first()
            self.before_first = None

    def say(self, text: str) -> None:
        self._begin()
        if not self._quiet:
            if self.reasoning and not self.content:
                sys.stderr.write("\n")
                sys.stderr.flush()
            sys.stdout.write(text)
            sys.stdout.flush()
        self.content += text

    def think(self, text: str) -> None:
        self._begin()
        self.reasoning += text
        if not self._quiet:
            from pyds4.cli.console import console

            if self._dims:
                console(sys.stderr).print(text, style="dim", end="", markup=False, soft_wrap=True)
            else:
                sys.stderr.write(text)
            sys.stderr.flush()

    def end(self) -> None:
        """A line ends with a line break, whatever the model thinks."""
        if self.content and not self.content.endswith("\n"):
            sys.stdout.write("\n")
        sys.stdout.flush()


def _continue_text(
    session: Session,
    prompt: str,
    answer: Answer,
    how: Style,
    chosen: Any,
    progress: Progress,
    output: _Output,
) -> None:
    ids = session.engine.tokenizer.encode(prompt)
    if not ids:
        raise UsageError("the prompt is empty")
    stream = stream_tokens(
        session,
        ids,
        answer,
        sampling=chosen,
        max_tokens=how.max_tokens,
        progress=progress.update,
    )
    with closing(stream) as tokens:
        for token in tokens:
            output.say(token.text)


def _answer_messages(
    session: Session,
    messages: list[dict[str, Any]],
    answer: Answer,
    how: Style,
    chosen: Any,
    progress: Progress,
    output: _Output,
) -> None:
    from pyds4.chat import ContentDelta, ReasoningDelta

    stream = stream_events(
        session, messages, answer, style=how, sampling=chosen, progress=progress.update
    )
    with closing(stream) as events:
        for event in events:
            if isinstance(event, ReasoningDelta):
                output.think(event.text)
            elif isinstance(event, ContentDelta):
                output.say(event.text)


def _report(answer: Answer, output: _Output, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "content": output.content,
        "reasoning": output.reasoning or None,
        "finish_reason": answer.finish_reason,
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.output_tokens,
        },
        "timings": {
            "prefill_s": round(answer.prefill_s, 6),
            "decode_s": round(answer.decode_s, 6),
            "prefill_tokens_per_s": round(answer.prefill_rate, 3),
            "decode_tokens_per_s": round(answer.decode_rate, 3),
        },
    }
