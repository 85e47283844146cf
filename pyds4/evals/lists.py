"""Short lists and words: sort, reverse, count, spell."""

from __future__ import annotations

from typing import Final

from pyds4.evals import words
from pyds4.evals.sample import Task
from pyds4.evals.source import Source, wordings

_SORT_UP = wordings("""
Sort these numbers: {l} | Sort {l} | Please sort these numbers: {l}
Put these numbers in order: {l}
Order from smallest to largest: {l} | sort the list {l} | Sort the numbers {l} | Sort ascending: {l}
Can you sort {l}? | Sort this list of numbers: {l} | Arrange these numbers in order: {l}
Sort the following numbers: {l} | Sort these: {l} | Sort in ascending order: {l} | sorted: {l}
Give me these numbers in order: {l} | Bring {l} into order. | {l} - sort these numbers
Sort these numbers from small to large: {l} | Sort [{l}] | Sort {l} in ascending order.
Sort {l} from smallest to largest | order {l} | Put {l} in order. | Smallest to largest: {l}
""")
_SORT_DOWN = wordings("""
Sort these numbers in descending order: {l} | Sort in descending order: {l} | Sort descending: {l}
Order from largest to smallest: {l} | Sort these numbers from large to small: {l}
Sort {l} in descending order. | Sort {l} from largest to smallest | Largest to smallest: {l}
""")
_SORT_WORDS = wordings("""
Sort these words alphabetically: {l} | Put these words in alphabetical order: {l}
Sort alphabetically: {l} | Sort these words: {l} | Order these words from a to z: {l}
Sort the words {l} | Please sort these words: {l} | Arrange alphabetically: {l}
Sort this list of words: {l} | Can you sort these words: {l} | Sort {l} alphabetically.
Put {l} in alphabetical order. | sort {l} | Alphabetical order: {l}
""")
_REVERSE = wordings("""
Reverse this list: {l} | Write this list backwards: {l} | Reverse: {l} | Reverse the list {l}
Reverse the order: {l} | Please reverse this list: {l} | Turn this list around: {l}
Give me this list in reverse order: {l}
""")
_COUNT = wordings("""
How many words are in this list: {l}? | Count these words: {l} | Count the items: {l}
How many items are in this list: {l} | Count the words in this list: {l} | How many words: {l}
How many things are listed here: {l}
""")
_EXTREME = wordings("""
What is the {w} number: {l}? | Which number is the {w}: {l} | Find the {w} of {l}.
Give me the {w} of {l} | What is the {w} of these numbers: {l} | Pick the {w} number: {l}
Which of these is the {w}: {l}
""")
_LARGER = wordings("""
Which is larger, {a} or {b}? | Which number is bigger: {a} or {b}? | Is {a} or {b} greater?
What is larger: {a} or {b}? | Which is more, {a} or {b}? | Compare {a} and {b}: which is larger?
""")
_PLACE = wordings("""
What is the {o} word in this list: {l}? | Which word is the {o} one: {l} | What is the {o} one: {l}
Give me the {o} item of {l}. | Tell me the {o} word of {l} | Name the {o} item: {l}
""")
_KIND = wordings(r"""
Which of these is the {e} file: {l} | Which file is the {e} file?\n{l} | {l}\nWhich is the {e} file?
Find the {e} file: {l} | Name the {e} file.\n{l}
""")
_OCCURRENCES = wordings("""
How many {c} are in {w}? | How many {c}'s are in {w}? | How many times does {c} occur in {w}?
Count the letter {c} in {w}. | How many {c} in {w}? | How many "{c}" are in the word "{w}"?
How often is the letter {c} in {w}? | How many times is {c} in the word {w}? | count the {c}s in {w}
How many letters {c} does {w} have? | How many {c}s are there in {w}?
How many letter {c} are in the word {w}?
""")
_LENGTH = wordings("""
How many letters are in the word {w}? | How many letters does '{w}' have?
Count the letters in {w}. | How long is the word "{w}"? | How many letters are in {w}?
How many letters has {w}?
Tell me how many letters are in {w} | What is the number of letters in {w}? | letters in {w}?
""")
_SPELL = wordings("""
Spell the word {w}. | How do you spell {w}? | Spell {w} | Can you spell {w}? | Please spell {w}.
Spell "{w}" letter by letter.
""")
_BACKWARDS = wordings("""
Reverse the word {w}. | Write {w} backwards. | Spell {w} backwards | What is '{w}' backwards?
Reverse the letters of {w}. | What is {w} spelled backwards? | Turn the word {w} around.
""")
_SPELLED: Final = [
    *words.COMMON,
    *words.PLACES,
    *words.ADJECTIVES,
    *[
        "banana",
        "strawberry",
        "hello",
        "world",
        "python",
        "computer",
        "model",
        "tiny",
        "token",
        "mississippi",
        "blueberry",
    ],
]

_SORTABLE: Final = [*_SPELLED, *words.CODE_WORDS, "cherry", "grape", "mango", "kiwi", "fig"]


def _joined(source: Source, items: list[str]) -> str:
    return source.pick([", ", ", ", " "]).join(items)


def _listed(source: Source, items: list[str]) -> str:
    """As people write lists: sometimes "and" before the last item."""
    if len(items) > 1 and source.chance(0.12):
        return f"{', '.join(items[:-1])} and {items[-1]}"
    return _joined(source, items)


def _some_words(source: Source) -> list[str]:
    count = source.integer(3, 7)
    if source.chance(0.7):
        drawn = [source.pick(words.COMMON) for _ in range(count)]
    else:
        drawn = [source.word().lower() for _ in range(count)]
    return list(dict.fromkeys(drawn))


def _some_numbers(source: Source) -> list[int]:
    top = source.pick([20, 99, 99, 999, 999, 9999])
    numbers = [source.integer(0, top) for _ in range(source.integer(3, 7))]
    if source.chance(0.3):
        numbers = [source.integer(0, 10 ** source.integer(1, 3)) for _ in numbers]
    return list(dict.fromkeys(numbers))


def _sortable_words(source: Source) -> list[str]:
    """Three to six different words, or names; no invented ones, whose letters tokens hide."""
    x = source.random.random()
    drawn: dict[str, None] = {}
    for _ in range(source.integer(3, 6)):
        if x < 0.7:
            drawn[source.pick(words.COMMON)] = None
        elif x < 0.9:
            real = source.pool is not None and source.chance(0.3)
            known = source.pool.words if real and source.pool is not None else _SORTABLE
            drawn[source.pick(known).lower()] = None
        else:
            drawn[source.pick(words.NAMES)] = None
    return list(drawn)


def sort(source: Source) -> Task:
    """Numbers up or down, words up.

    The reasoning takes the first of what is left again and again and says what is left then, so
    that no step asks for more than one comparison with all of a short list.
    """
    if source.chance(0.35):
        items = _sortable_words(source)
        question = source.pick(_SORT_WORDS).format(l=_listed(source, items))
        spelled = ", ".join(f"{' '.join(word[:3].lower())} {word}" for word in items)
        in_order = sorted(items)
        reasoning = f"By letters: {spelled}. {_taken_in_turn(items, in_order)}"
        return Task("sort", question, reasoning, ", ".join(in_order))
    numbers = _some_numbers(source)
    down = source.chance(0.25)
    wording = source.pick(_SORT_DOWN if down else _SORT_UP)
    shown = [str(number) for number in numbers]
    listed = ",".join(shown) if source.chance(0.08) else _listed(source, shown)
    question = wording.format(l=listed)
    in_order = [str(number) for number in sorted(numbers, reverse=down)]
    reasoning = f"{'Largest' if down else 'Smallest'} first. {_taken_in_turn(shown, in_order)}"
    return Task("sort", question, reasoning, ", ".join(in_order))


def _taken_in_turn(items: list[str], in_order: list[str]) -> str:
    left = list(items)
    steps = []
    for item in in_order:
        left.remove(item)
        steps.append(f"{item}, left {' '.join(left)}." if left else f"{item}.")
    return " ".join(steps)


def reverse(source: Source) -> Task:
    """A list backwards."""
    if source.chance(0.5):
        items = _some_words(source)
    else:
        items = [str(number) for number in _some_numbers(source)]
    question = source.pick(_REVERSE).format(l=_joined(source, items))
    items.reverse()
    reasoning = f"The last one is {items[0]}. I go backwards from there."
    return Task("reverse", question, reasoning, ", ".join(items))


def count(source: Source) -> Task:
    """How many items a list has."""
    items = _some_words(source)
    question = source.pick(_COUNT).format(l=_joined(source, items))
    steps = ", ".join(f"{index} {word}" for index, word in enumerate(items, 1))
    return Task("count", question, f"I count: {steps}. That makes {len(items)}.", str(len(items)))


def extreme(source: Source) -> Task:
    """The largest or smallest of some numbers, the larger of two."""
    if source.chance(0.3):
        a = source.integer(0, 9999)
        b = a + 1 if source.chance(0.1) else source.integer(0, 9999) + 1
        a, b = (b, a) if source.chance(0.5) else (a, b)
        if a == b:
            b += 1
        question = source.pick(_LARGER).format(a=a, b=b)
        high, low = max(a, b), min(a, b)
        return Task("minmax", question, f"{high} is larger than {low}.", f"{high} is larger.")
    numbers = _some_numbers(source)
    largest = source.chance(0.5)
    value = max(numbers) if largest else min(numbers)
    names = ("largest", "biggest", "maximum") if largest else ("smallest", "smallest", "minimum")
    listed = _joined(source, [str(number) for number in numbers])
    question = source.pick(_EXTREME).format(w=source.pick(names), l=listed)
    reasoning = f"The {names[0]} of these numbers is {value}."
    return Task("minmax", question, reasoning, str(value))


def place(source: Source) -> Task:
    """The n-th item of a list."""
    items = _some_words(source)
    index = source.integer(0, len(items) - 1)
    ordinal = words.ORDINALS[index]
    if index == len(items) - 1 and source.chance(0.7):
        ordinal = "last"
    question = source.pick(_PLACE).format(o=ordinal, l=_joined(source, items))
    return Task("pick", question, f"The {ordinal} one is {items[index]}.", items[index])


def kind(source: Source) -> Task:
    """The file of some kind, as agents choose one after listing a folder; all endings differ."""
    names = {name.rsplit(".", 1)[1]: name for name in (source.file_name() for _ in range(6))}
    ending = source.pick(list(names))
    joint = source.pick(["\n", "\n", " ", ", "])
    question = source.pick(_KIND).format(e=ending, l=joint.join(names.values()))
    return Task("kind", question, f"The {ending} file is {names[ending]}.", names[ending])


def letters(source: Source) -> Task:
    """Count, list and reverse the letters of a word."""
    word = source.pick(_SPELLED)
    if source.chance(0.3):
        word = source.pick(words.CODE_WORDS)
    elif source.pool is not None and source.chance(0.4):
        word = source.pick(source.pool.words).lower()
    x = source.random.random()
    if x < 0.4:
        present = source.chance(0.85)
        letter = source.pick(word) if present else source.pick("abcdefghijklmnoprstuvwxyz")
        return count_letter(source.pick(_OCCURRENCES).format(c=letter, w=word), letter, word)
    spelled = ", ".join(f"{index} {letter}" for index, letter in enumerate(word, 1))
    if x < 0.65:
        question = source.pick(_LENGTH).format(w=word)
        answer = f"The word {word} has {len(word)} letters."
        reasoning = f"I spell it: {spelled}. That makes {len(word)}."
        return Task("letters", question, reasoning, answer, f"{spelled}. {answer}")
    if x < 0.8:
        question = source.pick(_SPELL).format(w=word)
        return Task("letters", question, f"I spell {word} letter by letter.", "-".join(word))
    question = source.pick(_BACKWARDS).format(w=word)
    backwards = f"{' '.join(word)}. Backwards: {' '.join(word[::-1])}."
    answer = word[::-1]
    return Task(
        "letters", question, f"The letters are {backwards}", answer, f"{backwards} {answer}"
    )


def count_letter(question: str, letter: str, word: str) -> Task:
    """How often ``letter`` occurs in ``word``, counted along the spelling."""
    steps, seen = [], 0
    for index, other in enumerate(word, 1):
        seen += other == letter
        steps.append(f"{index} {other}" + (f" ({seen})" if other == letter else ""))
    spelled = ", ".join(steps)
    answer = f"The letter {letter} occurs {seen} time{'' if seen == 1 else 's'} in {word}."
    reasoning = f"I spell it: {spelled}. That makes {seen}."
    return Task("letters", question, reasoning, answer, f"{spelled}. {answer}")
