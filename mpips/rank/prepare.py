"""Before MPI starts: read the command line and the job file, load the program, find the host and the checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from mpips.checkpoint.lineage import newest_run, started_of
from mpips.checkpoint.manifest import damaged, read_manifest
from mpips.cluster.faults import FaultsSpec
from mpips.config import job_file
from mpips.config.job_file import Job, RecordSpec
from mpips.config.program import Program, load_program
from mpips.errors import CheckpointError, InputError, JobError
from mpips.filters import named
from mpips.launch import slurm_env
from mpips.process import supervisor
from mpips.process.first_rank import seems_first
from mpips.process.host import host_name
from mpips.process.interpreter import check_working_folder
from mpips.process.printable import one_line
from mpips.provenance import provenance, run_json
from mpips.rundir.folder import RunFolder
from mpips.storage.disk.disk_file import check_folder


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise JobError(f"{message}; see python -P -m mpips --help")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the rank's command line."""
    made = _Parser(
        prog="python -P -m mpips",
        description="One rank of a parameter server job. Start it on every rank: "
        "mpirun -n 4 python -P -m mpips JOB.toml. On a workstation, `mpips run JOB.toml` does that.",
    )
    made.add_argument("job", help="the job file (TOML)")
    made.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", dest="overrides",
                      help="override one key of the job file; may be repeated")  # fmt: skip
    made.add_argument("--run-dir", default="", help="the run's folder (default: runs/NAME-UTC)")
    made.add_argument("--resume", default="", metavar="CHECKPOINT|latest", help="resume from a checkpoint")
    made.add_argument("--replay", default="", metavar="HISTORY",
                      help="replay a recorded run; see `mpips reproduce`")  # fmt: skip
    made.add_argument("--claim", default="", metavar="ID", help="the claim of --run-dir, from `mpips run`")
    made.add_argument(supervisor.OPTION, type=supervisor.Supervisor.parse, metavar="PROCESS",
                      help="outlive the launcher; the process that supervises the run, from `mpips run`")  # fmt: skip
    made.add_argument("--warm-up", action="store_true",
                      help="load the program, which compiles its kernels, and exit without starting MPI")  # fmt: skip
    return made


@dataclass
class Prepared:
    """The facts that a rank has before MPI starts."""

    options: argparse.Namespace
    job: Job
    program: Program
    facts: provenance.Provenance | None
    resume: Path | None
    ends: float | None = None
    """The end of the allocation (wall, s), where it is known."""


def prepare(options: argparse.Namespace) -> Prepared:
    """Read the job file and load the program; collect provenance, too, on the process that seems to be rank 0."""
    check_working_folder()
    first = seems_first()
    with ExitStack() as stack:
        queries = None
        # git runs while the program loads.
        if first and not options.warm_up:
            queries = stack.enter_context(
                closing(provenance.start_queries(Path(options.job).absolute().parent))
            )
        ends = (slurm_env.ask_end_time if first else slurm_env.end_time)(os.environ, time.time())
        job = job_file.load(options.job, options.overrides)
        if options.replay:
            job = without_faults(job)
        program = load_program(job.program, job.base)
        module = program.schedule.__module__
        facts = None
        if queries is not None:
            batch = partial(slurm_env.facts, end=ends)
            facts = provenance.collect(job, queries=queries, batch=batch, module=module)
    try:
        named.check((*job.filters.push, *job.filters.pull))
        if job.store.memory:
            check_folder(job.store.folder)
    except InputError as error:
        raise InputError(f"{host_name()}: {error}") from error
    # The first rank finds it for all: there may be many runs and checkpoints to look at.
    resume = to_resume(options, job) if first or options.resume != "latest" else None
    return Prepared(options, job, program, facts, resume, ends)


def without_faults(job: Job) -> Job:
    """Return the job for a replay: without faults, and so without copies."""
    return replace(job, faults=FaultsSpec(), ring=replace(job.ring, replicas=0), record=RecordSpec())


def to_resume(options: argparse.Namespace, job: Job) -> Path | None:
    """Return the checkpoint to resume from; for `latest`, that of the named run folder, else of the newest run.

    None for `latest`, too, if that run was stopped before it trained anything: it is started again.
    """
    if options.resume != "latest":
        return Path(options.resume) if options.resume else None
    folder = checkpoints(job)
    run = RunFolder(options.run_dir) if options.run_dir else None
    if run is not None and run.run.exists():
        found, whose = run_json.latest(run, folder), f" of the run in {run.path}"
    else:
        found, whose, run = newest_run(folder), "", _untrained(job, folder)
        if run is not None:
            found = run_json.latest(run, folder)
    passed = damaged(folder, found) if found is None or found.parent.absolute() == folder.absolute() else []
    for problem in passed if found is not None else ():
        print(one_line(f"mpips: warning: {problem}; {found} is used"), file=sys.stderr)
    if found is None and run is not None and run_json.is_at_its_beginning(run):
        said = f"mpips: {run.path}: was stopped before it trained anything: from the beginning"
        print(one_line(said), file=sys.stderr)
        return None
    if found is None:
        gone = "" if run is None else run_json.lost_origin(run)
        gone += f"; {passed[-1]}" if passed else ""
        raise CheckpointError(f"--resume latest: there is no complete checkpoint{whose} in {folder}{gone}")
    return found


def _untrained(job: Job, folder: Path) -> RunFolder | None:
    """Return the newest run of a job if it was stopped before it trained, and none with checkpoints is newer."""
    run = run_json.newest_of(job.name)
    facts = (run_json.read_run(run) if run is not None else None) or {}
    last = newest_run(folder)
    newer = last is not None and started_of(read_manifest(last)) > facts.get("started", "")
    return run if run_json.trained_nothing(facts) and not newer else None


def checkpoints(job: Job) -> Path:
    """Return the folder of a job's checkpoints."""
    return (
        job.resolve(job.checkpoint.directory) if job.checkpoint.directory else Path("checkpoints") / job.name
    )


def advice(job: Job, folder: RunFolder) -> str:
    """Return how to resume a failed run, if it has a checkpoint of its own."""
    found = run_json.latest(folder, checkpoints(job))
    return "" if found is None else f"; resume from {found} with: --run-dir {folder.path} --resume latest"
