"""``pyds4 bench``: how fast a model runs here, and beside llama.cpp."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pyds4.cli import options
from pyds4.cli.console import note, size
from pyds4.cli.failure import CommandError, UsageError

if TYPE_CHECKING:
    from pyds4.cli.bandwidth import MemoryReader
    from pyds4.cli.bench_measure import Bench, Measurement
    from pyds4.cli.bench_peer import LlamaBench
    from pyds4.cli.bench_report import CsvFile
    from pyds4.engine import Engine

EPILOG = """\
For each context: the time to take in a prompt of that many tokens at once, then the time of the
next tokens behind it, for one session and for several decoded together. Decoding reads the weights
once a step, so its speed is also given as a share of the rate at which this machine reads memory,
measured just before and after. Several repeats give their median.

A peer is measured in turn on the same file with the same number of threads (scripts/build_peer in
the source tree builds one).

examples:
  pyds4 bench model.gguf
  pyds4 bench model.gguf --contexts 512,2k,8k,32k --sessions 1,8 --csv b.csv --plot b.png
  pyds4 bench model.gguf --peer llama-bench=./llama-bench --repeat 3
"""

_DEFAULT_CONTEXTS = (512, 2048, 8192)
_WARM_UP_TOKENS = 512
_STEADY = 1.1
"""Two readings of memory's rate that differ by more than this factor are not of one state."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="a GGUF file")
    parser.add_argument(
        "--contexts",
        type=options.integers(1),
        metavar="N[,N…]",
        help="prompt lengths in tokens, 8k means 8192 (default: 512,2k,8k as far as they fit)",
    )
    parser.add_argument(
        "--decode",
        type=options.integer(0),
        default=64,
        metavar="N",
        help="tokens decoded behind each prompt (default: 64; 0: none)",
    )
    parser.add_argument(
        "--sessions",
        type=options.integers(1),
        default=[1],
        metavar="N[,N…]",
        help="how many sessions are decoded together (default: 1)",
    )
    parser.add_argument(
        "--repeat", type=options.integer(1), default=1, metavar="N", help="default: 1"
    )
    parser.add_argument("--csv", metavar="FILE", help="write every single measurement")
    parser.add_argument("--plot", metavar="FILE", help="draw the result (needs matplotlib)")
    parser.add_argument("--peer", metavar="llama-bench=PATH", help="measure llama.cpp beside it")
    parser.add_argument(
        "--peer-options", default="", metavar="TEXT", help="further options for the peer"
    )
    options.add_engine(parser)


def execute(arguments: argparse.Namespace) -> int:
    from pyds4.cli.bench_measure import Bench
    from pyds4.cli.bench_peer import LlamaBench, parse_peer
    from pyds4.cli.bench_report import CsvFile, Results, check_plot, plot
    from pyds4.cli.tensor_roles import bytes_per_step

    if arguments.peer is None and arguments.peer_options:
        raise UsageError("--peer-options without --peer")
    program = None if arguments.peer is None else parse_peer(arguments.peer)
    if arguments.plot:
        check_plot(Path(arguments.plot))
    with ExitStack() as stack:
        engine = stack.enter_context(options.open_engine(arguments))
        contexts = _contexts(arguments, engine.config.context_length)
        peer = None
        if program is not None:
            peer = LlamaBench(program, Path(engine.path), engine.threads, arguments.peer_options)
        rows = None
        if arguments.csv:
            file = stack.enter_context(Path(arguments.csv).open("w", encoding="utf-8", newline=""))
            rows = CsvFile(file, engine.threads)
        title = _title(engine)
        _warn_of_company(engine.threads)
        print(f"{title}\nweights read for one token: {size(bytes_per_step(engine.file))}\n")
        bench = Bench(engine)
        bench.warm_up(min(_WARM_UP_TOKENS, max(contexts)))
        series = _Series(engine, bench, peer, rows, arguments)
        series.run(contexts)
    results = Results(series.done)
    results.print_tables()
    if arguments.plot:
        plot(Path(arguments.plot), results, title)
    return 0


def _contexts(arguments: argparse.Namespace, limit: int) -> list[int]:
    """What to measure at; all of it fits the model."""
    room = limit - (arguments.decode + 1 if arguments.decode else 0)
    if arguments.contexts is None:
        return [context for context in _DEFAULT_CONTEXTS if context <= room] or [max(1, room)]
    for context in arguments.contexts:
        if context > room:
            raise CommandError(
                f"--contexts: {context} tokens and {arguments.decode} decoded ones do not fit the "
                f"model's context of {limit}"
            )
    return sorted(set(arguments.contexts))


def _warn_of_company(threads: int) -> None:
    """Say so when other work shares the processors: every figure then says less."""
    load = os.getloadavg()[0]
    if load + threads > (os.cpu_count() or 1) + 0.5:
        note(f"other work is using the processors (load {load:.1f}): expect lower figures")


def _title(engine: Engine) -> str:
    from pyds4._native import lib, text

    instructions = text(lib.pyds4_instruction_set()) if engine.backend == "cpu" else ""
    name = engine.config.name or Path(engine.path).name
    machine = ", ".join(part for part in (engine.backend, instructions) if part)
    return f"{name} ({size(engine.file.byte_count)}), {machine}, {engine.threads} threads"


class _Series:
    """Measures context after context, ourselves and the peer in turn."""

    def __init__(
        self,
        engine: Engine,
        bench: Bench,
        peer: LlamaBench | None,
        rows: CsvFile | None,
        arguments: argparse.Namespace,
    ) -> None:
        self.done: list[Measurement] = []
        self._engine, self._bench, self._peer, self._rows = engine, bench, peer, rows
        self._decode: int = arguments.decode
        self._sessions: list[int] = sorted(set(arguments.sessions))
        self._repeat: int = arguments.repeat
        self._reader: MemoryReader | None = None
        if self._decode:
            from pyds4.cli.bandwidth import MemoryReader

            self._reader = MemoryReader(engine.threads)

    def run(self, contexts: list[int]) -> None:
        for repeat in range(self._repeat):
            for context in contexts:
                self._measure(context, repeat)

    def _measure(self, context: int, repeat: int) -> None:
        from pyds4.cli.bench_measure import OURS, Measurement
        from pyds4.cli.tensor_roles import bytes_per_step

        session, seconds = self._bench.prefill(context)
        with session:
            self._add(Measurement(OURS, "prefill", context, 1, context, repeat, seconds))
            if self._peer is not None:
                rate = self._peer.prefill(context)
                self._add_peer("prefill", context, context, repeat, rate)
            if self._reader is None:
                return
            for sessions in self._sessions:
                before = self._reader.bytes_per_s()
                seconds = self._bench.decode(session, self._decode, sessions)
                after = self._reader.bytes_per_s()
                if max(before, after) > _STEADY * min(before, after):
                    note(
                        f"memory was read at {before / 1e9:.0f} and then {after / 1e9:.0f} GB/s: "
                        "the share of it below is a guess"
                    )
                self._add(
                    Measurement(
                        OURS,
                        "decode",
                        context,
                        sessions,
                        self._decode * sessions,
                        repeat,
                        seconds,
                        bytes_per_step(self._engine.file, sessions),
                        (before + after) / 2,
                    )
                )
            if self._peer is not None and 1 in self._sessions:
                rate = self._peer.decode(self._decode, context)
                self._add_peer("decode", context, self._decode, repeat, rate)

    def _add_peer(self, kind: str, context: int, tokens: int, repeat: int, rate: float) -> None:
        from pyds4.cli.bench_measure import Measurement

        assert self._peer is not None
        seconds = tokens / rate
        self._add(Measurement(self._peer.name, kind, context, 1, tokens, repeat, seconds))

    def _add(self, measurement: Measurement) -> None:
        self.done.append(measurement)
        if self._rows is not None:
            self._rows.add(measurement)
        m = measurement
        together = f", {m.sessions} sessions" if m.sessions > 1 else ""
        note(f"{m.engine} {m.kind} at {m.context:,}{together}: {m.rate:.1f} tokens/s")
