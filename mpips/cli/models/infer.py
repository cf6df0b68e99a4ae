"""`mpips infer`: apply a trained model to new data."""

from __future__ import annotations

import argparse
from pathlib import Path

from mpips.cli import own_program
from mpips.errors import InputError
from mpips.process.argument_parser import add_command
from mpips.provenance import output_file

DESCRIPTION = """\
Apply a run's model to new data; without files, show the model. RUN is a run's folder, `latest`, a checkpoint, or a
model file that names its program, such as the model.h5 of lda. Of a run that has not written its model, the last
checkpoint is read. The output depends on the program:

  mpips infer latest new.csv --out p.tsv                        sparse_lr: the probability of +1 of each example,
                                                                which needs no label in CSV and Parquet
  mpips infer runs/sparse_lr-20260101T120000Z                   sparse_lr: the largest weights
  mpips infer runs/lda-20260101T120000Z                         lda: the topics' top words, also as a picture
  mpips infer runs/lda-20260101T120000Z new.txt --out t.tsv     lda: the shares of topics in each document
  mpips infer runs/sketch-20260101T120000Z keys.txt             sketch: the count of each line's key

With --follow, answer the examples in the lines of the standard input, while RUN goes on: a line on the standard output
for each, in order and at once, by the model of its newest checkpoint. RUN is a run's folder, or `latest`: then later
runs of the same job are followed, too. The lines are as those of the training data; a first line may name the columns.
A line that cannot be answered has the answer `error: REASON`, and the exit code is 1 at the end. How far each new model
is behind the run is said on the standard error.

  producer | mpips infer latest --follow --max-lag 60 | consumer

`mpips.load_model(RUN)` is the same model in Python. Your own program supports both if its module has a function
`load_model(source, job)` that returns a `mpips.Model`. Name it by --program FILE.py: the code of a program that RUN
names is not run otherwise.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "infer", "apply a trained model to new data", DESCRIPTION, command, prints_data=True
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, latest, a checkpoint, or a model file")
    parser.add_argument(
        "files", metavar="FILE", nargs="*", help="new data, in a format that the program trains on"
    )
    parser.add_argument(
        "--follow", action="store_true", help="answer lines of the standard input while the run goes on"
    )
    parser.add_argument(
        "--max-lag", type=_seconds, metavar="S",
        help="with --follow: do not answer by a model that is more than S seconds behind the run",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="the file to write; default: standard output")
    output_file.add_force(parser)
    own_program.add(parser)


def command(arguments: argparse.Namespace) -> int:
    """Apply the model."""
    if arguments.follow:
        from mpips.cli.models import serving

        if arguments.files or arguments.out:
            raise InputError(
                "infer --follow reads the standard input, and writes the standard output: leave out FILE and --out"
            )
        return serving.serve(arguments.run, arguments.program, arguments.max_lag)
    if arguments.max_lag is not None:
        raise InputError("infer --max-lag needs --follow: other models do not become newer")
    from mpips.client.loading import check_has_model, load_model
    from mpips.rundir.order_files import LATEST, named_run

    run = named_run(arguments.run)
    if arguments.run == LATEST:
        check_has_model(run)
    if arguments.out:
        read = [run, *arguments.files, *filter(None, [arguments.program])]
        output_file.check(arguments.out, read, force=arguments.force)
    model = load_model(run, program=arguments.program)
    out = Path(arguments.out) if arguments.out else None
    with output_file.naming_errors(out):
        if arguments.files:
            model.score_files([Path(file) for file in arguments.files], out)
        else:
            model.show(out)
    return 0


def _seconds(text: str) -> float:
    """Read a number of seconds from 0 on."""
    if not (seconds := float(text)) >= 0:
        raise ValueError(text)
    return seconds
