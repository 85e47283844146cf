"""Files: what is in them, and what one can ask about it."""

from __future__ import annotations

import json
from typing import NamedTuple

from pyds4.evals import recall
from pyds4.evals.programs import FUNCTIONS, name_of
from pyds4.evals.source import Source, wordings

KNOWN_KEYS = [
    "port",
    "host",
    "name",
    "version",
    "user",
    "debug",
    "timeout",
    "database",
    "workers",
    "retries",
    "level",
    "path",
    "url",
    "theme",
    "language",
    "color",
    "size",
    "limit",
    "token",
    "title",
    "author",
    "email",
    "license",
    "mode",
    "region",
    "bucket",
    "password",
    "log_level",
    "max_connections",
    "cache_size",
    "batch_size",
    "learning_rate",
    "api_key",
    "interval",
    "threads",
    "width",
    "height",
    "speed",
    "count",
    "enabled",
    "username",
    "server",
    "address",
    "environment",
    "region",
    "secret",
    "format",
]
"""What real settings are called."""

_VALUE = wordings("""
What is the value of {x} in {f}? | Read {f} and tell me the value of {x}. | Which {x} is set in {f}?
read the file {f} and tell me what {x} is | Tell me {x} from {f}. | Read {f} and tell me the {x}
Which value does {x} have in {f}? | Look into {f}. What is {x}? | What {x} does {f} use?
Read {f} and tell me {x}. | What is the {x} in {f}? | Find the {x} in {f} | Get the {x} from {f}
Check {f} and tell me the {x}. | Open {f} and tell me the {x} | What's the {x} in {f}?
Please read {f} and tell me the {x}. | Can you read {f} and tell me the {x}? | {f}: what is {x}?
Tell me the {x} that is set in {f}. | Read {f}. What is the {x}? | Look up {x} in {f}
""")
_SHOW = wordings("""
What is in {f}? | Show me {f}. | Read {f} | read the file {f} | Show the contents of {f}. | cat {f}
Open {f}. | Please read {f}. | What does the file {f} contain? | Print {f} | Display the file {f}.
Read the file {f} and show it to me. | Show me what is in {f}
""")
_LINES = wordings("""
How many lines does {f} have? | Count the lines of {f}. | Count the lines in {f}
Read {f} and tell me how many lines it has. | How many lines are in {f}?
""")
_FIRST = wordings("""
What is the first line of {f}? | Tell me the first line of {f}.
Read {f} and show me the first line.
""")
_LAST = wordings("""
What is the last line of {f}? | Tell me the last line of {f}. | Read {f} and show me the last line.
""")
_DEFINED = wordings("""
Which functions are defined in {f}? | Read {f} and list the functions. | Which functions are in {f}?
What functions does {f} contain? | List the function names in {f}.
""")
_READ_FACT = wordings("""
Read {f} and answer: | Read the file {f}. | Look at {f}: | Open {f} and tell me: | Using {f}:
Look into {f} and answer: | {f} has the answer:
""")

NOT_FOUND = wordings("""
Error: file not found | Error: no such file or directory | ENOENT: no such file or directory
File not found. | cat: {f}: No such file or directory | Error: {f} does not exist
""")


class Question(NamedTuple):
    """A question about a file named ``{f}``. ``kind`` says how it can be answered."""

    kind: str
    text: str
    reasoning: str
    answer: str


class Settings(NamedTuple):
    """A file of settings: how it is written, and what it says."""

    text: str
    values: dict[str, str]
    written: dict[str, str]
    """Each key's place as it stands in the file, to be replaced."""


def settings(source: Source, count: int | None = None) -> Settings:
    """Settings as ini, env, YAML, TOML or JSON."""
    keys: dict[str, str] = {}
    for _ in range(count or source.integer(2, 10)):
        key = source.pick(KNOWN_KEYS) if source.chance(0.6) else source.identifier()
        x = source.random.random()
        if x < 0.5:
            value = str(source.integer(0, 10 ** source.integer(1, 4)))
        elif x < 0.8:
            value = source.word()
        else:
            value = source.pick(["true", "false", "localhost", source.code(), source.code()])
        keys.setdefault(key, value)
    style = source.integer(0, 5)
    if style == 5:
        text = json.dumps(keys, indent=source.pick([2, 4]))
        return Settings(text, keys, {k: f'"{k}": "{v}"' for k, v in keys.items()})
    joint = [" = ", "=", ": ", " = ", "="][style]
    written = {key: f"{key}{joint}{value}" for key, value in keys.items()}
    lines = list(written.values())
    if style in (0, 1) and source.chance(0.5):
        lines.insert(0, f"[{source.word().lower()}]")
        if len(lines) > 4 and source.chance(0.4):
            lines.insert(source.integer(2, len(lines) - 1), f"\n[{source.word().lower()}]")
    if source.chance(0.2):
        lines.insert(0, f"# {source.phrase(1, 5)}")
    return Settings("\n".join(lines) + ("\n" if source.chance(0.5) else ""), keys, written)


def about_value(source: Source, file: Settings) -> Question:
    """One of the settings."""
    key = source.pick(list(file.values))
    text = source.pick(_VALUE).replace("{x}", key)
    said = file.written[key].strip()
    return Question("value", text, f"The file says {said}.",
                    f"The value of {key} is {file.values[key]}.")  # fmt: skip


def content(source: Source, characters: int) -> tuple[str, Question]:
    """Some file, ``characters`` long at most where length is free, and a question about it."""
    kind = source.integer(0, 6)
    if kind <= 1:
        file = settings(source)
        return file.text, about_value(source, file)
    if kind == 2:
        one = recall.fact(source)
        length = int(source.random.random() ** 2 * characters)
        text = one.statement
        if length > 60:
            cut = source.random.random()
            before = source.filler(int(length * cut) + 1)
            text = f"{before}\n{text}\n{source.filler(int(length * (1 - cut)) + 1)}"
        question = one.question
        if source.chance(0.5):
            question = question[0].lower() + question[1:]
        ask = f"{source.pick(_READ_FACT)} {question}"
        return text, Question("fact", ask, f"The file says {one.told}", one.answer)
    if kind == 3:
        parts = source.some(list(FUNCTIONS.values()), source.integer(1, 4))
        names = ", ".join(map(name_of, parts))
        ask = source.pick(_DEFINED)
        answer = f"The functions are: {names}"
        return "\n\n\n".join(parts), Question("list", ask, f"The file defines {names}.", answer)
    lines = [source.line() for _ in range(source.integer(1, 9))]
    text = "\n".join(lines)
    if kind == 4:
        return text, Question(
            "show", source.pick(_SHOW), "I show the content.", f"The file contains:\n{text}"
        )
    which = source.integer(0, 2)
    if which == 0:
        counted = ", ".join(str(number) for number in range(1, len(lines) + 1))
        plural = f"{len(lines)} lines" if len(lines) > 1 else "1 line"
        reasoning = f"I count the lines: {counted}."
        return text, Question("count", source.pick(_LINES), reasoning, f"The file has {plural}.")
    if which == 1:
        answer = f"The first line is: {lines[0]}"
        return text, Question("line", source.pick(_FIRST), "I take the first line.", answer)
    answer = f"The last line is: {lines[-1]}"
    return text, Question("line", source.pick(_LAST), "I take the last line.", answer)


def numbered(text: str, style: int) -> str:
    """The lines of ``text`` with numbers, as some read tools return them."""
    lines = text.split("\n")
    if style == 1:
        return "\n".join(f"{number:6d}\t{line}" for number, line in enumerate(lines, 1))
    if style == 2:
        return "\n".join(f"{number}: {line}" for number, line in enumerate(lines, 1))
    return text
