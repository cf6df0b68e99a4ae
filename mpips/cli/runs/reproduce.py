"""`mpips reproduce`: repeat a recorded run, and compare the bits."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpips.cli import own_program
from mpips.process.argument_parser import add_command, add_launcher

if TYPE_CHECKING:
    from mpips.config.job_file import Job
    from mpips.report.table_diff import Difference
    from mpips.rundir.folder import RunFolder

DESCRIPTION = """\
Repeat a recorded run, and compare the resulting parameters bit by bit: also those of an asynchronous run, and of one in
which ranks died. No rank dies in the repeated run, so it needs no fault-tolerant MPI.

  mpips run JOB.toml --set record.on=true --run-dir runs/first
  mpips reproduce runs/first
  mpips reproduce runs/first --python /elsewhere/bin/python    with the MPI and the versions that are installed there
  mpips reproduce runs/mine --program mine.py                  with a program that is not part of mpips

The repeated run reads the files that RUN's job.toml names. It writes to its own folder only.
"""

EPILOG = """\
Before the start, the inputs are hashed that the recorded run has hashed ([provenance] hash_inputs).
exit codes: 0 the same bits; 1 other bits (one line gives the first differing key and the difference), or the run
diverged from the record (one line says where); 2 there is no record, or the inputs or the checkpoint that the run
started from are missing or have changed."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "reproduce", "repeat a recorded run, and compare the bits", DESCRIPTION, command, EPILOG
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder, or latest")
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        help="the folder of the repeated run; default runs/NAME-again-UTC",
    )
    own_program.add(parser)
    add_launcher(parser)
    parser.add_argument(
        "--python",
        metavar="PATH",
        help="the Python to use, such as that of another environment with another MPI",
    )


def command(arguments: argparse.Namespace) -> int:
    """Repeat the run; return 0 if it gives the same bits."""
    from mpips.config.job_file import load
    from mpips.config.program import trusted_loader
    from mpips.launch import mpi_launcher
    from mpips.launch.processes import LauncherProcess
    from mpips.replay.history import read_history
    from mpips.rundir.claim import release
    from mpips.rundir.folder import RunFolder, write_text
    from mpips.rundir.order_files import named_run

    recorded = RunFolder(named_run(arguments.run))
    if arguments.python and os.path.abspath(arguments.python) != os.path.abspath(sys.executable):
        run_with_other_python(arguments, recorded)
    result = result_of(recorded)
    job = load(recorded.job, programs=trusted_loader(arguments.program))
    about = started_from(recorded, job)
    history = read_history(recorded.record)
    starter = mpi_launcher.find_starter(arguments.launcher)
    print(f"mpips: {same_inputs(recorded, about['inputs'])}", file=sys.stderr, flush=True)
    print(
        f"mpips: running the program {arguments.program or job.program} with the settings of {recorded.job}",
        file=sys.stderr,
        flush=True,
    )
    named = arguments.run_dir
    folder = RunFolder.claim(named) if named else RunFolder.create(f"{job.name}-again")
    history.save(folder.replay)
    changes = sum(each.changes for each in history.shards.values())
    print(
        f"mpips: {changes:,} changes of {len(history.shards)} shards, {len(history.workers)} workers",
        file=sys.stderr,
        flush=True,
    )
    # The ranks read a copy: it cannot change after the check, and it directs all output to the new folder.
    sets = [f"checkpoint.directory={json.dumps(str(folder.path / 'checkpoints'))}"]
    if arguments.program:
        sets.append(f"job.program={json.dumps(arguments.program)}")
    job = load(recorded.job, sets, programs=trusted_loader(arguments.program))
    write_text(folder.replay / "job.toml", job.to_toml())
    resume = ["--resume", str(about["resume"])] if about["resume"] else []
    passed = [*resume, "--replay", str(folder.replay), *folder.claim_arguments()]
    planned = mpi_launcher.plan(
        starter, job.layout.size(), mpi_launcher.rank_command(folder.replay / "job.toml", passed)
    )
    added = {**planned.added, **mpi_launcher.progress_environment(sys.stdout), **folder.claim_environment()}
    ended = LauncherProcess(mpi_launcher.Launch(planned.kind, planned.line, added), folder.read_result).run()
    release(folder.path)
    code, line = compare_results(recorded, result, folder, ended)
    print(line, file=sys.stderr, flush=True)
    return code


def run_with_other_python(arguments: argparse.Namespace, recorded: RunFolder) -> None:
    """Replace this process by the same command under another Python. InputError if there is none."""
    from mpips.errors import InputError
    from mpips.process import interpreter

    more = ["--run-dir", arguments.run_dir] if arguments.run_dir else []
    more += ["--program", arguments.program] if arguments.program else []
    line = [*interpreter.python(arguments.python), "-m", "mpips.cli", "reproduce", str(recorded.path), *more]
    line += ["--launcher", arguments.launcher]
    try:
        sys.stderr.flush()
        os.execv(arguments.python, line)
    except OSError as error:
        raise InputError(f"--python {arguments.python}: {error.strerror}") from None


def result_of(recorded: RunFolder) -> dict[str, Any]:
    """Read the result of the recorded run. InputError if there is none to compare with."""
    from mpips.errors import RecordError
    from mpips.provenance.run_json import check_outputs

    check_outputs(recorded, {recorded.job.name, recorded.result.name})
    result = recorded.read_result()
    if result is None:
        raise RecordError(f"{recorded.path}: has no result.json to compare with")
    if not result.get("parameters_sha256"):
        raise RecordError(
            f"{recorded.path}: the run {result.get('status')}, and has no parameters to compare with"
        )
    return result


def started_from(recorded: RunFolder, job: Job) -> dict[str, Any]:
    """Read which files the recorded run started from. InputError if they are missing or have changed."""
    from mpips.errors import RecordError
    from mpips.files import safe_open
    from mpips.replay.recorder import ABOUT, inputs

    try:
        about: dict[str, Any] = json.loads(safe_open.read_text(recorded.record / ABOUT, follow=False))
        if not isinstance(about["inputs"], dict) or not isinstance(about["resume"], str | None):
            raise TypeError
    except FileNotFoundError:
        raise RecordError(f"{recorded.path}: was not recorded; --set record.on=true records a run") from None
    except OSError as error:
        raise RecordError(f"{recorded.record / ABOUT}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RecordError(
            f"{recorded.record / ABOUT}: does not name the files the run started from"
        ) from None
    present = inputs(job)
    for path, size in about["inputs"].items():
        if present.get(path) != size:
            raise RecordError(
                f"{path}: had {size} bytes when the run was recorded, and has {present.get(path, 'none')}"
            )
    for path in sorted(present.keys() - about["inputs"].keys()):
        raise RecordError(f"{path}: did not exist when the run was recorded, and would be read now")
    if about["resume"]:
        check_origin(recorded, Path(about["resume"]))
    return about


def check_origin(recorded: RunFolder, checkpoint: Path) -> None:
    """Raise InputError if the checkpoint that the recorded run continued from is missing, damaged, or another one."""
    from mpips.checkpoint.inspection import verify
    from mpips.checkpoint.manifest import read_manifest
    from mpips.errors import RecordError
    from mpips.provenance.run_json import read_run

    if not checkpoint.is_dir():
        raise RecordError(f"{checkpoint}: the checkpoint that the run continued from is missing")
    before = (read_run(recorded) or {}).get("ancestry", [])
    known = {each["checkpoint"]: each.get("manifest_sha256") for each in before}
    if known.get(str(checkpoint)) not in (None, read_manifest(checkpoint)["sha256"]):
        raise RecordError(f"{checkpoint}: is another checkpoint than the one that the run continued from")
    for problem in verify(checkpoint):
        raise RecordError(f"{problem}: the run continued from this checkpoint")


def same_inputs(recorded: RunFolder, sizes: Mapping[str, int]) -> str:
    """Hash the inputs as the recorded run did (`provenance`); describe the check. InputError if one differs."""
    from mpips.errors import RecordError
    from mpips.files.fingerprint import HASHES, hash_kind
    from mpips.provenance.input_hashes import first_altered
    from mpips.provenance.run_json import read_run

    inputs = (read_run(recorded) or {}).get("inputs")
    listed = [each for each in inputs if isinstance(each, Mapping)] if isinstance(inputs, list) else []
    changed = first_altered(listed)
    if changed is not None:
        raise RecordError(
            f"{changed.path}: had {changed.kind} {changed.expected} when the run was recorded, and has {changed.found}"
        )
    kinds = {str(facts["path"]): hash_kind(facts) for facts in listed}
    known = [(kind, sum(kinds.get(path) == kind for path in sizes)) for kind in HASHES]
    known.append(("size only", len(sizes) - sum(count for _, count in known)))
    counts = ", ".join(f"{count} by {kind}" for kind, count in known if count)
    return f"the inputs are the recorded ones: {counts}" if sizes else "the run read no files"


def compare_results(
    recorded_run: RunFolder, recorded: Mapping[str, Any], repeated: RunFolder, launcher_code: int
) -> tuple[int, str]:
    """Compare a run's `recorded` result with that of the run `repeated`; return the exit code and the final line."""
    from mpips.launch import verdict

    result = repeated.read_result()
    if result is None or result.get("status") == "failed":
        _, line = verdict.judge(result, launcher_code, repeated.path)
        return 1, line
    was, found = recorded["parameters_sha256"], result.get("parameters_sha256")
    if was == found:
        return 0, f"mpips: the same bits: parameters_sha256 is {found}; run folder: {repeated.path}"
    text = f"mpips: other bits: parameters_sha256 was {was}, and is {found}; {difference(recorded_run, repeated)}"
    return 1, f"{text}; run folder: {repeated.path}"


def difference(recorded_run: RunFolder, repeated: RunFolder) -> str:
    """Describe the first difference between the parameters of two runs, as far as they are on disk."""
    from mpips.errors import InputError
    from mpips.report.diff import parameters, side

    try:
        found = parameters(side(recorded_run.path), side(repeated.path))
    except InputError as error:
        return f"they cannot be compared: {error}"
    if not found.tables:
        return "the differing keys are unknown: no model file (.npz, .h5) is in both run folders"
    differing = [table for table in found.tables if not table.same]
    if not differing:
        return f"{found.compared} is the same in both, so they differ in parameters that it does not contain"
    return f"{found.compared}: {describe_difference(min(differing, key=lambda table: table.first is None))}"


def describe_difference(table: Difference) -> str:
    """Describe the difference of a table in one line."""
    note = f"; {table.note}" if table.note else ""
    if table.first is None:
        return f"{table.name}{note}"
    was, found = (", ".join(map(repr, row)) for row in table.first)
    return (
        f"{table.name} differ first at key {table.first_key}: {was} and {found}; "
        f"|difference| max {table.maximum:.6g}, mean {table.mean:.6g} over {table.differing:,} keys{note}"
    )
