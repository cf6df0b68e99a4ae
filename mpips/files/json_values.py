"""Plain data: what JSON can say. Programs return numbers, texts, lists and tables of them, often as numpy's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mpips.errors import UsageError

DEEPEST = 60
"""Tables in tables, at most: one that holds itself has no end."""
SAID = 10
"""Values that a line names, at most: an array may hold millions that are not finite."""
Otherwise = Callable[[str, Any, str], Any]
"""Gives what stands for a value: of which key, the value, and why it cannot be said."""


def refuse(key: str, value: Any, why: str) -> Any:
    """Raise UsageError, which names the key."""
    raise UsageError(f"{key or 'the value'} {why}")


def keep(key: str, value: Any, why: str) -> Any:
    """Give a number that is not finite as it is: Python's JSON can say it. UsageError for all else."""
    return value if isinstance(value, float) else refuse(key, value, why)


class Nulls(dict[str, str]):
    """What has become null, and why, by key: so the rest is kept."""

    def __call__(self, key: str, value: Any, why: str) -> None:
        """Note a value."""
        self[key] = why

    def __str__(self) -> str:
        """Say it in a line, of the first ten."""
        more = [f"{len(self) - SAID:,} more"] if len(self) > SAID else []
        return "; ".join([*(f"{key} {why}" for key, why in islice(self.items(), SAID)), *more])


def plain(value: Any, otherwise: Otherwise = refuse, key: str = "") -> Any:
    """Give a value as JSON-able data: numpy's numbers as numbers, arrays as lists, paths as texts.

    A number that is not finite, and what is no data at all, is whatever `otherwise` gives for it.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else otherwise(key, float(value), f"is {float(value)}")
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.ndim:
        if value.dtype.kind != "f" or np.isfinite(value).all():
            return value.tolist()
        value = list(value)
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype.kind in "biufU" and not value.ndim:
        return plain(value.item(), otherwise, key)
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if key.count(".") + key.count("[") > DEEPEST:
        return otherwise(key[:40] + "...", value, "has no end")
    if isinstance(value, Mapping):
        return {
            _name(name): plain(each, otherwise, f"{key}.{name}" if key else str(name))
            for name, each in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
        return [plain(each, otherwise, f"{key}[{at}]") for at, each in enumerate(value)]
    return otherwise(key, value, f"is a {type(value).__qualname__}, which JSON cannot say")


def _name(name: Any) -> Any:
    """Give a key as JSON has it."""
    return name if isinstance(name, str) else str(name.item() if isinstance(name, np.generic) else name)
