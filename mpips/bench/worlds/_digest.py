"""Digests of a rank's objects: two ranks with the same digest behave the same from then on.

Everything that is reachable counts, but for what decides nothing: statistics, places in the program's text (`IGNORED`),
and objects that do not change or of which all that changes is given beside (`ELSEWHERE`).
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from mpips.cluster.node import Node
from mpips.cluster.observer import Observers
from mpips.cluster.view import View
from mpips.server.fast_path import FastPath
from mpips.server.migration import RateLimit
from mpips.server.server import Server
from mpips.server.shard import RoundAnswer, Shard
from mpips.transport.fastpath.table import FastPathTable
from mpips.transport.key_cache import KeyCache
from mpips.transport.message import Message, to_bytes

IGNORED = frozenset((
    "electorate", "location", "what", "again", "_again", "_steps", "_file", "_recoveries", "heads", "maker",
    "raw", "raw_out", "_send", "_repeat", "_settled", "_knows", "_answer", "_hears_leader", "_make", "_adopt",
    "_say", "_oversubscription", "on_publish", "_encode", "_withdraw", "_wait", "_send_pushes", "_rate_limit",
    "_fast_path", "_describe", "out", "places", "values",
))  # fmt: skip
"""Names of attributes that nothing is decided by, that never change, or that have addresses of memory.

The last three are arrays for the rows of a pull, which contain anything until they are there; then the program logs
them.
"""
ELSEWHERE = (
    Node, Server, FastPath, FastPathTable, KeyCache, Observers, RateLimit, Counter, ModuleType, BuiltinFunctionType,
    type,
)  # fmt: skip
"""Classes of which only the name counts; see also `in_digest`."""
_SCALARS = frozenset((int, float, str, bytes, bool, type(None)))
_numbers: dict[View, int] = {}
_names: dict[type, tuple[str, ...]] = {}
_adders: dict[type, Callable[[_Walk, Any], None]] = {}


class _Walk:
    """Writes what is reachable from an object as a list of words; an object that was met before by its number."""

    def __init__(self) -> None:
        self.words: list[str] = []
        # By id; with the objects, so that no other object gets their id meanwhile.
        self._met: dict[int, tuple[int, Any]] = {}

    def add(self, value: Any) -> None:
        kind = type(value)
        if kind in _SCALARS:
            self.words.append(repr(value))
            return
        if kind is tuple:
            self._add_items(value)
            return
        met = self._met.get(id(value))
        if met is not None:
            self.words.append(f"#{met[0]}")
            return
        self._met[id(value)] = len(self._met), value
        adder = _adders.get(kind)
        if adder is None:
            adder = _adders[kind] = _adder(value, kind)
        adder(self, value)

    def _add_items(self, values: Any) -> None:
        add = self.add
        self.words.append("(")
        for each in values:
            add(each)
        self.words.append(")")

    def _add_name(self, value: Any) -> None:
        self.words.append(type(value).__name__)

    def _add_text(self, value: Any) -> None:
        self.words.append(str(value))

    def _add_view(self, value: View) -> None:
        # Its hash is much faster than a walk.
        self.words.append(f"view {_numbers.setdefault(value, len(_numbers))}")

    def _add_message(self, value: Message) -> None:
        self.words.append(to_bytes(value).hex())
        self.add((value.slots, value.unsent_keys, value.error))

    def _add_array(self, value: Any) -> None:
        self.words.append(f"{value.dtype}{value.shape}{np.ascontiguousarray(value).tobytes().hex()}")

    def _add_set(self, value: Any) -> None:
        self.words.append(f"{sorted(map(repr, value))}")

    def _add_dict(self, value: dict[Any, Any]) -> None:
        self._add_items(value.keys())
        self._add_items(value.values())

    def _add_method(self, value: MethodType) -> None:
        self.words.append(value.__func__.__qualname__)
        self.add(value.__self__)

    def _add_function(self, value: FunctionType) -> None:
        self.words.append(value.__qualname__)
        self.add(value.__defaults__)
        for cell in value.__closure__ or ():
            self.add(cell.cell_contents)

    def _add_partial(self, value: Any) -> None:
        self._add_items((value.func, value.args, value.keywords))

    def _add_shard(self, shard: Shard) -> None:
        self._add_items((shard.changes, shard.workers, shard.inbox, tuple(shard.vectors)))
        for hosted in shard.vectors.values():
            self._add_items((hosted.waiting, hosted.broken, tuple(hosted.aggregator.workers)))
            if shard.changes:
                rows = hosted.segment.in_slot_order()
                self._add_items((rows.keys, rows.values, *rows.state.values(), *hosted.clock.to_arrays()))

    def _add_answer(self, answer: RoundAnswer) -> None:
        self._add_items((answer.slots, answer.rows))

    def _add_attributes(self, value: Any) -> None:
        kind, add = type(value), self.add
        self.words.append(kind.__name__)
        for name in _names[kind]:
            add(getattr(value, name, None))
        for name, each in getattr(value, "__dict__", {}).items():
            if name not in IGNORED:
                add(each)


def _adder(value: Any, kind: type) -> Callable[[_Walk, Any], None]:
    """Return how objects of a type are added."""
    by_type: tuple[tuple[Any, Callable[[_Walk, Any], None]], ...] = (
        (ELSEWHERE, _Walk._add_name),
        ((enum.Enum, np.generic), _Walk._add_text),
        (View, _Walk._add_view),
        (Message, _Walk._add_message),
        (Shard, _Walk._add_shard),
        (RoundAnswer, _Walk._add_answer),
        (np.ndarray, _Walk._add_array),
        ((tuple, list, deque), _Walk._add_items),
        ((set, frozenset), _Walk._add_set),
        (dict, _Walk._add_dict),
        (MethodType, _Walk._add_method),
        (FunctionType, _Walk._add_function),
        (partial, _Walk._add_partial),
    )
    if not getattr(kind, "in_digest", True):
        return _Walk._add_name
    for types, adder in by_type:
        if isinstance(value, types):
            return adder
    slots = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    _names[kind] = tuple(name for name in slots if name not in IGNORED)
    return _Walk._add_attributes


def digest(*roots: Any) -> bytes:
    """Return the digest of objects."""
    walk = _Walk()
    walk._add_items(roots)
    return blake2b("\0".join(walk.words).encode(), digest_size=16).digest()
