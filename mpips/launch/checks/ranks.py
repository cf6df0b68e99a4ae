"""The ranks of `mpips validate`: they check the world, the wire between nodes, and a folder, and report on stdout.

mpirun -n N python -P -m mpips.launch.checks.ranks FOLDER SECONDS

A rank ends after SECONDS at the latest, by an alarm signal: nothing is left of ranks that hang.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpips.launch.checks import file_system, reports, wire
from mpips.launch.checks.exchange import host_names, times
from mpips.launch.oversubscription import cores
from mpips.process.host import LOOPBACK, clock_name, host_address, host_name, machine
from mpips.process.mpi.open_mpi import initialize
from mpips.process.mpi.ucx import without_ucx_conf

if TYPE_CHECKING:
    from mpi4py import MPI

TCP_WAITS = 20 * wire.BUDGET
"""Seconds that a rank waits for data by TCP."""
SOFTWARE = ("mpips", "numpy", "numba", "mpi4py", "h5py")


class Rank:
    """A rank: its communicator, and the nodes of all ranks."""

    def __init__(self, comm: MPI.Intracomm, say: Callable[[str, dict[str, Any]], None]) -> None:
        self.comm, self._say = comm, say
        everyone = np.empty((comm.size, 8), np.uint8)
        comm.Allgather(np.frombuffer(machine(), np.uint8), everyone)
        nodes: dict[bytes, list[int]] = {}
        for rank, each in enumerate(everyone):
            nodes.setdefault(each.tobytes(), []).append(rank)
        self.nodes = list(nodes.values())
        """The ranks of each node."""

    def check(self, name: str, find: Callable[[], dict[str, Any]]) -> None:
        """Do a check of which this rank has the facts."""
        self._say(name, {"at": "begins"})
        self._say(name, {"facts": find()})

    def barrier(self, name: str) -> Callable[[], None]:
        """Return a function that waits for all ranks in a check; while it does, it leaves the processor to others."""

        def wait() -> None:
            self._say(name, {"at": reports.WAITS})
            request = self.comm.Ibarrier()
            while not request.Test():
                time.sleep(0.0005)
            self._say(name, {"at": "continues"})

        return wait

    def wire(self) -> dict[str, Any]:
        """Exchange messages with the neighbours in the ring of nodes; on one node, between its first two ranks."""
        pairs = [
            [(self.nodes[a][0], self.nodes[b][0]) for a, b in found]
            for found in wire.pair_rounds(len(self.nodes))
        ]
        if len(self.nodes) == 1 and self.comm.size > 1:
            pairs = [[(0, 1)]]
        found = []
        for each in pairs:
            mine = next((pair for pair in each if self.comm.rank in pair), None)
            color = _undefined() if mine is None else each.index(mine)
            # The first of the pair is rank 0 of their communicator.
            pair = self.comm.Split(color, 0 if mine is not None and mine[0] == self.comm.rank else 1)
            if mine is not None:
                found += self._link(pair)
                pair.Free()
            self.barrier("wire")()
        return {"pairs": found}

    def _link(self, pair: MPI.Comm) -> list[dict[str, Any]]:
        """Measure the link of two ranks by MPI and by TCP; return its facts on the first of them."""
        first = pair.rank == 0

        def agree(number: int) -> int:
            box = np.array([number], np.int64)
            pair.Bcast(box, 0)
            return int(box[0])

        def both(well: bool) -> bool:
            total = np.zeros(1, np.int64)
            pair.Allreduce(np.array([well], np.int64), total)
            return bool(total[0] == 2)

        names = host_names(pair)
        facts: dict[str, Any] = {"hosts": names}
        facts["mpi"] = wire.measure(lambda size, rounds: times(pair, size, rounds), agree).facts()
        address = LOOPBACK if names[0] == names[1] else host_address()
        box = np.zeros(64, np.uint8)
        listener = None
        if first:
            with suppress(OSError):
                listener = wire.listen(address)
        if listener is not None:
            said = np.frombuffer(f"{address} {listener.getsockname()[1]}".encode(), np.uint8)
            box[: said.size] = said
        pair.Bcast(box, 0)
        link = None
        if listener is not None:
            link = wire.accept(listener, TCP_WAITS)
        elif text := box.tobytes().rstrip(b"\0").decode():
            where, port = text.split()
            link = wire.connect(where, int(port), TCP_WAITS)
        if both(link is not None) and link is not None:
            facts["stated"] = None if names[0] == names[1] else wire.stated(link.address)
            speed = wire.measure_reference(link.exchange, agree, both)
            facts["tcp"] = None if speed is None else speed.facts()
        if link is not None:
            link.close()
        return [facts] if first else []


def _undefined() -> int:
    from mpi4py import MPI

    return MPI.UNDEFINED


def main(folder: Path, seconds: float) -> None:
    """Do all checks."""
    signal.alarm(max(1, int(seconds)))
    host, number = host_name(), [reports.rank_before_mpi()]

    def say(check: str, facts: dict[str, Any]) -> None:
        os.write(1, f"{reports.line(number[0], host, check, **facts)}\n".encode())

    say("MPI", {"at": "begins"})
    import mpi4py

    mpi4py.rc(initialize=False, finalize=True)
    with without_ucx_conf():
        from mpi4py import MPI

        initialize(MPI)
    comm = MPI.COMM_WORLD
    number[0] = comm.rank
    software = {name: version(name) for name in SOFTWARE}
    rank = Rank(comm, say)
    about: dict[str, Any] = {
        "size": comm.size,
        "node": next(at for at, each in enumerate(rank.nodes) if comm.rank in each),
    }
    about |= {"load": os.getloadavg()[0] / cores(), "clock": clock_name(host)}
    say("MPI", {"facts": {**about, "software": {"python": platform.python_version(), **software}}})
    rank.check("wire", rank.wire)
    files = file_system.RealFiles()
    for name in file_system.NAMES:
        steps = file_system.steps(name, files, folder, comm.rank)
        rank.check(name, lambda steps=steps, name=name: file_system.take(steps, rank.barrier(name)))  # type: ignore[misc]


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
