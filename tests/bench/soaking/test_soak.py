"""The long run with faults: its program finds what is lost or doubled, and growth is told from noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpips.bench.soaking import _soaking, soak
from mpips.bench.soaking._leg import Leg, LegRun
from mpips.bench.soaking._samples import Held, growth, resident, slope
from mpips.rank.simulation import simulate
from mpips.scheduler.scheduler import Cluster

STATUS = """\
soaking: 5 s, epoch 7
  leader: rank 0
  servers: rank 1 (6 of 12 shards), rank 2 (6 of 12 shards)
  workers: rank 4, rank 5
  spares: rank 7, rank 8
  messages sent again: none
  lost: rank 3 (server, died)
"""


def run(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> dict[str, Any]:
    """Run the program on the twin for some checks."""
    monkeypatch.setattr(_soaking, "CHECKED_EVERY", 2)
    seen = []

    def schedule(cluster: Cluster) -> dict[str, Any]:
        cluster.folder.path.mkdir(parents=True, exist_ok=True)
        event = cluster.event

        def noted(name: str, **facts: Any) -> None:
            seen.append(name)
            if len(seen) == 3:
                (cluster.folder.path / _soaking.ENOUGH).touch()
            event(name, **facts)

        monkeypatch.setattr(cluster, "event", noted)
        return _soaking.schedule(cluster, _soaking.Settings(beat=0.05))

    for name, value in changed.items():
        monkeypatch.setattr(_soaking.Worker, name, value)
    found: dict[str, Any] = simulate(schedule, _soaking.Worker, servers=2, workers=2)
    return found


def test_an_undisturbed_run_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch)
    assert found["updates"] > 0 and found["checks"] == 4
    assert found["lost"] == found["doubled"] == found["stale"] == 0


def test_counts_that_are_not_on_the_servers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = _soaking.Worker._settle

    def twice(worker: _soaking.Worker, task: Any, some: Any) -> None:
        settle(worker, task, some)
        assert worker._counts is not None
        worker._counts[2, some] += 1

    found = run(monkeypatch, _settle=twice)
    assert found["lost"] > 0 and found["stale"] > 0 and found["doubled"] == 0


def test_a_worker_s_file_gives_the_bounds_of_its_keys(tmp_path: Path) -> None:
    np.save(tmp_path / _soaking.COUNTS.format(0, 5), np.array([[1, 2], [7, 4], [6, 4]]))
    (tmp_path / _soaking.COUNTS.format(0, 6)).touch()
    assert _soaking.bounds_of(_soaking.kept_counts(tmp_path, 0)) == {1: (6, 7), 2: (4, 4)}
    assert _soaking.kept_counts(tmp_path, 1) == []
    # The second push of key 1 was applied; from now on it stays.
    assert _soaking.judge({1: 7, 2: 3}, {1: (6, 7), 2: (4, 4)}) == (1, 0, [[1, 7, 7], [2, 4, 4]])
    assert _soaking.judge({1: 8, 3: 1}, {1: (6, 7)})[:2] == (0, 2)


def held(values: list[float], roles: list[str] | None = None) -> Held:
    found = Held(3, roles or ["servers"] * len(values))
    for at, value in enumerate(values):
        found.times.append(5.0 * at)
        # Pages of files come when they are used, and are no growth.
        found.rss.append(round(60e6 + 2e6 * at))
        found.anonymous.append(round(50e6 + 1e6 * value))
        found.files.append(20)
        found.shared.append(4)
    return found


def judged(samples: Held) -> dict[str, Any]:
    return soak.judged(samples, soak.middle([samples]))


@pytest.mark.parametrize(
    ("per_hour", "told"), [(0.0, False), (0.5, False), (6.0, True)], ids=["flat", "slowly", "grows"]
)
def test_growth_is_told_from_noise(per_hour: float, told: bool) -> None:
    rng = np.random.default_rng(1)
    values = [per_hour * 5 * at / 3600 + 0.05 * rng.random() for at in range(400)]
    # A page of 2 MB that is used for the first time.
    values[300:] = [value + 2.0 for value in values[300:]]
    # What happens in the first half does not count.
    row = judged(held([*np.linspace(-9, 0, len(values)).tolist(), *values]))
    assert row["slope"] == pytest.approx(per_hour, abs=0.3)
    assert bool(soak.grown([row])) is told


def test_what_a_role_loads_is_no_growth_of_the_role_before_and_after_it() -> None:
    stays = [("spares", 250), ("servers", 10), ("spares", 30), ("servers", 30), ("spares", 100)]
    roles = [role for role, count in stays for _ in range(count)]
    # With its first checkpoint, a server needs 9 MB more.
    values = [0.0 if at < 295 else 9.0 for at in range(len(roles))]
    samples = held(values, roles)
    runs = samples.warm(soak.WARM_UP, soak.middle([samples]))
    assert [(samples.roles[run[0]], len(run)) for run in runs] == [
        ("spares", 40),
        ("spares", 30),
        ("spares", 100),
    ]
    assert soak.grown([judged(samples)]) == []
    # A worker has a file more than a spare; what each further change of the role keeps is growth.
    roles = [("spares", "workers")[at // 10 % 2] for at in range(600)]
    samples = held([0.05 * (at // 10) for at in range(600)], roles)
    samples.files = [20 + (role == "workers") for role in roles]
    row = judged(samples)
    assert row["slope"] == pytest.approx(3.6, rel=0.01) and row["files"] == 0.0
    assert len(soak.grown([row])) == 1


def test_open_files_that_stay_open_are_told() -> None:
    leaking = held([0.0] * 200)
    leaking.files[160:] = [25] * 40
    assert soak.grown([judged(leaking)]) == ["rank 3 (servers): +5 open files"]
    assert soak.grown([judged(held([0.0] * 100))]) == []


def test_the_memory_of_a_process_is_read() -> None:
    import os

    sizes = resident(os.getpid())
    assert sizes["Rss"] >= sizes["Anonymous"] > 1e6
    assert resident(2**22 + 1) == {}
    assert slope([]) == slope([([], [])]) == growth([]) == 0.0


def test_ranks_are_chosen_by_their_roles(tmp_path: Path) -> None:
    import random

    leg = LegRun(tmp_path / "job.toml", tmp_path / "run", 1, random.Random(1), [], "auto")
    here = leg._roles_in(STATUS)
    assert here == {"leader": [0], "servers": [1, 2], "workers": [4, 5], "spares": [7, 8]}
    assert leg._lost_in(STATUS) == {3}
    assert leg._victims(here, "scheduler") == [0] and leg._victims(here, "worker")[0] in (4, 5)
    assert leg._victims(here, "all") == [0, 1, 2, 4, 5, 7, 8]
    leg._expended = {4}
    assert leg._victims(here, "worker") == [5]


def test_a_process_that_got_the_id_of_a_rank_is_left_alone(tmp_path: Path) -> None:
    import random
    import signal
    import subprocess

    from mpips.bench.failures._killing import began
    from mpips.process.interpreter import python

    leg = LegRun(tmp_path / "job.toml", tmp_path / "run", 1, random.Random(1), [], "auto")
    with subprocess.Popen([*python(), "-c", "input()"], stdin=subprocess.PIPE) as process:
        since = began(process.pid)
        assert since is not None
        # The rank began earlier.
        leg._pids, leg._since, leg._roles = {3: process.pid}, {3: since - 1}, {3: "servers"}
        leg._send(3, signal.SIGKILL)
        leg._sample(0.0)
        assert leg._alive() == leg._held == {} and process.poll() is None
        leg._since = {3: since}
        assert leg._alive() == {3: process.pid}
        leg._send(3, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL and leg._alive() == {}
    assert began(process.pid) is None


def test_the_outcome_is_a_table() -> None:
    leg = Leg(0, 60.0, "stop", {"kill server": 2}, 0, 5, 1000, recovered=2)
    rows = [judged(held([0.0] * 200)), judged(held([0.0] * 50))]
    shown = soak.text([leg], rows, [], 60.0)
    assert "kill server" in shown and "servers" in shown and shown.endswith("nothing was wrong")
    assert soak.text([leg], [], ["leg 0: x"], 60.0).endswith("WRONG: leg 0: x\n1 violations")
    assert "lost 0, doubled 0, stale 0; ended by stop" in soak.leg_text(leg)
