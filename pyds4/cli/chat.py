"""``pyds4 chat``: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from pyds4.cli import options
from pyds4.cli.answer import style
from pyds4.cli.chat_commands import HELP, Commands
from pyds4.cli.chat_input import Prompter
from pyds4.cli.console import console, is_terminal, note
from pyds4.cli.conversation import Conversation

EPILOG = f"""\
In the conversation:
{HELP}
Ctrl-C stops an answer and keeps what was said; Ctrl-D leaves. A line that ends in a backslash goes
on in the next one; lines between two lines of three double quotes are one message.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    options.add_model(parser)
    options.add_answering(parser)
    parser.add_argument("--plain", action="store_true", help="do not format answers")
    options.add_sampling(parser)
    options.add_engine(parser)


def execute(arguments: argparse.Namespace) -> int:

    chosen = options.sampling(arguments)
    screen = console(sys.stdout)
    people = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    with options.open_engine(arguments) as engine, engine.session(arguments.context) as session:
        conversation = Conversation(
            session, screen, chosen, style(arguments), arguments.system, plain=arguments.plain
        )
        if people:
            config = engine.config
            note(
                f"{config.name or engine.path} · {engine.backend}, {engine.threads} threads · "
                f"context {session.context_size:,} tokens · /help"
            )
        commands = Commands(conversation)
        with Prompter(people) as prompter:
            for line in _lines(prompter):
                if line.startswith("/"):
                    if not commands.run(line):
                        break
                else:
                    conversation.ask(line)
    return 0


def _lines(prompter: Prompter) -> Iterator[str]:
    """What the user enters, without empty messages."""
    while (message := prompter.read()) is not None:
        if message.strip():
            yield message.strip()
