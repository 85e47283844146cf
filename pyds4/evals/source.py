"""The seeded source of everything random in samples: numbers, words, names, paths, filler."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pyds4.evals import words

T = TypeVar("T")

_EXTENSIONS = [
    "txt",
    "py",
    "md",
    "json",
    "cfg",
    "log",
    "csv",
    "yaml",
    "ini",
    "html",
    "js",
    "c",
    "toml",
    "conf",
    "env",
    "sh",
]
_FILE_NAMES = [
    "notes",
    "main",
    "config",
    "readme",
    "data",
    "todo",
    "report",
    "test",
    "app",
    "utils",
    "index",
    "settings",
    "hello",
    "example",
    "server",
    "script",
    "info",
    "list",
    "names",
    "package",
    "output",
    "input",
    "result",
    "answer",
    "Makefile",
    "LICENSE",
]
_FOLDERS = ["src/", "docs/", "/tmp/", "/home/user/", "./", "/etc/", "tests/", "data/", "config/"]


def wordings(text: str) -> list[str]:
    """Wordings from one text, separated by ``|`` and line ends; a written ``\\n`` is a line end."""
    parts = (part.strip() for line in text.splitlines() for part in line.split("|"))
    return [part.replace("\\n", "\n") for part in parts if part]


@dataclass(frozen=True)
class TextPool:
    """Real text for training: evaluation does without, so that it is the same everywhere."""

    words: Sequence[str]
    paragraphs: Sequence[str]


class Source:
    """A seeded random source. ``budget`` bounds the length of a sample, in characters."""

    def __init__(
        self, seed: int | str, *, budget: int = 3000, pool: TextPool | None = None
    ) -> None:
        self.random = random.Random(seed)
        self.budget = budget
        self.pool = pool

    # -- choices

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``."""
        return items[self.random.randrange(len(items))]

    def integer(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return self.random.randint(low, high)

    def chance(self, probability: float) -> bool:
        """True with ``probability``."""
        return self.random.random() < probability

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """``count`` different ones of ``items``."""
        return self.random.sample(items, count)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """``items`` in another order."""
        return self.random.sample(items, len(items))

    # -- words

    def nonsense(self) -> str:
        """An invented word."""
        return "".join(self.pick(words.SYLLABLES) for _ in range(self.integer(2, 4)))

    def word(self) -> str:
        """Any word: everyday, from program texts, invented, or a name."""
        x = self.random.random()
        if x < 0.4:
            return self.pick(words.COMMON)
        if x < 0.75:
            if self.pool is not None and self.chance(0.7):
                return self.pick(self.pool.words).lower()
            return self.pick(words.CODE_WORDS)
        return self.nonsense() if x < 0.9 else self.pick(words.NAMES)

    def phrase(self, low: int = 2, high: int = 6) -> str:
        """``low`` to ``high`` words."""
        return " ".join(self.word() for _ in range(self.integer(low, high)))

    def identifier(self, parts: int = 2) -> str:
        """A name in a program: ``parts`` words at most, joined by underscores."""
        return "_".join(self.word().lower() for _ in range(self.integer(1, parts)))

    def code(self) -> str:
        """Something to remember: a number, an invented word, a key."""
        x = self.random.random()
        if x < 0.4:
            return str(self.integer(100, 99999))
        if x < 0.6:
            return self.nonsense()
        if x < 0.8:
            letters = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
            return "".join(self.pick(letters) for _ in range(self.integer(4, 6)))
        tail = f"-{self.integer(1, 99)}" if self.chance(0.5) else ""
        return f"{self.pick(words.COLORS)}-{self.pick(words.ANIMALS)}{tail}"

    def file_name(self, extension: str | None = None) -> str:
        """A file name without a folder."""
        extension = extension or self.pick(_EXTENSIONS)
        if self.chance(0.45):
            base = self.pick(_FILE_NAMES)
        else:
            joint = self.pick(["_", "_", "", "-"])
            base = joint.join(self.word().lower() for _ in range(self.integer(1, 3)))
        return f"{base}.{extension}"

    def path(self, extension: str | None = None) -> str:
        """A file, in a folder or not."""
        folder = ""
        if self.chance(0.55):
            own = [self.word().lower() + "/", f"/srv/{self.word().lower()}/"]
            folder = self.pick([*_FOLDERS, *own])
        return folder + self.file_name(extension)

    def date(self) -> str:
        """A date, YYYY-MM-DD."""
        month, day = self.integer(1, 12), self.integer(1, 28)
        return f"20{self.integer(20, 30)}-{month:02d}-{day:02d}"

    # -- text

    def sentence(self) -> str:
        """A sentence that says nothing anyone asks about."""
        w = words
        kind = self.integer(0, 5)
        if kind == 0:
            return (
                f"The {self.pick(w.ADJECTIVES)} {self.pick(w.NOUNS)} {self.pick(w.VERBS)} "
                f"the {self.pick(w.NOUNS)}."
            )
        if kind == 1:
            return (
                f"{self.pick(w.NAMES)} {self.pick(w.VERBS)} a {self.pick(w.ADJECTIVES)} "
                f"{self.pick(w.THINGS)} near the {self.pick(w.PLACES)}."
            )
        if kind == 2:
            return (
                f"In {self.pick(w.CITIES)} the {self.pick(w.NOUNS)} is {self.pick(w.ADJECTIVES)} "
                f"and the {self.pick(w.NOUNS)} is {self.pick(w.ADJECTIVES)}."
            )
        if kind == 3:
            return (
                f"Nobody knows why the {self.pick(w.ANIMALS)} {self.pick(w.VERBS)} "
                f"the {self.pick(w.THINGS)} every "
                f"{self.pick(['morning', 'evening', 'day', 'week'])}."
            )
        if kind == 4:
            return (
                f"A {self.pick(w.COLORS)} {self.pick(w.THINGS)} was left in the "
                f"{self.pick(w.PLACES)} by {self.pick(w.NAMES)}."
            )
        return (
            f"Every {self.pick(w.NOUNS)} has a {self.pick(w.NOUNS)}, but not every "
            f"{self.pick(w.NOUNS)} is {self.pick(w.ADJECTIVES)}."
        )

    def filler(self, characters: int) -> str:
        """About ``characters`` characters of text without facts."""
        real = self.pool.paragraphs if self.pool is not None else ()
        share = self.pick([0.0, 0.3, 1.0]) if real else 0.0
        parts: list[str] = []
        length = 0
        while length < characters:
            part = self.pick(real) if real and self.chance(share) else self.sentence()
            part = part[: max(40, characters - length + 40)]
            parts.append(part)
            length += len(part) + 1
        return ("\n\n" if share == 1.0 else " ").join(parts)

    def line(self) -> str:
        """A line of some file."""
        x = self.random.random()
        if x < 0.4:
            return self.sentence()
        if x < 0.7:
            return self.phrase()
        if x < 0.8:
            return f"{self.identifier()} = {self.integer(0, 999)}"
        if x < 0.9:
            return f'print("{self.phrase(1, 4)}")'
        return self.phrase(1, 3) + self.pick(["!", "?", ".", ""])

    def politely(self, question: str) -> str:
        """The same question in another tone: politer, in lower case, without its last mark."""
        if self.chance(0.5):
            question = question[0].lower() + question[1:]
        if self.chance(0.4):
            lead = "Please |Hi! |Hey, |Can you tell me: |Now |ok, |Next: |Hello, |Quick one: |So, "
            question = self.pick(lead.split("|")) + question
        if self.chance(0.3):
            question = question.rstrip("?.")
        if self.chance(0.1):
            # A bare "please" after a list would be one more item.
            thanks = self.pick([" Thanks!", " Thank you.", ", please", ", please.", "  "])
            question = (question.rstrip("?.") if thanks[0] == "," else question) + thanks
        return question
