"""The calls that ranks serve by themselves. Their names are not a program's: here stand all of them.

Some of them a program's worker takes part in, by methods of the same name that mpips calls: `restore(**arrays)` takes
back what `state()` gave, and `rebuild()` does without.
"""

from __future__ import annotations

import inspect
from enum import StrEnum
from typing import Any

from mpips.errors import UsageError


class Own(StrEnum):
    """A call that mpips serves."""

    ACCOUNT = "account"
    CREATE_VECTOR = "create_vector"
    REBUILD = "rebuild"
    RESTORE = "restore"
    RESTORE_FILTERS = "restore_filters"
    SNAPSHOT = "snapshot"
    WRITTEN = "written"


def check_worker(worker: Any) -> None:
    """Refuse a program's worker, or its class, that has a method of such a name: UsageError, which names its line."""
    for name in Own:
        method = getattr(worker, name, None)
        if method is None or (name in _TAKES_PART and _TAKES_PART[name](worker, method)):
            continue
        code = getattr(method, "__code__", None)
        at = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
        raise UsageError(
            f"Worker.{name}{at}: mpips serves calls of that name itself: name the method otherwise. Its own are "
            f"{', '.join(Own)}; `restore` beside `state`, and `rebuild` without arguments, are for checkpoints"
        )


def check_function(name: str) -> None:
    """Refuse a function for shards that has such a name: UsageError."""
    if name in list(Own):
        raise UsageError(f"call {name!r}: mpips serves calls of that name itself, which are {', '.join(Own)}")


def _takes_back(worker: Any, method: Any) -> bool:
    return callable(getattr(worker, "state", None))


def _needs_nothing(worker: Any, method: Any) -> bool:
    found = [*inspect.signature(method).parameters.values()][int(isinstance(worker, type)) :]
    return all(
        each.default is not each.empty or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        for each in found
    )


_TAKES_PART = {Own.RESTORE: _takes_back, Own.REBUILD: _needs_nothing}
