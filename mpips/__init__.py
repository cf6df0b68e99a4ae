"""mpips: the parameter server (Li et al., OSDI 2014) as an MPI job toolkit.

The public names: all that a program needs (see `mpips.config.program`), by group in docs/api.md. Each is loaded when it
is first used, so that a rank loads no more than its program uses. Readers of training data are in `mpips.data`.
"""

from __future__ import annotations

import sys

from mpips.process import interpreter

# Under `python -m`, remove the working folder from sys.path so it cannot shadow modules.
if sys.argv[:1] == ["-m"]:
    interpreter.forget_working_folder(by_module=True)

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The names of `_HOMES`, for type checkers.
    from mpips.checkpoint.loading import load_range as load_range
    from mpips.checkpoint.manifest import (
        MANIFEST as MANIFEST,
        explained as explained,
        read_manifest as read_manifest,
    )
    from mpips.client.following import follow as follow
    from mpips.client.loading import load_model as load_model
    from mpips.client.model import Model as Model
    from mpips.client.run import Run as Run, RunInterrupted as RunInterrupted, run as run
    from mpips.config.job_file import Job as Job
    from mpips.consistency import (
        Bounded as Bounded,
        Consistency as Consistency,
        ConsistencySpec as ConsistencySpec,
        PushPull as PushPull,
        bounded as bounded,
        eventual as eventual,
        push_pull as push_pull,
        sequential as sequential,
        unmet as unmet,
    )
    from mpips.errors import (
        CheckpointError as CheckpointError,
        ClosedError as ClosedError,
        DataError as DataError,
        Diverged as Diverged,
        FilterError as FilterError,
        InputError as InputError,
        JobError as JobError,
        JournalLost as JournalLost,
        LayoutError as LayoutError,
        MpipsError as MpipsError,
        NoWorkerLeft as NoWorkerLeft,
        Outdated as Outdated,
        ProtocolError as ProtocolError,
        RecordError as RecordError,
        RemoteError as RemoteError,
        RunFailed as RunFailed,
        ShardLost as ShardLost,
        StopOverdue as StopOverdue,
        UsageError as UsageError,
        WorkerLost as WorkerLost,
    )
    from mpips.files import hdf5 as hdf5, npz as npz
    from mpips.files.json_schema import (
        ANY as ANY,
        COUNT as COUNT,
        NUMBER as NUMBER,
        Each as Each,
        schema_error as schema_error,
    )
    from mpips.files.safe_open import replacing as replacing
    from mpips.filters.filter import About as About, Coder as Coder, Content as Content, filter_ as filter_
    from mpips import keys as keys
    from mpips.jit.array_checks import cells_flaw as cells_flaw, rows_flaw as rows_flaw
    from mpips.jit.kernel import kernel as kernel
    from mpips.keys import KEY128 as KEY128, text_keys as text_keys
    from mpips.ranges import ALL as ALL, KeyRange as KeyRange
    from mpips.rank.simulation import simulate as simulate
    from mpips.report import charts as charts
    from mpips.rundir import progress as progress
    from mpips.scheduler.data_assignment import Cut as Cut, Workload as Workload
    from mpips.scheduler.finishing import finish as finish
    from mpips.scheduler.group import Group as Group
    from mpips.scheduler.scheduler import Cluster as Cluster
    from mpips.scheduler.worker_recovery import regroup as regroup, retry_on_loss as retry_on_loss
    from mpips.storage import exact_sums as exact_sums
    from mpips.storage.initial import Normal as Normal, Uniform as Uniform
    from mpips.storage.segment import Segment as Segment
    from mpips.storage.updates import (
        Column as Column,
        Setting as Setting,
        Settings as Settings,
        State as State,
        VectorSpec as VectorSpec,
        call as call,
        update as update,
    )
    from mpips.tasks.task import Task as Task
    from mpips.transport.message import NO_ROUND as NO_ROUND, Command as Command
    from mpips.worker.key_list import KeyList as KeyList
    from mpips.worker.vector import Vector as Vector
    from mpips.worker.worker import Answer as Answer, Context as Context, Later as Later, at_once as at_once

# numba's warning about a configuration file in the working folder that it cannot read. mpips ignores such a file
# (`mpips.jit.numba_installed`).
warnings.filterwarnings("ignore", "A Numba config file is found")

__version__ = "0.1.0"

_HOMES = {
    "mpips.checkpoint.loading": "load_range",
    "mpips.checkpoint.manifest": "MANIFEST explained read_manifest",
    "mpips.client.following": "follow",
    "mpips.client.loading": "load_model",
    "mpips.client.model": "Model",
    "mpips.client.run": "Run RunInterrupted run",
    "mpips.config.job_file": "Job",
    "mpips.consistency": "Bounded Consistency ConsistencySpec PushPull bounded eventual push_pull "
    "sequential unmet",
    "mpips.errors": "CheckpointError ClosedError DataError Diverged FilterError InputError JobError "
    "JournalLost LayoutError MpipsError NoWorkerLeft Outdated ProtocolError RecordError RemoteError "
    "RunFailed ShardLost StopOverdue UsageError WorkerLost",
    "mpips.files.json_schema": "ANY COUNT Each NUMBER schema_error",
    "mpips.files.safe_open": "replacing",
    "mpips.filters.filter": "About Coder Content filter_",
    "mpips.jit.array_checks": "cells_flaw rows_flaw",
    "mpips.jit.kernel": "kernel",
    "mpips.keys": "KEY128 text_keys",
    "mpips.ranges": "ALL KeyRange",
    "mpips.rank.simulation": "simulate",
    "mpips.scheduler.data_assignment": "Cut Workload",
    "mpips.scheduler.finishing": "finish",
    "mpips.scheduler.group": "Group",
    "mpips.scheduler.scheduler": "Cluster",
    "mpips.scheduler.worker_recovery": "regroup retry_on_loss",
    "mpips.storage.initial": "Normal Uniform",
    "mpips.storage.segment": "Segment",
    "mpips.storage.updates": "Column Setting Settings State VectorSpec call update",
    "mpips.tasks.task": "Task",
    "mpips.transport.message": "NO_ROUND Command",
    "mpips.worker.key_list": "KeyList",
    "mpips.worker.vector": "Vector",
    "mpips.worker.worker": "Answer Context Later at_once",
}
_MODULES = {
    "charts": "mpips.report.charts",
    "exact_sums": "mpips.storage.exact_sums",
    "hdf5": "mpips.files.hdf5",
    "keys": "mpips.keys",
    "npz": "mpips.files.npz",
    "progress": "mpips.rundir.progress",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
_FORMER = {"misfit": "schema_error"}
"""Former names, for programs that use them."""

__all__ = sorted([*_HOME, *_MODULES, "__version__"])

if not TYPE_CHECKING:
    # So that a type checker reports names that do not exist.

    def __getattr__(name: str) -> Any:
        name = _FORMER.get(name, name)
        if name in _HOME:
            return getattr(importlib.import_module(_HOME[name]), name)
        if name in _MODULES:
            return importlib.import_module(_MODULES[name])
        raise AttributeError(f"module 'mpips' has no attribute {name!r}")
