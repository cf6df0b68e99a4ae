"""Traces: records persist, times add up, the cost is bounded, and events can be shown."""

from __future__ import annotations

import gzip
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.cli import main
from mpips.cluster.node import Node
from mpips.config.job_file import load
from mpips.errors import InputError
from mpips.filters.chain import Chain
from mpips.filters.named import chain_of
from mpips.ranges import KeyRange
from mpips.rank.simulation import Internals, simulate
from mpips.rundir.folder import RunFolder
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.tracing import chrome
from mpips.tracing.analysis import BRIEF, USES, phases, summary
from mpips.tracing.one_clock import align, matched_requests, read
from mpips.tracing.rank_trace import RankTrace, TraceError
from mpips.tracing.recorder import Trace
from mpips.tracing.spans import nest, spans
from mpips.tracing.token_bucket import LONG, PER
from mpips.tracing.trace_file import HEADER, NOBODY, PIECE, RECORD, TraceFile, What
from mpips.worker.worker import Context


class Clock:
    """A clock that is set by hand."""

    def __init__(self, at: float = 100.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def facts(rank: int = 0, role: str = "worker") -> dict[str, Any]:
    return {"rank": rank, "role": role, "index": rank, "host": "host", "pid": 1, "clock": "here"}


def begin(
    folder: Path,
    rank: int = 0,
    clock: Clock | None = None,
    limit: float = 16e6,
    detail: int = 20,
    **about: str,
) -> Trace:
    now = clock or Clock()
    return Trace(RunFolder(folder).trace_of(rank), facts(rank) | about, limit, detail, now=now, wall=now)


def only(folder: Path) -> RankTrace:
    (trace,) = read(folder)
    return trace


# --- the file ------------------------------------------------------------------------------------------


def test_what_was_written_is_there_though_the_rank_is_killed(tmp_path: Path) -> None:
    clock = Clock()
    trace = begin(tmp_path, 3, clock)
    trace.add(What.COMPUTE, 100.0, 101.5)
    trace.add(What.WAIT, 101.5, 102.0, trace.file.name("the next call"), 7, time=12)
    start = trace.begin(What.CALL, "train")
    trace.add(What.COMPUTE, 102.5, 103.0)
    found = only(tmp_path)
    assert (found.rank, found.role, found.label) == (3, "worker", "worker 3 (rank 3, host)")
    assert [What(what) for what in found.records["what"]] == [
        What.COMPUTE, What.WAIT, What.BEGUN, What.COMPUTE,
    ]  # fmt: skip
    wait = found.of(What.WAIT)[0]
    assert (found.names[int(wait["name"])], wait["peer"], wait["time"]) == ("the next call", 7, 12)
    call = [each for each in spans(found).records if each["what"] == What.CALL]
    assert [(each["begin"], each["end"]) for each in call] == [(start, 103.0)]
    trace.close()
    trace.close()
    assert trace.file.path.stat().st_size == HEADER + 4 * RECORD.size


def test_beyond_the_limit_records_are_counted_and_time_is_summed(tmp_path: Path) -> None:
    clock = Clock()
    trace = begin(tmp_path, clock=clock, limit=HEADER + 2 * PIECE)
    count = 2 * PIECE // RECORD.size + 500
    for number in range(count):
        clock.at += 1.0
        trace.tick()
        trace.span(What.EXECUTE, clock.at - 0.5, time=number)
    trace.close()
    found = only(tmp_path)
    assert trace.file.path.stat().st_size == HEADER + 2 * PIECE
    executed = len(found.of(What.EXECUTE))
    assert executed < count
    reported = summary(tmp_path)
    assert reported["ranks"][0]["uses"]["apply"] == pytest.approx(0.5 * count)
    assert found.unseen[What.EXECUTE] == pytest.approx(0.5 * (count - executed - found.dropped), abs=1.0)
    assert reported["dropped"] == found.dropped > 0


def test_a_full_disk_ends_the_trace_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = begin(tmp_path)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    for _ in range(PIECE // RECORD.size):
        trace.add(What.COMPUTE, 100.0, 100.5)
    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(3):
        trace.add(What.COMPUTE, 100.0, 100.5)
    trace.tick()
    trace.close()
    assert trace.file.dropped >= 3 and trace.file.problem.endswith("No space left on device")
    assert len(only(tmp_path).records) == PIECE // RECORD.size


def test_names_beyond_the_table_are_empty(tmp_path: Path) -> None:
    trace = begin(tmp_path)
    numbers = {
        text: trace.file.name(text) for text in (f"a name of some length, number {i}" for i in range(3000))
    }
    trace.add(What.CALL, 1.0, 2.0, trace.file.name("a name of some length, number 5"))
    known = {text: number for text, number in numbers.items() if number}
    assert 500 < len(known) < 3000
    names = only(tmp_path).names
    assert all(names[number] == text for text, number in known.items())


# --- what it may cost ----------------------------------------------------------------------------------


def test_brief_spans_beyond_the_budget_are_summed_and_long_ones_are_not(tmp_path: Path) -> None:
    clock = Clock()
    trace = begin(tmp_path, clock=clock, detail=5)
    for tick in range(3):
        trace.tick()
        for number in range(200):
            clock.at += 1e-5
            trace.span(What.EXECUTE, clock.at - 1e-5, time=number)
        clock.at += 2 * LONG
        trace.span(What.EXECUTE, clock.at - 2 * LONG, time=-5 - tick)
        clock.at += PER
    trace.close()
    found = only(tmp_path)
    executed = found.of(What.EXECUTE)
    assert 50 <= len(executed) <= 50 + 3 + 1
    assert {-5, -6, -7} <= set(executed["time"].tolist())
    reported = summary(tmp_path)["ranks"][0]
    assert reported["uses"]["apply"] == pytest.approx(600e-5 + 6 * LONG, rel=1e-6)
    assert 0 < reported["unseen"] < reported["uses"]["apply"]
    assert sum(reported["uses"].values()) == pytest.approx(reported["seconds"])


def test_the_token_bucket_opens_again_once_it_is_full(tmp_path: Path) -> None:
    clock = Clock()
    trace = begin(tmp_path, clock=clock, detail=5)
    for number in range(51):
        trace.span(What.EXECUTE, clock.at, time=number)
    assert not trace.bucket.open
    for _ in range(9):
        clock.at += PER
        trace.tick()
        assert not trace.bucket.open
    clock.at += PER
    trace.tick()
    assert trace.bucket.open
    trace.span(What.EXECUTE, clock.at, time=77)
    assert only(tmp_path).of(What.EXECUTE)["time"].tolist()[-1] == 77


def test_idle_times_and_requests_of_the_fast_path_are_recorded(tmp_path: Path) -> None:
    clock = Clock()
    trace = begin(tmp_path, clock=clock, role="server")

    def idle() -> None:
        clock.at += 1e-3

    rest = trace.idling(idle)
    trace.span(What.EXECUTE, clock.at)
    for _ in range(5):
        rest()
    trace.end_idle()  # 5 ms idle
    clock.at += 2e-3
    trace.span(What.EXECUTE, clock.at - 2e-3)
    for _ in range(30):  # requests close together are one span
        clock.at += 1e-5
        trace.served(2)
    rest()
    rest()
    clock.at += 1e-5
    trace.served(1)
    trace.close()
    found = only(tmp_path)
    idle_s = found.of(What.IDLE)
    assert [round(each["end"] - each["begin"], 6) for each in idle_s] == [5e-3, 2e-3]
    assert found.of(What.SERVE)["size"].tolist() == [60, 1]
    uses = summary(tmp_path)["ranks"][0]["uses"]
    assert uses["idle"] == pytest.approx(7e-3) and uses["serve"] == pytest.approx(310e-6)


# --- reading -------------------------------------------------------------------------------------------


@st.composite
def nested(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Intervals that nest, now and then reaching out of the one around them."""
    found: list[tuple[int, int]] = []

    def fill(low: int, high: int, depth: int) -> None:
        at = low
        while depth and at < high and len(found) < 40:
            first = draw(st.integers(at, high))
            last = draw(st.integers(first, high))
            found.append((first, last + draw(st.integers(0, 2)) * (last == high)))
            fill(first, last, depth - 1)
            at = last + draw(st.integers(0, 3))

    fill(0, draw(st.integers(1, 60)), 3)
    return found


@given(nested())
def test_own_times_add_up_to_what_is_covered(intervals: list[tuple[int, int]]) -> None:
    intervals = sorted(intervals, key=lambda each: (each[0], -each[1]))
    start = np.array([each[0] for each in intervals], float)
    end = np.array([each[1] for each in intervals], float)
    own, outer = np.zeros(len(intervals)), np.full(len(intervals), -1, np.int64)
    nest(start, end, own, outer)
    covered: set[int] = set()
    for i in np.flatnonzero(outer < 0):
        covered |= set(range(int(start[i]), int(end[i])))
    assert own.sum() == pytest.approx(len(covered)) and (own >= 0).all()
    for i in np.flatnonzero(outer >= 0):
        assert start[outer[i]] <= start[i] <= end[i] <= end[outer[i]]


def test_clocks_of_machines_are_aligned_by_their_requests(tmp_path: Path) -> None:
    """The callee's time of day is 3 s wrong; requests take 2 ms, executed in the middle or later."""
    random = np.random.default_rng(1)
    here, there = Clock(50.0), Clock(900.0)  # the same moment
    caller = Trace(RunFolder(tmp_path).trace_of(0), facts(0) | {"clock": "a"}, now=here, wall=here)
    about = facts(1) | {"clock": "b"}
    callee = Trace(RunFolder(tmp_path).trace_of(1), about, now=there, wall=lambda: there.at - 853.0)
    for time in range(200):
        sent = float(time)
        done = sent + random.uniform(0.2e-3, 1.8e-3)
        caller.add(What.REQUEST, 50 + sent, 50 + sent + 2e-3, 1, 1, -1, 0, time)
        callee.add(What.EXECUTE, 900 + done, 900 + done + 1e-4, 1, 0, -1, 0, time)
    traces = read(tmp_path)
    pairs = matched_requests(traces)
    assert len(pairs.request) == 200
    late = pairs.execution["begin"] - pairs.request["begin"]
    assert (late > 0).all() and (late < 2e-3).all()
    assert late.mean() == pytest.approx(1e-3, abs=2e-4)
    assert max(abs(by) for by in align(traces).values()) < 1e-4  # nothing is left to be done


def test_requests_are_matched_with_their_own_executions_only(tmp_path: Path) -> None:
    caller, callee = begin(tmp_path, 0), begin(tmp_path, 1, role="server")
    for time, address in ((1, -1), (2, -1), (1, -2), (4, 1)):
        caller.add(What.REQUEST, 1.0, 2.0, 1, 1, address, 0, time)
    for what, time, address, origin in (
        (What.EXECUTE, 1, -2, 0), (What.EXECUTE, 2, -1, 5), (What.EXECUTE, 3, -1, 0), (What.CALL, 4, 1, 0),
    ):  # fmt: skip
        callee.add(what, 1.25, 1.5, 1, 0, address, origin, time)
    pairs = matched_requests(read(tmp_path))
    assert pairs.request[["time", "address"]].tolist() == [(1, -2), (4, 1)]
    assert pairs.execution[["time", "address"]].tolist() == [(1, -2), (4, 1)]
    assert pairs.caller.tolist() == [0, 0] and pairs.callee.tolist() == [1, 1]


def test_a_repeated_request_is_matched_with_its_last_execution(tmp_path: Path) -> None:
    caller, first, second = (begin(tmp_path, rank) for rank in range(3))
    caller.add(What.REQUEST, 5.0, 6.0, 1, 2, -1, 0, 1)
    first.add(What.EXECUTE, 4.0, 4.5, 1, 0, -1, 0, 1)  # and died
    second.add(What.EXECUTE, 5.5, 5.75, 1, 0, -1, 0, 1)
    second.add(What.EXECUTE, 6.5, 6.75, 1, 0, -1, 0, 1)
    caller.add(What.REQUEST, 7.0, 8.0, 1, 2, -1, 0, 2)
    first.add(What.EXECUTE, 6.9, 7.1, 1, 0, -1, 0, 2)
    pairs = matched_requests(read(tmp_path))
    assert pairs.request["begin"].tolist() == pytest.approx([5.0])
    assert pairs.execution["begin"].tolist() == pytest.approx([5.5])


@pytest.mark.parametrize("damage", ["empty", "magic", "facts", "cut"])
def test_a_damaged_trace_is_named(tmp_path: Path, damage: str) -> None:
    trace = begin(tmp_path)
    trace.add(What.COMPUTE, 100.0, 101.0)
    trace.close()
    raw = bytearray(trace.file.path.read_bytes())
    if damage == "magic":
        raw[0] ^= 1
    elif damage == "facts":
        raw[16] ^= 255
    raw = {"empty": bytearray(), "cut": raw[:5000]}.get(damage, raw)
    trace.file.path.write_bytes(raw)
    with pytest.raises(TraceError, match=r"rank-0000\.bin"):
        read(tmp_path)


# --- a whole cluster -----------------------------------------------------------------------------------


class Tracing(dict[int, Node]):
    """Has every node that a simulation makes traced."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.traces: list[Trace] = []
        self.looks = 0

    def __setitem__(self, rank: int, node: Node) -> None:
        super().__setitem__(rank, node)
        place, before = node.place, node.van.now

        def now() -> float:
            """Let a little time go by with each look, so that spans have a length."""
            self.looks += 1
            return before() + 2e-5 * self.looks

        node.van.now = now  # type: ignore[method-assign]
        node.tasks.now = now
        about = facts(rank, place.role.value) | {"index": place.index}
        trace = Trace(RunFolder(self.folder).trace_of(rank), about, detail=200, now=now, wall=now)
        trace.attach(node)
        self.traces.append(trace)


class Worker:
    """Pushes and pulls in rounds, and works a little."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def sweep(self, rounds: int) -> None:
        vector, node = self.context.vectors["w"], self.context.node
        rows = np.ones(100, np.float32)
        for number in range(rounds):
            with node.time_use.working():
                rows *= 0.5
            node.wait(vector.push_pull(KeyRange(0, 100), rows, round=number))
        node.wait(vector.pull(KeyRange(0, 100)))


def schedule(cluster: Cluster) -> float:
    vector = cluster.create_vector(VectorSpec("w", "float32", extent=100, dense=True, aggregate=True))
    with cluster.phase("train"):
        cluster.workers.call("sweep", {"rounds": 5})
    return float(cluster.node.wait(vector.pull(KeyRange(0, 100))).sum())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A traced run of 2 servers, each with a copy of the other's keys, and 3 workers, with filters."""
    folder = tmp_path_factory.mktemp("run")
    nodes = Tracing(folder)

    def filters() -> tuple[Chain, Chain]:
        return chain_of(({"name": "zstd", "least": 0},)), chain_of(({"name": "zstd", "least": 0},))

    how = {"servers": 2, "workers": 3, "replicas": 1, "filters": filters, "tick": 1e-3}
    assert simulate(schedule, Worker, internals=Internals(nodes=nodes), **how) != 0
    for trace in nodes.traces:
        trace.close()
    return folder


def events(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        found: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return found


def check_events(found: list[dict[str, Any]]) -> dict[str, int]:
    """Hold events to the format, and to more; return how many spans and flows there are."""
    lanes: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    named = {(each["pid"], each["tid"]) for each in found if each["name"] == "thread_name"}
    processes = {each["pid"] for each in found if each["name"] == "process_name"}
    for each in found:
        assert each["ph"] in "XstfiCM" and isinstance(each["name"], str)
        assert all(type(each[key]) is int for key in ("pid", "tid"))
        assert isinstance(each["ts"], (int, float)) and each["ts"] >= 0
        assert each["pid"] in processes
        if each["ph"] == "X":
            assert each["dur"] >= 0 and each["cat"]
        if each["ph"] == "i":
            assert each["s"] in "gpt"
        if each["ph"] == "C":
            assert all(value >= 0 for value in each["args"].values())
        if each["ph"] in "Xstf":
            assert (each["pid"], each["tid"]) in named
            lanes[each["pid"], each["tid"]].append(each)
    flows: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
    for lane in lanes.values():
        inside: list[tuple[float, float]] = []
        before = 0.0
        for each in lane:
            assert each["ts"] >= before  # in order
            before = each["ts"]
            while inside and round(inside[-1][1] * 1000) <= round(each["ts"] * 1000) and each["ph"] != "f":
                inside.pop()
            if each["ph"] == "X":
                end = each["ts"] + each["dur"]
                assert not inside or round(end * 1000) <= round(inside[-1][1] * 1000)  # they nest
                inside.append((each["ts"], end))
            else:
                assert inside, "a flow outside of all spans"
                assert each["ph"] not in flows[each["id"]]
                flows[each["id"]][each["ph"]] = each
    for flow in flows.values():
        assert set(flow) == {"s", "t", "f"} and flow["f"]["bp"] == "e"
        assert len({(each["name"], each["cat"]) for each in flow.values()}) == 1
        assert flow["s"]["ts"] <= flow["t"]["ts"] <= flow["f"]["ts"]
        assert flow["s"]["tid"] == flow["f"]["tid"] != flow["t"]["tid"]
    return {"spans": sum(each["ph"] == "X" for each in found), "flows": len(flows)}


def test_the_events_have_the_format_of_trace_viewers(run: Path) -> None:
    written = chrome.write(read(run), run / "out" / "trace.json.gz")
    found = events(run / "out" / "trace.json.gz")
    counted = check_events(found)
    assert counted["flows"] == written.flows > 3 * 5 and counted["spans"] >= written.spans > 100
    threads = {each["args"]["name"] for each in found if each["name"] == "thread_name"}
    assert {"scheduler 0 (rank 0, host)", "server 1 (rank 2, host)", "worker 2 (rank 5, host)"} <= threads
    names = {each["name"] for each in found if each["ph"] == "X"}
    assert {
        "phase train", "wait: sweep", "sweep", "compute", "wait: push_pull", "wait: the next call",
        "encode push_pull", "decode push_pull", "push_pull", "pull", "chain: push_pull", "idle",
    } <= names  # fmt: skip


def test_the_events_are_not_written_through_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("kept")
    for name in ("linked.json", "linked.json.gz"):
        (run / name).symlink_to(tmp_path / "theirs")
        chrome.write(read(run), run / name)
        assert len(events(run / name)) > 100 and not (run / name).is_symlink()
    assert (tmp_path / "theirs").read_text() == "kept"


def test_a_trace_that_is_no_file_is_not_waited_for(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace" / "rank-0001.bin"
    path.parent.mkdir()
    path.symlink_to(run / "trace" / path.name)
    with pytest.raises(TraceError, match="is a symbolic link"):
        read(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TraceError, match="is a named pipe"):
        read(tmp_path)


def test_a_part_of_the_events(run: Path) -> None:
    traces = read(run)
    low, high = phases(traces)["train"]
    within = (low, (low + high) / 2)
    written = chrome.write(traces, run / "part.json", [1, 3], within)
    found = events(run / "part.json")
    check_events(found)
    assert {each["tid"] for each in found if each["ph"] == "X"} == {1, 3}
    assert 0 < written.spans < len(spans(traces[1]).records) + len(spans(traces[3]).records)
    assert max(each["ts"] for each in found) <= (within[1] - low) * 1e6 + 1e-3


def test_each_request_is_matched_with_its_execution(run: Path) -> None:
    traces = read(run)
    pairs = matched_requests(traces)
    asked = sum(len(trace.of(What.REQUEST)) for trace in traces)
    assert len(pairs.request) == asked  # none is answered by compiled code here
    assert (pairs.request["begin"] <= pairs.execution["begin"]).all()
    assert (pairs.execution["begin"] <= pairs.request["end"]).all()
    by_callee = pairs.request["peer"] == np.array([trace.rank for trace in traces])[pairs.callee]
    assert by_callee.all()


def test_shares_add_up_and_waits_have_their_cause(run: Path) -> None:
    reported = summary(run, "train")
    for rank in reported["ranks"]:
        assert set(rank["uses"]) == set(USES)
        assert sum(rank["uses"].values()) == pytest.approx(rank["seconds"])
        assert rank["busy"] + rank["waiting"] == pytest.approx(rank["seconds"])
    waits = {(wait["rank"], wait["for"], wait["from"]): wait["count"] for wait in reported["waits"]}
    assert sum(count for (rank, what, _), count in waits.items() if (rank, what) == (3, "push_pull")) == 5
    assert any(what == "sweep" and source in (3, 4, 5) for rank, what, source in waits if rank == 0)
    assert reported["ranks"][3]["calls"]["sweep"]["count"] == 1
    assert summary(run)["seconds"] > reported["seconds"]
    assert BRIEF not in {wait["for"] for wait in reported["waits"]}


def test_the_command_shows_it(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "some.json"
    assert main(["trace", str(run), "--phase", "train", "-o", str(out), "--ranks", "0,3"]) == 0
    said = capsys.readouterr().out
    assert "time breakdown in the phase train" in said and "3 worker 0" in said and "3 workers" in said
    assert "for push_pull, last answer from server" in said and "https://ui.perfetto.dev" in said
    assert check_events(events(out))["flows"] == 1  # the scheduler's call of worker 0
    assert main(["trace", str(run), "-o", str(out)]) == 0, "the events are written again"
    out.write_text("mine")
    assert main(["trace", str(run), "-o", str(out)]) == 2 and out.read_text() == "mine"


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        (["--phase", "lunch"], "the trace knows no phase 'lunch'; valid: train"),
        (["--ranks", "one"], "--ranks one: must be ranks separated by commas"),
        (["--ranks", "77"], "--ranks: there is no trace of rank 77"),
        (["--between", "3", "2"], "--between 3 2: FROM must be before TO"),
    ],
)
def test_invalid_arguments_are_reported(
    run: Path, capsys: pytest.CaptureFixture[str], switches: list[str], said: str
) -> None:
    assert main(["trace", str(run), *switches]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"mpips: error: {said}") and captured.err.count("\n") == 1


def test_a_run_without_a_trace_reports_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", str(tmp_path)]) == 2
    assert "has no trace; run the job with --set trace.on=true" in capsys.readouterr().err


# --- the job file, the run folder ----------------------------------------------------------------------


def test_a_trace_is_off_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('[job]\nprogram = "sparse_lr"\n')
    assert not load(tmp_path / "job.toml").trace.on
    assert load(tmp_path / "job.toml", ["trace.on=true", "trace.limit=1e6"]).trace.limit == 1e6
    with pytest.raises(InputError, match="limit"):
        load(tmp_path / "job.toml", ["trace.limit=10"])


def test_a_run_that_is_resumed_sets_the_old_trace_aside(tmp_path: Path) -> None:
    trace = begin(tmp_path)
    trace.add(What.COMPUTE, 1.0, 2.0)
    trace.close()
    folder = RunFolder.claim(tmp_path, resume=True)
    assert not folder.trace.exists() and (tmp_path / "trace.previous" / "rank-0000.bin").exists()


def test_a_wait_without_a_peer(tmp_path: Path) -> None:
    trace = begin(tmp_path)
    trace.waited(100.0, 100.5, 0.5, -1, "the next call")
    assert only(tmp_path).of(What.WAIT)["peer"].tolist() == [NOBODY]


@pytest.mark.parametrize("facts", [{"role": "x"}, {"role": 7}])
def test_a_trace_of_a_rank_without_a_role_is_damaged(tmp_path: Path, facts: dict[str, Any]) -> None:
    known = {"rank": 0, "role": "worker", "index": 0, "host": "h", "clock": "c", "wall": 0.0}
    TraceFile(tmp_path / "trace" / "rank-0000.bin", known | facts, 1 << 22).close()
    with pytest.raises(TraceError, match=r"rank-0000\.bin: is damaged: .* is not a valid Role"):
        read(tmp_path)


def test_a_trace_of_any_year_and_size_is_read(tmp_path: Path) -> None:
    known = {"rank": 0, "role": "worker", "index": 0, "host": "h", "clock": "c", "wall": 9e11}
    file = TraceFile(tmp_path / "trace" / "rank-0000.bin", known, 1 << 22)
    file.add(What.COMPUTE, 1.0, 2.0, 0, -1, 0, 0, 0, 0)
    file.note(2.0, 0, 1.0, [0.0] * len(What))
    with file.path.open("r+b") as sparse:
        sparse.truncate(1 << 42)
    (trace,) = read(tmp_path)
    assert len(trace.records) == 1
    assert chrome.write([trace], tmp_path / "events.json").spans == 1
    file.close()
