"""The output file of a command: it replaces neither a file that the command reads nor a part of a run."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def check(target: str | Path, inputs: Iterable[str | Path] = ()) -> None:
    """Raise InputError if a file exists that must not be replaced.

    These are the `inputs`, the files of a checkpoint, and those that a run has written, since commands read them. A
    run's report can be replaced.
    """
    from mpips.errors import InputError

    target = Path(target)
    if not target.is_file():
        return
    if any(os.path.exists(each) and os.path.samefile(each, target) for each in inputs):
        raise InputError(f"{target}: is one of the files to read; name another one to write")
    if whose := _owner(target.absolute()):
        raise InputError(f"{target}: is a file of {whose}; name another one to write")


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
