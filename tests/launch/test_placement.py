"""The placement of ranks, as `mpips layout` shows it: roles by node, key ranges, copies, warnings."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.cli import main
from mpips.config.job_file import Job, load
from mpips.errors import LayoutError
from mpips.launch.placement import describe, place, round_robin, warnings

PROGRAM = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    pass

def schedule(cluster, settings):
    return {}

class Worker:
    pass
"""


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    (folder / "toy.py").write_text(PROGRAM)
    (folder / "job.toml").write_text('[job]\nprogram = "toy.py"\nname = "toy"\n')
    return folder / "job.toml"


def job_of(job_file: Path, servers: int, workers: int = 1, spares: int = 0, replicas: int = 1) -> Job:
    layout = {"servers": servers, "workers": workers, "spares": spares}
    return load(job_file, [f"layout.{k}={v}" for k, v in layout.items()] + [f"ring.replicas={replicas}"])


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 9))
def test_ranks_are_placed_round_robin_within_capacities(ranks: int, nodes: int, extra: int) -> None:
    names = [f"n{number}" for number in range(nodes)]
    assert round_robin(ranks, names) == tuple(names[rank % nodes] for rank in range(ranks))
    room = [(ranks + number * extra) // nodes + 1 for number in range(nodes)]
    dealt = round_robin(ranks, names, room)
    count = Counter(dealt)
    assert len(dealt) == ranks and all(count[name] <= most for name, most in zip(names, room, strict=True))
    full = [name for name, most in zip(names, room, strict=True) if count[name] == most]
    others = [count[name] for name in names if name not in full]
    assert not others or max(others) - min(others) <= 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(LayoutError, match="7 ranks do not fit on 2 nodes, which take 6"):
        round_robin(7, ["a", "b"], [3, 3])


@pytest.mark.parametrize("replicas", [0, 1, 2])
def test_the_parts_add_up(job_file: Path, replicas: int) -> None:
    job = job_of(job_file, servers=5, workers=3, spares=2, replicas=replicas)
    placed = place(job, round_robin(job.layout.size(), ["a", "b", "c"]))
    assert sum(each.own for each in placed.holdings) == pytest.approx(1)
    assert sum(each.copies for each in placed.holdings) == pytest.approx(replicas)
    for each in placed.holdings:
        assert sum(each.at.values()) == pytest.approx(replicas * each.own)
        assert placed.hosts[each.rank] not in each.at, "three nodes are enough for two copies"
    assert warnings(placed) == []


def test_the_tables_of_a_small_job_in_full(job_file: Path) -> None:
    job = job_of(job_file, servers=2, workers=2, spares=1)
    assert describe(place(job, round_robin(6, ["a", "b"]))).splitlines() == [
        "node  ranks  roles",
        "a     0 2 4  scheduler 0, server 1, worker 1",
        "b     1 3 5  server 0, worker 0, spare 0",
        "",
        "server  rank  node  of all keys  copies of  its copies are on",
        "0       1     b     50.0%        50.0%      a 100%",
        "1       2     a     50.0%        50.0%      b 100%",
    ]


@pytest.mark.parametrize(
    ("servers", "replicas", "hosts", "said"),
    [
        (2, 1, "aaab", "all servers are on a: their copies survive the loss of a server, not of the node"),
        (2, 1, "aaaa", "all servers are on this one node"),
        (3, 2, "aabab", "ring.replicas = 2, but only 2 nodes have servers: some copies share a node"),
        (3, 1, "aaaab", "a has 3 of 3 servers, 2 would suffice: let the launcher place"),
        (1, 1, "aab", "one server: no other server can hold copies"),
    ],
)
def test_what_is_wrong_is_reported(
    job_file: Path, servers: int, replicas: int, hosts: str, said: str
) -> None:
    job = job_of(job_file, servers, workers=len(hosts) - servers - 1, replicas=replicas)
    assert any(line.startswith(said) for line in warnings(place(job, hosts)))


def test_a_large_layout_stays_readable(job_file: Path) -> None:
    job = job_of(job_file, servers=16, workers=300)
    text = describe(place(job, round_robin(317, [f"n{i}" for i in range(20)])))
    assert max(map(len, text.splitlines())) < 110
    assert "n0 " in text and " 15 workers" in text and "more" in text


# The command.


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["layout", "--help"])
    assert caught.value.code == 0
    assert "\n  mpips layout job.toml --nodes 4 " in capsys.readouterr().out


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_the_command_places_a_job_on_nodes(
    job_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = ["--set", "layout.servers=2", "--set", "layout.workers=2"]
    assert main(["layout", str(job_file), "--nodes", "2", *two]) == 0
    said = lines(capsys)
    assert said[0] == "toy: 5 ranks on 2 nodes, 1 copy of each server's keys"
    assert said[3].split()[:4] == ["node1", "0", "2", "4"]
    assert main(["layout", str(job_file), "--hosts", "x,x,y,y,z", *two]) == 0
    assert "0       1     x     50.0%        50.0%      y 100%" in lines(capsys)
    for name, value in {"ID": "7", "NODELIST": "n[1-2]"}.items():
        monkeypatch.setenv(f"SLURM_JOB_{name}", value)
    assert main(["layout", str(job_file), "--json", *two]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [rank["host"] for rank in found["ranks"]] == ["n1", "n2", "n1", "n2", "n1"]
    assert [server["copies_on"] for server in found["servers"]] == [{"n1": 0.5}, {"n2": 0.5}]


def test_the_command_shows_a_run_as_it_was(
    job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "toy"
    run.mkdir(parents=True)
    (run / "job.toml").write_text(job_of(job_file, servers=2).to_toml())
    (run / "run.json").write_text(
        json.dumps({"ranks": [{"rank": r, "host": h} for r, h in enumerate("aabb")]})
    )
    trusted = ["--program", str(job_file.parent / "toy.py")]
    assert main(["layout", str(run), *trusted]) == 0
    shown = lines(capsys)
    assert "1       2     b     50.0%        50.0%      a 100%" in shown
    monkeypatch.chdir(tmp_path)
    assert main(["layout", "latest", *trusted]) == 0
    assert lines(capsys) == shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hosts", "a,b"], "--hosts names 2 hosts, and the job has 3 ranks"),
        (["--hosts", "a,,b"], "--hosts names 3 hosts"),
        (["--hosts", "a,b,c", "--nodes", "2"], "--hosts gives the host of every rank"),
        (["--nodes", "0"], "--nodes 0: there must be at least 1"),
        (["--nodes", "1", "--ntasks-per-node", "2"], "3 ranks do not fit on 1 nodes, which take 2"),
    ],
)
def test_invalid_options_are_refused_in_one_line(
    job_file: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["layout", str(job_file), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"mpips: error: {said}") and captured.err.count("\n") == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layout", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert main(["layout", str(tmp_path), "--nodes", "2"]) == 2
    assert "the layout of a run is fixed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        ["layout.servers=1000000"],
        ["layout.spares=1000000"],
        ["layout.servers=4000", "ring.replicas=3999"],
        ["layout.servers=100", "ring.virtual_servers=65536"],
    ],
)
def test_more_shards_than_a_rank_could_compute_are_refused(
    job_file: Path, capsys: pytest.CaptureFixture[str], settings: list[str]
) -> None:
    assert main(["layout", str(job_file), *(part for each in settings for part in ("--set", each))]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a job has at most 262,144: use fewer" in said and settings[0] in said


def test_more_nodes_than_ranks_are_as_many(job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["layout", str(job_file), "--set", "layout.servers=3"]
    assert main([*given, "--nodes", "1000000000", "--ntasks-per-node", "7"]) == 0
    said = capsys.readouterr().out
    assert main([*given, "--nodes", "5"]) == 0
    assert said == capsys.readouterr().out
