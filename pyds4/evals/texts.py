"""Questions about a short story, JSON, and copying with small changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pyds4.evals import words
from pyds4.evals.sample import Task
from pyds4.evals.source import Source, wordings

_ABOUT_STORY = wordings(r"""
{s}\n\n{q} | {s} {q} | Read this: {s}\n{q} | Story: {s}\nQuestion: {q} | {q}\n\n{s} | {s}\n{q}
Here is a short story. {s} {q} | Text: {s}\n\n{q} | {s}\n\nQuestion: {q} | Consider this: {s} {q}
Answer the question about the story.\n\n{s}\n\n{q}
""")
_AS_JSON = wordings(r"""
Convert this to JSON:\n{l} | Make JSON from this:\n{l} | Turn this into a JSON object:\n{l}
As JSON please:\n{l} | Write this as JSON:\n{l} | {l}\n\nGive me that as JSON.
""")
_EXTRACT = wordings("""
Extract name, age and city as JSON: {s} | Return JSON with the keys name, age and city. {s}
{s} Give me this as JSON with name, age and city. | Make JSON with name, age and city: {s}
Get name, age and city from this text as JSON: {s}
""")
_VALUE_IN_JSON = wordings(r"""
{s}\n\nWhat is the value of {x}? | In this JSON, what is {x}? {s}
Given {s}, what is the value of {x}? | What is the value of "{x}" in this JSON?\n{s}
{s}\nWhat is {x}? | Look up {x} in {s}
""")
_KEYS = wordings("""
List the keys of this JSON: {s} | Which keys does this JSON have? {s} | What are the keys in {s}
{s} Which keys are there? | Give me the keys of {s}
""")
_REPEAT = wordings("""
Repeat after me: {s} | Repeat this: {s} | Say: {s} | Please repeat: {s} | Echo: {s} | Say {s}
Repeat exactly: {s} | Just say: {s} | Reply with: {s} | Answer with exactly this: {s} | Output: {s}
Reply only with: {s} | Respond with exactly: {s}
""")
_UPPER = wordings("""
Write this in upper case: {s} | Convert to uppercase: {s} | {s} in capital letters please
Uppercase: {s} | Write {s} in capital letters. | Put this in upper case: {s}
""")
_TIMES = wordings("""
Write the word {w} {n} times. | Say {w} {n} times | Repeat {w} {n} times. | {w}, {n} times please
Repeat the word {w} {n} times.
""")
_COUNT_UP = wordings("""
Count from {a} to {b}. | List the numbers from {a} to {b} | count from {a} to {b} | Count {a} to {b}
Write the numbers from {a} to {b}. | Please count from {a} up to {b}
""")
_BULLETS = wordings("""
Make a bullet list of: {l} | Write as a bulleted list: {l} | Make a list: {l} | Bullet points: {l}
Turn this into a bullet list: {l}
""")

_Question = tuple[str, str]
"""A question and its answer."""


class _Story:
    """Sentences that move people and things about, and what is true in the end."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.sentences: list[str] = []
        self._person_at: dict[str, str] = {}
        self._holder: dict[str, str] = {}
        self._thing_at: dict[str, str] = {}
        self._likes: dict[str, tuple[str, str]] = {}
        people = source.some(words.NAMES, source.integer(2, 4))
        things = source.some(words.THINGS, source.integer(2, 5))
        places = source.some(words.PLACES, source.integer(2, 5))
        for _ in range(source.integer(3, 9)):
            self._event(source.pick(people), source.pick(things), source.pick(places))

    def _event(self, person: str, thing: str, place: str) -> None:
        source, kind = self._source, self._source.integer(0, 6)
        if kind <= 1:
            self._person_at[person] = place
            moves = "went to|walked to|is in|moved to|ran to|drove to"
            self.sentences.append(f"{person} {source.pick(moves.split('|'))} the {place}.")
        elif kind == 2 and thing not in self._holder and thing not in self._thing_at:
            self._holder[thing] = person
            takes = "took|picked up|has|grabbed"
            self.sentences.append(f"{person} {source.pick(takes.split('|'))} the {thing}.")
        elif kind == 3 and thing not in self._holder:
            self._thing_at[thing] = place
            put = source.pick([f"The {thing} is", f"{person} put the {thing}"])
            left = f"{person} left the {thing}"
            self.sentences.append(f"{source.pick([put, left])} in the {place}.")
        elif kind == 4 and person not in self._likes:
            what = f"{source.pick(words.COLORS)} {source.pick(words.THINGS)}"
            article = "an" if what[0] in "aeiou" else "a"
            verb = source.pick(["likes", "owns"])
            self._likes[person] = (verb, f"{article} {what}")
            self.sentences.append(f"{person} {verb} {article} {what}.")
        elif kind >= 5:
            asleep = f"The {source.pick(words.ADJECTIVES)} {source.pick(words.ANIMALS)} sleeps."
            self.sentences.append(source.sentence() if source.chance(0.4) else asleep)

    def questions(self) -> list[_Question]:
        """Everything that can be asked."""
        pick = self._source.pick
        asked: list[_Question] = []
        for who, place in self._person_at.items():
            question = pick([f"Where is {who}?", f"In which place is {who}?"])
            asked.append((question, f"{who} is in the {place}."))
        for thing, who in self._holder.items():
            verb = pick(["has", "took", "is holding"])
            now = " now" if verb == "has" and self._source.chance(0.5) else ""
            asked += [(f"Who {verb} the {thing}{now}?", f"{who} has the {thing}.")] * 2
        for thing, place in self._thing_at.items():
            question = pick([f"Where is the {thing}?", f"In which place is the {thing}?"])
            asked.append((question, f"The {thing} is in the {place}."))
        for who, (verb, what) in self._likes.items():
            asked.append((f"What does {who} {verb[:-1]}?", f"{who} {verb} {what}."))
        return asked


def story(source: Source) -> Task:
    """Who is where and has what."""
    while not (questions := (told := _Story(source)).questions()):
        pass
    question, answer = source.pick(questions)
    asked = source.pick(_ABOUT_STORY).format(s=" ".join(told.sentences), q=question)
    lead = "the" if answer.startswith("The ") else answer.split()[0]
    rest = answer.split(" ", 1)[1]
    return Task("story", asked, f"The story says {lead} {rest}", answer)


def _record(source: Source) -> dict[str, Any]:
    """A flat JSON object."""
    return {
        source.identifier(): source.integer(0, 999) if source.chance(0.5) else source.word()
        for _ in range(source.integer(2, 7))
    }


def as_json(source: Source) -> Task:
    """Make JSON from text; read it."""
    kind = source.integer(0, 3)
    if kind <= 1:
        name, age, city = source.pick(words.NAMES), source.integer(1, 99), source.pick(words.CITIES)
        person: dict[str, Any] = {"name": name, "age": age, "city": city}
        if kind == 0:
            told = source.pick(
                [
                    f"{name} is {age} years old and lives in {city}.",
                    f"{name}, {age}, from {city}.",
                    f"My friend {name} lives in {city} and is {age} years old.",
                ]
            )
            reasoning = "I take name, age and city from the text."
            question = source.pick(_EXTRACT).format(s=told)
            return Task("json", question, reasoning, json.dumps(person))
        jobs = ["teacher", "doctor", "pilot", "baker", "farmer", "nurse", "lawyer"]
        more: list[tuple[str, Any]] = [
            ("color", source.pick(words.COLORS)),
            ("pet", source.pick(words.ANIMALS)),
            ("id", source.integer(1, 9999)),
            ("job", source.pick(jobs)),
            ("email", f"{name.lower()}@{source.nonsense()}.com"),
        ]
        person.update(source.some(more, source.integer(0, 2)))
        keys = source.shuffled(list(person))
        listed = source.pick(["\n", ", "]).join(f"{key}: {person[key]}" for key in keys)
        question = source.pick(_AS_JSON).format(l=listed)
        answer = json.dumps({key: person[key] for key in keys})
        return Task("json", question, "I keep the keys in the given order.", answer)
    record = _record(source)
    if kind == 2:
        key = source.pick(list(record))
        written = json.dumps(record, indent=source.pick([None, 2]))
        question = source.pick(_VALUE_IN_JSON).format(s=written, x=key)
        reasoning = f"The JSON has {key}: {record[key]}."
        return Task("json", question, reasoning, f"The value of {key} is {record[key]}.")
    question = source.pick(_KEYS).format(s=json.dumps(record))
    return Task("json", question, "I list the keys in order.", ", ".join(record))


def copy(source: Source) -> Task:
    """Say it again, with a small change or none."""
    x = source.random.random()
    if x < 0.7:
        said = source.phrase(1, 9) if x < 0.45 else source.sentence()
    else:
        unusual: list[Callable[[], str]] = [
            source.path,
            source.identifier,
            source.nonsense,
            source.file_name,
            source.code,
        ]
        said = " ".join(source.pick(unusual)() for _ in range(source.integer(1, 4)))
    kind = source.integer(0, 6)
    if kind <= 1:
        question = source.pick(_REPEAT).format(s=said)
        return Task("copy", question, "I repeat the text.", said)
    if kind == 2:
        ask = source.pick(['Write "{}" in quotes.', "Put this in double quotes: {}"])
        return Task("copy", ask.format(said), "I add quotes.", f'"{said}"')
    if kind == 3:
        items = words.THINGS + words.ANIMALS + words.COLORS
        said = " ".join(source.pick(items) for _ in range(source.integer(1, 4)))
        question = source.pick(_UPPER).format(s=said)
        return Task("copy", question, "I write it in capital letters.", said.upper())
    if kind == 4:
        times, word = source.integer(2, 5), source.word()
        question = source.pick(_TIMES).format(w=word, n=times)
        return Task("copy", question, f"I write {word} {times} times.", " ".join([word] * times))
    if kind == 5:
        first = source.integer(1, 20)
        last = first + source.integer(3, 10)
        question = source.pick(_COUNT_UP).format(a=first, b=last)
        counted = ", ".join(map(str, range(first, last + 1)))
        return Task("copy", question, f"I count from {first} up to {last}.", counted)
    items = [source.word() for _ in range(source.integer(2, 6))]
    question = source.pick(_BULLETS).format(l=", ".join(items))
    return Task("copy", question, "One line per item.", "\n".join(f"- {item}" for item in items))
