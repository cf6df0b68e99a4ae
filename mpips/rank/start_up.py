"""The start of a run: the data that all ranks exchange and agree on before the first message. Functions with a
communicator are collective.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mpips.checkpoint.checkpoint import check_directory
from mpips.cluster.layout import Layout
from mpips.cluster.view import first_view
from mpips.errors import InputError, cannot_write, exit_code, in_a_line
from mpips.exit_codes import ExitCode
from mpips.filters.named import fingerprint, parse_entry
from mpips.membership.heartbeat import Address, Heartbeat
from mpips.process.first_rank import seems_first
from mpips.process.host import LOOPBACK, host_address, host_name, machine
from mpips.process.printable import printable
from mpips.provenance import provenance, run_json
from mpips.rank.ending import say
from mpips.rank.prepare import Prepared, checkpoints, to_resume
from mpips.replay.recorder import write_about
from mpips.rundir import lease
from mpips.rundir.folder import RunFolder, write_text

if TYPE_CHECKING:
    from mpi4py import MPI

_NONE = 2**62
"""Larger than any value of a rank with an error: every rank can start."""
_PROCESS_BYTES = 256
"""Bytes that each rank sends: process id, fingerprint of the filters, and host name."""


class Process(NamedTuple):
    """The process of a rank."""

    pid: int
    host: str


def gather(world: MPI.Intracomm, mine: bytes) -> list[bytes]:
    """Gather the bytes `mine` of each rank, equally many on all ranks, by rank."""
    everyone = np.empty((world.Get_size(), len(mine)), np.uint8)
    world.Allgather(np.frombuffer(mine, np.uint8), everyone)
    return [raw.tobytes() for raw in everyone]


def exchange_processes(
    world: MPI.Intracomm, prepared: Prepared | None
) -> tuple[list[Process], InputError | None]:
    """Gather the processes, by rank; also return the error of ranks that have different filters, if any has."""
    chains = () if prepared is None else (prepared.job.filters.push, prepared.job.filters.pull)
    filters = "-".join(fingerprint(each).hex() for each in chains)
    text = f"{os.getpid()} {filters} {host_name()}".encode()
    found = [
        raw.rstrip(b"\0").decode().split(" ", 2) for raw in gather(world, text.ljust(_PROCESS_BYTES, b"\0"))
    ]
    problem = None
    # Those of a rank that cannot start are unknown, and empty here.
    first, (_, usual, there) = next(
        ((rank, each) for rank, each in enumerate(found) if each[1]), (0, found[0])
    )
    for rank, (_, theirs, where) in enumerate(found):
        if prepared is not None and theirs not in ("", usual):
            named = ", ".join(each.name for chain in chains for each, _ in map(parse_entry, chain))
            problem = InputError(
                f"rank {rank} on {where} has other filters than rank {first} on {there}: "
                f"{named} must be the same everywhere"
            )
    return [Process(int(pid), where) for pid, _, where in found], problem


def first_error(world: MPI.Intracomm, error: BaseException | None) -> tuple[ExitCode, str] | None:
    """Agree that every rank can start: None, or the exit code and text of the first rank that cannot."""
    from mpi4py import MPI

    rank = world.Get_rank()
    mine = np.array([_NONE if error is None else rank << 8 | exit_code(error)], np.int64)
    first = np.empty(1, np.int64)
    world.Allreduce(mine, first, MPI.MIN)
    if first[0] == _NONE:
        return None
    failed, code = int(first[0]) >> 8, ExitCode(int(first[0]) & 0xFF)
    buffer = np.zeros(8192, np.uint8)
    if error is not None:
        text = in_a_line(error)
        if code == ExitCode.FAILED:
            text = f"rank {failed} on {host_name()}: {text}"
            say("".join(traceback.format_exception(error)).rstrip())
        raw = np.frombuffer(printable(text).encode()[: buffer.size], np.uint8)
        buffer[: raw.size] = raw
    world.Bcast(buffer, failed)
    return code, buffer.tobytes().rstrip(b"\0").decode(errors="replace")


def first_asked(world: MPI.Intracomm, asked: Sequence[int]) -> int:
    """Agree whether any rank was asked to stop: return a signal that one has received; 0 if none has."""
    from mpi4py import MPI

    most = np.empty(1, np.int64)
    world.Allreduce(np.array([next(iter(asked), 0)], np.int64), most, MPI.MAX)
    return int(most[0])


def share_folder(
    world: MPI.Intracomm, folder: RunFolder | None, resume: Path | None
) -> tuple[RunFolder, Path | None]:
    """Broadcast the run's folder and checkpoint, of rank 0: any rank may have to lead, or write the result.

    Other runs write checkpoints meanwhile, so ranks may have found different latest ones.
    """
    buffer = np.zeros(3 * 4096, np.uint8)
    if folder is not None:
        lease.remove(folder.path)
        raw = b"\0".join(map(os.fsencode, (folder.path, resume or "", folder.start)))
        buffer[: len(raw)] = np.frombuffer(raw, np.uint8)
    world.Bcast(buffer, 0)
    if folder is not None:
        return folder, resume
    path, checkpoint, start = map(os.fsdecode, buffer.tobytes().split(b"\0")[:3])
    shared = RunFolder(path)
    shared.start = start
    return shared, Path(checkpoint) if checkpoint else None


def start_heartbeat(world: MPI.Intracomm, period: float) -> Heartbeat:
    """Exchange the addresses of heartbeats, and start to send them every `period` seconds."""
    alone = len(set(gather(world, machine()))) == 1
    heartbeat = Heartbeat(world.Get_rank(), period, LOOPBACK if alone else host_address())
    heartbeat.start([Address.from_bytes(raw) for raw in gather(world, heartbeat.address.to_bytes())])
    return heartbeat


def make_folder(prepared: Prepared) -> RunFolder:
    """Make the run's folder, or claim the named one, on one rank; it checks the checkpoints' folder, too."""
    spec = prepared.job.checkpoint
    # The default folder is used only if someone asks for a checkpoint.
    if spec.directory or spec.every or spec.every_seconds:
        check_directory(checkpoints(prepared.job))
    if not seems_first():
        prepared.resume = to_resume(prepared.options, prepared.job)
    named = prepared.options.run_dir
    if named and prepared.options.resume:
        run_json.check_continues(RunFolder(named), prepared.job.program, prepared.options.resume)
    if named:
        run_json.check_outputs_are_own(RunFolder(named), prepared.program.outputs)
        return RunFolder.claim(named, bool(prepared.options.resume), prepared.options.claim)
    return RunFolder.create(prepared.job.name)


def write_run(
    folder: RunFolder, prepared: Prepared, layout: Layout, processes: list[Process], library: str
) -> None:
    """Write the job and its provenance into the run's folder, which gets the start's id; `library`: MPI's version.

    Raises:
        InputError: they cannot be written.
        OSError: there is no room for them.
    """
    job = prepared.job
    ranks = run_json.rank_facts(layout, processes, first_view(layout, job.ring.virtual_servers))
    before = run_json.ancestry(prepared.resume) if prepared.resume is not None else []
    facts = prepared.facts or provenance.collect(job, children=False)
    folder.start = facts.id
    try:
        write_text(folder.job, job.to_toml())
        run_json.write_run(folder, facts, ranks, mpi=library, ancestry=before)
        if job.record.on:
            write_about(folder.record, job, prepared.resume)
    except OSError as error:
        raise cannot_write(folder.path, error, "the run folder cannot be written") from error
