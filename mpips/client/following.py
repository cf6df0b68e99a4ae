"""`follow`: a model that follows a run, wherever it goes on, and is as new as the run's newest checkpoint.

    the run, under MPI                               this process
    ------------------                               ------------
    base, delta, delta, ... on disk ------------->   refresh: find the newest; read the deltas since the last one
                                                     make a new model of the rows; replace the model

A model is made of a whole checkpoint or not at all: a folder is one once it has its manifest, and a model that was
made replaces the one before at once. What is removed while it is read is given up for the newest one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mpips.checkpoint.loading import HeldRows
from mpips.checkpoint.manifest import MANIFEST
from mpips.client.loading import made_of, model_of
from mpips.client.model import Model
from mpips.errors import InputError, UsageError
from mpips.keys import KeyArray
from mpips.rundir.folder import RunFolder
from mpips.rundir.order_files import named_run

PATIENCE = 2.0
"""Seconds for which a refresh tries the same again: a run that starts again in its folder replaces files there."""
MOST = 5
"""Models that a refresh gives up for a newer one."""
AGAIN = 0.05
"""Seconds between two trials."""


class FollowedModel(Model):
    """A model that follows a run; see `follow`. Its methods are those of the run's model."""

    def __init__(self, run: Path, program: str | None, every: float | None) -> None:
        if every is not None and not every >= 0:
            raise UsageError(f"follow: every {every!r} is no number of seconds, nor None")
        self._run, self._program, self._every = run, program, every
        self._held, self._lock = HeldRows(), threading.Lock()
        self._looked = 0.0
        self._read: tuple[Path, int] | None = None
        self._tried: tuple[Path, int] | None = None
        self._model = Model()
        self.refresh()

    @property
    def source(self) -> Path:
        """What the model was read from: a checkpoint, or the run's folder once the run has written its model."""
        assert self._read is not None
        return self._read[0]

    def refresh(self) -> bool:
        """Read what has changed since the last time; return whether anything has. Other threads may use the model.

        Raises:
            InputError: there is no model, or it is damaged.
        """
        with self._lock:
            failed: list[tuple[Path, int] | None] = []
            until = 0.0
            while True:
                try:
                    return self._refreshed()
                except InputError:
                    now = time.monotonic()
                    # What takes long to read may be gone meanwhile: then there is a newer one.
                    if self._tried not in failed[-1:]:
                        failed.append(self._tried)
                        until = now + (AGAIN if self._read is None else PATIENCE)
                    if now >= until or len(failed) > MOST:
                        raise
                time.sleep(AGAIN)

    def _refreshed(self) -> bool:
        self._looked, self._tried = time.monotonic(), None
        found = model_of(RunFolder(self._run))
        mark = found / MANIFEST if (found / MANIFEST).exists() else RunFolder(found).result
        try:
            newest = found, mark.stat().st_mtime_ns
        except OSError as error:
            raise InputError(f"{found}: has no model or checkpoint: {mark.name}: {error.strerror}") from None
        if newest == self._read:
            return False
        self._tried = newest
        with self._held.used():
            self._model = made_of(found, self._program)
        self._read = newest
        if mark.name != MANIFEST:
            # It has ended.
            self._held = HeldRows()
        return True

    def _current(self) -> Model:
        due = self._every is not None and time.monotonic() - self._looked >= self._every
        # While another thread reads a newer one, this one answers.
        if due and not self._lock.locked():
            self.refresh()
        return self._model

    def predict(self, data: Any) -> NDArray[Any]:
        """Return the prediction for each example, [n]."""
        return self._current().predict(data)

    def predict_proba(self, data: Any) -> NDArray[Any]:
        """Return the probability of each class for each example, f8[n, classes]."""
        return self._current().predict_proba(data)

    def decision_function(self, data: Any) -> NDArray[Any]:
        """Return a score for each example, f8[n]; the class is its sign."""
        return self._current().decision_function(data)

    def transform(self, data: Any) -> NDArray[Any]:
        """Return another representation of each example, f8[n, width]."""
        return self._current().transform(data)

    def query(self, keys: Sequence[str]) -> Sequence[object]:
        """Return what the model has for each of some keys, given as text."""
        return self._current().query(keys)

    def score_files(self, files: Sequence[Path], out: Path | None) -> None:
        """Write the predictions for the examples of files to `out`, None: standard output."""
        self._current().score_files(files, out)

    def show(self, out: Path | None) -> None:
        """Describe the model on standard output, and in `out` if it is given."""
        self._current().show(out)

    def vectors(self) -> dict[str, tuple[KeyArray, NDArray[Any]]]:
        """Return the vectors that the model holds, by name."""
        return self._current().vectors()

    def names(self) -> Sequence[str]:
        """Return a name for each key of the only vector."""
        return self._current().names()


def follow(
    run: str | os.PathLike[str] = "latest", *, program: str | None = None, every: float | None = 1.0
) -> FollowedModel:
    """Load the model of a run that goes on, and keep it as new as the run's checkpoints; no MPI is needed.

    A prediction uses the newest checkpoint, or the model of a run that has completed. So it is behind the run by no
    more than the time between two checkpoints ([checkpoint] every_seconds, plus a step), the time to write one,
    `every`, and the time to read what has changed: the deltas of [checkpoint] incremental, and each base as a whole.

    Args:
        run: a run (`Run`, or its folder, or `latest`) that has written a checkpoint.
        program: as of `load_model`.
        every: seconds after which a method looks for a newer checkpoint before it answers; None: only `refresh` does.

    Returns:
        The model, with the methods of the one that `load_model` returns, and `refresh` and `source`.

    Raises:
        InputError: the run has neither a checkpoint nor a model, or they are damaged.
        JobError: as of `load_model`.

    >>> follow("no-such-run")
    Traceback (most recent call last):
        ...
    mpips.errors.InputError: no-such-run: no such run
    """
    path = named_run(os.fspath(run))
    if not path.is_dir():
        raise InputError(f"{path}: no such run")
    if not RunFolder(path).job.is_file():
        raise InputError(f"{path}: is no run's folder: it has no {RunFolder(path).job.name}")
    return FollowedModel(path, program, every)
