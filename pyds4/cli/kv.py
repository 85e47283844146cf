"""``pyds4 kv``: look after the prefixes that are kept on disk."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pyds4.cli import options
from pyds4.cli.console import Progress, print_table, size
from pyds4.cli.failure import CommandError, UsageError

if TYPE_CHECKING:
    from pyds4.kv import Entry, Store

EPILOG = """\
actions:
  list               every place a session can go on from, latest use first
  stats              how much is kept
  pin KEY…           keep from eviction, with all it stands on; unpin KEY… no longer
  delete KEY…        remove; `delete --all` removes everything that is not pinned
  warm FILE          evaluate a text (- for standard input), keep it and pin it

A KEY may be cut to the first digits that only it has. No action but warm needs the model; list
shows how an entry's text ends when the model is given.

examples:
  pyds4 kv list
  pyds4 kv pin 36252e05
  pyds4 kv warm system-prompt.txt --model model.gguf
"""

_ACTIONS = ("list", "stats", "pin", "unpin", "delete", "warm")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("action", choices=_ACTIONS, metavar="ACTION", help="see below")
    parser.add_argument("keys", nargs="*", metavar="KEY", help="an entry, or warm's file")
    parser.add_argument("--all", action="store_true", help="with delete: all that are not pinned")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "-d", "--directory", metavar="DIR", help="where prefixes are kept (default: the user's)"
    )
    options.add_model(parser)
    options.add_engine(parser)


def execute(arguments: argparse.Namespace) -> int:
    from pyds4.kv import Store, default_directory

    directory = Path(arguments.directory) if arguments.directory else default_directory()
    if arguments.all and arguments.action != "delete":
        raise UsageError("--all goes with delete")
    if arguments.action in ("list", "stats") and arguments.keys:
        raise UsageError(f"{arguments.action} takes no keys")
    if arguments.action == "warm":
        return _warm(arguments, directory)
    if not directory.is_dir():
        if arguments.action in ("list", "stats"):
            print(json.dumps({"directory": str(directory), "entries": []}) if arguments.json else
                  f"nothing is kept in {directory}")  # fmt: skip
            return 0
        raise CommandError(f"nothing is kept in {directory}")
    store = Store.open(directory)
    if arguments.action == "list":
        _list(store, arguments)
    elif arguments.action == "stats":
        _stats(store, arguments)
    elif arguments.action == "delete" and arguments.all:
        if arguments.keys:
            raise UsageError("give keys or --all, not both")
        _say(arguments, "freed_bytes", store.clear(), "freed")
    else:
        if not arguments.keys:
            raise UsageError(f"{arguments.action} needs a key; 'pyds4 kv list' shows them")
        _change(store, arguments)
    return 0


def _change(store: Store, arguments: argparse.Namespace) -> None:
    entries = store.entries()
    # All keys are looked up before anything changes.
    keys = [_whole(entries, key) for key in arguments.keys]
    freed = 0
    for key in keys:
        if arguments.action == "delete":
            freed += store.delete(key)
        else:
            store.pin(key, arguments.action == "pin")
    if arguments.action == "delete":
        _say(arguments, "freed_bytes", freed, "freed")


def _whole(entries: list[Entry], start: str) -> str:
    found = [entry.key for entry in entries if entry.key.startswith(start.lower())]
    if len(found) == 1:
        return found[0]
    if not found:
        raise CommandError(f"no entry begins with {start!r}; 'pyds4 kv list' shows them")
    raise CommandError(f"{len(found)} entries begin with {start!r}; give more digits")


def _list(store: Store, arguments: argparse.Namespace) -> None:
    entries = store.entries()
    if arguments.json:
        listed = [asdict(entry) for entry in entries]
        print(json.dumps({"directory": str(store.directory), "entries": listed}))
        return
    ends = _ends(store, entries, arguments)
    headers = ["key", "tokens", "state", "with rows", "used", "", *(["ends with"] if ends else [])]
    rows = []
    for entry in entries:
        marks = " ".join(
            word for word, on in (("pinned", entry.pinned), ("anchor", entry.anchor)) if on
        )
        row = [entry.key[:12], f"{entry.position:,}", size(entry.byte_count)]
        row += [size(entry.chain_bytes), _ago(entry.used_s), marks]
        rows.append(row + ([ends.get(entry.key, "")] if ends else []))
    print_table(headers, rows, right=(1, 2, 3))


def _ends(store: Store, entries: list[Entry], arguments: argparse.Namespace) -> dict[str, str]:
    """How the texts of the given model's entries end; nothing without a model."""
    if arguments.model is None:
        return {}
    from pyds4.errors import NoSuchKeyError

    ends = {}
    with options.open_engine(arguments) as engine:
        for entry in entries:
            if entry.identity != engine.identity.hex():
                continue
            try:
                tail = store.tokens(entry.key)[-24:]
            except NoSuchKeyError:  # evicted meanwhile by another process
                continue
            ends[entry.key] = repr(engine.tokenizer.decode(tail))[1:-1][-48:]
    return ends


def _stats(store: Store, arguments: argparse.Namespace) -> None:
    stats = store.stats()
    if arguments.json:
        print(json.dumps({"directory": str(store.directory)} | asdict(stats)))
        return
    entries = store.entries()
    pinned = sum(entry.pinned for entry in entries)
    rows = [
        ("directory", str(store.directory)),
        ("bytes", f"{size(stats.byte_count)} in {stats.files} files"),
        ("places to go on from", f"{stats.states}, {pinned} of them pinned"),
        ("tokens with rows", f"{stats.blocks * 128:,}"),
        ("models", str(len({entry.identity for entry in entries}))),
    ]
    for name, value in rows:
        print(f"{name:22}{value}")


def _warm(arguments: argparse.Namespace, directory: Path) -> int:
    if len(arguments.keys) != 1:
        raise UsageError("warm needs one file, or - for standard input")
    (name,) = arguments.keys
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(f"{name} is not UTF-8: {error}") from None
    with options.open_engine(arguments) as engine:
        ids = engine.tokenizer.encode(text)
        if not ids:
            raise CommandError(f"{name} is empty")
        store = engine.keep_prefixes(directory)
        with Progress("warming") as progress:
            evaluated = store.warm(ids, progress=progress.update)
    report = {"tokens": len(ids), "evaluated": evaluated}
    print(
        json.dumps(report) if arguments.json else f"{len(ids)} tokens kept, {evaluated} evaluated"
    )
    return 0


def _say(arguments: argparse.Namespace, name: str, byte_count: int, verb: str) -> None:
    print(json.dumps({name: byte_count}) if arguments.json else f"{verb} {size(byte_count)}")


def _ago(seconds: int) -> str:
    past = time.time() - seconds
    if past < 0:
        return time.strftime("%Y-%m-%d", time.localtime(min(seconds, 1 << 33)))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if past >= 2 * length:
            return f"{past // length:.0f} {unit} ago"
    return "now"
