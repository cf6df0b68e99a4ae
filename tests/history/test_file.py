"""Histories of runs in files: each rank writes its own, and `mpips verify RUN --history` checks them together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mpips.cli.main import main
from mpips.cluster.node import Node
from mpips.config.job_file import load
from mpips.errors import InputError
from mpips.history.check import digit
from mpips.history.events import Answered, Issued, Viewed
from mpips.history.file import NAME, read_history, record_history
from mpips.rank.simulation import Internals, simulate
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.transport.network_faults import Fault
from mpips.worker.worker import Context


class Worker:
    def __init__(self, context: Context) -> None:
        self.context = context

    def go(self, number: int) -> None:
        w, keys = self.context.vectors["w"], np.arange(8, dtype=np.uint64)
        place = self.context.index_of_all
        pushed = w.push(keys, np.full(8, digit(2 * number + place), np.int64))
        w.pull(keys, after=[pushed]).result()


def schedule(cluster: Cluster) -> None:
    cluster.create_vector(VectorSpec("w", "int64"))
    for number in range(3):
        cluster.workers.call("go", {"number": number})
        end = cluster.decide(lambda: cluster.node.van.now() + 0.1)
        cluster.node.wait_until(lambda end=end: cluster.node.van.now() >= end)  # type: ignore[misc]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """The run folder of a simulated run in which a server dies."""
    internals = Internals()

    def attach(node: Node) -> None:
        assert internals.network is not None
        network = internals.network
        record_history(node, tmp_path / "trace", lambda: network.posted + network.time)

    simulate(
        schedule, Worker, servers=2, workers=2, replicas=1, internals=internals, attach=attach,
        faults=[Fault("kill", 1, at=0.15)],
    )  # fmt: skip
    return tmp_path


def test_a_run_is_recorded_and_its_history_is_checked(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = read_history(recorded / "trace")
    assert history.violations() == [] and history.bad == 0
    assert set(history.clocks) == set(range(5)) and len(set(history.clocks.values())) == 1
    assert sum(isinstance(event, Issued) for event in history.events) == 2 * 2 * 3
    assert sum(isinstance(event, Answered) and event.good for event in history.events) == 2 * 2 * 3
    assert any(isinstance(event, Viewed) and event.published for event in history.events)
    assert main(["verify", str(recorded), "--history"]) == 0
    assert "all promises kept, ranks 5, events" in capsys.readouterr().out


def test_a_value_that_was_changed_is_found(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = (path for path in (recorded / "trace").iterdir() if path.name == NAME.format(3))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    answer = next(line["of"] for line in lines if line.get("of", [""])[0] == "Answered" and line["of"][5])
    answer[5][0] = 0
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"of": ["Nothing"]}\nno\n')
    assert main(["verify", str(recorded), "--history"]) == 1
    said = capsys.readouterr().out
    assert "promises broken" in said and "declared order" in said and "no events: 2" in said


def test_the_order_of_events_of_different_machines_is_not_known(recorded: Path) -> None:
    for path in (recorded / "trace").iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[0]["clock"] = path.name
        for line in lines[1:]:
            line["of"][1] += 1e6 * lines[0]["rank"]
        path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_history(recorded / "trace").violations() == []


def test_a_run_without_a_history_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"trace\.history=true"):
        read_history(tmp_path / "trace")
    assert main(["verify", str(tmp_path), "--history"]) == 2
    assert "has no history" in capsys.readouterr().err
    (tmp_path / "trace").mkdir()
    (tmp_path / "trace" / NAME.format(0)).write_text(
        '{"rank": 1e999, "clock": "a"}\n{"of": ["Concluded", 1.0, {}]}\n'
    )
    assert main(["verify", str(tmp_path), "--history"]) == 2
    assert "its files have no events" in capsys.readouterr().err


def test_histories_are_recorded_if_the_job_says_so(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('[job]\nprogram = "sketch"\n')
    assert not load(tmp_path / "job.toml").trace.history
    assert load(tmp_path / "job.toml", ["trace.history=true"]).trace.history


def test_a_disk_that_is_full_ends_the_record_only(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("a file")
    simulate(schedule, Worker, workers=2, attach=lambda node: record_history(node, tmp_path / "trace"))
