"""`mpips layout`: which ranks run on which node, which share of the keys each server holds, and where copies are."""

from __future__ import annotations

import argparse

from mpips.cli import own_program
from mpips.process.argument_parser import add_command, add_set

DESCRIPTION = """\
Show the ranks and roles of each node, the share of the keys that each server holds, and where its copies are: for a
job before it starts, or for a run as it started. Warns if a copy is on the node of its primary.

  mpips layout job.toml --nodes 4               ranks placed cyclically on 4 nodes, as by mpips run and submit
  mpips layout job.toml --nodes 4 --ntasks-per-node 8 --set layout.servers=6
  mpips layout job.toml --hosts a,a,b,b,c       one name for each rank
  mpips layout job.toml                         on the nodes of the allocation, else on this machine
  mpips layout runs/NAME                        the layout of that run (or: latest)
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "layout", "show which roles run on which node, and where copies are", DESCRIPTION, command
    )
    parser.add_argument("job", metavar="JOB|RUN", help="a job file, or a run's folder")
    parser.add_argument("--nodes", type=int, metavar="N", help="the number of nodes")
    parser.add_argument("--ntasks-per-node", type=int, metavar="T", help="ranks on a node, at most")
    parser.add_argument("--hosts", metavar="A,B,...", help="the host of each rank")
    add_set(parser)
    own_program.add(parser)
    parser.add_argument("--json", action="store_true", help="print the layout as JSON")


def command(arguments: argparse.Namespace) -> int:
    """Show the layout."""
    from mpips.config.job_file import load
    from mpips.config.program import trusted_loader
    from mpips.errors import InputError
    from mpips.launch import oversubscription, placement
    from mpips.process.host import host_name
    from mpips.process.printable import json_text
    from mpips.rundir.order_files import named_run

    run = named_run(arguments.job)
    if run.is_dir():
        if arguments.set or arguments.nodes or arguments.ntasks_per_node or arguments.hosts:
            raise InputError(
                f"{run}: the layout of a run is fixed: leave out --set, --nodes, --ntasks-per-node, --hosts"
            )
        hosts = placement.hosts_of(run)
        job = load(run / "job.toml", programs=trusted_loader(arguments.program))
    else:
        job = load(arguments.job, arguments.set)
        hosts = hosts_of_ranks(arguments, job.layout.size())
    placed = placement.place(job, hosts)
    if arguments.json:
        print(json_text(placement.summary(job, placed)))
        return 0
    copies = (
        "no copies"
        if not placed.replicas
        else f"{placed.replicas} cop{'y' if placed.replicas == 1 else 'ies'}"
    )
    count = f"{len(hosts)} ranks on {len(placed.nodes)} node{'s' if len(placed.nodes) > 1 else ''}"
    print(f"{job.name}: {count}, {copies} of each server's keys\n")
    print(placement.describe(placed))
    if set(hosts) == {host_name()}:
        warning = oversubscription.warning(len(hosts), 1, oversubscription.cores(), job.heartbeat.patience)
        if warning:
            print(f"\n{warning}")
    return 0


def hosts_of_ranks(arguments: argparse.Namespace, ranks: int) -> tuple[str, ...]:
    """Return each rank's host, from the arguments, the allocation or this machine; LayoutError if ranks do not fit."""
    import os

    from mpips.errors import LayoutError
    from mpips.launch import slurm_env
    from mpips.launch.placement import round_robin
    from mpips.process.host import host_name

    if arguments.hosts is not None:
        if arguments.nodes or arguments.ntasks_per_node:
            raise LayoutError("--hosts gives the host of every rank: leave out --nodes and --ntasks-per-node")
        hosts = tuple(host.strip() for host in arguments.hosts.split(","))
        if len(hosts) != ranks or not all(hosts):
            raise LayoutError(
                f"--hosts names {len(hosts)} hosts, and the job has {ranks} ranks: name one for each"
            )
        return hosts
    for name, value in (("--nodes", arguments.nodes), ("--ntasks-per-node", arguments.ntasks_per_node)):
        if value is not None and value < 1:
            raise LayoutError(f"{name} {value}: there must be at least 1")
    room = arguments.ntasks_per_node
    if arguments.nodes is None:
        allocation = slurm_env.facts(os.environ).get("slurm", {})
        nodes = allocation.get("nodes") or [host_name()]
    else:
        # The others would be empty.
        nodes = [f"node{number}" for number in range(1, min(arguments.nodes, ranks) + 1)]
    return round_robin(ranks, nodes, [room] * len(nodes) if room else None)
