"""The calls that mpips serves itself, whose names are reserved.

A program's worker may implement two of them, which mpips calls: `restore(**arrays)` restores what `state()` returned,
`rebuild()` continues without saved state.
"""

from __future__ import annotations

import inspect
from enum import StrEnum
from typing import Any

from mpips.errors import UsageError


class BuiltInCall(StrEnum):
    """A call that mpips serves."""

    ACCOUNT = "account"
    CREATE_VECTOR = "create_vector"
    CUT_SHORT = "cut_short"
    EVICT = "evict"
    REBUILD = "rebuild"
    RESTORE = "restore"
    RESTORE_FILTERS = "restore_filters"
    SET_ROWS = "set_rows"
    SNAPSHOT = "snapshot"
    WRITTEN = "written"


def check_worker(worker: Any) -> None:
    """Raise UsageError, naming its line, if a program's worker or its class has a method with a reserved name."""
    for name in BuiltInCall:
        method = getattr(worker, name, None)
        if method is None or (name in _IMPLEMENTABLE and _IMPLEMENTABLE[name](worker, method)):
            continue
        raise UsageError(
            f"Worker.{name}{defined_at(method)}: the name is reserved by mpips; rename the method. Reserved names are "
            f"{', '.join(BuiltInCall)}; `restore` together with `state`, and `rebuild` without arguments, are for "
            "checkpoints"
        )


def defined_at(function: object) -> str:
    """Return the place of a function's definition, as ` (file:line)`; "" if it is not known."""
    code = getattr(function, "__code__", None)
    return "" if code is None else f" ({code.co_filename}:{code.co_firstlineno})"


def check_runs(function: object, what: str) -> None:
    """Raise UsageError, naming its line, for a function whose call runs nothing: a generator's, or an async one."""
    checks = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
    if any(check(function) for check in checks):
        raise UsageError(
            f"{what}{defined_at(function)}: a function with `yield` or `async` does not run when it is called; write a "
            "plain function"
        )


def check_function(name: str) -> None:
    """Raise UsageError if a function for shards has a reserved name."""
    if name in list(BuiltInCall):
        raise UsageError(
            f"call {name!r}: the name is reserved by mpips; reserved names are {', '.join(BuiltInCall)}"
        )


def _has_state(worker: Any, method: Any) -> bool:
    return callable(getattr(worker, "state", None))


def _needs_no_argument(worker: Any, method: Any) -> bool:
    found = [*inspect.signature(method).parameters.values()][int(isinstance(worker, type)) :]
    return all(
        each.default is not each.empty or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        for each in found
    )


_IMPLEMENTABLE = {BuiltInCall.RESTORE: _has_state, BuiltInCall.REBUILD: _needs_no_argument}
"""The calls that a worker may implement, and the conditions under which its method is one."""
