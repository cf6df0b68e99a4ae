"""A small world: the states of all ranks, the messages under way, and the events that may come next.

Any message that is under way may arrive next. The periodic callbacks of a rank may run at any instant, and its MPI may
report a death that it has not reported yet. Time passes in steps, when nothing else can happen: so timeouts never end
early, but by faults. Faults, at most `faults` of them in all:

    kill    a rank ends; any of its messages that are under way are lost with it
    pause   a rank does nothing until time has passed; then it may receive one message before it finds out, and the
            others hear it again one after another
    lose    a message other than a control message is lost

What must hold, in every order of events, is in `World.wrong` and `World.ended`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import IntEnum
from itertools import combinations
from typing import NamedTuple, TypeVar

from mpips.bench.worlds._rank import Ages, Effect, Event, Facts, Ranks, Setting
from mpips.cluster.view import View
from mpips.membership.agreement import Identity
from mpips.membership.specification import of_behaviour
from mpips.transport.message import Command

T = TypeVar("T")
HORIZON = 40
"""Steps of time after which a world has hung."""
LONGEST_PAUSE = 7
"""Steps of time that a rank pauses at most: the second of the succession stands before they end."""
MOST_SUBSETS = 3
"""Messages of a killed rank of which any subset is lost; of more, all, none, one, or all but one."""


class Status(IntEnum):
    """Whether a rank runs."""

    RUNS = 0
    PAUSED = 1
    DEAD = 2
    LEFT = 3


class Step(NamedTuple):
    """An event of a world: what happens, to which rank (-1: all), and which messages or ranks it is about."""

    what: str
    rank: int = -1
    of: tuple[int, ...] = ()


class State(NamedTuple):
    """A state of a world; states, messages and views by number."""

    ranks: tuple[int, ...]
    messages: tuple[int, ...]
    """Those under way: sorted, or by receiver and sender, as they were sent."""
    status: tuple[Status, ...]
    fresh: tuple[int, ...]
    """The ranks that have just gone on after a pause, and may receive one message before their callbacks run."""
    ahead: tuple[int, ...]
    """Those that have received it: their callbacks run before they receive another message."""
    unreported: tuple[tuple[int, int], ...]
    """(rank, dead rank): deaths that MPI has not reported to a rank."""
    unheard: tuple[tuple[int, int], ...]
    """(rank, other): heartbeats under way, after one of the two has gone on."""
    ages: tuple[Ages, ...]
    time: int
    paused_at: int
    faults: int
    """How many more there may be."""
    leases: tuple[tuple[int, str], ...]
    published: tuple[int, ...]
    """The views that were published, in this order."""
    silent: tuple[int, ...]
    """The ranks that have paused for a step of time: a view without them may have been proposed meanwhile."""


class World:
    """The events of a world, and what must hold in it; see the module."""

    def __init__(
        self,
        setting: Setting,
        faults: int,
        kinds: Sequence[str] = ("kill", "pause"),
        ordered: bool = False,
        victims: Collection[int] = (),
    ) -> None:
        """Create it; if `ordered`, messages of one rank to another arrive as they were sent.

        `victims` are the ranks that are killed or pause (empty: any).
        """
        self.ranks, self.faults, self.kinds, self.ordered = Ranks(setting), faults, kinds, ordered
        self.size = setting.layout.size
        self.victims = frozenset(victims or range(self.size))
        self.views: list[View] = []
        self._view_numbers: dict[View, int] = {}
        self._wrong_behaviours: dict[tuple[int, ...], str] = {}
        # By message and its receiver's state.
        self._moot: dict[tuple[int, int], bool] = {}

    def first(self) -> State:
        """Return the first state."""
        effects = [self.ranks.first(rank) for rank in range(self.size)]
        messages = self._sorted(message for effect in effects for message in effect.sent)
        zero = (0,) * self.size
        return State(
            tuple(effect.state for effect in effects), messages, (Status.RUNS,) * self.size, (), (), (), (),
            (Ages(zero, zero, zero),) * self.size, 0, 0, self.faults, (), (), (),
        )  # fmt: skip

    def _sorted(self, messages: Iterable[int]) -> tuple[int, ...]:
        """Return messages under way as in a state: those of one rank to another as they were sent, if that counts."""
        return tuple(sorted(messages, key=self._pair if self.ordered else None))

    def _pair(self, message: int) -> tuple[int, int]:
        return self.ranks.messages[message][0], self.ranks.headers[message].sender

    # --- what may happen -----------------------------------------------------------------------

    def steps(self, state: State) -> list[Step]:
        """List the events that may come next."""
        found = self.certain(state)
        return (found or self.passing(state)) + self.faults_in(state)

    def passing(self, state: State) -> list[Step]:
        """List the events by which time passes, if no event is certain."""
        if state.time >= HORIZON:
            return []
        if Status.PAUSED in state.status:
            # It goes on when an instant begins: what it does, and that others hear it, comes at any time later.
            found = [Step("go on", state.status.index(Status.PAUSED))]
            return found if state.time + 1 - state.paused_at == LONGEST_PAUSE else [Step("time"), *found]
        return [] if self.finished(state) else [Step("time")]

    def certain(self, state: State) -> list[Step]:
        """List the events that come before time passes, if nothing prevents them."""
        messages, status = self.ranks.messages, state.status
        found = []
        before: tuple[int, int] | None = None
        for message in dict.fromkeys(state.messages):
            rank = messages[message][0]
            if self.ordered and before == (before := self._pair(message)):
                continue
            if status[rank] is Status.RUNS and rank not in state.ahead:
                found.append(Step("receive", rank, (message,)))
        for what, pairs in (("report", state.unreported), ("hear", state.unheard)):
            found += [Step(what, rank, (other,)) for rank, other in pairs if status[rank] is Status.RUNS]
        for rank in range(self.size):
            if status[rank] is Status.RUNS and (
                rank in state.ahead or rank in state.fresh or self._changes(state, rank)
            ):
                found.append(Step("tick", rank))
        return found

    def _changes(self, state: State, rank: int) -> bool:
        """Return whether a rank's callbacks change anything now."""
        before = state.ranks[rank]
        effect = self.ranks.tick(before, self._tick_of(state, rank))
        return bool(effect.state != before or effect.sent or effect.published)

    def _tick_of(self, state: State, rank: int, died: tuple[int, ...] = ()) -> Event:
        return Event(state.time, -1, died, state.ages[rank], state.leases)

    def faults_in(self, state: State) -> list[Step]:
        """List the faults that may strike in a state."""
        if not state.faults:
            return []
        found = []
        for rank, status in enumerate(state.status):
            if status >= Status.DEAD or rank not in self.victims:
                continue
            if "kill" in self.kinds:
                found += [Step("kill", rank, lost) for lost in self._losses(state, rank)]
            if "pause" in self.kinds and Status.PAUSED not in state.status:
                found.append(Step("pause", rank))
        if "lose" in self.kinds:
            for message in dict.fromkeys(state.messages):
                if not self.ranks.is_control(message):
                    found.append(Step("lose", self.ranks.messages[message][0], (message,)))
        return found

    def _losses(self, state: State, rank: int) -> list[tuple[int, ...]]:
        """List the sets of messages that may be lost with a rank."""
        own = [each for each in dict.fromkeys(state.messages) if self.ranks.headers[each].sender == rank]
        sizes = range(len(own) + 1) if len(own) <= MOST_SUBSETS else (0, 1, len(own) - 1, len(own))
        sets = [lost for size in sizes for lost in combinations(own, size)]
        return [lost for lost in sets if not self.ordered or self._are_last(own, lost)]

    def _are_last(self, own: Sequence[int], lost: Sequence[int]) -> bool:
        """Return whether some messages are the last ones to each of their receivers."""
        arrive = {self._pair(each): at for at, each in enumerate(own) if each not in lost}
        return all(at > arrive.get(self._pair(each), -1) for at, each in enumerate(own) if each in lost)

    # --- what it does --------------------------------------------------------------------------

    def after(self, state: State, step: Step) -> State:
        """Return the state after an event."""
        what, rank, of = step
        if what == "receive":
            effect = self.ranks.arrival(state.ranks[rank], state.time, of[0])
            if rank in state.fresh:
                state = state._replace(
                    fresh=_without(state.fresh, rank), ahead=tuple(sorted((*state.ahead, rank)))
                )
            return self._with(state, rank, effect, of)
        if what in ("tick", "report"):
            effect = self.ranks.tick(state.ranks[rank], self._tick_of(state, rank, of))
            if what == "report":
                state = state._replace(unreported=_without(state.unreported, (rank, of[0])))
            if rank in state.ahead or rank in state.fresh:
                state = state._replace(ahead=_without(state.ahead, rank), fresh=_without(state.fresh, rank))
            return self._with(state, rank, effect, ())
        if what == "hear":
            return self._heard(state, rank, of[0])
        if what == "time":
            return self._later(state)
        if what == "go on":
            return self._goes_on(self._later(state), rank)
        state = state._replace(faults=state.faults - 1)
        if what == "pause":
            status = _put(state.status, rank, Status.PAUSED)
            return state._replace(status=status, paused_at=state.time)
        messages = list(state.messages)
        for message in of:
            messages.remove(message)
        state = state._replace(messages=tuple(messages))
        return state if what == "lose" else self._gone(state, rank, Status.DEAD)

    def _with(self, state: State, rank: int, effect: Effect, received: tuple[int, ...]) -> State:
        """Return the state after an event of one rank."""
        own, to = effect.state, self.ranks.messages
        before, after = self.ranks.facts[state.ranks[rank]], self.ranks.facts[own]
        ranks = _put(state.ranks, rank, own)
        messages = list(state.messages)
        for message in received:
            messages.remove(message)
        if own != state.ranks[rank]:
            messages = [each for each in messages if to[each][0] != rank or not self.is_moot(each, own)]
        if effect.sent:
            messages += [
                each for each in effect.sent
                if state.status[to[each][0]] < Status.DEAD and not self.is_moot(each, ranks[to[each][0]])
            ]  # fmt: skip
        published = state.published
        if effect.published:
            published += tuple(map(self._number, effect.published))
        unreported, unheard = state.unreported, state.unheard
        if after.excluded != before.excluded:
            unreported, unheard = (
                tuple(each for each in pairs if each[0] != rank or each[1] not in after.excluded)
                for pairs in (unreported, unheard)
            )
        state = state._replace(
            ranks=ranks, messages=self._sorted(messages), unreported=unreported, unheard=unheard, published=published,
            leases=effect.leases or state.leases,
        )  # fmt: skip
        if after.follows != before.follows and after.follows >= 0:
            state = state._replace(ages=self._confirmed(state, after.follows, [rank]))
        if after.leads and not before.leads:
            state = state._replace(ages=self._confirmed(state, rank, range(self.size)))
        return self._gone(state, rank, Status.LEFT) if after.left else state

    def is_moot(self, message: int, state: int) -> bool:
        """Return whether a message will never change anything at its receiver, which is in a state.

        It is for statistics only, reports deaths that are known, is of a rank that is excluded, or has a view that is
        not later than the receiver's. Such a view might be answered, to tell its leader that it is deposed, which it
        learns from others, too.
        """
        name = message, state
        moot = self._moot.get(name)
        if moot is None:
            head, facts = self.ranks.headers[message], self.ranks.facts[state]
            moot = self._moot[name] = (
                head.command is Command.VIEW_SEEN
                or head.sender in facts.excluded
                or (head.command is Command.DIED and facts.dead.issuperset(head.meta["ranks"]))
                or (
                    head.command is Command.VIEW
                    and Identity.of(View.from_meta(head.meta)) <= Identity.of(facts.view)
                )
            )
        return moot

    def _number(self, view: View) -> int:
        number = self._view_numbers.setdefault(view, len(self.views))
        if number == len(self.views):
            self.views.append(view)
        return number

    def _gone(self, state: State, rank: int, status: Status) -> State:
        """Return the state in which a rank has ended."""
        # Where keys are lost, all ranks end.
        is_over = self.ranks.facts[state.ranks[rank]].wrong.startswith("ShardLost")
        unreported = [each for each in state.unreported if each[0] != rank]
        unreported += [
            (each, rank) for each in range(self.size)
            if state.status[each] < Status.DEAD and each != rank and not is_over
            and rank not in self.ranks.facts[state.ranks[each]].excluded
        ]  # fmt: skip
        return state._replace(
            messages=tuple(each for each in state.messages if self.ranks.messages[each][0] != rank),
            status=_put(state.status, rank, status),
            unreported=tuple(sorted(unreported)),
            unheard=tuple(each for each in state.unheard if rank not in each),
            fresh=_without(state.fresh, rank),
            ahead=_without(state.ahead, rank),
        )

    def _later(self, state: State) -> State:
        facts = [self.ranks.facts[each] for each in state.ranks]
        runs = [status is Status.RUNS for status in state.status]
        ages = list(state.ages)
        for rank, mine in enumerate(state.ages):
            if state.status[rank] >= Status.DEAD:
                continue
            others = [runs[other] or other == rank for other in range(self.size)]
            confirms = [runs[rank] and others[o] and facts[o].follows == rank for o in range(self.size)]
            confirms[rank] = True
            silent, deaf = mine.silent, mine.deaf
            # For a rank that pauses, time does not pass.
            if runs[rank]:
                hears = [
                    others[o] and (o == rank or not facts[o].muted or facts[rank].hears_muted)
                    for o in range(self.size)
                ]
                silent = tuple(0 if heard else age + 1 for heard, age in zip(hears, silent, strict=True))
                deaf = tuple(0 if lives else age + 1 for lives, age in zip(others, deaf, strict=True))
            unconfirmed = tuple(
                0 if each else age + 1 for each, age in zip(confirms, mine.unconfirmed, strict=True)
            )
            ages[rank] = Ages(silent, unconfirmed, deaf)
        return state._replace(time=state.time + 1, ages=tuple(ages))

    def _confirmed(self, state: State, rank: int, by: Sequence[int]) -> tuple[Ages, ...]:
        mine = state.ages[rank]
        unconfirmed = tuple(0 if each in by else age for each, age in enumerate(mine.unconfirmed))
        return _put(state.ages, rank, mine._replace(unconfirmed=unconfirmed))

    def _goes_on(self, state: State, rank: int) -> State:
        """Return the state in which a rank that has paused goes on; it and others hear of each other later."""
        facts, ages = self.ranks.facts, state.ages
        unheard = list(state.unheard)
        for other in range(self.size):
            if other == rank or state.status[other] is not Status.RUNS:
                continue
            knows = rank not in facts[state.ranks[other]].excluded
            if knows and (
                ages[other].silent[rank] or ages[other].deaf[rank] or ages[other].unconfirmed[rank]
            ):
                unheard.append((other, rank))
            if ages[rank].unconfirmed[other] and facts[state.ranks[other]].follows == rank:
                unheard.append((rank, other))
        return state._replace(
            status=_put(state.status, rank, Status.RUNS), paused_at=0, unheard=tuple(sorted(unheard)),
            fresh=tuple(sorted((*state.fresh, rank))), silent=tuple(sorted({*state.silent, rank})),
        )  # fmt: skip

    def _heard(self, state: State, rank: int, other: int) -> State:
        """Return the state in which a rank has received a heartbeat of another one."""
        mine, follows = state.ages[rank], self.ranks.facts[state.ranks[other]].follows
        heard = Ages(
            _put(mine.silent, other, 0),
            _put(mine.unconfirmed, other, 0) if follows == rank else mine.unconfirmed,
            _put(mine.deaf, other, 0),
        )
        return state._replace(
            ages=_put(state.ages, rank, heard), unheard=_without(state.unheard, (rank, other))
        )

    # --- what must hold ------------------------------------------------------------------------

    def _running(self, state: State) -> list[Facts]:
        return [
            self.ranks.facts[each]
            for each, status in zip(state.ranks, state.status, strict=True)
            if status < Status.DEAD
        ]

    def _is_uninformed(self, state: State, rank: int) -> bool:
        """Return whether a rank waits, excluded, and was not told so, since the leader that excluded it was killed.

        It leaves when it gives up, or all others have left; nobody waits for it.
        """
        without = [view for view in map(self.views.__getitem__, state.published) if view.roles[rank] is None]
        if not without or not self.ranks.facts[state.ranks[rank]].frozen:
            return False
        return state.status[min(without, key=lambda view: view.epoch).leader] is Status.DEAD

    def finished(self, state: State) -> bool:
        """Return whether nothing is left to do, if nothing is under way: there is one leader, which all follow."""
        running = [
            self.ranks.facts[each]
            for rank, (each, status) in enumerate(zip(state.ranks, state.status, strict=True))
            if status < Status.DEAD and not self._is_uninformed(state, rank)
        ]
        leaders = [each for each in running if each.leads]
        return (
            len(leaders) == 1
            and all(each.settled and not each.frozen and each.view == leaders[0].view for each in running)
            and Status.PAUSED not in state.status
        )

    def newest(self, state: State) -> View:
        """Return the newest view that was published."""
        first = self.ranks.setting.view
        return max((self.views[each] for each in state.published), key=lambda view: view.epoch, default=first)

    def wrong(self, before: State, state: State, step: Step) -> str:
        """Return what is wrong after an event, "" if nothing is."""
        if state.published != before.published and (found := self._wrong_views(state)):
            return found
        if step.rank >= 0 and (wrong := self.ranks.facts[state.ranks[step.rank]].wrong):
            if wrong.startswith("ShardLost") and self._is_lost(state):
                return ""
            return wrong
        return ""

    def _wrong_views(self, state: State) -> str:
        """Return why the views that were published are no behaviour of the specification, "" if they are one."""
        wrong = self._wrong_behaviours.get(state.published)
        if wrong is None:
            setting = self.ranks.setting
            views = (setting.view, *map(self.views.__getitem__, state.published))
            found = of_behaviour(views, setting.replicas)
            wrong = self._wrong_behaviours[state.published] = next(found, "")
        return wrong

    def _is_lost(self, state: State) -> bool:
        """Return whether some shard has lost all its members, in any view that a rank may have.

        A member that has paused for too long may be lost: the view without it may have been accepted.
        """
        views = [self.newest(state), *(facts.view for facts in self._running(state))]
        return any(
            all(state.status[rank] is not Status.RUNS or rank in state.silent for rank in chain.members)
            for view in views
            for chain in view.chains
        )

    def is_over(self, state: State) -> bool:
        """Return whether the run has ended because keys are lost."""
        return any(self.ranks.facts[each].wrong.startswith("ShardLost") for each in state.ranks)

    def is_end(self, state: State) -> bool:
        """Return whether a run has come to its end in a state, unless there is another fault."""
        return (
            Status.PAUSED not in state.status
            and not self.is_over(state)
            and not self.certain(state)
            and not self.passing(state)
        )

    def ended(self, state: State) -> str:
        """Return what is wrong at the end of a run."""
        if not self.finished(state):
            waits = [
                f"{rank}{' frozen' if facts.frozen else ''}{'' if facts.settled else ' waits'}"
                f" epoch {facts.view.epoch}"
                for rank, facts in enumerate(map(self.ranks.facts.__getitem__, state.ranks))
                if state.status[rank] < Status.DEAD
            ]
            return f"hangs after {state.time} steps of time: ranks {', '.join(waits)}"
        view = self._running(state)[0].view
        worker = next(facts for facts in map(self.ranks.facts.__getitem__, state.ranks) if facts.issued)
        acknowledged = dict(worker.acknowledged)
        for chain_number, chain in enumerate(view.chains):
            for rank in chain.members:
                if state.status[rank] is not Status.RUNS:
                    continue
                for shard, vector, key, value in self.ranks.facts[state.ranks[rank]].values:
                    at = vector, key
                    least, most = acknowledged.get(at, 0), dict(worker.issued).get(at, 0)
                    if shard == chain_number and not least <= value <= most:
                        return f"rank {rank} has {value} of key {key} at the end, not {least} to {most}"
        return ""

    def text(self, step: Step) -> str:
        """Describe an event."""
        where = "" if step.rank < 0 else f" rank {step.rank}"
        if step.what in ("receive", "lose", "kill"):
            return f"{step.what}{where} {', '.join(map(self._message_text, step.of))}".strip()
        return f"{step.what}{where}{' of ' + str(step.of[0]) if step.of else ''}"

    def _message_text(self, number: int) -> str:
        head, to = self.ranks.headers[number], self.ranks.messages[number][0]
        shard = f" shard {head.shard}" if head.shard >= 0 else ""
        return f"[{head.kind.name} {head.command.name} {head.time}{shard} of {head.sender} to {to}, epoch {head.epoch}]"


def _without(values: tuple[T, ...], value: T) -> tuple[T, ...]:
    return tuple(each for each in values if each != value)


def _put(values: tuple[T, ...], at: int, value: T) -> tuple[T, ...]:
    return (*values[:at], value, *values[at + 1 :])
