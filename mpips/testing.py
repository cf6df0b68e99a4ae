"""Tests of a program: its real scheduler, servers and workers in one process, in simulated time, without MPI.

from mpips.testing import simulate

def test_it_learns():
    done = simulate("mean.py", set={"mean.count": 20}, servers=2, workers=3)
    assert abs(done["mean"]) < 0.05
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mpips.client.given_job import overrides
from mpips.config.job_file import load
from mpips.config.program import Program, load_program, program_of
from mpips.config.toml_text import write_toml
from mpips.errors import JobError
from mpips.filters.named import chain_of
from mpips.rank import simulation
from mpips.worker.buffer_check import BufferCheck


def simulate(
    program: str | ModuleType,
    *,
    set: Mapping[str, Any] | None = None,
    servers: int = 1,
    workers: int | Mapping[str, int] = 1,
    spares: int = 0,
    seed: int = 0,
    **how: Any,
) -> Any:
    """Run a program in a simulation, with the job that a job file would give it; return what `schedule` returns.

    Args:
        program: its module, or as in a job file: a `.py` file, relative to the working folder, or a name.
        set: keys of the job, as of `mpips.run`: `{"mean.count": 20}`. [debug] check_buffers is on unless it is set.
        servers: ranks that hold parameters.
        workers: ranks that compute, or those of each group.
        spares: ranks that replace dead ones.
        seed: [job] seed, and that of the simulation.
        how: further arguments of `mpips.simulate`, such as `faults`.

    Raises:
        JobError: there is no such program or key.
        RemoteError: a worker's method or a function on a server has failed.
        Exception: an error of `schedule`.

    >>> simulate("sparse_lr", set={"data.train": "none.svm"})
    Traceback (most recent call last):
        ...
    mpips.errors.JobError: [data] no such file: none.svm ...
    """
    loaded = program_of(program, program.__name__) if isinstance(program, ModuleType) else None

    def programs(name: str, base: Path) -> Program:
        return loaded or load_program(name, base)

    name = program.__name__ if isinstance(program, ModuleType) else program
    layout = {"servers": servers, "workers": workers, "spares": spares}
    tables: dict[str, dict[str, Any]] = {
        "job": {"program": name, "seed": seed, "base": os.getcwd()},
        "layout": layout,
        "debug": {"check_buffers": True},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.toml")
        path.write_text(write_toml(tables))
        try:
            job = load(path, overrides(set or {}), programs)
        except JobError as error:
            # The user has no such file.
            raise JobError(re.sub(re.escape(str(path)) + r"(:\d+)?", "job", str(error))) from error
    found = programs(job.program, job.base)
    return simulation.simulate(
        lambda cluster: found.schedule(cluster, job.settings), found.worker,
        servers=job.layout.servers, workers=job.layout.workers, spares=job.layout.spares,
        schedulers=job.layout.schedulers, seed=job.seed, job=job,
        filters=lambda: (chain_of(job.filters.push, job.seed), chain_of(job.filters.pull, job.seed)),
        attach=BufferCheck if job.debug.check_buffers else lambda node: None,
        **how,
    )  # fmt: skip
