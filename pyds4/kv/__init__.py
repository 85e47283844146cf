"""Prefixes that are never computed twice.

``Prefixes`` is what the sessions of one engine remember together in memory; ``Store`` keeps them in
a directory across restarts; ``TurnStore`` keeps what the model wrote, as it was sampled, for when a
client sends it back a little different; ``Timelines`` finds known ids by the text they stand for.

::

    engine.prefixes.budget_bytes = 2 << 30
    engine.keep_prefixes("~/.cache/pyds4/kv", budget_bytes=64 << 30)
    session.rewind(prompt)      # goes on from the longest prefix anyone ever took in
    print(session.resume)       # how much, from where, and why not more
    session.save()              # the end of a turn, kept too
"""

from pyds4.kv.prefixes import Prefixes, PrefixStats, Resume, Source
from pyds4.kv.store import Entry, Store, StoreStats, default_directory
from pyds4.kv.timelines import Timelines
from pyds4.kv.turns import SampledTurn, TurnStore

__all__ = [
    "Entry",
    "PrefixStats",
    "Prefixes",
    "Resume",
    "SampledTurn",
    "Source",
    "Store",
    "StoreStats",
    "Timelines",
    "TurnStore",
    "default_directory",
]
