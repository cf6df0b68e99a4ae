"""The modules that ranks have imported when they start to work, by role: most of their memory and start-up time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import gc
import sys
from dataclasses import dataclass

import numpy as np

from mpips.storage.updates import VectorSpec, call
from mpips.worker.worker import Answer


@dataclass(frozen=True)
class Settings:
    pass


@call("loaded", reads=True)
def loaded(segment, args):
    return {"modules": sorted(sys.modules)}


def schedule(cluster, settings):
    modules = {"scheduler": sorted(sys.modules)}
    w = cluster.create_vector(VectorSpec("w", extent=100, dense=True))
    (modules["worker"],) = [each["modules"] for each in cluster.workers.call("work")]
    (modules["server"],) = [each["modules"] for each in cluster.servers.call("loaded", {}, vector=w)]
    return {**modules, "collects": gc.isenabled(), "kept": gc.get_freeze_count()}


class Worker:
    def __init__(self, context):
        self.context = context

    def work(self):
        w, node = self.context.vectors["w"], self.context.node
        keys = np.arange(100, dtype=np.uint64)
        node.wait(w.push(keys, np.ones(100)))
        node.wait(w.pull(keys))
        return Answer({"modules": sorted(sys.modules)})
"""

NEEDED = {
    "numpy",
    "mpips.jit.numba_extensions",
    "mpi4py.MPI",
    "mpips.transport.fastpath.server",
    "mpips.transport.fastpath.client",
    "mpips.server.server",
    "mpips.worker.worker",
    "mpips.rank.leader",
}
"""By every rank: any may take any role."""
COMPILER = {
    "numba",
    "llvmlite",
    "scipy",
    "mpips.jit.compiler.numba_internals",
    "mpips.jit.compiler.pointer_intrinsics",
}
"""What compiles kernels, and no rank whose kernels are in the cache needs."""
FORMATS = {"h5py", "zipfile", "mpips.data.convert", "lz4", "zstandard"}
"""What only who opens such a file needs; the scheduler asks for the versions of packages."""
COMMANDS = {
    "mpips.cli", "mpips.bench", "mpips.report.report", "mpips.report.charts", "mpips.report.ro_crate",
    "mpips.report.diff", "mpips.planning.model", "mpips.launch.mpi_launcher", "mpips.transport.in_memory",
"mpips.rank.simulation", "jinja2", "difflib", "unittest", "asyncio", "multiprocessing", "http", }  # fmt: skip
"""What runs no rank."""


@pytest.mark.ranks
@pytest.mark.once
def test_what_each_role_imports_and_what_none_needs(tmp_path: Path, run_mpips: Callable[..., Any]) -> None:
    (tmp_path / "loaded.py").write_text(PROGRAM)
    (tmp_path / "job.toml").write_text('[job]\nprogram = "loaded.py"\n[layout]\nservers = 1\nworkers = 1\n')
    run = ["run", tmp_path / "job.toml", "--replicas", "0", "--run-dir"]
    done = run_mpips(*run, tmp_path / "run")
    assert done.code == 0, done.stderr
    modules = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    # What was loaded is not searched for garbage, and what comes later is.
    assert modules["collects"] and modules["kept"] > 10_000
    for role in ("scheduler", "server", "worker"):
        have = set(modules[role])
        assert have >= NEEDED, role
        assert not have & (COMPILER | COMMANDS), role
        assert not have & (FORMATS - ({"h5py", "zipfile"} if role == "scheduler" else set())), role
