"""The endless corpus: conversations by family, and some real text.

The real text is the standard library of the Python that runs this, so nothing needs to be shipped.
"""

from __future__ import annotations

import json
import re
import sysconfig
from collections import Counter
from collections.abc import Mapping
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

_SHARES: dict[str, float] = {
    "text": 4,
    "alone": 22,
    "chat": 5,
    "persona": 3,
    "recall": 10,
    "recall_turns": 3,
    "tool": 16,
    "tool_none": 5,
    "tool_par": 9,
    "tool_output": 3,
    "agent": 11,
    "shell": 9,
}
"""Shares of the documents, in percent."""
_LONG_SHARES: dict[str, float] = {
    "text": 3,
    "chat": 8,
    "recall": 50,
    "recall_turns": 8,
    "tool": 8,
    "tool_par": 4,
    "agent": 13,
    "shell": 6,
}
"""The same where documents may be long: what does not grow stays away."""
LONG = 12000
"""Characters from which on a document counts as long."""
_ALONE: dict[str, float] = {"sort": 4, "letters": 5, "arith": 2, "sorry": 2.5, "story": 1.5}
"""Weights of single tasks that need more practice than the others."""


class Document(NamedTuple):
    """A text; ``scored`` says which of its answers teach, None that all of it does."""

    family: str
    text: str
    scored: range | None


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

    ``practice`` replaces weights of single tasks, by family, to make up for what went badly.
    """

    def __init__(
        self,
        seed: int | str,
        prompts: Path | None = None,
        practice: Mapping[str, float] | None = None,
    ) -> None:
        self._practice = practice or {}
        self.files, pool = _real_text()
        self.source = Source(seed, pool=pool)
        self._real = RealPrompts(prompts)
        self._tasks = list(families.TASKS)
        weights = _ALONE | dict(self._practice)
        self._task_weights = [weights.get(family, 1.0) for family in self._tasks]
        # More practice of single tasks makes more documents of them.
        self._alone = sum(self._task_weights) / sum(_ALONE.get(f, 1.0) for f in self._tasks)

    def document(self, budget: int) -> Document:
        """A document of about ``budget`` characters, most often shorter."""
        source = self.source
        source.budget = budget
        shares = dict(_SHARES if budget < LONG else _LONG_SHARES)
        if "alone" in shares:
            shares["alone"] *= self._alone
        family = source.random.choices(list(shares), list(shares.values()))[0]
        if family == "text":
            return self._plain(budget)
        sample = self._sample(family, source.chance(0.5))
        if sample.thinking and source.chance(0.06):
            sample.effort = "max"
        return Document(sample.family, sample.prompt().text, sample.scored())

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
        if family == "alone":
            task = source.random.choices(self._tasks, self._task_weights)[0]
            return families.alone(source, thinking, task)
        if family == "recall":
            return families.recall_near(source, thinking)
        if family == "shell":
            if real.shells and source.chance(0.4):
                return agents.shell(source, thinking, real.shell)
            return agents.shell(source, thinking)
        if family == "agent" and real.clients and source.chance(0.3):
            return agents.agent(source, thinking, source.pick(real.clients))
        return families.FAMILIES[family](source, thinking)
