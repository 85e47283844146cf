"""Something to remember as the first thing said, and later the question about it.

Nothing is to be done but to acknowledge it, also when tools are offered.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pyds4.evals import lists, prompts, recall, small_talk, sums, texts, words
from pyds4.evals.sample import Answer, Exchange, Sample
from pyds4.evals.source import Source, wordings
from pyds4.evals.tool_tasks import any_tools, coding_tools, schemas

HEARD: Final = Answer("The user tells me a fact. I will remember it.", "OK, I will remember that.")
UNTOLD: Final = Answer("The user has not said that.", "You have not told me that.")
_OPENINGS = wordings("""
Remember: {} | Remember: {} | Remember this: {} | Please remember this: {} | Keep this in mind: {}
Note: {} | Note this: {} | For later: {} | Do not forget: {} | Don't forget this: {} | {} | {}
Please remember: {} | {} Remember that. | {} Please remember that. | {} Keep that in mind.
""")
_THAT_OPENINGS = wordings("""
Remember that {} | Please remember that {} | Note that {} | Keep in mind that {} | Note that {}
Do not forget that {} | Don't forget that {} | You should know that {} | Be aware that {}
I want you to remember that {} | Can you remember that {}
""")
_MONTHS = wordings("""
January | February | March | April | May | June | July | August | September | October | November
December
""")
_DAYS = wordings("Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | Sunday")
_JOBS = wordings("""
teacher | baker | nurse | pilot | farmer | painter | doctor | driver | cook | writer | singer
""")
_RELATIVES = wordings("""
dog | cat | sister | brother | friend | boss | teacher | mother | father | son | daughter | horse
""")


class Told(NamedTuple):
    """A statement, without a capital at its start, a question about it, and the answer."""

    statement: str
    question: str
    answer: str


def _personal(source: Source) -> Told:
    """Something about the user."""
    pick = source.pick
    kind = source.integer(0, 8)
    if kind <= 1:
        favorite = pick(["favourite", "favorite"])
        colour = pick(["colour", "color"])
        thing, value = pick(
            [
                (colour, pick(words.COLORS)),
                (colour, pick(words.COLORS)),
                ("animal", f"the {pick(words.ANIMALS)}"),
                ("city", pick(words.CITIES)),
                ("number", str(source.integer(0, 999))),
                ("word", source.word()),
            ]
        )
        said = f"{favorite} {thing} is {value}."
        return Told(f"my {said}", f"What is my {favorite} {thing}?", f"Your {said}")
    if kind == 2:
        relative, name = pick(_RELATIVES), pick([*words.NAMES, source.nonsense().title()])
        said = pick([f"my {relative}'s name is {name}.", f"my {relative} is called {name}."])
        asked = [f"What is my {relative}'s name?", f"What is my {relative} called?"]
        return Told(said, pick(asked), f"Your {relative}'s name is {name}.")
    if kind == 3:
        day = f"{pick(_MONTHS)} {source.integer(1, 28)}"
        said = pick([f"my birthday is {day}.", f"my birthday is on {day}."])
        return Told(said, "When is my birthday?", f"Your birthday is {day}.")
    if kind == 4:
        city = pick(words.CITIES)
        return Told(f"I live in {city}.", "Where do I live?", f"You live in {city}.")
    if kind == 5:
        job = pick(_JOBS)
        asked = ["What is my job?", "What do I work as?"]
        said = pick([f"I work as a {job}.", f"my job is {job}."])
        return Told(said, pick(asked), f"You work as a {job}.")
    if kind == 6:
        count, kept = source.integer(2, 99), pick(words.THINGS + words.ANIMALS[:4])
        question = f"How many {kept}s do I have?"
        return Told(f"I have {count} {kept}s.", question, f"You have {count} {kept}s.")
    if kind == 7:
        value, number = pick(["phone number", "PIN", "room number", "password"]), source.code()
        return Told(
            f"my {value} is {number}.", f"What is my {value}?", f"Your {value} is {number}."
        )
    event = pick(["meeting", "party", "exam", "appointment", "concert"])
    when = f"on {pick(_DAYS)} at {source.integer(0, 23)}:{pick(['00', '15', '30', '45'])}"
    said = f"{event} is {when}."
    return Told(f"the {said}", f"When is the {event}?", f"The {said}")


def _of_a_text(source: Source) -> Told:
    """A fact as the recall tasks know them."""
    one = recall.fact(source)
    told = one.told.removeprefix("that ")
    return Told(told, one.question, one.answer)


def told(source: Source) -> Told:
    """About the user, or about anything."""
    return _personal(source) if source.chance(0.6) else _of_a_text(source)


def opening(source: Source, one: Told) -> str:
    """The statement as a request to remember it."""
    if source.chance(0.4):
        text = source.pick(_THAT_OPENINGS).format(one.statement)
    else:
        said = one.statement
        # A name in a program keeps its case.
        if " = " not in said and source.chance(0.6):
            said = said[0].upper() + said[1:]
        text = source.pick(_OPENINGS).format(said)
    if text[0].islower() and " = " not in one.statement and source.chance(0.7):
        text = text[0].upper() + text[1:]
    return text[:-1] if text.endswith(".") and source.chance(0.3) else text


def _question(source: Source, one: Told) -> Exchange:
    question = source.politely(one.question) if source.chance(0.3) else one.question
    return Exchange(question, Answer(f"The user said: {one.statement}", one.answer))


def _introduction(source: Source) -> list[Exchange]:
    """A name, and the question what it was."""
    name = source.pick(words.NAMES)
    lead = source.pick(["My name is {}", "Hi, I am {}", "Hello, my name is {}", "I am {}"])
    hello = Answer(
        f"The user is called {name}. I greet {name}.", f"Hello, {name}! How can I help you?"
    )
    asked = source.pick(["What is my name?", "What's my name?", "Do you know my name?"])
    said = Answer(f"The user said: My name is {name}.", f"Your name is {name}.")
    return [Exchange(lead.format(name) + source.pick(["", "."]), hello), Exchange(asked, said)]


def _others(source: Source, thinking: bool, with_tools: bool) -> list[Exchange]:
    """One to three questions of other kinds, which no tool answers."""
    makers = [small_talk.greet, small_talk.capital, lists.count, texts.copy, small_talk.identity]
    if not with_tools:
        makers += [sums.arithmetic, lists.sort]
    return [source.pick(makers)(source).exchange(thinking) for _ in range(source.integer(1, 3))]


def _asked_twice(source: Source, between: list[Exchange]) -> list[Exchange]:
    """A text with a question about it, and later the question alone."""
    one = told(source) if source.chance(0.3) else _of_a_text(source)
    said = one.statement
    if " = " not in said:
        said = said[0].upper() + said[1:]
    if source.chance(0.4):
        said = f"{said} {source.filler(source.integer(30, 200))}"
    asked = recall.about_text(source, said, one.question)
    first = Exchange(asked, Answer(f"The text says: {one.statement}", one.answer))
    return [first, *between, _question(source, one)]


def _asked_in_vain(source: Source, one: Told) -> list[Exchange]:
    """Something about the user that was not said, though perhaps something else was."""
    asked = _personal(source).question
    exchanges = [Exchange(asked, UNTOLD)]
    if one.question != asked and source.chance(0.5):
        exchanges = [Exchange(opening(source, one), HEARD), *exchanges]
        if source.chance(0.5):
            exchanges.append(_question(source, one))
    return exchanges


def remember(source: Source, thinking: bool) -> Sample:
    """Told, perhaps something else in between, and perhaps asked for."""
    with_tools = source.chance(0.45)
    tools = []
    if with_tools:
        tools = coding_tools(source) if source.chance(0.5) else any_tools(source)
    one, x = told(source), source.random.random()
    heard = Exchange(opening(source, one), HEARD)

    def others() -> list[Exchange]:
        return _others(source, thinking, with_tools)

    before = others() if source.chance(0.3) else []
    if x < 0.25:
        exchanges = [*before, heard]
    elif x < 0.45:
        exchanges = [*before, heard, _question(source, one)]
    elif x < 0.6:
        exchanges = [*before, heard, *others(), _question(source, one)]
    elif x < 0.72:
        exchanges = [*before, *_asked_twice(source, others())]
    elif x < 0.82:
        other = told(source)
        exchanges = [heard]
        if other.question != one.question:
            exchanges.append(Exchange(opening(source, other), HEARD))
        exchanges.append(_question(source, one))
    elif x < 0.9:
        exchanges = [*before, *_introduction(source)]
    else:
        exchanges = [*before, *_asked_in_vain(source, one)]
    declared = schemas(source, tools)
    system = prompts.system_prompt(source, int(source.budget * 0.3), declared)
    return Sample("remember", exchanges, thinking, system, declared)
