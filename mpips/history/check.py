"""Checks of a history: does every answer that a caller has seen agree with the promises? Linear time, pure functions.

To know which pushes are in a value, they must be *decodable*: every push of a key adds another power of `BASE` to it,
so that a digit of the value, in this base, says how often one push is in it. Which keys are decodable follows from the
history itself; of the others only the versions of the shards are compared, and what does not depend on values. Checked
are

    exactly once     no digit is above 1, and none is of a push that was not issued before the answer
    durable          what was acknowledged, or was read by anybody, is in every later answer, and at the end
    rounds           all pushes of a round are in a value, or none; it is answered only once all have been issued
    declared order   a pull contains the pushes that it was declared to depend on; a push_pull, its own
    no stale pull    a pull contains what was acknowledged, or was read by anybody, before it was issued; its shards'
                     versions are not below those that were read before
    views            of increasing epochs on each rank, the same for all ranks, and made by its leader
    primaries        one rank at most answers for a shard in an epoch; it is the one of the view, and of the view in
                     which its answer is taken
    calls            no rank gets a call twice
    result           one rank at most concludes the run

"Before" is by one clock: of ranks on several hosts, `clocks` says which ranks share one. References: Herlihy and Wing,
"Linearizability" (1990); Kingsbury and Alvaro, "Elle" (2020), for values that say which writes are in them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from mpips.history.events import (
    Answered,
    Called,
    Completed,
    Concluded,
    Event,
    Final,
    Issued,
    Viewed,
)
from mpips.transport.message import NO_ROUND

BASE_BITS = 2
BASE = 1 << BASE_BITS
DIGITS = 31
"""Pushes of a key that an int64 can tell apart."""
MOST = 1000
"""Violations after which a check ends: a history that is no run's may have any number."""
_ONES = sum(1 << BASE_BITS * at for at in range(DIGITS))
Cell = tuple[str, int]
"""A vector and a key."""


class Violation(NamedTuple):
    """A promise that was broken, by its name in the module's list, and how."""

    promise: str
    text: str


def digit(number: int) -> int:
    """Return what the push `number` (from 0) of a key adds to it, so that the key is decodable."""
    return 1 << BASE_BITS * number


def check(events: Sequence[Event], clocks: Mapping[int, Hashable] | None = None) -> list[Violation]:
    """Return what contradicts the promises in a history, the first `MOST`; `clocks`: by rank, where there are several.

    >>> pushed = Issued(1, 0, "w", (7,), (1,), False, -1, (), (), (0,))
    >>> lost = [pushed, Answered(1, 0, True, None, ()), Final(0, "w", (7,), (0,))]
    >>> check(lost)[0].promise
    'durable'
    >>> check([pushed, Final(0, "w", (7,), (0,))])
    []
    """
    return _Check(events, clocks or {}).run()


def acknowledged(events: Iterable[Event]) -> int:
    """Count the keys of the pushes that were acknowledged."""
    issued: dict[tuple[int, int], int] = {}
    count = 0
    for event in events:
        if isinstance(event, Issued) and event.rows is not None:
            issued[event.rank, event.number] = len(event.keys)
        elif isinstance(event, Answered) and event.good:
            count += issued.get((event.rank, event.number), 0)
    return count


def unended(events: Iterable[Event]) -> list[Issued]:
    """Return the operations that have no answer, not even an error."""
    left: dict[tuple[int, int], Issued] = {}
    for event in events:
        if isinstance(event, Issued):
            left[event.rank, event.number] = event
        elif isinstance(event, Answered):
            left.pop((event.rank, event.number), None)
    return list(left.values())


class _Round(NamedTuple):
    """The pushes of a round to one key: all of them as a value, and the workers that have pushed."""

    whole: int
    pushed: frozenset[int]
    group: frozenset[int]


def _is_digit(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0 and value & _ONES == value


class _Enough(Exception):
    """There are `MOST` violations."""


class _Check:
    """One pass over a history."""

    def __init__(self, events: Sequence[Event], clocks: Mapping[int, Hashable]) -> None:
        self._events, self._clocks = events, clocks
        self.found: list[Violation] = []
        self._decodable = _decodable(events)
        self._issued: dict[tuple[int, int], Issued] = {}
        self._answered: set[tuple[int, int]] = set()
        # By operation that is not answered: what its answer must contain at least, by key and by shard.
        self._least: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        # By key: the digits that were issued so far.
        self._pushed: dict[Cell, int] = {}
        self._vectors = set[str]()
        # By vector and key: the digits that are durable, whoever knows so; and by clock, those that its ranks know of.
        self._durable: dict[str, dict[int, int]] = {}
        self._known: dict[Hashable, dict[Cell, int]] = {}
        self._versions: dict[Hashable, dict[int, int]] = {}
        # By key, its rounds; and by vector and round, its workers so far, those that it needs, and its keys.
        self._rounds: dict[Cell, dict[int, _Round]] = {}
        self._parts: dict[tuple[str, int], tuple[set[int], frozenset[int], set[int]]] = {}
        self._epochs: dict[int, int] = {}
        self._views: dict[int, Viewed] = {}
        self._primaries: dict[tuple[int, int], int] = {}
        self._calls: set[Called] = set()
        self._concluded: list[int] = []

    def run(self) -> list[Violation]:
        """Check all events."""
        if len(set(self._clocks.values())) > 1:
            # Which pushes were issued before an answer is not known.
            for event in self._events:
                if isinstance(event, Issued) and event.rows is not None:
                    self._push(event, event.rows)
        with suppress(_Enough):
            self._take_all()
        return self.found

    def _take_all(self) -> None:
        for event in self._events:
            if isinstance(event, Issued):
                self._issue(event)
            elif isinstance(event, Answered):
                self._answer(event)
            elif isinstance(event, Viewed):
                self._view(event)
            elif isinstance(event, Completed):
                self._complete(event)
            elif isinstance(event, Called):
                self._call(event)
            elif isinstance(event, Concluded):
                self._conclude(event)
            else:
                self._end(event)

    def _say(self, promise: str, text: str) -> None:
        self.found.append(Violation(promise, text))
        if len(self.found) == MOST:
            raise _Enough

    # --- operations ----------------------------------------------------------------------------

    def _issue(self, op: Issued) -> None:
        self._issued[op.rank, op.number] = op
        clock = self._clocks.get(op.rank)
        if op.rows is not None:
            self._push(op, op.rows)
        if op.pulls:
            known, versions = self._known.setdefault(clock, {}), self._versions.setdefault(clock, {})
            least = [known.get((op.vector, key), 0) for key in op.keys]
            self._least[op.rank, op.number] = least, [versions.get(shard, 0) for shard in op.shards]

    def _push(self, op: Issued, rows: Sequence[int]) -> None:
        for key, value in zip(op.keys, rows, strict=True):
            cell = op.vector, key
            if cell in self._decodable:
                self._pushed[cell] = self._pushed.get(cell, 0) | value
                self._vectors.add(op.vector)
                if op.round != NO_ROUND:
                    self._join(cell, op, value)
        if op.round != NO_ROUND:
            of = op.vector, op.round
            pushed, _, keys = self._parts.setdefault(of, (set(), frozenset(op.group), set()))
            pushed.add(op.rank)
            keys.update(op.keys)

    def _join(self, cell: Cell, op: Issued, value: int) -> None:
        rounds = self._rounds.setdefault(cell, {})
        before = rounds.get(op.round) or _Round(0, frozenset(), frozenset(op.group))
        rounds[op.round] = _Round(before.whole | value, before.pushed | {op.rank}, before.group)

    def _answer(self, answer: Answered) -> None:
        of = answer.rank, answer.number
        op = self._issued.get(of)
        if op is None:
            return
        what = f"rank {op.rank}, operation {op.number}"
        if of in self._answered:
            self._say("exactly once", f"{what} was answered twice")
            return
        self._answered.add(of)
        least, versions = self._least.pop(of, ([], []))
        self._served(answer)
        if not answer.good:
            return
        clock = self._clocks.get(op.rank)
        if op.round != NO_ROUND and op.rows is not None:
            pushed, group, _ = self._parts[op.vector, op.round]
            if not group <= pushed:
                self._say("rounds", f"{what}: round {op.round} was answered without {sorted(group - pushed)}")
        elif op.rows is not None:
            self._acknowledge(clock, op)
        if op.pulls and answer.rows is not None:
            self._read(what, clock, op, answer.rows, least)
        if op.pulls and op.rows is None:
            self._compare_versions(what, clock, op, answer, versions)

    def _acknowledge(self, clock: Hashable, op: Issued) -> None:
        assert op.rows is not None
        for key, value in zip(op.keys, op.rows, strict=True):
            self._learn(clock, (op.vector, key), value)

    def _learn(self, clock: Hashable, cell: Cell, digits: int) -> None:
        """Record that digits of a key are durable, and that the ranks of a clock know."""
        if cell in self._decodable:
            known = self._known.setdefault(clock, {})
            known[cell] = known.get(cell, 0) | digits
            vector, key = cell
            durable = self._durable.setdefault(vector, {})
            durable[key] = durable.get(key, 0) | digits

    def _read(
        self, what: str, clock: Hashable, op: Issued, rows: Sequence[int], least: Sequence[int]
    ) -> None:
        if len(rows) != len(op.keys):
            self._say("exactly once", f"{what}: {len(rows)} rows answer {len(op.keys)} keys")
            return
        needed = self._needed(op)
        for key, row, floor in zip(op.keys, rows, least, strict=True):
            cell = op.vector, key
            if cell not in self._decodable:
                continue
            seen = self._seen(what, cell, row)
            if missing := floor & ~seen:
                self._say("no stale pull", f"{what}: {cell} is {row:#x}, without {missing:#x} known before")
            if missing := needed.get(key, 0) & ~seen:
                self._say("declared order", f"{what}: {cell} is {row:#x}, without {missing:#x}")
            # The result of a round may not be on all copies yet.
            if op.rows is None or op.round == NO_ROUND:
                self._learn(clock, cell, seen)

    def _needed(self, op: Issued) -> dict[int, int]:
        """Return, by key, the digits of the pushes that an operation depends on, and its own."""
        needed = dict(zip(op.keys, op.rows or (), strict=False))
        for number in op.after:
            earlier = self._issued.get((op.rank, number))
            if earlier is not None and earlier.vector == op.vector and earlier.rows is not None:
                for key, value in zip(earlier.keys, earlier.rows, strict=True):
                    needed[key] = needed.get(key, 0) | value
        return needed

    def _seen(self, what: str, cell: Cell, row: int) -> int:
        """Check a value by itself; return its digits."""
        if row < 0 or row & ~(_ONES * (BASE - 1)):
            self._say("exactly once", f"{what}: {cell} is {row}, which no pushes add up to")
            return 0
        digits = (row | row >> 1) & _ONES
        if doubled := row >> 1 & _ONES:
            self._say("exactly once", f"{what}: {cell} is {row:#x}: twice {doubled:#x}")
        if unknown := digits & ~self._pushed.get(cell, 0):
            self._say("exactly once", f"{what}: {cell} is {row:#x}: nobody has pushed {unknown:#x}")
        for number, each in self._rounds.get(cell, {}).items():
            there = digits & each.whole
            if there and (there != each.whole or not each.group <= each.pushed):
                self._say("rounds", f"{what}: {cell} is {row:#x}: {there:#x} of round {number}, {each}")
        return digits

    def _compare_versions(
        self, what: str, clock: Hashable, op: Issued, answer: Answered, least: Sequence[int]
    ) -> None:
        floors = dict(zip(op.shards, least, strict=True))
        versions = self._versions.setdefault(clock, {})
        for part in answer.parts:
            if 0 <= part.version < floors.get(part.shard, 0):
                text = f"{what}: shard {part.shard} was read after {part.version} changes, {floors[part.shard]} before"
                self._say("no stale pull", text)
            versions[part.shard] = max(part.version, versions.get(part.shard, 0))

    def _complete(self, event: Completed) -> None:
        clock = self._clocks.get(event.rank)
        for number in event.rounds:
            _, _, keys = self._parts.get((event.vector, number), (set(), frozenset(), set()))
            for key in keys:
                cell = event.vector, key
                of = self._rounds.get(cell, {}).get(number)
                if of is not None:
                    self._learn(clock, cell, of.whole)

    def _end(self, final: Final) -> None:
        there = dict(zip(final.keys, final.rows, strict=True))
        what = f"at the end, by rank {final.rank}"
        for key, row in there.items():
            cell = final.vector, key
            if cell in self._decodable:
                self._seen(what, cell, row)
            elif row and cell not in self._pushed and final.vector in self._vectors:
                self._say("exactly once", f"{what}: {cell} is {row}, and nobody has pushed it")
        # Once: a vector has one end.
        for key, digits in self._durable.pop(final.vector, {}).items():
            row = there.get(key, 0)
            if missing := digits & ~((row | row >> 1) & _ONES):
                self._say("durable", f"{what}: {final.vector, key} is {row:#x}, without {missing:#x}")

    # --- the cluster -----------------------------------------------------------------------------

    def _served(self, answer: Answered) -> None:
        for part in answer.parts:
            server = self._primaries.setdefault((part.shard, part.epoch), part.server)
            view = self._views.get(part.epoch)
            if view is not None and not 0 <= part.shard < len(view.primaries):
                self._say("primaries", f"epoch {part.epoch} has no shard {part.shard}: {part}")
                continue
            if server != part.server or (view is not None and view.primaries[part.shard] != part.server):
                others = {server} if view is None else {server, view.primaries[part.shard]}
                text = f"shard {part.shard}, epoch {part.epoch}: answers of rank {part.server} and {others}"
                self._say("primaries", text)
            taken = self._views.get(part.taken)
            if taken is not None and taken.primaries[part.shard : part.shard + 1] != (part.server,):
                text = f"rank {answer.rank} takes an answer of rank {part.server} for shard {part.shard}"
                self._say("primaries", f"{text} in epoch {part.taken}, whose primary is another")

    def _view(self, view: Viewed) -> None:
        before = self._epochs.get(view.rank, -1)
        if view.epoch <= before:
            self._say("views", f"rank {view.rank} has adopted epoch {view.epoch} after {before}")
        self._epochs[view.rank] = view.epoch
        same = self._views.setdefault(view.epoch, view)
        if same[2:5] != view[2:5]:
            self._say("views", f"epoch {view.epoch}: {view}, but {same}")
        if view.published and view.leader != view.rank:
            self._say("views", f"rank {view.rank} has made epoch {view.epoch} of leader {view.leader}")

    def _call(self, call: Called) -> None:
        if call in self._calls:
            self._say("calls", f"rank {call.rank} has got call {call.time} of {call.origin} twice")
        self._calls.add(call)

    def _conclude(self, event: Concluded) -> None:
        self._concluded.append(event.rank)
        if len(self._concluded) > 1:
            self._say("result", f"ranks {self._concluded} have concluded the run")


def _decodable(events: Iterable[Event]) -> set[Cell]:
    """Return the keys whose pushes all add different digits."""
    digits: dict[Cell, int] = {}
    for event in events:
        if isinstance(event, Issued) and event.rows is not None:
            for key, value in zip(event.keys, event.rows, strict=True):
                cell = event.vector, key
                before = digits.get(cell, 0)
                is_new = _is_digit(value) and before >= 0 and not before & value
                digits[cell] = before | value if is_new else -1
    return {cell for cell, value in digits.items() if value >= 0}
