"""`run` starts a job from Python as `mpips run` does, in processes of its own; `Run` reads what a run has left.

    this process                             mpips run, in a process group of its own
    ------------                             -------------------------------------------
    write the job's file, if it is a dict    check the job, start the ranks
    start ------------------------------->   tell the run's folder, through a pipe
    read metrics.jsonl and the output        supervise the ranks
    a Run, or an error <------------------   exit code, and the last line

All is done in the caller's thread, also the calls of `on_pass`. Ctrl-C reaches this process alone, which passes it on.
If this process dies, the run stops with a checkpoint.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mpips.client.given_job import JobLike, job_file, overrides
from mpips.client.loading import vector_of
from mpips.client.rows import newest_checkpoint
from mpips.client.run_process import OnPass, RunProcess, is_pass
from mpips.errors import InputError, RunFailed
from mpips.exit_codes import ExitCode
from mpips.keys import KeyArray
from mpips.process.interpreter import check_working_folder, python
from mpips.rundir.folder import RunFolder
from mpips.rundir.order_files import named_run


class Run:
    """A run's folder, as it is on disk: its status, metrics, passes and vectors; no MPI is needed.

    Args:
        folder: the run's folder, or `latest`: the one under runs/ that was started last.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "job.toml").write_text('job.program = "sparse_lr"')
    ...     _ = Path(folder, "result.json").write_text('{"status": "completed", "metrics": {"loss": 0.5}}')
    ...     run = Run(folder)
    ...     run.status, run.metrics, run.passes, list(run.result), run.events, run.checkpoint, run.folder.is_dir()
    ('completed', {'loss': 0.5}, [], ['status', 'metrics'], [], None, True)
    """

    def __init__(self, folder: str | os.PathLike[str] = "latest") -> None:
        self._folder = RunFolder(named_run(os.fspath(folder)))

    @property
    def folder(self) -> Path:
        """The run's folder, as an absolute path."""
        return self._folder.path

    @property
    def result(self) -> dict[str, Any]:
        """The contents of `result.json`; {} while the run has not written it. InputError: it is damaged."""
        return self._folder.read_result() or {}

    @property
    def status(self) -> str:
        """`completed`, `stopped` or `failed`; `no result` while the run goes on, or if it was killed."""
        return str(self.result.get("status", "no result"))

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics that the program has returned, by name."""
        return self.result.get("metrics") or {}

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, each with its `event`."""
        return self._folder.read_metrics().objects

    @property
    def passes(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` that tell of progress, such as a pass or a sweep.

        These are those of an event `pass`, `sweep`, `round` or `step`, or with the number of one, or with the `seconds`
        of training.
        """
        return [line for line in self.events if is_pass(line)]

    @property
    def checkpoint(self) -> Path | None:
        """The newest checkpoint from which the run can be resumed; None if there is none."""
        return newest_checkpoint(self._folder)

    def vector(self, name: str | None = None) -> tuple[KeyArray, NDArray[Any]]:
        """Return the keys of a vector in ascending order, u8[n] or KEY128[n], and its rows.

        They are those of the model, if the program comes with mpips and its model holds this vector; else those at the
        end, if the run has completed and [checkpoint] at_end is on; else of the newest checkpoint. Rows are [n, width]
        of the vector's dtype, [n] if the width is 1, as of `Vector.pull`. Without a `name`: the only vector.

        Of a vector with `dense=True` row i is that of key i. Of others, keys that were never pushed are left out, and
        of a model or of a completed run also those whose row is the initial value.

        Raises:
            InputError: there is no such vector.
        """
        keys, rows = vector_of(self.folder, name)
        return keys, rows[:, 0] if rows.shape[1] == 1 else rows

    def __fspath__(self) -> str:
        """Return the folder, so that a run can stand for it."""
        return str(self.folder)

    def __repr__(self) -> str:
        """Show folder and status."""
        return f"Run({str(self.folder)!r}): {self.status}"


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C, or the interruption of a notebook's cell, while `run` was waiting: the run was stopped with a checkpoint.

    `run` is the run, None if it was stopped before it had a folder. `mpips.run(job, resume=error.run)` continues it.

    >>> try:
    ...     raise RunInterrupted("stopped", Run("runs/a"))
    ... except KeyboardInterrupt as error:
    ...     error.run.folder.name
    'a'
    """

    def __init__(self, text: str, run: Run | None) -> None:
        super().__init__(text)
        self.run = run


def run(
    job: JobLike,
    *,
    servers: int | None = None,
    workers: int | Mapping[str, int] | None = None,
    spares: int | None = None,
    replicas: int | None = None,
    set: Mapping[str, Any] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | Run | None = None,
    on_pass: OnPass | None = None,
    show: bool = False,
    launcher: str = "auto",
) -> Run:
    """Run a job, as the command `mpips run` does, and wait for its end; call it from a script, a notebook or a test.

    The calling process needs no MPI, and prints nothing unless `show` is set.

    Args:
        job: a job file, or its tables: `{"job": {"program": "lda"}, "data": {"train": "a.txt"}}`. Relative paths in
            tables start from the working folder.
        servers: the number of ranks that hold parameters; like the next three, instead of the job's.
        workers: the number of ranks that compute, or those of each group.
        spares: the number of ranks that replace dead ones.
        replicas: copies of each server's keys.
        set: overrides of the job's keys: `{"sparse_lr.l1": 0.5}`, or `{"sparse_lr": {"l1": 0.5}}`.
        run_dir: the run's folder; default: runs/NAME-UTC.
        resume: a checkpoint, or `latest`; or a run, which is continued in its folder.
        on_pass: is called with each line of `Run.passes` while the run goes on. If it raises an error, the run is
            stopped with a checkpoint, and the error raised again.
        show: print the run's table of progress, and its messages.
        launcher: how ranks are started: `auto`, `openmpi`, `mpich` or `srun`.

    Returns:
        The run; its `status` is `completed`, or `stopped` if it was asked to stop by another process, or by its time
        limit.

    Raises:
        InputError: the job, its data or another input is wrong.
        RunFailed: the run has failed.
        RunInterrupted: Ctrl-C was pressed: the run has written a checkpoint, if anything was trained, and stopped. A
            second Ctrl-C kills it.

    >>> run({"job": {"program": "sparse_lr"}, "sparse_lr": {"l1": -1.0}})
    Traceback (most recent call last):
        ...
    mpips.errors.InputError: job: l1 must be at least 0.0, got -1.0
    """
    check_working_folder()
    settings = dict(set or {})
    options = {"servers": servers, "spares": spares, "replicas": replicas}
    if isinstance(workers, Mapping):
        settings["layout.workers"] = workers
    else:
        options["workers"] = workers
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    words += [word for override in overrides(settings) for word in ("--set", override)]
    words += ["--launcher", launcher]
    if isinstance(resume, Run):
        run_dir, resume = run_dir or resume.folder, "latest"
    if run_dir is not None:
        words += ["--run-dir", os.fspath(run_dir)]
    if resume is not None:
        words += ["--resume", os.fspath(resume)]
    with job_file(job) as path:
        child = RunProcess([*python(), "-m", "mpips.cli", "run", str(path), *words], show)
        interrupted = child.finish(on_pass)
    text = child.last_line
    if isinstance(job, Mapping):
        text = re.sub(re.escape(str(path)) + r"(:\d+)?", "job", text)
    begun = None if child.begun is None else Run(child.begun.folder)
    if interrupted:
        raise RunInterrupted(text or "stopped before the run began", begun)
    if child.code == ExitCode.BAD_INPUT:
        raise InputError(text)
    if begun is None or child.code not in (ExitCode.COMPLETED, ExitCode.STOPPED):
        raise RunFailed(text, child.code, None if begun is None else begun.folder, "".join(child.kept))
    return begun
