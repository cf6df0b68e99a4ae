"""What the reports of ranks tell: worlds, nodes, software, and which rank hangs, or has died, where."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mpips.launch.checks import reports, world
from mpips.launch.checks.check import Check, Verdict, accepted, lines, summary

STARTER: Any = SimpleNamespace(
    path="/x/bin/mpirun", mpi=SimpleNamespace(vendor="Open MPI", version="5.0.11"), kind="openmpi"
)
SOFTWARE = {"python": "3.12.1", "mpips": "1.0.0"}
DISK = {
    "visibility": {"created": 0.001, "replaced": 0.002},
    "atomic rename": {"reads": 9, "torn": 0, "missing": 0, "older": 0, "ended": True},
    "fsync": {"seconds": 0.01},
}


def said(rank: int, node: int, until: str = "", **about: Any) -> str:
    """Return what a rank of four says; with `until` it hangs in that check."""
    host, out = f"n{node}", []
    facts = {"size": 4, "node": node, "software": SOFTWARE, "load": 0.5, "clock": f"c{node}", **about}
    link = {"hosts": ["n0", "n1"], "mpi": {"latency_seconds": 1e-6, "bytes_per_second": 1e9}}
    each = {"MPI": facts, "wire": {"pairs": [link] if rank == 0 else []}, **DISK}
    each["locks"] = {"taken": True, "created": rank == 0}
    for name, found in each.items():
        out.append(reports.line(rank, host, name, at="begins"))
        if name == until:
            return "\n".join(out)
        out.append(reports.line(rank, host, name, facts=found))
    return "\n".join(out)


def judged(text: str, code: int | None = 0, stderr: str = "", nodes: int = 2) -> dict[str, Check]:
    started = world.Started(STARTER, "mpirun -n 4 python", 4, nodes, 30.0, "/scratch", code, stderr)
    return {each.name: each for each in world.judge(reports.read(text), text, started)}


def all_four(**of: str) -> str:
    return "\n".join(of.get(f"r{rank}", said(rank, rank % 2)) for rank in range(4))


def test_a_sound_cluster_passes() -> None:
    found = judged("some other line\n" + all_four())
    assert {name: str(each.verdict) for name, each in found.items()} == dict.fromkeys(
        ("launcher", "nodes", "software", "latency", "bandwidth", *DISK, "locks"), "ok"
    )
    assert found["launcher"].value == "mpirun (Open MPI 5.0.11) started 4 ranks"
    assert found["nodes"].value == "ranks on 2 of 2 nodes: n0, n1"
    assert accepted(list(found.values()))


def test_worlds_of_one_rank_fail_and_nothing_else_is_checked() -> None:
    found = judged("\n".join(said(0, 0, size=1) for _ in range(4)))
    assert list(found) == ["launcher"] and found["launcher"].verdict is Verdict.FAIL
    assert (
        "started 4 worlds of one rank" in found["launcher"].value and "mpips doctor" in found["launcher"].mend
    )


def test_a_node_without_ranks_fails() -> None:
    found = judged(all_four(), nodes=3)["nodes"]
    assert (found.verdict, found.value) == (Verdict.FAIL, "ranks on 2 of 3 nodes: n0, n1")


def test_other_software_on_a_node_fails() -> None:
    found = judged(all_four(r3=said(3, 1, software={**SOFTWARE, "mpips": "0.9.0"})))["software"]
    assert (found.verdict, found.value) == (Verdict.FAIL, "rank 3 on n1 has mpips 0.9.0")
    assert found.against == "rank 0 on n0: mpips 1.0.0"


@pytest.mark.parametrize("about", [{"load": 9.0}, {"clock": "one"}])
def test_nodes_that_are_busy_or_share_a_machine_do_not_fail_for_slow_messages(about: dict[str, Any]) -> None:
    slow = {"latency_seconds": 1e-1, "bytes_per_second": 1e3}
    link = {"hosts": ["n0", "n1"], "mpi": slow, "tcp": {"latency_seconds": 1e-5, "bytes_per_second": 1e9}}

    def texts(**more: Any) -> str:
        ranks = [said(rank, rank % 2, **more) for rank in range(4)]
        return "\n".join([*ranks, reports.line(0, "n0", "wire", facts={"pairs": [link]})])

    assert judged(texts())["bandwidth"].verdict is Verdict.FAIL
    found = judged(texts(**about))["bandwidth"]
    assert found.verdict is Verdict.WARN and found.mend.startswith("repeat it when nodes are idle")


def test_a_rank_that_hangs_is_named_with_its_check() -> None:
    waits = [
        said(rank, rank % 2, "fsync") + "\n" + reports.line(rank, f"n{rank % 2}", "fsync", at=reports.WAITS)
        for rank in (0, 1, 2)
    ]
    found = judged("\n".join([*waits, said(3, 1, "fsync")]), code=None)
    assert found["ranks"].verdict is Verdict.FAIL
    assert found["ranks"].value == 'no end within 30 s: rank 3 on n1 in the check "fsync"'
    assert {name for name, each in found.items() if each.verdict is Verdict.SKIP} == {"fsync", "locks"}
    assert found["atomic rename"].verdict is Verdict.OK, "what is known is told"


def test_a_rank_that_dies_is_named_with_the_launchers_words() -> None:
    found = judged(
        all_four(r1=said(1, 1, "wire")), code=137, stderr="---\n** rank 1 exited on signal 9 **\n---"
    )
    assert found["ranks"].value == (
        'ended with exit code 137, rank 1 on n1 in the check "wire": rank 1 exited on signal 9'
    )


def test_ranks_that_never_start_are_named() -> None:
    found = judged("\n".join(said(rank, 0, "MPI") for rank in (0, 2)), code=None)
    assert list(found) == ["launcher"]
    assert "no end within 30 s: ranks 1, 3 have not started" in found["launcher"].value
    assert found["launcher"].mend == "try it alone: mpirun -n 4 python"


@pytest.mark.parametrize("noise", ["", "{", "[1]", '{"rank": "0"}', 9000 * "["])
def test_other_output_is_not_taken_for_a_report(noise: str) -> None:
    assert reports.read(reports.PREFIX + noise) == {}


def test_processes_that_do_not_know_their_rank_before_mpi_are_no_rank_of_their_own() -> None:
    unnumbered = "\n".join(reports.line(-1, f"n{rank % 2}", "MPI", at="begins") for rank in range(4))
    assert judged(unnumbered + "\n" + all_four())["nodes"].verdict is Verdict.OK
    found = judged("\n".join([unnumbered, said(0, 0), said(2, 0)]), code=None)
    assert list(found) == ["launcher"]
    assert found["launcher"].value.endswith(
        'ranks 1, 3 have not started; processes on n1 have, in the check "MPI"'
    )


def test_ranks_beyond_those_that_were_started_are_not_judged() -> None:
    alone = reports.line(7, "n9", "MPI", at="begins")
    assert {each.verdict for each in judged(all_four() + "\n" + alone).values()} == {Verdict.OK}


def test_the_rank_is_known_before_mpi_is() -> None:
    assert reports.rank_before_mpi({"PMIX_RANK": "3"}) == 3
    assert reports.rank_before_mpi({"SLURM_PROCID": "2"}) == 2
    assert reports.rank_before_mpi({}) == -1


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_lines_fit_the_terminal(width: int) -> None:
    check = Check(
        "atomic rename", Verdict.WARN, "a value " * 12, "what it is compared with " * 4, "a mend " * 30
    )
    shown = lines(check, width)
    assert max(map(len, shown)) <= width and shown[0].startswith("warn  atomic rename   a value")
    assert [line for line in shown if line.strip().startswith("mend: a mend")]
    assert " ".join(shown).split().count("mend") == 30, "nothing is cut off"


def test_a_warning_is_accepted_and_a_failure_is_not() -> None:
    checks = [Check("a", Verdict.OK, "1"), Check("b", Verdict.WARN, "2"), Check("c", Verdict.SKIP, "3")]
    assert accepted(checks) and summary(checks, 1.0) == "accepted: 3 checks in 1.0 s: 1 ok, 1 warn, 1 skip"
    assert not accepted([*checks, Check("d", Verdict.FAIL, "4")])
