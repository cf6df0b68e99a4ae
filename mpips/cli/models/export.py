"""`mpips export`: write a vector of a run or of a checkpoint to a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mpips.process.argument_parser import add_command
from mpips.provenance import output_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpips.keys import KeyArray

DESCRIPTION = """\
Write the keys and rows of one vector, in key order, to a file. Of a run, `latest` or a run's folder, they are those of
its model; else those at the end, if the run has completed and [checkpoint] at_end is on; else of its newest checkpoint.
The file's name gives the format:
.npz: the arrays `keys` and `values`, for numpy.load; 128-bit keys are rows of two numbers, the upper half first
.tsv: one line per key, the key and its values separated by tabs, with enough digits to restore the same bits
Of a model of tables also the name of each key, as city=Rome, the last column or the array `names`: for these the
training data are read again.

  mpips export latest --out weights.tsv
  mpips export checkpoints/sparse_lr/step-000020 --vector w --out weights.tsv
"""

_LINES = 100_000


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "export", "write a vector of a run or a checkpoint to a file", DESCRIPTION, command
    )
    parser.add_argument(
        "source", metavar="RUN|CHECKPOINT", help="a run's folder, latest, or a checkpoint's folder"
    )
    parser.add_argument("--vector", metavar="NAME", help="the vector; optional if there is only one")
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write, .npz or .tsv")
    output_file.add_force(parser)


def command(arguments: argparse.Namespace) -> int:
    """Write the file."""
    from mpips.client.loading import check_has_model, key_names, vector_of
    from mpips.errors import InputError
    from mpips.files.safe_open import replacing
    from mpips.rundir.order_files import LATEST, named_run

    source, target = named_run(arguments.source), Path(arguments.out)
    if arguments.source == LATEST:
        check_has_model(source)
    if target.suffix not in (".npz", ".tsv"):
        raise InputError(f"--out {target}: the name must end in .npz or .tsv")
    output_file.check(target, force=arguments.force)
    keys, rows = vector_of(source, arguments.vector)
    names = key_names(source, keys)
    with (
        output_file.naming_errors(target),
        replacing(target, "wb" if target.suffix == ".npz" else "w") as file,
    ):
        _write(file, target.suffix, keys, rows, names)
    print(f"{target}: {len(keys):,} keys")
    return 0


def _write(file: IO[Any], kind: str, keys: KeyArray, rows: NDArray[Any], names: Sequence[str]) -> None:
    import numpy as np

    from mpips.keys import pairs

    if kind == ".npz":
        named: dict[str, Any] = {"names": np.array(names)} if len(names) else {}
        np.savez(file, keys=pairs(keys), values=rows, **named)
    else:
        file.writelines(_lines(keys, rows, names))


def _lines(keys: KeyArray, rows: NDArray[Any], names: Sequence[str]) -> Iterator[str]:
    """Return the lines of the text, many at a time, with the fewest digits that restore each number."""
    from mpips.keys import numbers

    for at in range(0, len(keys), _LINES):
        first = map(str, numbers(keys[at : at + _LINES]))
        columns = [column.astype(str).tolist() for column in rows[at : at + _LINES].T]
        columns += [list(names[at : at + _LINES])] if len(names) else []
        yield "".join("\t".join(line) + "\n" for line in zip(first, *columns, strict=True))
