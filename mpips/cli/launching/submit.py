"""`mpips submit`: submit a job to Slurm, and show where its output is."""

from __future__ import annotations

import argparse

from mpips.process.argument_parser import add_command

DESCRIPTION = """\
Write the batch script of a job and submit it by sbatch; prints the job's number and where its output is. Has all
options of `mpips render`, whose --help explains them.

  mpips submit JOB.toml --nodes 2 --time 02:00:00 --requeue
  mpips submit JOB.toml --nodes 1 --seeds 1,2,3,4
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    from mpips.cli.launching.render import EPILOG, add_options

    parser = add_command(subparsers, "submit", "submit a job to Slurm", DESCRIPTION, command, EPILOG)
    add_options(parser)


def command(arguments: argparse.Namespace) -> int:
    """Submit the job."""
    import sys
    from contextlib import suppress
    from pathlib import Path

    from mpips.cli.launching.render import collect
    from mpips.files.safe_open import read_text
    from mpips.launch.sbatch import CUT, script
    from mpips.rundir.folder import write_text

    batch = collect(arguments)
    text = script(batch)
    number = submit(text)
    kept = Path(batch.run_dir or f"runs/{batch.name}-{number}")
    # Slurm keeps the script too: scontrol write batch_script. A file of the user's own is left alone.
    with suppress(OSError, ValueError):
        copy = kept / "job.sbatch"
        if not copy.exists() or CUT in read_text(copy, follow=False):
            write_text(copy, text)
    run, output = f"{kept}/", f"{batch.name}-{number}.out"
    if batch.sweep:
        last = len(batch.sweep) - 1
        run = (
            f"{batch.run_dir}/0 ... {last}" if batch.run_dir else f"runs/{batch.name}-{number}_0 ... _{last}"
        )
        output = f"{batch.name}-{number}_0.out ... _{last}.out"
    print(number)
    lines = [
        f"job {number}: {batch.name}" + (f", {len(batch.sweep)} tasks" if batch.sweep else ""),
        f"  in the queue   squeue -j {number}",
        f"  output         {output}",
        f"  run folder     {run}",
        f"  orders         mpips ctl {kept if not batch.sweep else 'RUN'} status",
        f"  report         mpips report {kept if not batch.sweep else 'RUN'}",
    ]
    print("\n".join(lines), file=sys.stderr)
    return 0


def submit(text: str) -> str:
    """Submit a script by sbatch; return the job's number.

    Raises:
        InputError: there is no sbatch, or it refuses the job; its message is in one line.
    """
    import os
    import re

    from mpips.errors import InputError
    from mpips.launch.slurm_env import without_slurm
    from mpips.process import subprocess_output

    try:
        answer = subprocess_output.run(
            ["sbatch", "--parsable"], 120.0, environ=without_slurm(os.environ), stdin_text=text
        )
    except FileNotFoundError:
        raise InputError("there is no sbatch on the PATH: is this a login node of a Slurm cluster?") from None
    except OSError as error:
        raise InputError(f"sbatch cannot be started: {error.strerror}") from None
    if answer.code is None:
        raise InputError("sbatch did not answer within 120 s: does `squeue` answer?")
    message = " ".join(re.sub(r"(?m)^sbatch: (error: )?", "", answer.stderr).split())
    # A site's own messages may come before.
    found = re.search(r"(?m)^(\d+)(?:;\S*)?\s*\Z", answer.stdout)
    if answer.code:
        raise InputError(f"sbatch refused the job: {message or f'exit code {answer.code}'}")
    if found is None:
        raise InputError(
            f"sbatch accepted the job, but printed no number: {' '.join(answer.stdout.split())!r}; see squeue --me"
        )
    return found[1]
