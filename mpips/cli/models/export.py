"""`mpips export`: write a vector of a checkpoint to a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mpips.process.argument_parser import add_command
from mpips.provenance import output_file

if TYPE_CHECKING:
    from mpips.storage.segment import Rows

DESCRIPTION = """\
Write the keys and rows of one vector of a checkpoint, in key order, to a file. Its name gives the format:
.npz: the arrays `keys` and `values`, for numpy.load; 128-bit keys are rows of two numbers, the upper half first
.tsv: one line per key, the key and its values separated by tabs, with enough digits to restore the same bits

  mpips export checkpoints/sparse_lr/step-000020 --vector w --out weights.tsv
"""

_LINES = 100_000


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "export", "write a vector of a checkpoint to a file", DESCRIPTION, command
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint's folder")
    parser.add_argument("--vector", metavar="NAME", help="the vector; optional if there is only one")
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write, .npz or .tsv")
    output_file.add_force(parser)


def command(arguments: argparse.Namespace) -> int:
    """Write the file."""
    from mpips.checkpoint.loading import load_range, vectors
    from mpips.errors import CheckpointError, InputError
    from mpips.files.safe_open import replacing
    from mpips.ranges import ALL

    source, target = Path(arguments.checkpoint), Path(arguments.out)
    if target.suffix not in (".npz", ".tsv"):
        raise InputError(f"--out {target}: the name must end in .npz or .tsv")
    output_file.check(target, force=arguments.force)
    names = sorted(vectors(source))
    if arguments.vector is None and len(names) != 1:
        raise CheckpointError(
            f"{source}: choose a vector by --vector NAME; it has: {', '.join(names) or 'none'}"
        )
    rows = load_range(source, arguments.vector or names[0], [ALL])
    with (
        output_file.naming_errors(target),
        replacing(target, "wb" if target.suffix == ".npz" else "w") as file,
    ):
        _write(file, target.suffix, rows)
    print(f"{target}: {len(rows.keys):,} keys")
    return 0


def _write(file: IO[Any], kind: str, rows: Rows) -> None:
    import numpy as np

    from mpips.keys import pairs

    if kind == ".npz":
        np.savez(file, keys=pairs(rows.keys), values=rows.values)
    else:
        file.writelines(_lines(rows))


def _lines(rows: Rows) -> Iterator[str]:
    """Return the lines of the text, many at a time, with the fewest digits that restore each number."""
    from mpips.keys import numbers

    for at in range(0, len(rows.keys), _LINES):
        keys = map(str, numbers(rows.keys[at : at + _LINES]))
        columns = (column.astype(str).tolist() for column in rows.values[at : at + _LINES].T)
        cells = zip(keys, *columns, strict=True)
        yield "".join("\t".join(line) + "\n" for line in cells)
