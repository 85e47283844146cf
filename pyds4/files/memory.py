"""Will a model fit: what it needs against what this process may use, before anything is loaded.

Weights are a mapping of the file: clean pages that the system may drop and read again. They never
make a machine swap, but a model larger than all memory would be read from disk again for every
token. Attention memory and buffers are the process's own and must be there. Hence two refusals:

- weights, attention memory and buffers together exceed what the process may ever use
- attention memory and buffers exceed what is available now

Anything between is let through: what others have cached gives way. ``PYDS4_MEMORY_GUARD=off``
turns refusals off.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ..errors import MemoryLimitError
from ..model_file import MemoryNeed, ModelFile

__all__ = [
    "GUARD_VARIABLE",
    "LOAD_CONTEXT",
    "Fit",
    "MachineMemory",
    "Verdict",
    "guard_load",
    "judge",
    "machine_memory",
]

GUARD_VARIABLE = "PYDS4_MEMORY_GUARD"

LOAD_CONTEXT = 4096
"""Tokens that a load must have room for when no context is asked for."""


_HALVES = [1 << bits for bits in range(20, 9, -1)]
"""Contexts that a refusal may propose, in tokens."""


@dataclass(frozen=True)
class MachineMemory:
    """Bytes this process may use.

    Attributes:
        total: At most, whatever else is running.
        available: Now, with what the system would give up for it (page cache) counted.
        limit: What sets ``total``: "machine" or "container".
    """

    total: int
    available: int
    limit: str = "machine"


class Verdict(StrEnum):
    FITS = "fits"
    TIGHT = "tight"
    """Runs, but other programs' memory or part of the weights will be pushed out."""
    REFUSED = "does not fit"


@dataclass(frozen=True)
class Fit:
    need: MemoryNeed
    machine: MachineMemory
    verdict: Verdict
    reason: str


def judge(need: MemoryNeed, machine: MachineMemory, *, weights_on_host: bool = True) -> Fit:
    """Whether ``need`` fits ``machine``, and why not.

    Args:
        weights_on_host: False when a GPU with memory of its own holds the weights.
    """
    own = need.kv + need.buffers
    whole = own + (need.weights if weights_on_host else 0)
    figures = (
        f"weights {_size(need.weights)}, attention memory {_size(need.kv)}, "
        f"buffers {_size(need.buffers)}"
    )
    if whole > machine.total:
        reason = (
            f"{figures}: {_size(whole)} in all, and the {machine.limit} has {_size(machine.total)}"
        )
        return Fit(need, machine, Verdict.REFUSED, reason)
    if own > machine.available:
        reason = (
            f"{figures}: {_size(own)} besides the weights, and {_size(machine.available)} of "
            f"{_size(machine.total)} are available"
        )
        return Fit(need, machine, Verdict.REFUSED, reason)
    if whole > machine.available:
        reason = (
            f"{figures}: {_size(whole)} in all, with {_size(machine.available)} of "
            f"{_size(machine.total)} available"
        )
        return Fit(need, machine, Verdict.TIGHT, reason)
    return Fit(need, machine, Verdict.FITS, figures)


def guard_load(
    file: ModelFile,
    context: int | None = None,
    *,
    roundings: bool = True,
    weights_on_host: bool = True,
    machine: MachineMemory | None = None,
) -> None:
    """Refuse to load what cannot run well here.

    Args:
        context: Tokens of one session; the model's limit, at most ``LOAD_CONTEXT``, when None.
            More than the model's limit counts as the limit.

    Raises:
        MemoryLimitError: it does not fit; says what it needs, what there is, and what to do.
    """
    if os.environ.get(GUARD_VARIABLE, "").lower() in ("off", "0", "no"):
        return
    limit = file.get("deepseek4.context_length")
    known = limit if isinstance(limit, int) else LOAD_CONTEXT
    context = min(known, LOAD_CONTEXT if context is None else context)
    machine = machine or machine_memory()

    def fit(tokens: int) -> Fit:
        need = file.memory(tokens, roundings=roundings)
        return judge(need, machine, weights_on_host=weights_on_host)

    asked = fit(context)
    if asked.verdict is not Verdict.REFUSED:
        return
    smaller = (tokens for tokens in _HALVES if tokens < context)
    fitting = next((tokens for tokens in smaller if fit(tokens).verdict != Verdict.REFUSED), None)
    advice = f"{fitting} tokens would fit" if fitting else "take a smaller file"
    raise MemoryLimitError(
        f"{file.paths[0]} does not fit with a context of {context} tokens: {asked.reason}. "
        f"{advice[0].upper()}{advice[1:]}; {GUARD_VARIABLE}=off tries anyway"
    )


def machine_memory(
    proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> MachineMemory:
    """What the machine and the container this process runs in let it use."""
    if sys.platform == "darwin":
        return _darwin_memory()
    fields = {}
    for line in (proc / "meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields[key] = int(value.split()[0]) * 1024
    total = fields["MemTotal"]
    available = fields.get("MemAvailable", fields["MemFree"])
    limit = "machine"
    for most, used in _container_limits(proc, cgroup):
        if most < total:
            total, limit = most, "container"
        available = min(available, max(most - used, 0))
    return MachineMemory(total, available, limit)


def _container_limits(proc: Path, cgroup: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot be reclaimed) of every group above this process."""
    found = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2: one tree
            root, names = cgroup, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = cgroup / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = root / path.lstrip("/")
        # Inside a container the path may be that of the host, and only the root exists.
        places = [place for place in (group, *group.parents) if place.is_relative_to(root)]
        for place in places:
            most, used = (_number(place / name) for name in names)
            # Version 1 says "no limit" with a number close to 2^63.
            if most is not None and used is not None and most < 1 << 60:
                found.append((most, max(used - _reclaimable(place), 0)))
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _reclaimable(group: Path) -> int:
    """Page cache that the group's usage counts and the system would give up."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stats = dict(line.split() for line in lines)
    return sum(int(stats.get(key, 0)) for key in ("inactive_file", "active_file"))


def _darwin_memory() -> MachineMemory:
    size, length = ctypes.c_uint64(), ctypes.c_size_t(8)
    libc = ctypes.CDLL(None)
    libc.sysctlbyname(b"hw.memsize", ctypes.byref(size), ctypes.byref(length), None, 0)
    report = subprocess.run(["vm_stat"], capture_output=True, text=True, check=True).stdout
    return MachineMemory(size.value, parse_vm_stat(report))


def parse_vm_stat(report: str) -> int:
    """Bytes that macOS's ``vm_stat`` calls free or would free at once."""
    page = int(report.split("page size of ")[1].split()[0])
    pages = 0
    for line in report.splitlines():
        key, _, value = line.partition(":")
        if key in ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable"):
            pages += int(value.strip().rstrip("."))
    return pages * page


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"
