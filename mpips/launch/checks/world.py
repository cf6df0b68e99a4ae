"""Verdicts about the ranks of `mpips validate`: one world, on every node, the same software; and all their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpips.launch.checks import file_system, reports, wire
from mpips.launch.checks.check import Check, Verdict
from mpips.launch.checks.reports import Report

if TYPE_CHECKING:
    from mpips.launch.mpi_launcher import Starter

FOUND = ("wire", *file_system.NAMES)
"""The checks of the ranks, in their order."""


@dataclass(frozen=True)
class Started:
    """How the ranks were started, and ended."""

    starter: Starter
    line: str
    """The command that started them."""
    ranks: int
    nodes: int
    """The number of nodes that they should be on."""
    seconds: float
    """Their time limit."""
    folder: str
    code: int | None
    """The launcher's exit code; None if it did not end in time."""
    stderr: str


def judge(found: Mapping[int, Report], output: str, started: Started) -> list[Check]:
    """Return the outcomes of all checks of ranks, from what they have reported.

    Args:
        found: the reports, by rank.
        output: the whole output: ranks of several worlds have the same numbers.
        started: how they were started.
    """
    starter, ranks = started.starter, started.ranks
    ended = _ended(found, started)
    found = {rank: each for rank, each in found.items() if 0 <= rank < ranks}
    name = f"{starter.path.rpartition('/')[2]} ({starter.mpi.vendor} {starter.mpi.version})"
    worlds = [each.facts["MPI"] for each in found.values() if "MPI" in each.facts]
    against = f"one world of {ranks} ranks"
    if any(world.get("size") != ranks for world in worlds):
        mend = (
            "the launcher, or its PMI, does not belong to the MPI that mpi4py loads: `mpips doctor` tries all, and "
            "shows the line to use (srun: --mpi=pmix for Open MPI, --mpi=pmi2 for MPICH)"
        )
        number = output.count('"facts": {"size": ')
        return [Check("launcher", Verdict.FAIL, f"{name} started {number} worlds of one rank", against, mend)]
    if len(worlds) < ranks:
        mend = f"try it alone: {started.line}"
        return [Check("launcher", Verdict.FAIL, f"{name}: {ended}", against, mend)]
    checks = [Check("launcher", Verdict.OK, f"{name} started {ranks} ranks", against)]
    checks += [_judge_nodes(found, started.nodes), _judge_software(found)]
    complete = [key for key in FOUND if all(key in each.facts for each in found.values())]
    pairs = [pair for each in found.values() for pair in each.facts.get("wire", {}).get("pairs", [])]
    if "wire" in complete and pairs:
        checks += wire.judge(pairs, _busy(found))
    hosts = {rank: each.host for rank, each in found.items()}
    for key in file_system.NAMES:
        if key in complete:
            facts = {rank: each.facts[key] for rank, each in found.items()}
            checks.append(file_system.judge(key, facts, hosts, started.folder))
    missing = [key for key in FOUND if key not in complete]
    if missing:
        mend = f"look at that node: its processes (ps, dmesg), its network, and whether {started.folder} answers there"
        value, limit = ended, f"an end within {started.seconds:.0f} s"
        checks.append(Check("ranks", Verdict.FAIL, value, limit, mend))
        checks += [Check(key, Verdict.SKIP, "not known") for key in missing]
    return checks


BUSY = 1.5
"""Runnable processes per core above which messages wait for a core rather than for the wire."""


def _busy(found: Mapping[int, Report]) -> str:
    """Return why ranks may have waited for a processor; "" if each probably had one."""
    facts = [each.facts["MPI"] for each in found.values()]
    nodes, clocks = len({each.get("node") for each in facts}), len({each.get("clock") for each in facts})
    if clocks < nodes:
        return f"{nodes} nodes share the cores of {clocks} machine{'' if clocks == 1 else 's'}"
    rank = max(found, key=lambda rank: float(found[rank].facts["MPI"].get("load", 0.0)))
    load = float(found[rank].facts["MPI"].get("load", 0.0))
    return f"{load:.1f} processes per core want to run on {found[rank].host}" if load > BUSY else ""


def _judge_nodes(found: Mapping[int, Report], nodes: int) -> Check:
    seen = len({each.facts["MPI"].get("node") for each in found.values()})
    names = sorted({each.host for each in found.values()})
    value = f"ranks on {seen} of {nodes} node{'' if nodes == 1 else 's'}: {_short(names)}"
    if seen >= nodes:
        return Check("nodes", Verdict.OK, value, "ranks on every node")
    mend = (
        "does the launcher know the nodes (in an allocation of Slurm, or by PRTE_MCA_prte_default_hostfile=FILE), and "
        "has each a free slot?"
    )
    return Check("nodes", Verdict.FAIL, value, "ranks on every node", mend)


def _judge_software(found: Mapping[int, Report]) -> Check:
    first = found[0].facts["MPI"].get("software", {})
    for rank, each in found.items():
        theirs = each.facts["MPI"].get("software", {})
        other = [name for name in first if theirs.get(name) != first[name]]
        if other:
            value = f"rank {rank} on {each.host} has " + ", ".join(
                f"{name} {theirs.get(name)}" for name in other
            )
            here = ", ".join(f"{name} {first[name]}" for name in other)
            mend = "use one environment on all nodes: a shared folder, or a container"
            return Check("software", Verdict.FAIL, value, f"rank 0 on {found[0].host}: {here}", mend)
    said = ", ".join(f"{name} {version}" for name, version in first.items())
    return Check("software", Verdict.OK, said, "the same everywhere")


def _ended(found: Mapping[int, Report], started: Started) -> str:
    """Return why not all ranks have reported, in one line."""
    at = reports.where(found, started.ranks)
    if started.code is None:
        return f"no end within {started.seconds:.0f} s: {at}"
    said = [line.strip(" -*=\t") for line in started.stderr.splitlines()]
    words = " ".join(dict.fromkeys(line for line in said if line))[:200]
    return f"ended with exit code {started.code}, {at}" + (f": {words}" if words else "")


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
