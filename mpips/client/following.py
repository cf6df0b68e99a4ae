"""`follow`: a model that follows a run, wherever it goes on, and is as new as the run's newest checkpoint.

    the run, under MPI                               this process
    ------------------                               ------------
    base, delta, delta, ... on disk ------------->   refresh: find the newest; read the deltas since the last one
                                                     make a new model of the rows; replace the model

A model is made of a whole checkpoint or not at all: a folder is one once it has its manifest, and a model that was
made replaces the one before at once. What is removed while it is read is given up for the newest one.

How far it is behind is known: a checkpoint's manifest has the time at which its rows were copied (`about.taken`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mpips.checkpoint.loading import HeldRows
from mpips.checkpoint.manifest import MANIFEST, read_manifest
from mpips.client.loading import has_model, made_of, model_of
from mpips.client.model import Model
from mpips.errors import InputError, Outdated, UsageError
from mpips.keys import KeyArray
from mpips.rundir.claim import is_held
from mpips.rundir.folder import RunFolder
from mpips.rundir.order_files import LATEST, named_run, newest

PATIENCE = 2.0
"""Seconds for which a refresh tries the same again: a run that starts again in its folder replaces files there."""
MOST = 5
"""Models that a refresh gives up for a newer one."""
AGAIN = 0.05
"""Seconds between two trials."""


class FollowedModel(Model):
    """A model that follows a run; see `follow`. Its methods are those of the run's model."""

    def __init__(
        self,
        run: Callable[[], Path],
        program: str | None,
        every: float | None,
        max_lag: float | None = None,
    ) -> None:
        for name, seconds in (("every", every), ("max_lag", max_lag)):
            if seconds is not None and not seconds >= 0:
                raise UsageError(f"follow: {name} {seconds!r} is no number of seconds, nor None")
        self._run, self._program, self._every, self._max_lag = run, program, every, max_lag
        self._taken: float | None = None
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

    @property
    def lag(self) -> float:
        """Seconds for which the run has gone on since it had these parameters; 0.0 of a run that has completed.

        By the clocks of this host and of the run's leader.
        """
        return 0.0 if self._taken is None else max(0.0, time.time() - self._taken)

    @property
    def ended(self) -> str:
        """How the run has ended, if nobody goes on with it and it has no model of its end; "" otherwise."""
        if self._taken is None or is_held(self._folder):
            return ""
        status = (RunFolder(self._folder).read_result() or {}).get("status")
        return f"the run has {status}" if status else "the run was killed, or its hosts are gone"

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
        self._folder = self._run()
        found = model_of(RunFolder(self._folder))
        mark = found / MANIFEST if (found / MANIFEST).exists() else RunFolder(found).result
        try:
            newest = found, mark.stat().st_mtime_ns
        except OSError as error:
            raise InputError(f"{found}: has no model or checkpoint: {mark.name}: {error.strerror}") from None
        if newest == self._read:
            return False
        self._tried = newest
        taken = taken_at(found, newest[1]) if mark.name == MANIFEST else None
        with self._held.used():
            self._model = made_of(found, self._program)
        self._read, self._taken = newest, taken
        if taken is None:
            # It has ended.
            self._held = HeldRows()
        return True

    def _current(self) -> Model:
        due = self._every is not None and time.monotonic() - self._looked >= self._every
        # While another thread reads a newer one, this one answers.
        if due and not self._lock.locked():
            self.refresh()
        if self._max_lag is None or self.lag <= self._max_lag:
            return self._model
        self.refresh()
        # The lag of another model, read meanwhile, is not that of this one.
        with self._lock:
            if (lag := self.lag) > self._max_lag:
                why = f"; {ended}: resume it" if (ended := self.ended) else ""
                raise Outdated(
                    f"the newest model is {lag:.1f} s behind the run, and at most {self._max_lag:g} s are allowed:"
                    f" {self.source}{why}"
                )
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

    def is_head(self, line: str) -> bool:
        """Return whether a first line of text is no example, but names the columns of those after it."""
        return self._model.is_head(line)

    def score_lines(self, lines: Sequence[str], head: str = "") -> Sequence[str]:
        """Return the prediction for the example in each line of text."""
        return self._current().score_lines(lines, head)

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


def taken_at(checkpoint: Path, written: int) -> float:
    """Return when a checkpoint's rows were copied, in seconds since 1970; `written`, in ns, if it does not say so."""
    return float(read_manifest(checkpoint)["about"].get("taken", written / 1e9))


class _Latest:
    """The newest run of a job under a folder: the one that was started last among those with a model or checkpoint.

    The job is that of the run which was started last of all at first.
    """

    def __init__(self, runs: Path) -> None:
        self._runs, self._seen = runs, dict[Path, int]()
        self._run = newest(runs)
        self._job = _job_of(self._run)
        # Newer ones, which have no checkpoint yet.
        self._begun = set[Path]()

    def __call__(self) -> Path:
        """Return the run; folders that are as before are not read again."""
        for path in self._runs.glob("*/"):
            try:
                written = RunFolder(path).run.stat().st_mtime_ns
            except OSError:
                continue
            if self._seen.get(path) != written:
                self._seen[path] = written
                if path != self._run and _job_of(path) == self._job:
                    self._begun.add(path)
        self._begun = {path for path in self._begun if path.is_dir()}
        waiting = set[Path]()
        while self._begun and (run := newest(self._runs, [self._run, *self._begun])) != self._run:
            self._begun.remove(run)
            if has_model(RunFolder(run)):
                self._run = run
            else:
                waiting.add(run)
        self._begun = waiting
        return self._run


def _job_of(run: Path) -> str:
    """Return the name of a run's job; "" if it cannot be read."""
    with suppress(InputError):
        return str(RunFolder(run).read_job().get("job", {}).get("name", ""))
    return ""


def follow(
    run: str | os.PathLike[str] = "latest",
    *,
    program: str | None = None,
    every: float | None = 1.0,
    max_lag: float | None = None,
) -> FollowedModel:
    """Load the model of a run that goes on, and keep it as new as the run's checkpoints; no MPI is needed.

    A prediction uses the newest checkpoint, or the model of a run that has completed. So it is behind the run by no
    more than the time between two checkpoints ([checkpoint] every_seconds, plus a step), the time to write one,
    `every`, and the time to read what has changed: the deltas of [checkpoint] incremental, and each base as a whole.

    Args:
        run: a run (`Run`, or its folder) that has written a checkpoint. Or `latest`: the one under runs/ that was
            started last, and later runs of its job once they have a checkpoint.
        program: as of `load_model`.
        every: seconds after which a method looks for a newer checkpoint before it answers; None: only `refresh` does.
        max_lag: seconds that a model may be behind the run (`lag`) to be used; None: any.

    Returns:
        The model, with the methods of the one that `load_model` returns, and `refresh`, `source` and `lag`. With
        `max_lag` they raise `Outdated` in place of an answer by an older model.

    Raises:
        InputError: the run has neither a checkpoint nor a model, or they are damaged.
        JobError: as of `load_model`.

    >>> follow("no-such-run")
    Traceback (most recent call last):
        ...
    mpips.errors.InputError: no-such-run: no such run
    """
    named = os.fspath(run)
    if named == LATEST:
        return FollowedModel(_Latest(Path("runs").absolute()), program, every, max_lag)
    path = named_run(named)
    if not path.is_dir():
        raise InputError(f"{path}: no such run")
    if not RunFolder(path).job.is_file():
        raise InputError(f"{path}: is no run's folder: it has no {RunFolder(path).job.name}")
    return FollowedModel(lambda: path, program, every, max_lag)
