"""Chains: encode in order, decode in reverse; and what filters do in a cluster that loses messages, ranks and time."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contents import about, contents, same
from hypothesis import given
from hypothesis import strategies as st
from simulated import simulate

from mpips.errors import (
    CheckpointError,
    FilterError,
    InputError,
    JobError,
    ProtocolError,
    RemoteError,
    WorkerLost,
)
from mpips.filters import named
from mpips.filters.chain import Chain, Step, per_filter
from mpips.filters.filter import About, Coder, Content, State, filter_, known
from mpips.filters.state_arrays import restore_states, to_arrays
from mpips.keys import from_pairs
from mpips.ranges import KeyRange
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.transport.message import Command, Kind, Message, from_bytes, to_bytes
from mpips.transport.network_faults import Fault, random_delays
from mpips.worker.worker import Context

Entries = list[Any]
ZEROS = {"name": "zeros", "least": 0}
ZSTD, LZ4 = {"name": "zstd", "least": 0}, {"name": "lz4", "least": 0}
LOSSLESS: list[Entries] = [
    [],
    [ZEROS],
    [ZSTD],
    [ZEROS, ZSTD],
    [ZEROS, {"name": "lz4", "shuffle": False, "least": 0}],
    [LZ4, ZSTD],
]


def adding(number: float) -> Step:
    """Add a number to all values, and check on the way back that nobody else has changed them since."""

    def encode(state: State, content: Content, about: About) -> tuple[State, Content]:
        count = int(state.get("count", np.zeros(1))[0])
        made = content._replace(values=content.values + number, note=bytes([count]))
        return {"count": np.array([count + 1])}, made

    def decode(content: Content) -> Content:
        return content._replace(values=content.values - number)

    return Step(f"adding {number}", Coder(encode, decode))


def doubling() -> Step:
    return Step(
        "doubling",
        Coder(
            lambda state, content, about: (state, content._replace(values=content.values * 2, note=b"x")),
            lambda content: content._replace(values=content.values / 2),
        ),
    )


def message(content: Content, **more: Any) -> Message:
    return Message(
        Kind.REQUEST,
        Command.PUSH,
        origin=3,
        shard=1,
        time=9,
        keys=content.keys,
        values=content.values,
        **more,
    )


def holds(chain: Chain) -> bool:
    return any("keys" in state for states in chain.states.values() for state in states)


def sent(made: Message) -> Message:
    """Return a message as it arrives."""
    return from_bytes(bytearray(to_bytes(made)))


# --- chains ----------------------------------------------------------------------------------------------


def test_a_chain_undoes_in_reverse_what_it_did() -> None:
    chain = Chain([adding(1.0), doubling()])
    rows = np.arange(3.0)[:, None]
    for peer, count in ((4, 0), (4, 1), (5, 0), (4, 2)):
        made = sent(chain.encode(peer, message(Content(None, rows)), about()))
        assert made.filtered and made.values is not None and made.values.dtype == np.uint8
        assert made.values.reshape(-1)[-24:].view(np.float64).tolist() == [2.0, 4.0, 6.0], (
            "first added, then doubled"
        )
        assert bytes([count]) + b"x" in made.values.tobytes(), "a state for each peer"
        got = Chain([adding(1.0), doubling()]).decode(made)
        assert not got.filtered and got.values is not None and np.array_equal(got.values, rows)


def test_a_message_that_no_filter_changes_is_sent_as_it_is() -> None:
    rows = np.arange(3.0)[:, None]
    for chain in (Chain(), named.chain_of([{"name": "significant", "threshold": 1e-9}])):
        made = chain.encode(1, message(Content(None, rows)), about(sums=False))
        assert not made.filtered and made.values is rows


def test_what_must_arrive_as_it_is_is_not_rounded() -> None:
    rows = np.random.default_rng(0).normal(size=(100, 1))
    entries: Entries = [{"name": "fixed_point", "least": 0}, ZSTD]
    for exact in (False, True):
        chain = named.chain_of(entries)
        made = chain.encode(1, message(Content(None, rows)), about(exact=exact))
        got = named.chain_of(entries).decode(sent(made)) if made.filtered else made
        assert got.values is not None and np.array_equal(got.values, rows) == exact
        assert (chain.costs["fixed_point"].raw == 0) == exact


@given(contents(), st.sampled_from(LOSSLESS))
def test_lossless_chains_give_back_every_bit(content: Content, entries: Entries) -> None:
    made = sent(named.chain_of(entries).encode(1, message(content), about()))
    got = named.chain_of(entries).decode(made) if made.filtered else made
    assert got.values is not None and same(Content(got.keys, got.values), content)


@given(contents(), st.sampled_from(LOSSLESS[1:]), st.data())
def test_whatever_is_damaged_is_refused(content: Content, entries: Entries, data: st.DataObject) -> None:
    chain = named.chain_of(entries)
    made = sent(chain.encode(1, message(content), about()))
    if not made.filtered:
        return
    made.sender = 6
    assert made.values is not None
    raw = made.values.reshape(-1).copy()
    how = data.draw(st.sampled_from(("cut", "bit", "more")))
    if how == "cut":
        made.values = raw[: data.draw(st.integers(0, len(raw) - 1))]
    elif how == "more":
        made.values = np.concatenate([raw, np.zeros(data.draw(st.integers(1, 9)), np.uint8)])
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        made.values = raw
    with pytest.raises(FilterError, match=r"PUSH 9 of shard 1 from rank 6: ") as raised:
        chain.decode(made)
    name = entries[-1] if isinstance(entries[-1], str) else entries[-1]["name"]
    assert str(raised.value).startswith("filter ") and name in str(raised.value)


def test_a_message_of_another_chain_is_refused() -> None:
    made = sent(named.chain_of([ZSTD]).encode(1, message(Content(None, np.zeros((500, 1)))), about()))
    assert made.filtered
    with pytest.raises(FilterError, match="encoded by 1 filters, the receiver has 2"):
        named.chain_of([ZEROS, ZSTD]).decode(made)


def test_known_keys_are_sent_only_if_rows_were_dropped() -> None:
    keys = np.arange(1000, dtype=np.uint64)
    rows = np.zeros((1000, 1))
    rows[::50] = 3.0
    for entries, listed in (([ZSTD], None), ([{"name": "significant", "threshold": 1.0}, ZSTD], 20)):
        unsent_keys = Message(Kind.REQUEST, Command.PUSH, values=rows, signature=b"s" * 16, unsent_keys=keys)
        made = named.chain_of(entries).encode(1, unsent_keys, about(keys=keys))
        assert made.filtered and (made.unsent_keys is None) == (made.signature == bytes(16)) == (
            listed is not None
        )
        got = named.chain_of(entries).decode(sent(made))
        assert (None if got.keys is None else got.keys.tolist()) == (listed and keys[::50].tolist())
        assert got.values is not None and len(got.values) == (listed or 1000)


def test_a_list_that_is_named_for_the_first_time_keeps_its_signature() -> None:
    keys = np.arange(1000, dtype=np.uint64)
    made = named.chain_of([ZSTD]).encode(
        1, message(Content(keys, np.zeros((1000, 1))), signature=b"s" * 16), about(keys=keys)
    )
    assert made.keys is None and made.signature == b"s" * 16
    got = named.chain_of([ZSTD]).decode(sent(made))
    assert got.keys is not None and np.array_equal(got.keys, keys)


def test_rows_are_not_left_out_where_to_list_the_others_takes_more() -> None:
    keys = np.arange(1000, dtype=np.uint64)
    rows = np.where(np.arange(1000) % 4, 3.0, 0.5).astype(np.float32)[:, None]
    chain = named.chain_of([{"name": "significant", "threshold": 1.0}])
    known_list = Message(Kind.REQUEST, Command.PUSH, values=rows, signature=b"s" * 16, unsent_keys=keys)
    assert chain.encode(1, known_list, about(keys=keys)).values is rows
    assert not holds(chain)
    made = chain.encode(1, message(Content(keys, rows)), about(keys=keys))
    assert made.filtered and holds(chain), "where all are listed, to leave some out is worth it"
    assert made.restore is not None
    made.restore()
    assert not holds(chain), "as if the message had not been"


def test_it_is_counted_what_a_chain_saves() -> None:
    chain = named.chain_of([ZEROS, ZSTD])
    chain.encode(1, message(Content(None, np.zeros((10_000, 1)))), about())
    zeros, zstd = chain.costs["zeros"], chain.costs["zstd"]
    assert zeros.raw == 80_000 and 1250 <= zeros.wire < 1300 and zstd.wire < 300 < zstd.raw <= zeros.wire
    assert zeros.seconds > 0
    account = {"zeros": {"worker": {"raw": 8, "wire": 1, "seconds": 0.5}}}
    assert per_filter([account, account, {}]) == {"zeros": {"worker": {"raw": 16, "wire": 2, "seconds": 1.0}}}


# --- in the job file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        (["zsdt"], "there is no filter 'zsdt'; did you mean 'zstd'?"),
        ([{"level": 3}], "a filter is a name, or a table with a name and settings"),
        ([{"name": "zstd", "levle": 3}], "unknown key 'levle' in [zstd]; did you mean 'level'?"),
        ([{"name": "zstd", "level": 99}], "level must be at most 22, got 99"),
        ([{"name": "fixed_point", "bytes": 4}], "bytes must be one of 1, 2, got 4"),
        (["significant"], "key 'threshold' is missing in [significant]"),
        (["zstd", "zstd"], "the filter 'zstd' is named twice"),
        (["zstd", {"name": "random_skip", "keep": 0.5}], "'random_skip', which drops rows, must come before"),
    ],
)  # fmt: skip
def test_a_chain_that_cannot_be_is_refused(entries: Entries, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        named.chain_of(entries)


def test_a_rank_that_lacks_a_filter_reports_which() -> None:
    @filter_("lacking", lacks=lambda: "the package nonesuch")
    def lacking(settings: Any) -> Coder:
        return doubling().coder

    try:
        with pytest.raises(
            InputError, match="filter 'lacking' is not available: it needs the package nonesuch"
        ):
            named.check([ZEROS, "lacking"])
        with pytest.raises(JobError, match="filter 'lacking' is already defined at"):
            filter_("lacking")(lambda settings: doubling().coder)
    finally:
        del known["lacking"]


def test_filters_are_the_same_if_their_settings_and_code_are() -> None:
    prints = [
        named.fingerprint(entries)
        for entries in ([], ["zstd"], [{"name": "zstd", "level": 2}], [ZEROS], [{"name": "zstd"}])
    ]
    assert prints[1] == prints[4] and len(set(prints)) == 4


# --- what is remembered ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key_bits", [64, 128])
def test_states_are_split_by_the_present_shards_and_summed_over_former_workers(key_bits: int) -> None:
    holding = {"name": "significant", "threshold": 10.0}
    keys: Any = np.arange(0, 100, dtype=np.uint64)
    if key_bits == 128:
        keys = from_pairs(np.stack([keys, keys % np.uint64(7)], axis=1))
    workers = []
    for worker in range(2):
        chain = named.chain_of([holding])
        for shard in range(4):
            mine = keys[25 * shard : 25 * shard + 25]
            rows = np.full((25, 2), 1.0 + worker)
            chain.encode(~shard, message(Content(mine, rows)), about(keys=mine))
        workers.append(to_arrays(chain))
    chain = named.chain_of([holding])
    restore_states(chain, workers, lambda name: np.array([0, 30, 90], np.uint64))
    got = [chain.states[~shard, "w"][0] for shard in range(3)]
    assert [state["keys"].tolist() for state in got] == [
        keys[:30].tolist(),
        keys[30:90].tolist(),
        keys[90:].tolist(),
    ]
    assert all((state["rows"] == 3.0).all() and state["count"][0] == 1 for state in got)


def test_held_rows_require_the_filter_when_resuming() -> None:
    keys = np.arange(9, dtype=np.uint64)
    chain = named.chain_of([{"name": "significant", "threshold": 9.0}, "zstd"])
    chain.encode(~0, message(Content(keys, np.ones((9, 1)))), about())
    arrays, begins = to_arrays(chain), np.zeros(1, np.uint64)
    other = named.chain_of([{"name": "tail", "at_least": 2}, {"name": "significant", "threshold": 3.0}])
    restore_states(other, [arrays], lambda name: begins)
    assert other.states[~0, "w"][1]["keys"].tolist() == keys.tolist()
    with pytest.raises(CheckpointError, match="'significant' holds back changes of 'w': resume with it"):
        restore_states(named.chain_of(["zstd"]), [arrays], lambda name: begins)


def test_shards_do_not_share_what_is_changed_in_place() -> None:
    chain = named.chain_of([{"name": "tail", "at_least": 2, "width": 64}])
    chain.encode(~0, message(Content(np.arange(9, dtype=np.uint64), np.ones((9, 1)))), about())
    again = named.chain_of([{"name": "tail", "at_least": 2, "width": 64}])
    restore_states(again, [to_arrays(chain)], lambda name: np.array([0, 5], np.uint64))
    first, second = (again.states[~shard, "w"][0]["sketch"] for shard in range(2))
    assert first is not second and np.array_equal(first, second)


def failing(when: int) -> Step:
    def encode(state: State, content: Content, about: About) -> tuple[State, Content]:
        if about.time == when:
            raise InputError("not now")
        return state, content

    return Step("failing", Coder(encode, lambda content: content))


def test_a_filter_that_fails_leaves_those_before_it_as_they_were() -> None:
    chain = Chain([*named.chain_of([{"name": "significant", "threshold": 9.0}]).steps, failing(2)])
    keys = np.arange(3, dtype=np.uint64)
    chain.encode(1, message(Content(keys, np.full((3, 1), 5.0))), about(time=1))
    large = Content(keys, np.full((3, 1), 100.0))
    with pytest.raises(InputError, match="not now"):
        chain.encode(1, message(large), about(time=2))
    made = sent(chain.encode(1, message(large), about(time=3)))
    got = chain.decode(made) if made.filtered else made
    assert got.values is not None and got.values.ravel().tolist() == [105.0] * 3


@pytest.mark.parametrize("dtype", ["u1", "?", "f2", "u8", ">f8"])
def test_values_that_cannot_be_sent_are_not_filtered(dtype: str) -> None:
    rows = np.zeros((4000, 1), dtype)
    for entries in ([ZSTD], [ZEROS]):
        made = named.chain_of(entries).encode(1, message(Content(None, rows)), about())
        assert made.values is rows and not made.filtered
        with pytest.raises(ProtocolError, match="cannot be sent"):
            to_bytes(made)


def test_whatever_a_decoder_raises_names_the_message() -> None:
    def decode(content: Content) -> Content:
        raise ValueError("cannot reshape")

    bad = Step("bad", Coder(lambda state, content, about: (state, content._replace(note=b"x")), decode))
    made = sent(Chain([bad]).encode(1, message(Content(None, np.ones((3, 1)))), about()))
    with pytest.raises(
        FilterError, match="filter bad: PUSH 9 of shard 1 from rank -1: ValueError: cannot reshape"
    ):
        Chain([bad]).decode(made)


def test_a_filter_that_returns_no_content_is_named() -> None:
    def keep(state: State, content: Content, about: About) -> tuple[State, Content]:
        return state, content._replace(note=b"x")

    silent = Step("silent", Coder(keep, lambda content: None))  # type: ignore[arg-type, return-value]
    made = sent(Chain([silent]).encode(1, message(Content(None, np.ones((3, 1)))), about()))
    with pytest.raises(FilterError, match=r"filter silent: .* decode has returned a NoneType, and should"):
        Chain([silent]).decode(made)
    for wrong in (None, ({}, None)):
        broken = Step("broken", Coder(lambda *_, wrong=wrong: wrong, lambda content: content))  # type: ignore[misc]
        with pytest.raises(TypeError, match="filter broken: encode has returned"):
            Chain([broken]).encode(1, message(Content(None, np.ones((3, 1)))), about())


# --- in a cluster ----------------------------------------------------------------------------------------

ROUNDS, KEYS = 12, 60


def pushing(worker: int) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Return what a worker pushes: many small changes and few large ones, in whole numbers."""
    rng = np.random.default_rng(worker)
    pushes = []
    for _ in range(ROUNDS):
        keys = np.flatnonzero(rng.random(KEYS) < 0.5).astype(np.uint64)
        rows = np.where(rng.random(len(keys)) < 0.2, 100.0, rng.integers(-3, 4, len(keys)))
        pushes.append((keys, rows[:, None]))
    return pushes


def total(workers: int) -> np.ndarray[Any, Any]:
    sums = np.zeros(KEYS)
    for worker in range(workers):
        for keys, rows in pushing(worker):
            sums[keys.astype(np.int64)] += rows[:, 0]
    return sums


class Pusher:
    """Pushes, and pulls in between."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node

    def push(self) -> None:
        w = self.context.vectors["w"]
        for keys, rows in pushing(self.context.index):
            self.node.wait(w.push(keys, rows))
            self.node.wait(w.pull(keys))

    def flush(self) -> None:
        self.node.wait(self.context.vectors["w"].flush())


CHAINS: list[tuple[Entries, Entries]] = [
    ([ZSTD], [ZSTD]),
    ([{"name": "significant", "threshold": 20.0}, ZSTD], [LZ4]),
    ([{"name": "significant", "threshold": 20.0, "decay": "inverse"}], [ZEROS]),
]


@pytest.mark.parametrize("entries", CHAINS)
@pytest.mark.parametrize("trouble", ["none", "lossy", "a server dies"])
def test_filters_lose_no_push_until_the_flush(entries: tuple[Entries, Entries], trouble: str) -> None:
    def schedule(cluster: Cluster) -> Any:
        w = cluster.create_vector(VectorSpec("w", extent=KEYS))
        cluster.workers.call("push")
        before = cluster.node.wait(w.pull(np.arange(KEYS, dtype=np.uint64)))
        cluster.workers.call("flush")
        return before, cluster.node.wait(w.pull(np.arange(KEYS, dtype=np.uint64))), cluster.traffic()

    how: dict[str, Any] = {"servers": 3, "workers": 2, "replicas": 1}
    if trouble == "lossy":
        how["delays"] = random_delays(7, delay=0.02, drop=0.15, duplicate=0.15)
    if trouble == "a server dies":
        how["faults"] = [Fault("kill", 2, after_messages=150)]
    before, after, traffic = simulate(
        schedule, Pusher, filters=lambda: (named.chain_of(entries[0]), named.chain_of(entries[1])), **how
    )
    assert after.tolist() == total(2).tolist()
    holds = "significant" in str(entries)
    assert (before.tolist() != after.tolist()) == holds, "what was small was held back"
    if holds:
        each = traffic["per_filter"]["significant"]["worker"]
        assert each["wire"] < each["raw"]
    assert traffic["worker_raw"] >= traffic["worker_sent"] > 0


class Damaging:
    """A chain whose messages arrive damaged."""

    def __init__(self, entries: Entries) -> None:
        self.inner = named.chain_of(entries)

    def encode(self, peer: int, message: Message, about: About) -> Message:
        made = self.inner.encode(peer, message, about)
        if made.filtered:
            assert made.values is not None
            made.values[-1] ^= 1
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize("way", ["push", "pull"])
def test_a_damaged_message_is_an_error_where_the_task_is_waited_for(way: str) -> None:
    class Worker:
        def __init__(self, context: Context) -> None:
            self.context = context

        def go(self) -> None:
            w, wait = self.context.vectors["w"], self.context.node.wait
            wait(w.push(KeyRange(0, 500), np.zeros(500)))
            wait(w.pull(KeyRange(0, 500)))

    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("w", extent=500, dense=True))
        cluster.workers.call("go")

    def filters() -> tuple[Any, Any]:
        good, bad = named.chain_of([ZSTD]), Damaging([ZSTD])
        return (bad, good) if way == "push" else (good, bad)

    with pytest.raises(
        RemoteError, match=rf"filter zstd: {way.upper()} \d+ of shard 0 from rank \d: damaged"
    ):
        simulate(schedule, Worker, filters=filters)


class Doing:
    """A worker that runs a function of the test."""

    def __init__(self, do: Callable[..., Any]) -> None:
        self.do = do

    def __call__(self, context: Context) -> Any:
        do = self.do

        class Worker:
            def go(self, **args: Any) -> Any:
                return do(context, **args)

        return Worker()


HOLD = {"name": "significant", "threshold": 20.0}
FOUR = np.arange(4, dtype=np.uint64)


def held() -> tuple[Chain, Chain]:
    return named.chain_of([HOLD]), Chain()


def test_what_depends_on_a_damaged_push_does_not_wait_forever() -> None:
    def go(context: Context) -> dict[str, Any]:
        w, wait = context.vectors["w"], context.node.wait
        pushed = w.push(KeyRange(0, 500), np.zeros(500))
        wait(w.pull(KeyRange(0, 500), after=[pushed]))
        with pytest.raises(RemoteError, match="damaged"):
            wait(pushed)
        return {"done": 1}

    def schedule(cluster: Cluster) -> Any:
        cluster.create_vector(VectorSpec("w", extent=500, dense=True))
        return cluster.workers.call("go")

    assert simulate(schedule, Doing(go), filters=lambda: (Damaging([ZSTD]), Chain())) == [{"done": 1}]


def test_damage_in_a_round_is_reported_to_all_participants() -> None:
    def go(context: Context) -> None:
        chain = context.node.codec.pushes
        context.node.codec.pushes = Damaging([ZSTD]) if context.index == 1 else chain  # type: ignore[assignment]
        with pytest.raises(RemoteError, match="damaged"):
            context.node.wait(context.vectors["w"].push(KeyRange(0, 500), np.zeros(500), round=0))

    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("w", extent=500, dense=True, aggregate=True))
        cluster.workers.call("go")

    simulate(schedule, Doing(go), workers=3, filters=lambda: (named.chain_of([ZSTD]), Chain()))


@pytest.mark.parametrize("window", [1, 64])
def test_a_flush_takes_along_what_was_pushed_before_it(window: int) -> None:
    def go(context: Context) -> None:
        w = context.vectors["w"]
        tasks = [w.push(FOUR, np.full(4, rows)) for rows in (100.0, 1.0, 1.0)]
        tasks.append(w.push(FOUR + np.uint64(60), np.ones(4), after=tasks[:1]))
        context.node.wait_all([*tasks, w.flush(after=tasks[-1:])])

    def schedule(cluster: Cluster) -> Any:
        w = cluster.create_vector(VectorSpec("w", extent=64))
        cluster.workers.call("go")
        return cluster.node.wait(w.pull(np.concatenate([FOUR, FOUR + np.uint64(60)]))).tolist()

    got = simulate(schedule, Doing(go), servers=2, filters=held, window=window)
    assert got == [102.0] * 4 + [1.0] * 4


def test_a_flush_in_a_round_that_cannot_be_completed_is_given_up() -> None:
    def go(context: Context) -> None:
        w, node = context.vectors["w"], context.node
        tasks = [w.push(FOUR, np.ones(4), round=0)] if context.index == 0 else []
        begun = node.van.now()
        node.wait_until(lambda: node.van.now() > begun + 0.6)  # another dies meanwhile
        if context.index:
            tasks.append(w.push(FOUR, np.ones(4), round=0))
        tasks.append(w.flush(round=1))
        for task in reversed(tasks):
            node.wait(task)

    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("w", extent=4, aggregate=True))
        with pytest.raises(WorkerLost):
            cluster.workers.call("go")

    simulate(
        schedule,
        Doing(go),
        servers=2,
        workers=3,
        replicas=1,
        filters=held,
        faults=[Fault("kill", 4, at=0.2)],
    )


@pytest.mark.parametrize("after", range(60, 330, 9))
def test_an_abandoned_round_keeps_the_rows_of_living_workers(after: int) -> None:
    def go(context: Context, round: int, large: bool, flush: bool) -> None:
        w = context.vectors["w"]
        rows = np.full(4, 100.0 if large else 1.0)
        context.node.wait(w.flush(round=round) if flush else w.push(FOUR, rows, round=round))

    def schedule(cluster: Cluster) -> Any:
        w = cluster.create_vector(VectorSpec("w", extent=4, aggregate=True))
        done = round_ = 0
        twice = 0.0
        for _ in range(60):
            round_ += 1
            large = done % 8 == 7
            try:
                if cluster.worker_is_lost():
                    cluster.regroup()
                cluster.workers.call("go", {"round": round_, "large": large, "flush": False})
                done += 1
            except WorkerLost:
                # It is done again, and may have been applied whole.
                twice += 3 * (100.0 if large else 1.0)
            if done == 20:
                break
        survivors = len(cluster.workers)
        cluster.workers.call("go", {"round": round_ + 1, "large": False, "flush": True})
        return survivors, twice, cluster.node.wait(w.pull(FOUR)).tolist()

    survivors, twice, got = simulate(
        schedule, Doing(go), servers=2, workers=3, replicas=1, filters=held,
        faults=[Fault("kill", 5, after_messages=after)],
    )  # fmt: skip
    each = 18.0 + 2 * 100.0
    assert all(survivors * each <= total <= 3 * each + twice for total in got)


def test_a_message_that_is_decoded_twice_gives_the_same() -> None:
    chain = named.chain_of([ZEROS, {"name": "fixed_point", "bytes": 2, "least": 0}, ZSTD])
    content = Content(np.arange(500, dtype=np.uint64), np.random.default_rng(1).normal(size=(500, 2)))
    made = sent(chain.encode(1, message(content), about()))
    reader = named.chain_of([ZEROS, {"name": "fixed_point", "bytes": 2, "least": 0}, ZSTD])
    first, second = (reader.decode(copy(made)) for _ in range(2))
    assert first.values is not None and second.values is not None
    assert first.values.tobytes() == second.values.tobytes()


def test_the_example_filter_of_the_documentation_works() -> None:
    text = (Path(__file__).parents[2] / "docs" / "filters.md").read_text()
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert block is not None
    exec(compile(block[1], "guide", "exec", dont_inherit=True), {"__name__": __name__})
    try:
        chain = named.chain_of([{"name": "half", "vectors": ["w"]}])
        rows = np.arange(12, dtype=np.float32).reshape(6, 2)
        made = sent(chain.encode(1, message(Content(None, rows)), about()))
        half = chain.costs["half"]
        assert half.raw // 2 + 1 < half.wire == half.raw // 2 + 56, "what it takes to say what it is"
        got = chain.decode(made)
        assert got.values is not None and got.values.dtype == np.float32 and np.array_equal(got.values, rows)
        assert not chain.encode(1, message(Content(None, rows)), about(vector="v")).filtered
    finally:
        del known["half"]
