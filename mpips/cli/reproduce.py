"""`mpips reproduce`: do a recorded run again, and compare the bits."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpips.config import Job
    from mpips.folder import RunFolder

DESCRIPTION = """\
Do a run again that was recorded, and compare the parameters that come of it, to the bit: also a run in which nobody
waited for anybody, and one in which ranks died. Nobody dies this time, so any MPI will do.

  mpips run JOB.toml --set record.on=true --run-dir runs/first
  mpips reproduce runs/first
  mpips reproduce runs/first --python /elsewhere/bin/python    with the MPI and the versions that are installed there
"""

EPILOG = """\
exit codes: 0 the same bits; 1 other bits, or the run cannot go on as it is recorded (one line says where);
2 there is no record, or what it started from is not there any more."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "reproduce",
        help="do a recorded run again, and compare the bits",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder, or latest")
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        help="the folder of the run that is done now; runs/NAME-again-UTC unless given",
    )
    parser.add_argument(
        "--launcher",
        choices=("auto", "openmpi", "mpich", "srun"),
        default="auto",
        help="how ranks are started",
    )
    parser.add_argument(
        "--python", metavar="PATH", help="the Python to do it with: another environment's, with another MPI"
    )
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Do the run again; returns 0 if it gives the same bits."""
    from mpips import launch
    from mpips.children import Children
    from mpips.config import load
    from mpips.control import newest
    from mpips.course import read_course
    from mpips.folder import RunFolder

    recorded = RunFolder(newest(Path("runs")) if arguments.run == "latest" else arguments.run)
    if arguments.python and os.path.abspath(arguments.python) != os.path.abspath(sys.executable):
        elsewhere(arguments, recorded)
    result = result_of(recorded)
    job = load(recorded.job)
    about = started_from(recorded, job)
    course = read_course(recorded.record)
    starter = launch.find_starter(arguments.launcher)
    named = arguments.run_dir
    folder = RunFolder.claim(named) if named else RunFolder.create(f"{job.name}-again")
    course.save(folder.replay)
    changes = sum(each.changes for each in course.shards.values())
    print(
        f"mpips: {changes:,} changes of {len(course.shards)} shards, {len(course.workers)} workers",
        file=sys.stderr,
        flush=True,
    )
    resume = ["--resume", str(about["resume"])] if about["resume"] else []
    passed = [*resume, "--replay", str(folder.replay), "--run-dir", str(folder.path)]
    planned = launch.plan(starter, job.layout.size(), launch.rank_command(recorded.job, passed))
    added = {**planned.added, **launch.progress_environment(sys.stdout), "MPIPS_JUDGED": "1"}
    ended = Children(launch.Launch(planned.kind, planned.line, added), folder.read_result).run()
    code, line = judged(result, folder, ended)
    print(line, file=sys.stderr, flush=True)
    return code


def elsewhere(arguments: argparse.Namespace, recorded: RunFolder) -> None:
    """Become the same command under another Python. InputError if there is none."""
    from mpips.errors import InputError

    more = ["--run-dir", arguments.run_dir] if arguments.run_dir else []
    line = [arguments.python, "-m", "mpips.cli", "reproduce", str(recorded.path), *more]
    line += ["--launcher", arguments.launcher]
    try:
        sys.stderr.flush()
        os.execv(arguments.python, line)
    except OSError as error:
        raise InputError(f"--python {arguments.python}: {error.strerror}") from None


def result_of(recorded: RunFolder) -> dict[str, Any]:
    """Read what came of the recorded run. InputError if nothing did that could be compared."""
    from mpips.errors import RecordError

    result = recorded.read_result()
    if result is None:
        raise RecordError(f"{recorded.path}: has no result.json, so there is nothing to compare with")
    if not result.get("parameters_sha256"):
        raise RecordError(
            f"{recorded.path}: the run {result.get('status')}, and left no parameters to compare with"
        )
    return result


def started_from(recorded: RunFolder, job: Job) -> dict[str, Any]:
    """Read what the recorded run started from. InputError if that is not there any more, or not the same."""
    from mpips.errors import RecordError
    from mpips.record import ABOUT, inputs

    try:
        about: dict[str, Any] = json.loads((recorded.record / ABOUT).read_text("utf-8"))
    except OSError:
        raise RecordError(f"{recorded.path}: was not recorded; a run is with --set record.on=true") from None
    now = inputs(job)
    for path, size in about["inputs"].items():
        if now.get(path) != size:
            raise RecordError(
                f"{path}: had {size} bytes when the run was recorded, and has {now.get(path, 'none')}"
            )
    if about["resume"] and not Path(about["resume"]).is_dir():
        raise RecordError(
            f"{about['resume']}: the checkpoint that the run went on from is not there any more"
        )
    return about


def judged(recorded: dict[str, Any], folder: RunFolder, launcher_code: int) -> tuple[int, str]:
    """Compare; give the exit code and the line to end with."""
    from mpips import launch

    result = folder.read_result()
    if result is None or result.get("status") == "failed":
        _, line = launch.verdict(result, launcher_code, folder.path)
        return 1, line
    before, now = recorded["parameters_sha256"], result.get("parameters_sha256")
    if before == now:
        return 0, f"mpips: the same bits: parameters_sha256 is {now}; run folder: {folder.path}"
    return 1, (f"mpips: other bits: parameters_sha256 was {before}, and is {now}; run folder: {folder.path}")
