"""Placement: the roles on each node, the keys of each server, and the nodes of their copies.

Roles follow from ranks, and the launcher decides the node of a rank; `mpips run` and the batch scripts make it place
ranks round-robin (`round_robin`). `mpips.cluster.hash_ring` decides how a run uses its
ranks' hosts; this module prints it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from mpips.cluster.layout import Layout
from mpips.cluster.view import first_view
from mpips.config.job_file import Job
from mpips.errors import InputError, LayoutError
from mpips.process.printable import printable
from mpips.ranges import END
from mpips.rundir.folder import RunFolder


@dataclass(frozen=True)
class Holding:
    """The keys of one server at the start: fractions of the whole key space, in [0, 1]."""

    rank: int
    own: float
    """Fraction of keys of which it is the primary."""
    copies: float
    """Fraction of keys of which it has copies."""
    at: dict[str, float]
    """By node: the fraction of its own keys with a copy there."""


@dataclass(frozen=True)
class Placement:
    """A job's ranks on nodes."""

    layout: Layout
    hosts: tuple[str, ...]
    """By rank."""
    replicas: int
    """Copies of each server's keys."""
    holdings: tuple[Holding, ...]
    """By server, in the order of rank."""

    @property
    def nodes(self) -> list[str]:
        """Return the nodes in order of their first rank."""
        return list(dict.fromkeys(self.hosts))


def round_robin(ranks: int, nodes: Sequence[str], capacities: Sequence[int] | None = None) -> tuple[str, ...]:
    """Return the node of each rank in round-robin placement; `capacities` is the largest number of ranks of each node.

    Raises:
        LayoutError: there is not room for all.
    """
    if capacities is not None and sum(capacities) < ranks:
        raise LayoutError(f"{ranks} ranks do not fit on {len(nodes)} nodes, which take {sum(capacities)}")
    left = dict.fromkeys(nodes, ranks) if capacities is None else dict(zip(nodes, capacities, strict=True))
    found: list[str] = []
    nodes_cyclic = cycle(nodes)
    while len(found) < ranks:
        node = next(nodes_cyclic)
        if left[node] > 0:
            left[node] -= 1
            found.append(node)
    return tuple(found)


def place(job: Job, hosts: Sequence[str]) -> Placement:
    """Return the placement of a job on these hosts, one for each rank.

    Raises:
        LayoutError: it needs another number of ranks.
    """
    layout = Layout.of(len(hosts), job.layout)
    ring = first_view(layout, job.ring.virtual_servers, job.ring.replicas, hosts).ring
    own, copies = dict.fromkeys(layout.servers, 0.0), dict.fromkeys(layout.servers, 0.0)
    at: dict[int, dict[str, float]] = {rank: {} for rank in layout.servers}
    for shard, (owner, *others) in enumerate(ring.chains(job.ring.replicas)):
        part = ring.range(shard).span / END
        own[owner] += part
        for other in others:
            copies[other] += part
        for node in {hosts[other] for other in others}:
            at[owner][node] = at[owner].get(node, 0.0) + part
    holdings = tuple(Holding(rank, own[rank], copies[rank], at[rank]) for rank in layout.servers)
    return Placement(layout, tuple(hosts), min(job.ring.replicas, len(layout.servers) - 1), holdings)


def hosts_of(run: Path) -> tuple[str, ...]:
    """Return the host of each rank of a run, from its `run.json`.

    Raises:
        InputError: the folder has no run that has started.
    """
    facts = RunFolder(run).read_run() or {}
    if not facts.get("ranks") or not all("host" in rank for rank in facts["ranks"]):
        raise InputError(f"{run}: not a run folder: it has no run.json with the ranks of a run")
    return tuple(printable(rank["host"], keep="") for rank in facts["ranks"])


# --- Output ------------------------------------------------------------------------------------------


def describe(placement: Placement) -> str:
    """Return the placement as two tables, with warnings."""
    layout, hosts = placement.layout, placement.hosts
    rows, on = [("node", "ranks", "roles")], dict[str, list[int]]()
    for rank, host in enumerate(hosts):
        on.setdefault(host, []).append(rank)
    for node, ranks in on.items():
        roles = [str(layout.places[rank]) for rank in ranks]
        rows.append((node, _shortened(ranks), _grouped(roles)))
    server_rows = [("server", "rank", "node", "of all keys", "copies of", "its copies are on")]
    for index, holding in enumerate(placement.holdings):
        at = sorted(holding.at.items(), key=lambda item: (-item[1], item[0]))
        parts = ", ".join(f"{node} {share / holding.own:.0%}" for node, share in islice(at, 4))
        more = f", {len(at) - 4} more" if len(at) > 4 else ""
        server_rows.append(
            (
                str(index),
                str(holding.rank),
                hosts[holding.rank],
                f"{holding.own:.1%}",
                f"{holding.copies:.1%}",
                parts + more or "-",
            )
        )
    remarks = [f"warning: {line}" for line in warnings(placement)]
    lines = [*_table(rows), "", *_table(server_rows), *([""] if remarks else []), *remarks]
    return "\n".join(printable(line, keep="") for line in lines)


def warnings(placement: Placement) -> list[str]:
    """Return warnings about copies on their primary's node, and about nodes with too many servers."""
    hosts, lines, copies = placement.hosts, [], placement.replicas
    servers = Counter(hosts[holding.rank] for holding in placement.holdings)
    nodes = len(placement.nodes)
    if copies and len(servers) == 1:
        where = f"on {next(iter(servers))}" if nodes > 1 else "on this one node"
        lines.append(f"all servers are {where}: their copies survive the loss of a server, not of the node")
    elif copies >= len(servers) and copies:
        lines.append(
            f"ring.replicas = {copies}, but only {len(servers)} nodes have servers: some copies share a node"
        )
    most = -(-len(placement.holdings) // nodes)
    for node, count in servers.items():
        if count > most:
            lines.append(
                f"{node} has {count} of {len(placement.holdings)} servers, {most} would suffice: let the launcher "
                "place ranks round-robin (srun --distribution=cyclic, mpirun --map-by node, mpiexec -ppn 1)"
            )
    if len(placement.holdings) == 1:
        lines.append("one server: no other server can hold copies, and its death ends the run")
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _shortened(ranks: Sequence[int]) -> str:
    if len(ranks) <= 8:
        return " ".join(map(str, ranks))
    return " ".join(map(str, ranks[:6])) + f" ... {ranks[-1]} ({len(ranks)})"


def _grouped(roles: Sequence[str]) -> str:
    """Return "worker 0", "worker 3" as "workers 0 3", many of them as a number."""
    by: dict[str, list[str]] = {}
    for role in roles:
        name, _, index = role.partition(" ")
        by.setdefault(name, []).append(index)
    return ", ".join(
        f"{name} {indices[0]}"
        if len(indices) == 1
        else f"{name}s {' '.join(indices)}"
        if len(indices) <= 6
        else f"{len(indices)} {name}s"
        for name, indices in by.items()
    )


def summary(job: Job, placement: Placement) -> dict[str, Any]:
    """Return the placement as JSON-able data."""
    return {
        "name": job.name,
        "replicas": placement.replicas,
        "ranks": [
            {
                "rank": each.rank,
                "role": each.role.value,
                "index": each.index,
                "host": placement.hosts[each.rank],
            }
            for each in placement.layout.places
        ],
        "servers": [
            {"rank": each.rank, "own": each.own, "copies": each.copies, "copies_on": each.at}
            for each in placement.holdings
        ],
        "warnings": warnings(placement),
    }
