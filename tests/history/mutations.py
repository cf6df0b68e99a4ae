"""Faults that are put into the protocol on purpose: the campaign (`mpips bench faults`) has to find them.

    make mutations
    PYTHONPATH=tests .venv/bin/python -m history.mutations [--trials N] [--seed S] [NAME ...]

runs trials with each of them, until one fails, and prints after how many, and what has failed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from mpips.bench.failures import _trial
from mpips.cluster import view as views
from mpips.cluster.departure import Fenced
from mpips.cluster.node import Node
from mpips.membership import membership, succession
from mpips.membership.agreement import Electorate, Known, Outcome, Proposed
from mpips.membership.membership import Membership
from mpips.membership.quorum import Quorum
from mpips.scheduler.journal import Journal
from mpips.server import migration
from mpips.server.admission import Admission
from mpips.server.executor import Executor
from mpips.server.replication import Link
from mpips.server.shard import Hosted, Shard
from mpips.storage.aggregate import Aggregator
from mpips.tasks.caller import Tasks
from mpips.tasks.request_dedup import RequestDedup

LONGEST = 60
"""Seconds of real time after which a trial counts as hung."""
Make = Callable[[Any], Any]


class Mutation(NamedTuple):
    """A fault of the protocol: what is forgotten, and what replaces an attribute; `make` gets the original."""

    what: str
    owner: Any
    name: str
    make: Make
    needs: tuple[str, ...] = ()
    """Acts of which a trial must have one to be run: without, it cannot show the fault; if empty, every trial is."""


def _nothing(result: Any = None) -> Make:
    return lambda original: lambda *arguments, **named: result


def _ignores_exclusion(original: Any) -> Any:
    def adopt(self: Node, view: views.View) -> None:
        if view.roles[self.rank] is not None:
            original(self, view)

    return adopt


def _admits_again(original: Any) -> Any:
    def admit(self: RequestDedup, request: Any) -> Any:
        caller = self._callers.get(request.origin)
        if caller is not None:
            caller.finished.discard(request.time)
            caller.kept.pop(request.time, None)
            caller.acked = min(caller.acked, request.time)
        return original(self, request)

    return admit


def _applies_in_any_order(original: Any) -> Any:
    def apply(self: Link) -> None:
        while self.early:
            self._pass_if_next(self.early.pop(next(iter(self.early))))

    def pass_on(self: Link, change: Any) -> None:
        self._repeat(self.shard, change)
        if self.next >= 0:
            self._pass_on(change, self.next)

    Link._pass_if_next = pass_on  # type: ignore[attr-defined]
    return apply


def _skips_closing(original: Any) -> Any:
    def set_chain(view: Any, shard: int, chain: views.Chain) -> Any:
        if chain.closing:
            holders = view.ring.holders(shard, len(chain.members) - 1)
            order = tuple(rank for rank in holders if rank in chain.members)
            chain = views.Chain(order or chain.members, since=chain.since)
        return original(view, shard, chain)

    return set_chain


def _takes_any_reply(original: Any) -> Any:
    def take(self: Node, message: Any) -> None:
        if message.after:
            self._acknowledged(message)
        self.tasks.answer(message)

    return take


def _delivers_at_once(original: Any) -> Any:
    def deliver(self: Node, message: Any) -> None:
        message.epoch = min(message.epoch, self.view.epoch)
        original(self, message)

    return deliver


def _excludes_alone(original: Any) -> Any:
    def decide(self: Membership, gone: Any) -> None:
        made = self._next(views.next_epoch(self.node.view), gone, self._requested())
        if replace(made, epoch=self.node.view.epoch) != self.node.view:
            self._publish(made)

    return decide


def _half_is_a_majority(original: Any) -> Any:
    def outcome(self: Electorate, agreed: Any, living: Any) -> Outcome:
        found: Outcome = original(self, agreed, living)
        return Outcome.MAJORITY if found is Outcome.HALF else found

    return outcome


def _does_not_wait(original: Any) -> Any:
    def decide(self: Journal, make: Any) -> Any:
        followers, self._followers = self._followers, dict.fromkeys(self._followers, 1 << 60)
        try:
            return original(self, make)
        finally:
            self._followers = followers

    return decide


def _answers_before_the_chain(original: Any) -> Any:
    def read(self: Executor, link: Link, shard: Shard, request: Any, reply: Any) -> Any:
        reply.round = shard.changes
        self._node.answer(request.origin, reply)
        return shard.inbox.finish(request.origin, request.time)

    return read


def _copies_no_requests(original: Any) -> Any:
    def pack(shard: Shard) -> Any:
        inbox, shard.inbox = shard.inbox, RequestDedup(lambda origin, reply: None)
        try:
            return original(shard)
        finally:
            shard.inbox = inbox

    return pack


def _forgets_early(original: Any) -> Any:
    return property(lambda self: self.time)


def _keeps_releases(original: Any) -> Any:
    def acknowledged(self: Link, time: int) -> None:
        original(self, max(time, self.shard.changes if self.shard is not None else 0))

    return acknowledged


def _keeps_no_replies(original: Any) -> Any:
    return lambda self, origin, time, kept=None, acked=0: original(self, origin, time, None, acked)


def _joins_by_any_report(original: Any) -> Any:
    def joined(view: Any, shard: int, rank: int, since: int) -> Any:
        chain = view.chains[shard]
        return original(view, shard, rank, chain.since) if chain.learner == rank else view

    return joined


def _orders_by_any_report(original: Any) -> Any:
    return lambda view, shard, since, replicas: original(view, shard, view.chains[shard].since, replicas)


def _ignores_acceptances(original: Any) -> Any:
    def base_of(ballot: Any, known: Any, settled: Any, electorate: Any, living: Any) -> Any:
        plain = {rank: each._replace(accepted=None) for rank, each in known.items()}
        return original(ballot, plain, settled, electorate, living)

    return base_of


def _keeps_old_parts(original: Any) -> Any:
    def abandon(self: Hosted, workers: Any) -> list[Any]:
        self.aggregator = Aggregator(self.segment, workers)
        return []

    return abandon


def _adopts_earlier_views(original: Any) -> Any:
    def receive(self: Membership, message: Any) -> None:
        view = views.View.from_meta(message.meta)
        if view != self.node.view:
            self._adopt(view)

    return receive


def _forgets_the_learner(original: Any) -> Any:
    def following(self: Link) -> int:
        at = self._beside(1)
        return -1 if at == self.chain.learner and self.shard is not None and self.outgoing is not None else at

    return property(following)


MUTATIONS = {
    "fence": Mutation(
        "a rank that is excluded goes on",
        Node,
        "adopt",
        _ignores_exclusion,
        needs=("split", "stop", "suspend"),
    ),
    "freeze": Mutation("a rank that may be cut off goes on", Node, "freeze", _nothing(), needs=("split",)),
    "acknowledge early": Mutation(
        "changes are answered before the chain has them",
        Link,
        "after_all",
        lambda original: lambda self, action: action(),
        needs=("kill sender", "kill host", "kill server"),
    ),
    "read early": Mutation(
        "pulls are answered before the chain has what they read",
        Executor,
        "_read",
        _answers_before_the_chain,
        needs=("kill sender", "kill host"),
    ),
    "acknowledge for all": Mutation(
        "an acknowledgement of one change is taken for all changes", Link, "_acknowledged", _keeps_releases
    ),
    "duplicates": Mutation(
        "requests are executed each time they arrive", RequestDedup, "admit", _admits_again
    ),
    "order of changes": Mutation(
        "members apply changes as they arrive", Link, "_apply", _applies_in_any_order
    ),
    "resend changes": Mutation(
        "a new member's predecessor sends nothing again", Link, "send_again", _nothing(), needs=("kill",)
    ),
    "second stage": Mutation(
        "a chain gets another order without being closed",
        views,
        "_set_chain",
        _skips_closing,
        needs=("join server", "leave server"),
    ),
    "copy without requests": Mutation(
        "a copy of a shard lacks the requests that it has finished",
        vars(migration),
        "pack",
        _copies_no_requests,
        needs=("join server", "leave server", "kill"),
    ),
    "forward to a learner": Mutation(
        "a learner gets no changes after its copy",
        Link,
        "next",
        _forgets_the_learner,
        needs=("join server", "leave server", "kill"),
    ),
    "fail rounds": Mutation(
        "rounds of former sets of workers do not fail",
        Node,
        "_fail_rounds",
        _nothing(),
        needs=("kill", "stop", "split"),
    ),
    "give up": Mutation(
        "requests to lost ranks do not fail", Tasks, "give_up", _nothing(), needs=("kill", "stop", "split")
    ),
    "probes": Mutation(
        "probes for lost requests are not answered", Admission, "probed", _nothing(), needs=("drop",)
    ),
    "kept replies": Mutation(
        "replies are not kept", RequestDedup, "finish", _keeps_no_replies, needs=("drop", "kill")
    ),
    "lease": Mutation(
        "a leader takes a lease that another has", Quorum, "_has_lease", _nothing(True), needs=("unreach",)
    ),
    "settle": Mutation(
        "calls end before their rounds are on all copies",
        Node,
        "_is_settled",
        _nothing(True),
        needs=("kill sender", "kill host"),
    ),
    "redirect": Mutation("requests to a lost primary are not sent again", Tasks, "redirect", _nothing(0)),
    "former primary": Mutation(
        "answers of former primaries are taken",
        Node,
        "_take_reply",
        _takes_any_reply,
        needs=("stop", "split", "suspend"),
    ),
    "later epochs": Mutation("messages of later epochs do not wait", Node, "deliver", _delivers_at_once),
    "dependencies": Mutation(
        "requests do not wait for those that they depend on",
        RequestDedup,
        "_may_start",
        lambda original: staticmethod(lambda caller, request: True),
    ),
    "keep replies": Mutation(
        "replies are forgotten before they have arrived", Tasks, "acked", _forgets_early
    ),
    "agreement": Mutation(
        "the leader excludes silent ranks alone",
        Membership,
        "_decide",
        _excludes_alone,
        needs=("split", "stop"),
    ),
    "half": Mutation(
        "half of the votes decide", Electorate, "outcome", _half_is_a_majority, needs=("unreach",)
    ),
    "accept anything": Mutation(
        "a rank accepts every proposed view", Known, "accepts", _nothing(True), needs=("split", "stop")
    ),
    "promise anything": Mutation(
        "a rank promises every ballot", Known, "promises", _nothing(True), needs=("split", "stop")
    ),
    "confirmation": Mutation(
        "a leader leads that nobody confirms",
        Quorum,
        "confirmed",
        _nothing(True),
        needs=("split", "stop", "suspend"),
    ),
    "journal of decisions": Mutation(
        "decisions do not wait for the successors",
        Journal,
        "decide",
        _does_not_wait,
        needs=("kill", "stop", "split"),
    ),
    "journal of replies": Mutation(
        "replies are not journaled",
        Journal,
        "_note",
        _nothing(),
        needs=("kill scheduler", "stop scheduler", "split"),
    ),
    "result": Mutation(
        "a leader writes the result unconfirmed", Membership, "confirm", _nothing(), needs=("split", "stop")
    ),
    "times": Mutation(
        "times are used again after a lost round",
        Tasks,
        "skip_times",
        _nothing(),
        needs=("kill", "stop", "split"),
    ),
    "continue": Mutation(
        "a successor uses times of its predecessor again",
        Tasks,
        "continue_at",
        _nothing(),
        needs=("kill", "stop", "split"),
    ),
    "parked rounds": Mutation(
        "parts of former rounds that wait for requests stay",
        RequestDedup,
        "forget_rounds",
        _nothing(),
        needs=("kill", "stop", "split"),
    ),
    "old parts": Mutation(
        "parts of rounds of former workers stay",
        Hosted,
        "abandon",
        _keeps_old_parts,
        needs=("kill", "stop", "split"),
    ),
    "former copies": Mutation(
        "a report of a copy for another chain counts",
        vars(membership),
        "with_learner_joined",
        _joins_by_any_report,
        needs=("join server", "leave server", "kill"),
    ),
    "former closing": Mutation(
        "a report that another chain is closed counts",
        vars(membership),
        "with_ring_order",
        _orders_by_any_report,
        needs=("join server", "leave server"),
    ),
    "void": Mutation(
        "each accepted view counts as one that cannot take effect",
        Proposed,
        "is_void",
        _nothing(True),
        needs=("split", "stop"),
    ),
    "acceptances": Mutation(
        "a candidate ignores what others have accepted",
        vars(succession),
        "base_of",
        _ignores_acceptances,
        needs=("split", "stop"),
    ),
    "used leases": Mutation(
        "a lease that another view has used counts as free",
        Quorum,
        "_has_used",
        _nothing(True),
        needs=("unreach",),
    ),
    "acknowledged early": Mutation(
        "a reply is forgotten with the one before it",
        RequestDedup,
        "_caller",
        lambda original: lambda self, origin, acked: original(self, origin, acked + 1 if acked else 0),
    ),
    "earlier views": Mutation(
        "a rank adopts earlier views, too", Membership, "_receive_view", _adopts_earlier_views
    ),
    "successors": Mutation(
        "workers change before the next successors have the journal",
        Journal,
        "secure",
        _nothing(),
        needs=("kill scheduler", "stop scheduler", "split", "kill host"),
    ),
}
"""By name. The campaign must find at least 18 of them within 10,000 trials."""


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """Apply a mutation for a while."""
    owner, name = mutation.owner, mutation.name
    table = owner if isinstance(owner, dict) else vars(owner)
    original = table[name]
    made = mutation.make(original)
    if isinstance(owner, dict):
        owner[name] = made
    else:
        setattr(owner, name, made)
    try:
        yield
    finally:
        if isinstance(owner, dict):
            owner[name] = original
        else:
            setattr(owner, name, original)


class Found(NamedTuple):
    """The first trial that a mutation fails, counted from 1, and how; 0: none."""

    after: int
    how: str


def _has(plan: _trial.Plan, acts: tuple[str, ...]) -> bool:
    """Return whether a trial has one of these acts, or loses messages."""
    loses = "drop" in acts and plan.drop > 0
    return loses or any(event.what.startswith(act) for event in plan.events for act in acts)


class _Hung(BaseException):
    """A trial does not end."""


def _interrupt(*_: object) -> None:
    raise _Hung


def find(mutation: Mutation, trials: int, seed: int = 0, seconds: float = 3600.0) -> Found:
    """Run trials until one fails, or so many seconds have passed."""
    until = time.monotonic() + seconds
    signal.signal(signal.SIGALRM, _interrupt)
    with applied(mutation):
        for number in range(trials):
            if mutation.needs and not _has(_trial.plan(seed + number), mutation.needs):
                continue
            signal.alarm(LONGEST)
            try:
                outcome = _trial.run(seed + number)
                how = "" if outcome.ok else outcome.text()
            except _Hung:
                how = f"no end within {LONGEST} s"
            except (Fenced, RecursionError) as error:
                how = type(error).__name__
            finally:
                signal.alarm(0)
            if how:
                return Found(number + 1, how)
            if time.monotonic() > until:
                return Found(0, f"none of {number + 1} trials failed")
    return Found(0, f"none of {trials} trials failed")


def main(arguments: Sequence[str]) -> int:
    """Find the named mutations, or all; print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="for each of them, at most")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args(arguments)
    found = 0
    for name in options.names or MUTATIONS:
        mutation = MUTATIONS[name]
        outcome = find(mutation, options.trials, options.seed, options.seconds)
        found += outcome.after > 0
        print(
            f"| {name} | {mutation.what} | {outcome.after or 'not found'} | {outcome.how[:160]} |", flush=True
        )
    print(f"found {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
