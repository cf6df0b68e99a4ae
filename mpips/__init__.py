"""mpips: the parameter server (Li et al., OSDI 2014) as an MPI job toolkit.

These are the names that a program needs (see `mpips.config.program`), besides the decorators
`mpips.storage.updates.update` and `mpips.jit.kernel.kernel`, which have the names of their modules; each is loaded
when it is first used.
"""

from __future__ import annotations

import sys

from mpips.process import interpreter

# Python is looking for a module of ours that it was told to run: nothing may come from the working folder before it.
if sys.argv[:1] == ["-m"]:
    interpreter.forget_working_folder(by_module=True)

import importlib
import warnings
from typing import Any

# What numba says of settings in the working folder that it cannot read: they do not count (`mpips.jit.kernel`).
warnings.filterwarnings("ignore", "A Numba config file is found")

__version__ = "0.1.0"

_HOME = {
    "Answer": "mpips.worker.worker",
    "Cluster": "mpips.scheduler.scheduler",
    "Column": "mpips.storage.updates",
    "Context": "mpips.worker.worker",
    "InputError": "mpips.errors",
    "KeyRange": "mpips.ranges",
    "RemoteError": "mpips.errors",
    "Segment": "mpips.storage.segment",
    "Task": "mpips.tasks.task",
    "Vector": "mpips.worker.vector",
    "VectorSpec": "mpips.storage.updates",
    "bounded": "mpips.consistency",
    "call": "mpips.storage.updates",
    "eventual": "mpips.consistency",
    "sequential": "mpips.consistency",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mpips' has no attribute {name!r}")
