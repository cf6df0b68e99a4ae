"""Keys of requests: checked, partitioned by shard, and signed if they are used again (paper, sections 3.2 and 4.2).

A caller names keys by a range, by an array, or by a `KeyList`. The planner of a vector turns them into a `Plan`. Plans
of ranges are cached by the planner, those of a list in the list; an array is checked and partitioned each time, and it
is signed from the second use by the same command on: a mini-batch pulls and pushes its list once.
"""

from __future__ import annotations

from typing import Any, Protocol
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from mpips.cluster.node import Node
from mpips.errors import UsageError
from mpips.keys import (
    KEY64,
    KEY128,
    KeyArray,
    ascending_pairs,
    check_unmasked,
    from_pairs,
    pairs,
    upper,
)
from mpips.ranges import KeyRange
from mpips.storage.updates import VectorSpec
from mpips.transport.key_cache import sign
from mpips.transport.message import NO_SIGNATURE, Command
from mpips.transport.request_parts import END, UNSORTED, cut
from mpips.worker.plan import Parts, Plan, Slice

MOST_PLANS = 1 << 10
"""Largest number of ranges, and of samples of lists, that a vector caches; a full cache is cleared."""
_ALL = -1
"""The bits of all commands."""


class Handle(Protocol):
    """The part of a vector that a list of keys uses."""

    @property
    def spec(self) -> VectorSpec:
        """The vector's specification."""


class KeyList:
    """Keys for repeated use: checked, partitioned by shard and signed once. `Vector.key_list` creates it.

    `keys`, u64[n] or KEY128[n], is a read-only copy; `vector` created it, for requests in the range `within`. All
    methods of that vector that take keys also take the list.

    >>> from mpips import VectorSpec, simulate
    >>> def schedule(cluster):
    ...     w = cluster.create_vector(VectorSpec("w"))
    ...     keys = w.key_list(np.array([3, 8], np.uint64))
    ...     cluster.wait_all([w.push(keys, np.ones(2)) for _ in range(2)])
    ...     return isinstance(keys, KeyList), len(keys), w.pull(keys).result().tolist()
    >>> simulate(schedule, worker=lambda context: None)
    (True, 2, [2.0, 2.0])
    """

    __slots__ = ("everywhere", "keys", "plan", "vector", "within")

    def __init__(
        self, vector: Handle, keys: KeyArray, within: KeyRange, plan: Plan, everywhere: Plan
    ) -> None:
        # Kernels take writable arrays, although they do not write.
        self.vector, self.keys, self.within = vector, keys.view(), within
        self.keys.flags.writeable = False
        # Shards of which it has no keys take part in rounds only.
        self.plan, self.everywhere = plan, everywhere

    def __len__(self) -> int:
        return len(self.keys)


Keys = KeyArray | KeyRange | KeyList


class Planner:
    """Converts the keys of one vector's requests to plans, and caches plans that may be reused; see the module."""

    def __init__(self, vector: Handle, node: Node) -> None:
        # Weak, since the vector has this object: it ends with the role of its worker, and with it the plans.
        self._vector, self.node = ref(vector), node
        self.spec = spec = vector.spec
        self._all = KeyRange(0, spec.extent)
        self._wide = spec.key_bits == 128
        self._cuts = node.view.ring.cuts(spec.extent)
        self._plans: dict[tuple[KeyRange, bool], Plan] = {}
        # By range: see `_parts_of`.
        self._within: dict[KeyRange, Parts] = {}
        self._whole = self._parts_of(self._all)
        # Not when the first request waits for it.
        self._whole.located(node.view)
        # By range, whether all shards take part, and signatures of a list.
        self._kept: dict[tuple[Any, ...], Parts] = {}
        # By hash of a list that was passed as an array: a bit for each command that has used it.
        self._uses: dict[int, int] = {}

    @property
    def vector(self) -> Handle:
        """The vector, which calls this object."""
        vector = self._vector()
        assert vector is not None
        return vector

    def key_list(self, keys: KeyArray, within: KeyRange | None) -> KeyList:
        """Check, partition and sign a copy of `keys`; see `Vector.key_list`."""
        listed = self._listed(keys).copy()
        within = within or self._all
        parts = self._parts_of(within)
        self._cut(listed, within, parts)
        plans = [self._plan_signed(listed, within, parts, each) for each in (False, self.spec.aggregate)]
        return KeyList(self.vector, listed, within, *plans)

    def plan_nothing(self) -> Plan:
        """Plan a request without keys to every shard that has a part of the vector."""
        parts = self._whole
        return Plan(0, np.empty(0, self.spec.key_dtype), parts, [0] * (len(parts.table) + 1), True)

    def plan(self, keys: Keys, within: KeyRange | None, together: bool, command: Command) -> Plan:
        """Check keys, u64[n], KEY128[n] or u64[n, 2] if they are an array, and partition them by shard.

        Raises:
            UsageError: they are not sorted and unique, not within `within`, or a list of another vector.
        """
        if isinstance(keys, KeyRange):
            plan = self._plans.get((keys, together))
            if plan is None:
                plan = self._plan_range(keys, together)
                if len(self._plans) >= MOST_PLANS:
                    self._plans.clear()
                self._plans[keys, together] = plan
            return plan
        if isinstance(keys, KeyList):
            if keys.vector is not self.vector or (within is not None and within != keys.within):
                asked = keys.within if within is None else within
                raise UsageError(
                    f"vector {self.spec.name}, range [{asked.begin}, {asked.end}): the key list was made for vector "
                    f"{keys.vector.spec.name}, range [{keys.within.begin}, {keys.within.end})"
                )
            return keys.everywhere if together else keys.plan
        listed = self._listed(keys)
        parts = self._whole if within is None else self._parts_of(within)
        sample = self._cut(listed, within or self._all, parts)
        if len(listed) and self.node.signs and self._is_signed(sample, command):
            return self._plan_signed(listed, within or self._all, parts, together)
        return self._plan_listed(listed, parts, together)

    def _plan_listed(self, keys: KeyArray, parts: Parts, together: bool) -> Plan:
        """Plan a list that was cut into parts."""
        places = [0, len(keys)] if len(parts.table) == 1 else [0, *parts.table[:, END].tolist()]
        return Plan(len(keys), keys, parts, places, together)

    def _plan_signed(self, keys: KeyArray, within: KeyRange, parts: Parts, together: bool) -> Plan:
        """Plan a list that is used again: with the table of an equal one, and the keys of this, which may change."""
        plan = self._plan_listed(keys, parts, together)
        if not self.node.signs:
            plan.sign(None, Parts(plan.slices, True))
            return plan
        signatures = [
            sign(keys[each.begin : each.end]) if each.begin < each.end else NO_SIGNATURE
            for each in plan.slices
        ]
        name = within, together, *signatures
        kept = self._kept.get(name)
        if kept is None:
            if len(self._kept) >= MOST_PLANS:
                self._kept.clear()
            kept = self._kept[name] = Parts(plan.slices, True, signatures)
        plan.sign(signatures, kept)
        return plan

    def _is_signed(self, sample: int, command: Command) -> bool:
        """Return whether to sign a list with a hash: the signature of one that is not used again is wasted work."""
        uses, use = self._uses, 1 << command
        before = uses.get(sample, 0)
        is_again = before & use != 0
        if not before and len(uses) >= MOST_PLANS:
            uses.clear()
        uses[sample] = _ALL if is_again else before | use
        return is_again

    def _listed(self, keys: NDArray[Any]) -> KeyArray:
        """Return keys as they are sent: u64[n] or KEY128[n], contiguous, writable."""
        if type(keys) is not np.ndarray:
            check_unmasked(keys, f"vector {self.spec.name}: keys")
        if self._wide:
            return self._listed_pairs(keys)
        if isinstance(keys, np.ndarray) and keys.dtype == KEY64 and keys.ndim == 1 and keys.flags.carray:
            return keys
        array = np.asarray(keys)
        whole_numbers = array.dtype.kind in "ui" or not array.size
        if array.ndim != 1 or not whole_numbers or (array.dtype.kind == "i" and (array < 0).any()):
            raise UsageError(
                f"vector {self.spec.name}: keys must be a one-dimensional array of integers from 0 on"
            )
        return array.astype(np.uint64)

    def _listed_pairs(self, keys: Any) -> KeyArray:
        array = np.asarray(keys)
        if array.shape == (0,):
            return np.empty(0, KEY128)
        if array.dtype == np.uint64 and array.ndim == 2 and array.shape[1] == 2:
            array = from_pairs(array)
        if array.dtype != KEY128 or array.ndim != 1:
            raise UsageError(
                f"vector {self.spec.name}: 128-bit keys must be an array of KEY128, or uint64 of shape [n, 2], "
                f"not {array.dtype} of shape {list(array.shape)}"
            )
        return array if array.flags.carray and array.ctypes.data % 8 == 0 else array.copy()

    def _plan_range(self, keys: KeyRange, everywhere: bool) -> Plan:
        """Check and partition a range by shard."""
        if keys.empty:
            raise UsageError(f"vector {self.spec.name}: the range [{keys.begin}, {keys.end}) is empty")
        if self._wide:
            raise UsageError(f"vector {self.spec.name}: 128-bit keys must be listed, not given as a range")
        slices = [
            Slice(~address, each, each.begin - keys.begin, each.end - keys.begin)
            for parts in [self._parts_of(keys)]
            for address, each in zip(parts.addresses, parts.ranges, strict=True)
        ]
        places = [0, *(each.end for each in slices)]
        return Plan(keys.span, None, Parts(slices, False), places, everywhere)

    def _cut(self, keys: KeyArray, within: KeyRange, parts: Parts) -> int:
        """Check listed keys, cut them into parts, and return a hash of some."""
        if self._wide and not ascending_pairs(pairs(keys)):
            found = UNSORTED
        else:
            found = cut(np.array(upper(keys)) if self._wide else keys, parts.table, self._wide)
        if found == UNSORTED:
            raise UsageError(f"vector {self.spec.name}: keys must be sorted and unique")
        if found < 0:
            raise UsageError(
                f"vector {self.spec.name}: keys {keys[0]} to {keys[-1]} are not all in "
                f"[{within.begin}, {within.end})"
            )
        return found

    def _parts_of(self, within: KeyRange) -> Parts:
        """Return the parts of lists within a range; UsageError if it is not inside that of the vector's keys."""
        found = self._within.get(within)
        if found is None:
            whole = self._all
            if within.begin < whole.begin or within.end > whole.end:
                raise UsageError(
                    f"vector {self.spec.name}: the range [{within.begin}, {within.end}) is not inside that of its "
                    f"keys, [{whole.begin}, {whole.end})"
                )
            cuts = self._cuts
            first = int(cuts.searchsorted(np.uint64(within.begin), "right")) - 1
            last = int(cuts.searchsorted(np.uint64(within.end - 1), "right"))
            bounds = [within.begin, *cuts[first + 1 : last].tolist(), within.end]
            ranges = map(KeyRange, bounds[:-1], bounds[1:])
            slices = [Slice(first + at, each, 0, 0) for at, each in enumerate(ranges) if not each.empty]
            if len(self._within) >= MOST_PLANS:
                self._within.clear()
            found = self._within[within] = Parts(slices, True)
        return found
