"""Converts values to JSON-able data. Programs return numbers, strings, lists and tables, often of numpy types."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mpips.errors import UsageError
from mpips.files.json_schema import LARGEST_INTEGER

MAX_DEPTH = 60
"""The largest nesting depth; a table that contains itself has none."""
MOST_NAMED = 10
"""The largest number of values that a message names: an array may hold millions that are not finite."""
_SCALARS = frozenset((bool, int, float, str, type(None)))
Replace = Callable[[str, Any, str], Any]
"""Returns the replacement of a value; arguments: its key, the value, and why JSON cannot represent it."""


def refuse(key: str, value: Any, why: str) -> Any:
    """Raise UsageError, which names the key."""
    raise UsageError(f"{key or 'the value'} {why}")


def keep(key: str, value: Any, why: str) -> Any:
    """Return a number that is not finite unchanged, since Python's JSON can represent it. UsageError for all else."""
    return value if isinstance(value, float) else refuse(key, value, why)


def check_names(value: Any, what: str, key: str = "") -> None:
    """Check that all tables in a value have strings as keys: JSON makes strings of other keys, 2 and "2" become one.

    Raises:
        UsageError: one has another key; the error names it, and `what` the value is.
    """
    if key.count(".") + key.count("[") > MAX_DEPTH:
        return
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        for name, each in value.items():
            if not isinstance(name, str):
                kind = type(name).__qualname__
                raise UsageError(
                    f"{what}{key and ': '}{key} has the key {name!r} of type {kind}: use a string"
                )
            if type(each) not in _SCALARS:
                check_names(each, what, f"{key}.{name}" if key else name)
    # Most lists are of numbers, perhaps a million.
    elif isinstance(value, (list, tuple)) and any(map(_is_nested, set(map(type, value)))):
        for at, each in enumerate(value):
            check_names(each, what, f"{key}[{at}]")


def _is_nested(kind: type) -> bool:
    return issubclass(kind, (Mapping, list, tuple)) or is_dataclass(kind)


class Nulls(dict[str, str]):
    """Replaces values by null, and records why, by key."""

    def __call__(self, key: str, value: Any, why: str) -> None:
        """Record a value."""
        self[key] = why

    def __str__(self) -> str:
        """Return a line about the first ten values."""
        more = [f"{len(self) - MOST_NAMED:,} more"] if len(self) > MOST_NAMED else []
        return "; ".join([*(f"{key} {why}" for key, why in islice(self.items(), MOST_NAMED)), *more])


def json_data(value: Any, replace: Replace = refuse, key: str = "") -> Any:
    """Return a value as JSON-able data: numpy's numbers as numbers, arrays as lists, paths as strings.

    A number that is not finite, and a value without a JSON representation, is replaced by what `replace` returns.
    """
    if isinstance(value, int) and not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
        return replace(key, value, "is an integer beyond 2**1000, which could not be read again")
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else replace(key, float(value), f"is {float(value)}")
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.ndim:
        if value.dtype.kind != "f" or np.isfinite(value).all():
            return value.tolist()
        value = list(value)
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype.kind in "biufU" and not value.ndim:
        return json_data(value.item(), replace, key)
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if key.count(".") + key.count("[") > MAX_DEPTH:
        return replace(key[:40] + "...", value, "is nested too deeply")
    if isinstance(value, Mapping):
        made = {
            _name(name): json_data(each, replace, f"{key}.{name}" if key else str(name))
            for name, each in value.items()
        }
        if len(made) < len(value):
            return replace(key, value, "has two keys of one name, such as 2 and '2'")
        return made
    if isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
        return [json_data(each, replace, f"{key}[{at}]") for at, each in enumerate(value)]
    return replace(key, value, f"is a {type(value).__qualname__}, which JSON cannot represent")


def _name(name: Any) -> Any:
    """Return a key as JSON represents it."""
    return name if isinstance(name, str) else str(name.item() if isinstance(name, np.generic) else name)
