"""`mpips infer`: apply a trained model to new data."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpips.cli import own_program
from mpips.process.argument_parser import add_command
from mpips.provenance import output_file

DESCRIPTION = """\
Apply a run's model to new data; without files, show the model. RUN is a run's folder, `latest`, or a model file that
names its program, such as the model.h5 of lda. The output depends on the program:

  mpips infer runs/lda-20260101T120000Z                         lda: the topics' top words, also as a picture
  mpips infer runs/lda-20260101T120000Z new.txt --out t.tsv     lda: the shares of topics in each document

Your own program supports this if its module has `infer(model: Path, files: list[Path], out: Path | None)`. Name it by
--program FILE.py: the code of a program that RUN names is not run otherwise.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "infer", "apply a trained model to new data", DESCRIPTION, command, prints_data=True
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, latest, or a model file")
    parser.add_argument(
        "files", metavar="FILE", nargs="*", help="new data, in a format that the program trains on"
    )
    parser.add_argument("--out", metavar="FILE", help="the file to write; default: standard output")
    output_file.add_force(parser)
    own_program.add(parser)


def command(arguments: argparse.Namespace) -> int:
    """Apply the model by the program's `infer`."""
    from mpips.rundir.order_files import named_run

    run = named_run(arguments.run)
    if arguments.out:
        read = [run, *arguments.files, *filter(None, [arguments.program])]
        output_file.check(arguments.out, read, force=arguments.force)
    infer = _infer_function(run, arguments.program)
    out = Path(arguments.out) if arguments.out else None
    with output_file.naming_errors(out):
        infer(run, [Path(file) for file in arguments.files], out)
    return 0


def _infer_function(run: Path, named: str | None) -> Callable[[Path, Sequence[Path], Path | None], Any]:
    """Find the `infer` of the program that made a run or a model file."""
    from mpips.config.job_file import load
    from mpips.config.program import trusted_loader
    from mpips.errors import InputError
    from mpips.provenance.run_json import check_outputs
    from mpips.rundir.folder import RunFolder

    check_outputs(RunFolder(run if run.is_dir() else run.parent), None if run.is_dir() else {run.name})
    if run.is_dir():
        file = RunFolder(run).job
        if not file.is_file():
            raise InputError(f"{run}: is not a run's folder: it has no {file.name}")
        job = load(file, programs=trusted_loader(named))
        name, base = job.program, job.base
    else:
        name, base = _program_of(run), Path.cwd()
    return trusted_loader(named)(name, base).function("infer")


def _program_of(path: Path) -> str:
    """Read a model file's program."""
    from mpips.errors import InputError
    from mpips.files import hdf5

    try:
        with hdf5.reading(path, follow=True) as file:
            return str(file.attrs["program"])
    except FileNotFoundError:
        raise InputError(f"{path}: no such run or model") from None
    # TypeError, ValueError: the name is of a type that h5py does not read.
    except (OSError, KeyError, TypeError, ValueError) as error:
        why = f": {' '.join(str(error.strerror or error).split())}" if isinstance(error, OSError) else ""
        raise InputError(
            f"{path}: is neither a run's folder nor a model file that names its program{why}"
        ) from None
