"""An update for tests that raises for some rows."""

from __future__ import annotations

from typing import Any

from mpips.storage.updates import update

NAME = "refusing.negative"


@update(NAME)
def refuses(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Refuse rows that have a negative number, else add."""
    if (rows < 0).any():
        raise ValueError("a negative row")
    values[slots] += rows
