"""mpips: the parameter server (Li et al., OSDI 2014) as an MPI job toolkit.

These are the names that a program needs (see `mpips.program`), besides the decorators `mpips.update.update` and
`mpips.kernel.kernel`, which have the names of their modules; each is loaded when it is first used.
"""

from __future__ import annotations

import sys

from mpips import interpreter

# Python is looking for a module of ours that it was told to run: nothing may come from the working folder before it.
if sys.argv[:1] == ["-m"]:
    interpreter.forget_working_folder(by_module=True)

import importlib
import warnings
from typing import Any

# What numba says of settings in the working folder that it cannot read: they do not count (`mpips.kernel`).
warnings.filterwarnings("ignore", "A Numba config file is found")

__version__ = "0.1.0"

_HOME = {
    "Answer": "mpips.worker",
    "Cluster": "mpips.scheduler",
    "Column": "mpips.update",
    "Context": "mpips.worker",
    "InputError": "mpips.errors",
    "KeyRange": "mpips.ranges",
    "RemoteError": "mpips.errors",
    "Segment": "mpips.store",
    "Task": "mpips.task",
    "Vector": "mpips.vector",
    "VectorSpec": "mpips.update",
    "bounded": "mpips.consistency",
    "call": "mpips.update",
    "eventual": "mpips.consistency",
    "sequential": "mpips.consistency",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mpips' has no attribute {name!r}")
