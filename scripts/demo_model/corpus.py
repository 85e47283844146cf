"""The endless corpus: conversations by family, and some real text.

The real text is the standard library of the Python that runs this, so nothing needs to be shipped.
"""

from __future__ import annotations

import json
import re
import sysconfig
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pyds4.chat import markers
from pyds4.evals import agents, families
from pyds4.evals.sample import Sample
from pyds4.evals.source import Source, TextPool
from pyds4.evals.toolbox import Tool

MARKERS = re.compile(r"<｜[^<>]{1,30}?｜>|</?think>|｜DSML｜")
_FOLDERS = ("", "asyncio", "email", "http", "json", "logging", "collections")

_ALONE: dict[str, float] = {
    "sort": 9,
    "letters": 3,
    "arith": 6,
    "copy": 2.5,
    "sorry": 2,
    "minmax": 2,
    "json": 1,
    "pick": 1,
    "kind": 1.5,
    "count": 1,
    "reverse": 1,
    "story": 2.5,
    "units": 0.8,
    "python": 0.8,
    "fact": 0.6,
    "greet": 0.6,
    "identity": 0.6,
}
"""Shares of the single tasks, in percent of the tokens in short rows."""
_SHARES: dict[str, float] = {
    "text": 2,
    "chat": 8,
    "persona": 2,
    "remember": 6,
    "recall": 7,
    "recall_turns": 3,
    "tool": 12,
    "tool_none": 4.5,
    "tool_par": 10,
    "tool_output": 1.5,
    "agent": 11,
    "shell": 8.5,
}
"""Shares of everything else there."""
_LONG_SHARES: dict[str, float] = {
    "text": 3,
    "chat": 8,
    "persona": 2,
    "remember": 2,
    "recall": 40,
    "recall_turns": 8,
    "tool": 10,
    "tool_par": 6,
    "agent": 14,
    "shell": 7,
}
"""Shares of the tokens in long rows: what does not grow stays away."""
LONG = 12000
"""Characters from which on a document counts as long."""
_LONG_ROW = 4096
"""Tokens beyond which a row is a long one."""
_BLOCK, _CHARACTERS_PER_TOKEN = 128, 3.5
"""A document fills whole blocks; the other number is about right for all families."""


class Document(NamedTuple):
    """A text; ``scored`` says which of its answers teach, None that all of it does."""

    family: str
    text: str
    scored: Sequence[int] | None


class Shares:
    """Draws names so that their tokens, not their number, follow shares.

    The mean cost of a name is learnt while drawing, so a long document is drawn less often.
    """

    def __init__(self, source: Source, shares: Mapping[str, float]) -> None:
        self._random = source.random
        self._shares = dict(shares)
        self._cost = dict.fromkeys(shares, 500.0)
        self._drawn = dict.fromkeys(shares, 1)

    def draw(self) -> str:
        """A name."""
        weights = [
            share * self._drawn[name] / self._cost[name] for name, share in self._shares.items()
        ]
        return self._random.choices(list(self._shares), weights)[0]

    def spend(self, name: str, tokens: float) -> None:
        """Say what the drawn ``name`` has cost."""
        self._cost[name] += tokens
        self._drawn[name] += 1


def standard_library() -> list[str]:
    """Sources of the running Python's standard library, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for folder in _FOLDERS:
        for path in sorted((root / folder).glob("*.py")):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if 500 < len(text) < 300_000:
                texts.append(text)
    return texts


@lru_cache(maxsize=1)
def _real_text() -> tuple[list[str], TextPool]:
    files = standard_library()
    counts: Counter[str] = Counter()
    for text in files:
        counts.update(re.findall(r"[A-Za-z]{3,10}", text))
    words = sorted(word for word, count in counts.items() if count >= 6)
    paragraphs = [
        part.strip()
        for text in files
        for part in re.findall(r'"""(.+?)"""', text, re.DOTALL)
        if 80 < len(part) < 900 and "<" not in part
    ]
    return files, TextPool(words, paragraphs)


class RealPrompts:
    """What real agents send, recorded by ``record_prompts``; none unless a file is given."""

    def __init__(self, path: Path | None) -> None:
        held: dict[str, Any] = json.loads(path.read_text()) if path else {}
        self.shells: list[dict[str, str]] = held.get("shell", [])
        self.clients = [
            agents.Client(
                client["system"],
                tuple(
                    Tool(one["purpose"], one["schema"]["name"], one["schema"], one["names"])
                    for one in client["tools"]
                ),
            )
            for client in held.get("agent", [])
        ]

    def shell(self, source: Source, task: str) -> tuple[str | None, str, str]:
        """One of the recorded shell agents with ``task`` in place."""
        one = source.pick(self.shells)
        return one["system"], one["user"].replace("{task}", task), one["submit"]


class Corpus:
    """Documents without end, from one seed.

    ``practice`` replaces shares of single tasks, by family, to make up for what went badly.
    """

    def __init__(
        self,
        seed: int | str,
        prompts: Path | None = None,
        practice: Mapping[str, float] | None = None,
    ) -> None:
        self.files, pool = _real_text()
        self.source = Source(seed, pool=pool)
        self._real = RealPrompts(prompts)
        alone = _ALONE | dict(practice or {})
        self._tasks = Shares(self.source, alone)
        self._short = Shares(self.source, _SHARES | {"alone": sum(alone.values())})
        self._long = Shares(self.source, _LONG_SHARES)

    def document(self, tokens: int) -> Document:
        """A document for rows of ``tokens`` tokens, most often shorter."""
        shares = self._long if tokens > _LONG_ROW else self._short
        family = shares.draw()
        self.source.budget = self._budget(tokens)
        made = self._document(family)
        blocks = -(-len(made.text) // int(_BLOCK * _CHARACTERS_PER_TOKEN))
        shares.spend(family, blocks * _BLOCK)
        return made

    def _budget(self, tokens: int) -> int:
        """Characters of the next document: many short, some fill a row."""
        source = self.source
        most, x = int(tokens * 4.2), source.random.random()
        if tokens > _LONG_ROW:
            return source.integer(2000, 9000) if x < 0.2 else source.integer(LONG, most)
        if x < 0.5:
            return source.integer(1200, 3500)
        return source.integer(3000, 8000) if x < 0.75 else source.integer(min(7000, most), most)

    def _document(self, family: str) -> Document:
        source = self.source
        if family == "text":
            return self._plain(source.budget)
        if family == "alone":
            return self._single() if source.chance(0.3) else self._drill()
        sample = self._effort(self._sample(family, source.chance(0.5)))
        return Document(sample.family, sample.prompt().text, sample.scored())

    def _single(self) -> Document:
        sample = self._task()
        self._charge(sample)
        return Document(sample.family, sample.prompt().text, sample.scored())

    def _drill(self) -> Document:
        """Conversations of one question each, one after the other.

        Alone each would leave most of its last block empty. That something stands before the first
        token of a conversation does not happen in use, which is why there are single ones too.
        """
        characters = self.source.integer(1200, 3500)
        self.source.budget = 400
        texts: list[str] = []
        scored: list[int] = []
        length = answers = 0
        while length < characters:
            sample = self._task()
            if self.source.chance(0.7):
                sample.system = None
            texts.append(sample.prompt().text)
            scored += [answers + index for index in sample.scored()]
            answers += len(sample.exchanges)
            self._charge(sample)
            length += len(texts[-1])
        return Document("drill", "".join(texts), scored)

    def _task(self) -> Sample:
        source = self.source
        return self._effort(families.alone(source, source.chance(0.45), self._tasks.draw()))

    def _charge(self, sample: Sample) -> None:
        """Book a single task without its system prompt, which teaches nothing about it."""
        exchange = sample.exchanges[0]
        said = len(exchange.asked) + len(exchange.answer.content)
        said += len(exchange.answer.reasoning) if sample.thinking else 0
        self._tasks.spend(sample.family, 8 + said / _CHARACTERS_PER_TOKEN)

    def _effort(self, sample: Sample) -> Sample:
        """Now and then with the greatest effort, which prepends an instruction."""
        if sample.thinking and self.source.chance(0.06):
            sample.effort = "max"
        return sample

    def _plain(self, budget: int) -> Document:
        source = self.source
        text = source.pick(self.files)
        length = source.integer(400, min(max(budget, 500), 12000))
        start = source.integer(0, max(0, len(text) - length))
        end = markers.EOS if start + length >= len(text) else ""
        part = MARKERS.sub("", text[start : start + length])
        return Document("text", f"{markers.BOS}{part}{end}", None)

    def _sample(self, family: str, thinking: bool) -> Sample:
        source, real = self.source, self._real
        if family == "recall":
            return families.recall_near(source, thinking)
        if family == "shell":
            if real.shells and source.chance(0.4):
                return agents.shell(source, thinking, real.shell)
            return agents.shell(source, thinking)
        if family == "agent" and real.clients and source.chance(0.3):
            return agents.agent(source, thinking, source.pick(real.clients))
        return families.FAMILIES[family](source, thinking)
