"""A whole job in one process, in simulated time: all ranks on the in-memory twin, for a debugger (`mpips run --twin`).

Exactly one rank runs at a time, each in a greenlet of this process's main thread, so that `breakpoint()` works in
`schedule`, in workers and in updates. Nothing depends on time, so the same happens again in each run. Injected faults,
traces and records are left out, and there is no communicator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

from mpips.config.job_file import Job
from mpips.config.program import Program, comes_with_mpips
from mpips.exit_codes import ExitCode
from mpips.files.json_values import Nulls, json_data
from mpips.filters.named import chain_of
from mpips.forked import program_code
from mpips.rank.leader import about, metrics_line
from mpips.rank.prepare import checkpoints
from mpips.rank.simulation import simulate
from mpips.rundir.folder import RunFolder, write_json, write_text
from mpips.scheduler.scheduler import Cluster
from mpips.storage.disk.store import Store
from mpips.worker.buffer_check import BufferCheck

FOR_EVER = 1e12
"""Simulated seconds, which pass only while all ranks wait."""


def run_twin(
    job: Job, program: Program, folder: RunFolder, resume: Path | None, out: TextIO
) -> dict[str, Any]:
    """Run a job; write its `job.toml` and `result.json`, and return the latter.

    Args:
        job: the job.
        program: its program.
        folder: the run's folder, claimed by this process.
        resume: the checkpoint to resume from.
        out: where the program's table and messages go.

    Raises:
        RemoteError: a worker's method or a function on a server has failed; its `trace` is the traceback there.
        Exception: an error of `schedule`.
    """
    write_text(folder.job, job.to_toml())
    layout = job.layout

    def schedule(cluster: Cluster) -> dict[str, Any]:
        cluster.checkpoints, cluster.resume = checkpoints(job), resume
        with program_code("schedule"):
            returned = program.schedule(cluster, job.settings)
        returned = json_data(returned, Nulls(), "metrics")
        metrics = returned if returned is None or isinstance(returned, dict) else {"returned": returned}
        cluster.settle()
        # As without the twin: see `mpips.rank.leader`.
        if not comes_with_mpips(job.program):
            cluster.save_vectors()
            if line := metrics_line(metrics):
                cluster.say(line)
        vectors = list(cluster.vectors.values())
        return {
            **about(job, ExitCode.COMPLETED, cluster.seconds),
            "metrics": metrics,
            "parameters_sha256": cluster.digest(vectors[0]) if vectors else "",
        }

    result: dict[str, Any] = simulate(
        schedule, program.worker, servers=layout.servers, workers=layout.workers, spares=layout.spares,
        schedulers=layout.schedulers, seed=job.seed, job=job, horizon=FOR_EVER, folder=folder.path, out=out,
        filters=lambda: (chain_of(job.filters.push, job.seed), chain_of(job.filters.pull, job.seed)),
        attach=BufferCheck if job.debug.check_buffers else lambda node: None,
        store=lambda: Store.of(job.store),
    )  # fmt: skip
    write_json(folder.result, result)
    return result
