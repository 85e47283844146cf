"""``pyds4 tokenize``: text to ids and back."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyds4.cli import options
from pyds4.cli.console import is_terminal
from pyds4.cli.failure import CommandError, UsageError

if TYPE_CHECKING:
    from pyds4.tokenizer import Tokenizer

EPILOG = """\
Prints one token a line: its id, a tab, its text as a Python literal. Only the vocabulary of the
model is read.

examples:
  pyds4 tokenize "Hello, world"
  pyds4 tokenize --file README.md --count
  pyds4 tokenize --decode "316 12 9"
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    source = parser.add_mutually_exclusive_group()
    source.add_argument("text", nargs="?", metavar="TEXT", help="default: standard input")
    source.add_argument("--file", metavar="PATH", help="a UTF-8 text file")
    source.add_argument(
        "--decode", metavar="IDS", help="print the text of these ids (blanks or commas between)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--count", action="store_true", help="print only how many tokens there are")
    parser.add_argument(
        "--no-special",
        action="store_true",
        help="role markers in the text are ordinary text, as in a user's message",
    )
    options.add_model(parser)


def execute(arguments: argparse.Namespace) -> int:
    ids = None if arguments.decode is None else _ids(arguments.decode)
    text = _text(arguments) if ids is None else ""
    tokenizer = _tokenizer(arguments.model)
    if ids is None:
        ids = tokenizer.encode(text, special=not arguments.no_special)
    if arguments.count:
        print(len(ids))
    elif arguments.json:
        tokens = [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
        report = {"ids": ids, "tokens": tokens, "text": tokenizer.decode(ids)}
        print(json.dumps(report, ensure_ascii=False))
    elif arguments.decode is not None:
        sys.stdout.write(tokenizer.decode(ids) + ("\n" if is_terminal(sys.stdout) else ""))
    else:
        for i in ids:
            print(f"{i}\t{_literal(tokenizer.token_bytes(i))}")
    return 0


def _text(arguments: argparse.Namespace) -> str:
    """The text to encode, with its own line ends: they are different tokens."""
    try:
        if arguments.file is not None:
            return Path(arguments.file).read_bytes().decode()
        if arguments.text is not None:
            return str(arguments.text)
        if is_terminal(sys.stdin):
            raise UsageError("no text: give TEXT, --file PATH, or text on standard input")
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        where = arguments.file or "standard input"
        raise CommandError(f"{where}: not UTF-8 text at byte {error.start}") from None


def _ids(words: str) -> list[int]:
    ids = []
    for word in re.split(r"[\s,\[\]]+", words):
        if not word:
            continue
        if not re.fullmatch(r"[0-9]{1,9}", word):
            raise UsageError(f"--decode: expected token ids, found {word!r}")
        ids.append(int(word))
    return ids


def _tokenizer(model: str | None) -> Tokenizer:
    from pyds4.default_model import find_model
    from pyds4.model_file import ModelFile
    from pyds4.tokenizer import Tokenizer

    return Tokenizer.from_vocabulary(ModelFile(find_model(model)).vocabulary())


def _literal(data: bytes) -> str:
    """The text of a token; bytes where it is a part of a character."""
    try:
        return repr(data.decode())
    except UnicodeDecodeError:
        return repr(data)
