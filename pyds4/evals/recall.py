"""A fact, text around it, and a question about the fact: near or thousands of tokens back."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pyds4.evals import words
from pyds4.evals.sample import Answer, Exchange, Task
from pyds4.evals.source import Source, wordings

_ABOUT_TEXT = wordings(r"""
{s}\n\n{q} | {s}\n{q} | {q}\n\n{s}\n\n{q} | Text:\n{s}\n\nQuestion: {q} | {s}\n\nQuestion: {q}
Read the following text and answer the question at the end.\n\n{s}\n\n{q}
Here is a text.\n\n{s}\n\nNow answer: {q} | <text>\n{s}\n</text>\n\n{q}
""")
_REMEMBER = wordings("""
{} | Please remember this: {} | Keep this in mind. {} | {} Please remember that. | Remember: {}
Note this: {} | For later: {}
""")
_SECRETS = [
    "secret code",
    "password",
    "magic number",
    "access code",
    "code word",
    "serial number",
    "PIN",
    "token",
    "key",
    "passphrase",
]


class Fact(NamedTuple):
    """A statement and a question about it. ``told`` is what the text says, without "that"."""

    statement: str
    question: str
    told: str
    answer: str


def fact(source: Source) -> Fact:
    """Any of the seven kinds of facts."""
    pick = source.pick
    kind, name, code = source.integer(0, 6), pick(words.NAMES), source.code()
    thing = (
        pick(words.THINGS + words.PLACES + words.ANIMALS)
        if source.chance(0.6)
        else source.nonsense()
    )
    if kind <= 1:
        secret = pick(_SECRETS)
        said = f"the {secret} for the {thing} is {code}."
        lead = pick(["The", "Remember: the", "Note that the", "Important: the", "By the way, the"])
        asked = wordings("""
        What is the {w} for the {t}? | Tell me the {w} for the {t}. | Which {w} belongs to the {t}?
        What was the {w} for the {t}? | What's the {w} for the {t}?
        """)
        question = pick(asked).format(w=secret, t=thing)
        return Fact(lead + said[3:], question, f"that {said}", said[0].upper() + said[1:])
    if kind == 2:
        said = f"{name}'s favorite thing is the {pick(words.COLORS)} {pick(words.THINGS)}."
        lead = pick(["", "Remember that "])
        return Fact(lead + said, f"What is {name}'s favorite thing?", f"that {said}", said)
    if kind == 3:
        phone = source.integer(100, 99999)
        said = f"the phone number of {name} is {phone}."
        statement = pick([said[0].upper() + said[1:], f"{name} has the phone number {phone}."])
        asked = [f"What is the phone number of {name}?", f"What is {name}'s phone number?"]
        return Fact(statement, pick(asked), f"that {said}", said[0].upper() + said[1:])
    if kind == 4:
        said = f"the {thing} was built in {source.integer(1500, 2030)}."
        asked = [f"When was the {thing} built?", f"In which year was the {thing} built?"]
        capital = said[0].upper() + said[1:]
        return Fact(capital, pick(asked), f"that {said}", capital)
    if kind == 5:
        said = f"{name} lives in {pick(words.CITIES)}."
        asked = [f"Where does {name} live?", f"In which city does {name} live?"]
        return Fact(pick(["", "Remember that "]) + said, pick(asked), f"that {said}", said)
    key = source.identifier()
    asked = wordings("What is the value of {} | What is {} | Which value does {} have")
    question = pick(asked).format(key) + "?"
    said = f"{key} = {code}"
    return Fact(said, question, f"{said}.", f"The value of {key} is {code}.")


def about_text(source: Source, text: str, question: str) -> str:
    """``question`` before or behind ``text``."""
    return source.pick(_ABOUT_TEXT).format(s=text, q=question)


def needle(source: Source, characters: int) -> Task:
    """Up to four facts scattered over ``characters`` of filler, and a question about one."""
    facts: dict[str, Fact] = {}
    for _ in range(source.integer(1, 4)):
        one = fact(source)
        facts.setdefault(one.question.split()[-1], one)
    parts: list[str] = []
    at = 0.0
    cuts = sorted(source.random.random() for _ in facts)
    for one, cut in zip(facts.values(), cuts, strict=True):
        parts += [source.filler(int(characters * (cut - at)) + 1), one.statement]
        at = cut
    parts.append(source.filler(int(characters * (1 - at)) + 1))
    text = source.pick([" ", "\n", "\n\n"]).join(parts)
    asked = source.pick(list(facts.values()))
    question = about_text(source, text, asked.question)
    return Task("recall", question, f"The text says {asked.told}", asked.answer)


def told_before(
    source: Source, characters: int, other: Callable[[Source], Task], thinking: bool
) -> list[Exchange]:
    """A fact told in the first turn, other tasks, and in the last turn the question."""
    one = fact(source)
    heard = Answer("The user tells me a fact. I will remember it.", "OK, I will remember that.")
    exchanges = [Exchange(source.pick(_REMEMBER).format(one.statement), heard)]
    length = 0
    while length < characters:
        task = other(source)
        exchanges.append(task.exchange(thinking))
        length += len(task.question) + len(task.answer)
    told = Answer(f"The user said {one.told}", one.answer)
    return [*exchanges, Exchange(one.question, told)]
