"""The parts of a batch job, from its layout and the requested nodes. Pure functions.

Ranks are placed on nodes round-robin, so the largest number of ranks per node counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mpips.cluster.layout import LayoutSpec
from mpips.errors import InputError


@dataclass(frozen=True)
class Component:
    """Nodes of one kind: a job has one part, a heterogeneous job two."""

    nodes: int
    """Number of nodes; the least number where `most` is more."""
    per_node: int
    """Largest number of ranks per node."""
    ranks: int = 0
    """Number of ranks; 0 if it follows from the nodes that Slurm allocates."""
    most: int = 0
    """Largest number of nodes, where it may vary."""
    cpus_per_task: int = 1
    options: tuple[str, ...] = ()
    """Further options of sbatch, as in `mpips.launch.slurm_site.Site`."""


def nodes_of(text: str) -> tuple[int, int]:
    """Parse N or MIN-MAX; return least and most, which are equal for N.

    Raises:
        InputError: it is neither.
    """
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text, re.ASCII)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise InputError(f"--nodes {text}: give a number, or MIN-MAX")
    return least, most


def uniform(
    layout: LayoutSpec, nodes: int, per_node: int, cpus: int, options: tuple[str, ...] = ()
) -> Component:
    """Return the one part of a job on `nodes` nodes; `per_node` 0: as many as needed.

    Raises:
        InputError: the ranks do not fit.
    """
    room = fit("the job", nodes, per_node, layout.size(), "--nodes")
    return Component(nodes, room, layout.size(), 0, cpus, options)


def elastic(
    layout: LayoutSpec, least: int, most: int, per_node: int, cpus: int, options: tuple[str, ...] = ()
) -> tuple[Component, int]:
    """Return the part of a job with a variable number of nodes, and its number of ranks that are not workers.

    Raises:
        InputError: the fewest nodes have no room for a worker.
    """
    nodes = f"--nodes {least}-{most}"
    if not per_node or isinstance(layout.workers, dict):
        raise InputError(
            f"{nodes}: all remaining ranks are workers: give --ntasks-per-node, and no groups of workers"
        )
    fixed = layout.size() - layout.workers
    if least * per_node <= fixed:
        raise InputError(
            f"{nodes}: {least} x {per_node} ranks leave no worker beside {fixed} others: "
            f"use --ntasks-per-node {fixed // least + 1}"
        )
    return Component(least, per_node, 0, most, cpus, options), fixed


def split(
    layout: LayoutSpec,
    server_nodes: int,
    nodes: int,
    per_node: int,
    cpus: int,
    server_options: tuple[str, ...] = (),
    worker_options: tuple[str, ...] = (),
) -> tuple[Component, Component]:
    """Return the two parts of a heterogeneous job: schedulers and servers, then workers and spares, in rank order.

    Raises:
        InputError: the ranks do not fit.
    """
    first = layout.schedulers + layout.servers
    rest = layout.size() - first
    servers = fit("scheduler and servers", server_nodes, per_node, first, "--server-nodes")
    workers = fit("workers and spares", nodes, per_node, rest, "--nodes")
    return (
        Component(server_nodes, servers, first, 0, cpus, server_options),
        Component(nodes, workers, rest, 0, cpus, worker_options),
    )


def fit(what: str, nodes: int, per_node: int, ranks: int, option: str) -> int:
    """Return the ranks per node: `per_node`, or as many as needed if that is 0.

    Raises:
        InputError: the ranks do not fit on the nodes, or leave some empty.
    """
    if nodes < 1 or per_node < 0:
        raise InputError(f"{option} and --ntasks-per-node: at least 1")
    needed = -(-ranks // nodes)
    if per_node and per_node < needed:
        raise InputError(
            f"{what}: {ranks} ranks, but {nodes} x {per_node} have room for {nodes * per_node}: "
            f"use {option} {-(-ranks // per_node)}, or --ntasks-per-node {needed}, or fewer ranks (--workers)"
        )
    if ranks < nodes:
        raise InputError(
            f"{what}: {ranks} ranks are too few for {nodes} nodes: "
            f"use {option} {ranks}, or more ranks (--workers)"
        )
    return per_node or needed
