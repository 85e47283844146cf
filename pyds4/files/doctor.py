"""What this machine can run: hardware, backends, and which files fit at which context."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PyDS4Error
from ..model_file import ModelFile
from ..synth.presets import PRESETS
from .catalogue import artifacts
from .memory import Fit, MachineMemory, Verdict, judge, machine_memory
from .plan import memory_of

__all__ = ["CONTEXTS", "FileReport", "Machine", "Report", "examine", "read_speed"]

CONTEXTS = (8 * 1024, 32 * 1024, 128 * 1024, 1024 * 1024)
"""Tokens that files are judged at; larger ones than the model's limit are left out."""

_PROBE_BYTES = 1 << 30

_INTERESTING = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512vbmi", "gfni", "amx_tile", "asimddp", "i8mm", "sve2",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes.

    Attributes:
        processors: This process may use; affinity and container quota counted.
        features: Instruction sets of the processor that kernels care about.
        instruction_set: The one the engine's kernels use.
        gpus: (name, memory) of each; memory 0 where it is the machine's.
    """

    system: str
    processor: str
    processors: int
    features: tuple[str, ...]
    instruction_set: str
    library: str
    memory: MachineMemory
    gpus: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class FileReport:
    """A file, here or in the catalogue, and how it fits at each context.

    ``problem`` says why it cannot be judged or run whatever the context.
    """

    name: str
    path: str | None
    bytes: int
    fits: dict[int, Fit] = field(default_factory=dict)
    problem: str | None = None
    read_bytes_per_s: float | None = None

    @property
    def largest_context(self) -> int:
        """Of those judged, the largest that is not refused; 0 when all are."""
        return max((c for c, fit in self.fits.items() if fit.verdict != Verdict.REFUSED), default=0)


@dataclass(frozen=True)
class Report:
    """``backend`` is what "auto" takes here; None when no small model told."""

    machine: Machine
    files: list[FileReport]
    catalogue: list[FileReport]
    port: int
    port_is_free: bool
    problems: list[str]
    backend: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(models: Sequence[Path], *, port: int = 8000, disk: bool = True) -> Report:
    """Look at the machine and at ``models``.

    Args:
        models: Every one must exist and fit at the smallest context, or it is a problem.
        disk: Measure how fast the models' disks read (under a second each).
    """
    machine = _machine()
    files = [_file_report(path, machine.memory, disk) for path in models]
    problems = [file.problem for file in files if file.problem]
    for file in files:
        if file.fits and not file.largest_context:
            smallest = next(iter(file.fits))
            reason = file.fits[smallest].reason
            problems.append(f"{file.path} does not fit at {smallest} tokens: {reason}")
    is_free = _port_is_free(port)
    catalogue = _catalogue(machine.memory)
    backend = _backend(files)
    return Report(machine, files, catalogue, port, is_free, problems, backend)


def _machine() -> Machine:
    from .._native import ffi, lib, library_path, text

    del ffi
    processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    name, features = _processor()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=name,
        processors=processors,
        features=features,
        instruction_set=text(lib.pyds4_instruction_set()),
        library=str(library_path),
        memory=machine_memory(),
        gpus=_gpus(),
    )


def _processor() -> tuple[str, tuple[str, ...]]:
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        return name or platform.processor(), ()
    name, flags = platform.processor() or platform.machine(), set()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    return name, tuple(feature for feature in _INTERESTING if feature in flags)


def _gpus() -> tuple[tuple[str, int], ...]:
    if sys.platform == "darwin":
        return (("Apple GPU (unified memory)", 0),) if platform.machine() == "arm64" else ()
    if shutil.which("nvidia-smi") is None:
        return ()
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            asked, capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = []
    for line in answer.splitlines():
        name, _, size = line.rpartition(",")
        if size.strip().isdigit():
            found.append((name.strip(), int(size) << 20))
    return tuple(found)


def _file_report(path: Path, machine: MachineMemory, disk: bool) -> FileReport:
    try:
        file = ModelFile(path)
    except (PyDS4Error, OSError) as error:
        return FileReport(path.name, str(path), 0, problem=_about(path, error))
    try:
        limit = file.get("deepseek4.context_length")
        known = limit if isinstance(limit, int) else CONTEXTS[0]
        contexts = sorted({min(context, known) for context in CONTEXTS})
        fits = {context: judge(file.memory(context), machine) for context in contexts}
    except PyDS4Error as error:
        return FileReport(path.name, str(path), file.byte_count, problem=_about(path, error))
    speed = read_speed(path) if disk else None
    return FileReport(path.name, str(path), file.byte_count, fits, read_bytes_per_s=speed)


def _about(path: Path, error: Exception) -> str:
    said = str(error)
    return said if said.startswith(str(path)) else f"{path}: {said}"


def _backend(files: Sequence[FileReport]) -> str | None:
    """The backend that "auto" takes, as a small file tells that fits; opening a large one would
    send it to the GPU."""
    from ..engine import Engine

    small = [f for f in files if f.path and f.largest_context and f.bytes <= _PROBE_BYTES]
    for file in sorted(small, key=lambda file: file.bytes):
        with suppress(PyDS4Error, OSError), Engine(file.path or "") as engine:
            return f"{engine.backend}, {engine.threads} threads"
    return None


def _catalogue(machine: MachineMemory) -> list[FileReport]:
    reports = []
    for artifact in artifacts():
        if artifact.profile is None:
            continue
        dimensions = PRESETS[artifact.model]
        fits = {
            context: judge(memory_of(dimensions, artifact.bytes, context), machine)
            for context in CONTEXTS
            if context <= dimensions.context
        }
        reports.append(FileReport(artifact.name, None, artifact.bytes, fits))
    return reports


def read_speed(path: Path, seconds: float = 0.5, block: int = 4 << 20) -> float:
    """Bytes a second that ``path`` is read with, from the disk where the system lets go of its
    cache; read from the end, which is the least likely part to be in use."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        start = max(0, size - (1 << 30)) // block * block
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), start, 0, os.POSIX_FADV_DONTNEED)
        file.seek(start)
        buffer, done, began = bytearray(block), 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            count = file.readinto(buffer)
            if not count:
                break
            done += count
        return done / max(time.perf_counter() - began, 1e-9)


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
