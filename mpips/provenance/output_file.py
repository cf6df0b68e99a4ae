"""The output file of a command: which existing files it replaces.

A command never replaces a file that it reads, nor a part of a run or checkpoint. Any other file with content is
replaced only by `--force`, if the command has it, unless its beginning shows that the same command has written it.
"""

from __future__ import annotations

import argparse
import errno
import gzip
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

BEGINNING = 1 << 14
"""Bytes by which an earlier output is known."""


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add the option `--force`, for `check`."""
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")


def check(
    target: str | Path,
    inputs: Iterable[str | Path] = (),
    *,
    force: bool | None = None,
    own: bytes | None = None,
) -> None:
    """Raise InputError if a file exists that must not be replaced.

    Args:
        target: the file to write.
        inputs: the files that the command reads. These, the files of a checkpoint, and those that a run has written,
            are never replaced; a run's report can be.
        force: whether other files are; None: the command has no option `--force`.
        own: a regular expression of the beginning of the command's own earlier outputs, which are replaced without
            `force`; so are empty files, as `mktemp` makes them. None: they are not known by their beginning.
    """
    from mpips.errors import InputError

    target = Path(target)
    if not target.is_file():
        return
    if any(os.path.exists(each) and os.path.samefile(each, target) for each in inputs):
        raise InputError(f"{target}: is one of the files to read; name another one to write")
    if whose := _owner(target.absolute()):
        raise InputError(f"{target}: is a file of {whose}; name another one to write")
    if force or not target.stat().st_size or (own is not None and re.match(own, _beginning(target))):
        return
    other = "" if own is None else ", and is no earlier output of this command"
    advice = "name another one to write" if force is None else "give --force to replace it"
    raise InputError(f"{target}: exists{other}; remove it, or {advice}")


def _beginning(path: Path) -> bytes:
    """Return the first bytes of a file, after decompression if its name ends in .gz; empty if it cannot be read."""
    from mpips.files.safe_open import open_regular

    try:
        with open_regular(path, follow=True) as file:
            if path.suffix == ".gz":
                with gzip.open(file) as unpacked:
                    return unpacked.read(BEGINNING)
            return file.read(BEGINNING)
    except (OSError, EOFError, zlib.error):
        return b""


@contextmanager
def naming_errors(target: str | Path | None) -> Iterator[None]:
    """Add a file's name to the errors of writing it; those that name another file are not changed.

    Raises:
        InputError: it cannot be written.
        OSError: there is no room for it, which is another exit code.
    """
    from mpips.errors import cannot_write

    try:
        yield
    except OSError as error:
        if target is None or error.errno == errno.EPIPE or error.filename not in (None, str(target)):
            raise
        raise cannot_write(target, error) from None


def _owner(path: Path) -> str:
    """Return the run or checkpoint that a file is a part of; "" if none."""
    from mpips.checkpoint.manifest import MANIFEST
    from mpips.provenance.run_json import BOOKKEEPING, listed_outputs
    from mpips.rundir.folder import RunFolder

    if os.path.lexists(path.parent / MANIFEST):
        return f"the checkpoint {path.parent}"
    above = RunFolder(path.parent.parent)
    if above.run.exists() and path.parent in (above.logs, above.record, above.replay):
        return f"the run {above.path}"
    if above.run.exists() and path.parent == above.trace and path.suffix == ".bin":
        return f"the run {above.path}"
    run = RunFolder(path.parent)
    if not run.run.exists():
        return ""
    own = {*BOOKKEEPING, run.metrics.name, *(each["name"] for each in listed_outputs(run))} - {
        run.report.name
    }
    return f"the run {run.path}" if path.name in own else ""
