"""`mpips run`: start a job's ranks here, supervise them, and report the run's result."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mpips.process.argument_parser import add_command, add_launcher, add_layout, add_survive

if TYPE_CHECKING:
    from mpips.config.job_file import Job
    from mpips.process.stop_signals import StopRequests

DESCRIPTION = """\
Run a job on this machine, or inside an allocation: finds the MPI that mpi4py loads and its launcher, starts the ranks
of the job's [layout], forwards signals, and derives the exit code from the run's result.json.

  mpips run jobs/sparse_lr/job.toml
  mpips run JOB.toml --servers 2 --workers 4
  mpips run JOB.toml --set data.train=/data/mine.svm.xz --set sparse_lr.l1=0.5
  mpips run JOB.toml --resume latest            continue from the last checkpoint of the job's newest run
  mpips run JOB.toml --run-dir RUN --resume latest
                                                continue that run
  mpips run JOB.toml --servers 3 --replicas 1 --spares 1
                                                continue if a rank dies, or one of several hosts (Open MPI 5)
  mpips run JOB.toml --dry-run                  show the launch line and exit
  mpips run JOB.toml --twin                     all ranks in this process: breakpoint() works in the whole program

Ctrl-C makes the run write a checkpoint and stop; while it still reads its data, it stops at once, with nothing trained,
and --resume latest starts it again. A second Ctrl-C kills it. `mpips ctl` gives other orders.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(subparsers, "run", "run a job here, or inside an allocation", DESCRIPTION, command)
    parser.add_argument("job", metavar="JOB.toml", help="the job file")
    add_layout(parser)
    parser.add_argument("--run-dir", metavar="DIR", help="the run's folder; default runs/NAME-UTC")
    parser.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        help="continue from a checkpoint folder, or from the latest one",
    )
    add_launcher(parser)
    add_survive(parser)
    parser.add_argument(
        "--pmi", default="", metavar="NAME", help="srun's --mpi, if the choice by the MPI is wrong"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the launch line and exit")
    parser.add_argument(
        "--twin",
        action="store_true",
        help="run all ranks in this process, in simulated time and without MPI: for a debugger",
    )
    # Of `mpips.run`.
    parser.add_argument("--caller", type=int, help=argparse.SUPPRESS)


def overrides(arguments: argparse.Namespace) -> list[str]:
    """Collect the overrides of the job file: `--set` and the options. JobError if they contradict each other."""
    from mpips.config.overrides import with_options

    keys = {f"layout.{role}": role for role in ("servers", "workers", "spares", "schedulers")}
    keys["ring.replicas"] = "replicas"
    options = {key: (f"--{name}", getattr(arguments, name)) for key, name in keys.items()}
    options["record.on"] = "--reproduce", getattr(arguments, "reproduce", False) or None
    return with_options(arguments.set, options)


def command(arguments: argparse.Namespace) -> int:
    """Run the job; return 0 completed, 85 stopped, 128 + the signal if it came before the run, else failed."""
    from mpips.process.stop_signals import StopRequests

    if arguments.twin:
        return _twin(arguments)
    with StopRequests() as requests:
        if arguments.caller is not None:
            import signal

            from mpips.process.dependent import end_with_parent

            # One that may be repeated: a second TERM kills the run.
            end_with_parent(signal.SIGUSR2)
        return _run(arguments, requests)


def _run(arguments: argparse.Namespace, requests: StopRequests) -> int:
    import os
    from functools import partial

    from mpips.client import announcing
    from mpips.cluster.layout import Cause
    from mpips.config.job_file import load
    from mpips.config.program import load_program
    from mpips.exit_codes import ExitCode
    from mpips.files.safe_open import read_bytes
    from mpips.launch import mpi_launcher, oversubscription, verdict
    from mpips.launch.detached_run import DetachedRun
    from mpips.launch.processes import LauncherProcess
    from mpips.process.printable import one_line
    from mpips.process.terminal.doing import doing
    from mpips.provenance import first_failure
    from mpips.provenance.run_json import check_continues, check_outputs_are_own, conclude
    from mpips.rundir import claim, stop_request
    from mpips.rundir.folder import RunFolder, write_json

    settings = overrides(arguments)
    job = load(arguments.job, settings)
    passed = [part for setting in settings for part in ("--set", setting)]
    if arguments.resume is not None:
        passed += ["--resume", arguments.resume]
    with doing("loading the MPI of mpi4py, to find its launcher"):
        starter, size = mpi_launcher.find_starter(arguments.launcher), job.layout.size()
    nodes = mpi_launcher.node_count(os.environ)
    survive = mpi_launcher.survival(arguments.survive, starter, nodes)
    if arguments.dry_run:
        where = ["--run-dir", arguments.run_dir] if arguments.run_dir else []
        ranks = mpi_launcher.rank_command(arguments.job, passed + where)
        print(mpi_launcher.plan(starter, size, ranks, survive=survive, pmi=arguments.pmi))
        return 0
    compile_kernels(job, arguments.job, settings)
    named = arguments.run_dir
    if named and arguments.resume:
        check_continues(RunFolder(named), job.program, arguments.resume)
    if named and Path(named).is_dir():
        check_outputs_are_own(RunFolder(named), load_program(job.program, job.base).outputs)
    # From here on there is a run folder, which records the outcome of the run.
    requests.record_only()
    folder = RunFolder.claim(named, arguments.resume is not None) if named else RunFolder.create(job.name)
    if arguments.caller is not None:
        announcing.announce(arguments.caller, folder)
    detached = DetachedRun(folder, starter.kind) if survive is mpi_launcher.Survival.NODES else None
    passed += [*folder.claim_arguments(), *([] if detached is None else detached.arguments())]
    ranks = mpi_launcher.rank_command(arguments.job, passed)
    planned = mpi_launcher.plan(starter, size, ranks, survive=survive, pmi=arguments.pmi)
    # On a terminal the whole line would fill several.
    by = f"{size} ranks are started by {Path(planned.line[0]).name}; --dry-run shows the whole line"
    print(f"mpips: {by if sys.stderr.isatty() else planned}", file=sys.stderr, flush=True)
    cores = oversubscription.cores()
    if warning := oversubscription.warning(size, nodes, cores, job.heartbeat.patience):
        print(f"mpips: {warning}", file=sys.stderr, flush=True)
    progress = mpi_launcher.progress_environment(sys.stdout)
    # The final message is printed by this process, not by the ranks.
    supervised = folder.claim_environment()
    launch = mpi_launcher.Launch(planned.kind, planned.line, {**planned.added, **progress, **supervised})

    def provenance() -> bytes | None:
        with suppress(OSError):
            return read_bytes(folder.run, follow=False)
        return None

    stale = provenance()

    def has_begun() -> bool:
        """Return whether the ranks have started: a run.json may be that of the previous run."""
        return provenance() not in (None, stale)

    own = "" if folder.held is None else folder.held.id
    tell = partial(stop_request.write, folder.path, own)
    process = LauncherProcess(launch, folder.read_result, requests, has_begun, tell, detached)
    with first_failure.FirstExitWatch(folder) as watch:
        ended = process.run()
    # Ranks that were killed leave them.
    folder.remove_shared()
    begun = has_begun()
    result = folder.read_result()
    first = first_failure.first(folder, process.last_output, watch.first_ended) if begun else None
    facts = (result or {}).get("first_failure") if first is None else first.facts(folder)
    if first is not None and result is None:
        result = {"status": "failed", "exit_code": verdict.code_of(ended), "error": first.text}
    # The launcher may know which signal killed a rank.
    elif (
        first is not None
        and result is not None
        and result.get("first_failure", {}).get("cause") == Cause.DIED
    ):
        result = {**result, "error": str(result["error"]).replace(Cause.DIED.text, first.error)}
    code, line = verdict.judge(result, ended, folder.path, facts, process.last_output)
    failed = code not in (ExitCode.COMPLETED, ExitCode.BAD_INPUT, ExitCode.STOPPED)
    if failed:
        from mpips.rank.prepare import advice

        how = advice(job, folder)
        line += "" if how in line else how
    if failed or result is None:
        why = verdict.no_result(ended, process.last_output)
        result = result or {"status": "failed", "exit_code": code, "error": why}
        result = {**result, **({} if facts is None else {"first_failure": facts})}
        with suppress(OSError):
            write_json(folder.result, result)
    if begun:
        # No effect if the run has done so itself.
        conclude(folder, result)
    stop_request.remove(folder.path, own)
    if detached is not None:
        detached.close()
    claim.release(folder.path)
    print(one_line(line), file=sys.stderr, flush=True)
    return code


def _twin(arguments: argparse.Namespace) -> int:
    """Run the job in this process; return 0, or 1 after an error of the program, whose traceback is printed."""
    import traceback

    from mpips.config.job_file import load
    from mpips.config.program import load_program
    from mpips.errors import InputError, MpipsError, RemoteError, in_a_line
    from mpips.exit_codes import ExitCode
    from mpips.process.printable import one_line
    from mpips.rank.prepare import to_resume
    from mpips.rank.twin import run_twin
    from mpips.rundir import claim
    from mpips.rundir.folder import RunFolder, write_json

    job = load(arguments.job, overrides(arguments))
    program, named = load_program(job.program, job.base), arguments.run_dir
    arguments.resume = arguments.resume or ""
    resume = to_resume(arguments, job)
    folder = RunFolder.claim(named, resume is not None) if named else RunFolder.create(job.name)
    try:
        run_twin(job, program, folder, resume, sys.stdout)
    except Exception as error:
        is_input = error.is_input if isinstance(error, RemoteError) else isinstance(error, InputError)
        if isinstance(error, RemoteError) and not (is_input and not error.is_usage):
            print(error.trace.rstrip(), file=sys.stderr)
        elif not isinstance(error, MpipsError):
            traceback.print_exc()
        code = ExitCode.BAD_INPUT if is_input else ExitCode.FAILED
        write_json(folder.result, {"status": "failed", "exit_code": code, "error": in_a_line(error)})
        print(one_line(f"mpips: failed: {in_a_line(error)}; run folder: {folder.path}"), file=sys.stderr)
        return code
    finally:
        claim.release(folder.path)
    print(one_line(f"mpips: completed; run folder: {folder.path}"), file=sys.stderr)
    return ExitCode.COMPLETED


def compile_kernels(job: Job, file: str | Path, settings: Sequence[str]) -> None:
    """Compile the kernels of a job once, in one process; otherwise N ranks would each compile them at the same time.

    In an allocation this is enough for all nodes if the kernels are on a shared file system, else for this node.
    """
    from mpips.exit_codes import ExitCode
    from mpips.jit.warm_up import Mark
    from mpips.process import dependent, interpreter

    mark = Mark(job.program, job.base, (job.filters, job.table))
    if mark.path is None or mark.is_set:
        return
    passed = [part for setting in settings for part in ("--set", setting)]
    line = [*interpreter.python(), "-m", "mpips", "--warm-up", str(file), *passed]
    # In its own process group: an interrupt from the terminal reaches this process, which ends the other.
    done = subprocess.run(dependent.line(line), check=False, process_group=0)
    if done.returncode:
        raise SystemExit(done.returncode if done.returncode > 0 else ExitCode.FAILED)
    mark.set()
