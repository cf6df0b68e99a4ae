"""`load_model`: find a trained model, and the program that reads it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mpips.checkpoint.manifest import MANIFEST, read_manifest
from mpips.client.model import Job, Model
from mpips.client.rows import checkpoints_of, newest_checkpoint, rows_at_end, rows_of
from mpips.config.job_file import load
from mpips.config.program import VECTORS, Program, comes_with_mpips, trusted_loader
from mpips.errors import DataError, InputError, JobError
from mpips.files import hdf5, npz
from mpips.keys import KeyArray
from mpips.provenance.run_json import check_outputs
from mpips.rundir.folder import RunFolder
from mpips.rundir.order_files import LATEST, named_run, newest


def load_model(source: str | os.PathLike[str] = "latest", *, program: str | None = None) -> Model:
    """Load a trained model, to apply it in this process; no MPI is needed.

    Args:
        source: a run (`Run`, or its folder, or `latest`), a checkpoint's folder, or a model file. Of a run that has not
            written its model yet, the newest checkpoint is read.
        program: the `.py` file or module of your own program, whose code is run: it is needed unless the program comes
            with mpips.

    Returns:
        The model. Those of sparse_lr have `predict`, `predict_proba` and `decision_function`; of lda `transform` and
        `predict`; of sketch `predict`: see their README.

    Raises:
        InputError: there is no model, or it is damaged, or was changed since the run has written it.
        JobError: the program does not come with mpips, and is not named; or it has no models.

    >>> load_model("no-such-run")
    Traceback (most recent call last):
        ...
    mpips.errors.InputError: no-such-run: no such run or model
    """
    path = named_run(os.fspath(source))
    if os.fspath(source) == LATEST:
        check_has_model(path)
    return made_of(path, program)


def made_of(path: Path, program: str | None) -> Model:
    """Load the model of a run's folder, of a checkpoint, or of a model file. Errors: as of `load_model`."""
    found, loaded, job = _find(path, trusted_loader(program))
    make: Callable[[Path, Job], Model] | None = getattr(loaded.module, "load_model", None)
    if make is None:
        return FormerModel(loaded, found)
    return make(found, job)


def check_has_model(latest: Path) -> None:
    """Raise InputError if the run that was started last has no model, but another has: that is not taken for it."""
    if has_model(RunFolder(latest)):
        return
    others = [path for path in latest.parent.glob("*/") if path != latest and has_model(RunFolder(path))]
    if others:
        other = newest(latest.parent, others)
        raise InputError(
            f"latest is {latest}, which has no model or checkpoint; name a run: the last with one is {other}"
        )


def has_model(folder: RunFolder) -> bool:
    """Return whether a run has a model, or a checkpoint that may have one."""
    try:
        return _has_written_model(folder) or newest_checkpoint(folder) is not None
    except InputError:
        return False


def _find(path: Path, programs: Callable[[str, Path], Program]) -> tuple[Path, Program, Job]:
    """Return what the program reads, the program, and the tables of the job."""
    if (path / MANIFEST).is_file():
        about: dict[str, Any] = read_manifest(path)["about"]
        try:
            name, tables = str(about["program"]), about["job"]
            base = Path(tables["job"]["base"])
        except (KeyError, TypeError):
            raise InputError(f"{path}: the checkpoint does not name its program") from None
        return path, programs(name, base), tables
    if path.is_dir():
        return _of_run(path, programs)
    folder = RunFolder(path.parent)
    check_outputs(folder, {path.name})
    program = programs(_program_of(path), Path.cwd())
    return path, program, folder.read_job() if folder.has_own_job() else {}


def _of_run(path: Path, programs: Callable[[str, Path], Program]) -> tuple[Path, Program, Job]:
    folder = RunFolder(path)
    if not folder.job.is_file():
        raise InputError(f"{path}: is neither a run's folder nor a checkpoint's: it has no {folder.job.name}")
    check_outputs(folder)
    job = load(folder.job, programs=programs)
    return model_of(folder), programs(job.program, job.base), job.tables()


def model_of(folder: RunFolder) -> Path:
    """Return what holds a run's model: its folder, or the newest checkpoint if it has not written the model."""
    return folder.path if _has_written_model(folder) else newest_checkpoint(folder) or folder.path


def _has_written_model(folder: RunFolder) -> bool:
    result = folder.read_result() or {}
    metrics = result.get("metrics")
    # A later step of a run that has failed may come after its model.
    return result.get("status") == "completed" or (isinstance(metrics, dict) and bool(metrics.get("model")))


def vector_of(source: Path, name: str | None = None) -> tuple[KeyArray, NDArray[Any]]:
    """Return the keys and rows, [n, width], of a vector: of a run's model or newest checkpoint, or of a checkpoint.

    Args:
        source: the folder of a run or of a checkpoint.
        name: the vector's; None: the only one.

    Raises:
        InputError: there is no such vector, or it is damaged, or was changed since the run has written it.
    """
    folder = RunFolder(source)
    if (source / MANIFEST).is_file() or not folder.job.is_file():
        rows = rows_of(source, name)
        return rows.keys, rows.values
    # Code of other programs is not run for this.
    if model_of(folder) == folder.path and comes_with_mpips(_program_name(folder)):
        held = load_model(source).vectors()
        if name is None and len(held) == 1:
            (name,) = held
        if name in held:
            return held[name]
    check_outputs(folder, {VECTORS})
    if (ended := rows_at_end(folder, name)) is not None:
        return ended.keys, ended.values
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise InputError(
            f"{source}: has no vector {name or ''} in {VECTORS}, which a completed run writes, and no checkpoint in "
            f"{checkpoints_of(folder)}; [checkpoint] every = N writes some"
        )
    rows = rows_of(checkpoint, name)
    return rows.keys, rows.values


def key_names(source: Path, keys: KeyArray) -> Sequence[str]:
    """Return the names of the keys that `vector_of` has returned, of a model of tables; [] if they have none.

    A warning is printed if the training data, which have the names, cannot be read.
    """
    try:
        names = load_model(source).names()
    except InputError as error:
        # A program of one's own, whose code is not run for this, or one without a model.
        if isinstance(error, DataError):
            print(f"mpips: warning: the names of keys are left out: {error}", file=sys.stderr)
        return []
    return names if len(names) == len(keys) else []


def _program_name(folder: RunFolder) -> str:
    return str(folder.read_job().get("job", {}).get("program", ""))


def _program_of(path: Path) -> str:
    """Read a model file's program."""
    try:
        if path.suffix == ".npz":
            return str(npz.load(path, follow=True)["program"])
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


class FormerModel(Model):
    """The model of a program without `load_model`, which has functions for the commands instead.

    These are `query(source, keys)` and `infer(model, files, out)`.
    """

    def __init__(self, program: Program, source: Path) -> None:
        self._program, self._source = program, source
        if not any(callable(getattr(program.module, name, None)) for name in ("query", "infer")):
            raise JobError(
                f"program {program.name!r} ({program.module.__file__}) has no function `load_model`"
            )

    def query(self, keys: Sequence[str]) -> Sequence[object]:
        """Call the program's `query`."""
        found: Sequence[object] = self._program.function("query")(self._source, keys)
        return found

    def score_files(self, files: Sequence[Path], out: Path | None) -> None:
        """Call the program's `infer`."""
        self._program.function("infer")(self._source, files, out)

    def show(self, out: Path | None) -> None:
        """Call the program's `infer` without files."""
        self.score_files([], out)
