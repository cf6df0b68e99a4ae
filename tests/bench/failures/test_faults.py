"""The fault campaign: what is pushed, which ranks get faults, and how recoveries are timed."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpips.bench.failures import _processes, _pushing, _trial, faults
from mpips.bench.failures._fault_injector import Disturbance, FaultInjector
from mpips.bench.failures._processes import Injected, Launched, Trained, choose, measure
from mpips.bench.failures._trial import Outcome
from mpips.bench.failures._workload import DIGITS, HOT, HOT_KEYS, Workload, key, push_keys, round_keys
from mpips.errors import InputError
from mpips.history.check import Violation
from mpips.launch import mpi_launcher


def test_no_two_pushes_or_rounds_share_a_key_of_their_own() -> None:
    hot = {key(number) for number in range(1, HOT + 1)}
    singles = [each for number in range(5000) for each in push_keys(number)]
    rounds = [each for number in range(1000) for each in round_keys(number)]
    for keys in (singles, rounds):
        assert len(set(keys)) == len(keys) and not hot & set(keys)


def test_every_push_of_a_hot_key_adds_another_digit_as_long_as_there_are_some() -> None:
    workload, rng = Workload(), random.Random(1)
    pushed: dict[int, list[int]] = {}
    for number in range(2 * HOT * DIGITS):
        mine, keys, rows = workload.push(rng)
        assert (
            mine == number
            and keys.tolist() == sorted(keys.tolist())
            and {*push_keys(number)} <= {*keys.tolist()}
        )
        for each, row in zip(keys.tolist(), rows.tolist(), strict=True):
            pushed.setdefault(each, []).append(row)
    assert all(pushed[each] == [4**n for n in range(DIGITS)] for each in HOT_KEYS)
    assert all(rows == [1] for each, rows in pushed.items() if each not in HOT_KEYS)


def test_a_trial_is_drawn_from_its_seed() -> None:
    assert _trial.plan(3) == _trial.plan(3)
    plans = [_trial.plan(seed) for seed in range(60)]
    assert {plan.replicas for plan in plans} == {0, 1, 2}
    assert {plan.servers for plan in plans} == {1, 2, 3, 4}
    assert all(plan.replicas < plan.servers for plan in plans)
    assert {event.act for plan in plans for event in plan.events} == {
        "kill", "stop", "suspend", "split", "jump", "join", "leave", "unreach",
    }  # fmt: skip
    assert {event.way for plan in plans for event in plan.events} == {"both ways", "from it", "to it"}
    assert {event.passing for plan in plans for event in plan.events} == {0, 1, 2, 4}


def test_a_fault_may_come_when_some_receivers_have_the_message_of_its_instant() -> None:
    event = Disturbance(
        "kill sender at PROPOSE", 0, "kill", "sender", 1, None, 0.5, instant="PROPOSE", passing=2
    )
    nothing: Any = SimpleNamespace()
    injector = FaultInjector([event], nothing, nothing, print, nothing)
    names = ("PROPOSE", "VIEW", "PROPOSE", "ACCEPTED", "PROPOSE")
    assert [injector._is_reached(event, {name}) for name in names] == [False, False, False, False, True]


# --- which processes get the faults --------------------------------------------------------------------

STATUS = """pushing: 3.0 s of training, epoch 4
  leader: rank {leader}
  servers: {servers}
  workers: rank 5, rank 6
  spares: {spares}
  lost: rank 9 (server, died)"""


def status(leader: int, servers: list[int], spares: list[int]) -> str:
    held = ", ".join(f"rank {rank} (2 of 8 shards)" for rank in servers)
    return STATUS.format(
        leader=leader, servers=held, spares=", ".join(f"rank {rank}" for rank in spares) or "none"
    )


def chosen(said: str) -> set[tuple[str, int] | None]:
    return {choose(said, random.Random(seed)) for seed in range(200)}


def test_two_servers_and_the_first_worker_are_never_targets() -> None:
    assert chosen(status(0, [1, 2], [])) == {None, ("worker", 6), ("scheduler", 0)}
    assert chosen(status(0, [1, 2], [7])) == {
        ("server", 1), ("server", 2), ("worker", 6), ("scheduler", 0),
    }  # fmt: skip


def test_a_leader_that_holds_shards_is_a_target_as_scheduler_and_not_as_server() -> None:
    assert chosen(status(1, [1, 2], [])) == {None, ("worker", 6)}
    assert chosen(status(1, [1, 2, 3], [])) == {
        ("server", 2), ("server", 3), ("worker", 6), ("scheduler", 1),
    }  # fmt: skip


# --- how long it took ------------------------------------------------------------------------------------


def test_recovery_time_ends_when_another_rank_answers_for_each_shard_of_the_dead_server() -> None:
    answers = np.array(
        [
            (0, 1, 9.9, 9.95),  # shard 0 is rank 1's
            (0, 1, 9.95, 10.01),  # its last answer arrives after its death
            (0, 2, 10.0, 10.30),
            (1, 1, 9.9, 9.99),  # so is shard 1
            (1, 3, 9.99, 10.20),
            (2, 2, 9.9, 9.99),  # shard 2 is not
            (2, 2, 9.99, 10.90),
        ]
    )
    injected = [Injected(0, "server", "kill", 1, 10.0)]
    measure(injected, [{"rank": 1, "noticed_after": 0.05}], answers)
    (one,) = injected
    assert one.detection == 0.05
    assert one.recovery == pytest.approx(0.30) and one.takeover == pytest.approx(0.25)


def test_recovery_time_of_a_scheduler_or_worker_ends_with_the_next_call() -> None:
    calls = [(_pushing.CALLS, 0, at, at) for at in (9.9, 10.02, 10.4, 10.5)]
    injected = [Injected(0, "scheduler", "kill", 0, 10.0), Injected(0, "server", "kill", 4, 10.0)]
    measure(injected, [{"rank": 0, "noticed_after": 0.1}], np.array(calls))
    assert injected[0].recovery == pytest.approx(0.4)
    assert (
        injected[1].recovery is None and injected[1].takeover is None
    )  # it held nothing that anybody asked for


def test_times_exclude_faults_without_effect() -> None:
    injected = [
        Injected(0, "server", "kill", rank, 0.0, recovery=value, detection=0.1)
        for rank, value in enumerate((0.2, None, 0.4, 0.3))
    ]
    found = faults.times(injected)
    assert found["recovery_median"] == pytest.approx(0.3) and found["recovery_max"] == 0.4
    assert found["detection_max"] == 0.1 and "takeover_max" not in found


def test_the_workers_counts_are_compared_with_the_servers_values() -> None:
    keys, pushed = np.array([1, 2, 3], np.uint64), np.array([[5], [6], [7]])
    found = _pushing.judge({1: 5, 2: 4, 3: 8, 9: 2}, [(keys, pushed)])
    assert found == {"updates": 18, "others": 2, "lost": 2, "doubled": 1}


def test_what_a_lost_worker_was_answered_must_be_there_and_no_more_than_it_has_issued(tmp_path: Path) -> None:
    np.save(tmp_path / _pushing.COUNTS.format(4), np.array([[1, 2, 3, 4], [6, 6, 6, 6], [5, 5, 5, 5]]))
    (tmp_path / _pushing.COUNTS.format(5)).write_bytes(b"\x93NUM")
    (tmp_path / _pushing.COUNTS.format(6)).touch()
    present = np.array([4], np.uint64), np.array([[9]])
    found = _pushing.judge({1: 5, 2: 4, 3: 8, 4: 9}, [present], _pushing.kept_counts(tmp_path))
    assert found == {"updates": 24, "others": 0, "lost": 1, "doubled": 2}


# --- what is said ----------------------------------------------------------------------------------------


def test_a_campaign_that_goes_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert faults.main(["--trials", "3", "--seed", "2", "--json", str(tmp_path / "x.json")]) == 0
    said = capsys.readouterr().out
    assert "trials survived: 3 of 3" in said and "violations: none" in said
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["twin"]["trials"] == 3 and report["twin"]["failed"] == [] and report["seed"] == 2


def test_a_trial_that_fails_is_named_and_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(seed: int, say: object = None) -> Outcome:
        broken = [Violation("durable", "push 3")] if seed == 1 else []
        return Outcome(seed, violations=broken, faults=Counter({"kill server": 1}))

    monkeypatch.setattr(_trial, "run", run)
    assert faults.main(["--trials", "3"]) == 1
    said = capsys.readouterr().out
    assert "trial 1: durable: push 3" in said and "mpips bench faults --only 1" in said
    assert "trials survived: 2 of 3" in said and "violations: {'durable': 1}" in said
    assert faults.main(["--only", "1"]) == 1
    assert "durable: push 3" in capsys.readouterr().out
    assert faults.main(["--only", "2"]) == 0


def test_one_trial_prints_its_events(capsys: pytest.CaptureFixture[str]) -> None:
    seed = next(seed for seed in range(100) if _trial.run(seed).faults["kill server"])
    assert faults.main(["--only", str(seed)]) == 0
    said = capsys.readouterr().out
    assert "kill server: rank" in said and "the history keeps all promises" in said


@pytest.mark.parametrize(
    ("launched", "same", "good"),
    [
        (Launched(0, False, False, updates=5), True, True),
        (Launched(0, False, False, updates=5, lost=1), True, False),
        (Launched(0, False, False, updates=5, left_behind=1), True, False),
        (Launched(0, False, False, error="it ended"), True, False),
        (Launched(0, False, False, updates=5, broken=["durable: push 3"]), True, False),
        (Launched(0, False, False, updates=5), False, False),
    ],
)
def test_faults_of_processes_are_summed_up(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    launched: Launched,
    same: bool,
    good: bool,
) -> None:
    launched.injected = [Injected(0, "server", "kill", 1, 0.0, 0.25, 0.05, 0.2)]
    trained = [Trained("none", 1.0, "a", 0), Trained("server", 1.5, "a" if same else "b", 1, same)]
    _find(monkeypatch, ulfm=True)
    monkeypatch.setattr(_processes, "inject_many", lambda *_: [launched])
    monkeypatch.setattr(_processes, "train", lambda *_: trained)
    assert (faults.main(["--trials", "0", "--processes", "1", "--json", str(tmp_path / "x")]) == 0) is good
    said = capsys.readouterr().out
    assert "server, kill" in said and "0.250" in said
    report = json.loads((tmp_path / "x").read_text())["processes"]
    assert report["good"] is good and report["launches"][0]["injected"][0]["recovery"] == 0.25


def _find(monkeypatch: pytest.MonkeyPatch, ulfm: bool) -> None:
    """Let the MPI be one that survives deaths, or one that does not."""
    found = SimpleNamespace(mpi=SimpleNamespace(ulfm=ulfm))
    monkeypatch.setattr(mpi_launcher, "find_starter", lambda _: found)


def test_faults_of_processes_are_refused_without_ulfm(monkeypatch: pytest.MonkeyPatch) -> None:
    _find(monkeypatch, ulfm=False)
    with pytest.raises(InputError, match="Open MPI 5 with ULFM is required"):
        faults.main(["--processes", "1"])
