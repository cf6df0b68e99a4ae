"""Overrides of a job file's keys: ``--set table.key=value``, and options of commands that stand for some of them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from mpips import typed
from mpips.errors import JobError


def apply(overrides: Sequence[str], tables: dict[str, Any]) -> dict[typed.Path, str]:
    """Apply the overrides to a job file's tables; return the `--set` option of each changed path.

    Raises:
        JobError: one is malformed, or names a key of a value that is not a table.
    """
    origins: dict[typed.Path, str] = {}
    for override in overrides:
        parts, value = override_of(override)
        if parts[0] not in tables:
            origins[parts[:1]] = f"--set {override}"
        table = tables
        for part in parts[:-1]:
            inner = table.setdefault(part, {})
            if not isinstance(inner, dict):
                raise JobError(f"--set {override}: {part} is a value, not a table")
            table = inner
        table[parts[-1]] = value
        origins[parts] = f"--set {override}"
    return origins


def override_of(text: str) -> tuple[tuple[str, ...], Any]:
    """Parse an override: the path of its key, and its value. JobError if it is malformed."""
    key, equals, value = text.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or len(parts) < 2 or not all(parts):
        raise JobError(f"--set {text}: write --set table.key=value, as in --set layout.servers=2")
    return parts, override_value(value)


def with_options(overrides: Sequence[str], options: Mapping[str, tuple[str, Any]]) -> list[str]:
    """Add the options of a command to the overrides: (option, value) by key; None means not given.

    Raises:
        JobError: an override gives another value for the same key.
    """
    chosen = {key: each for key, each in options.items() if each[1] is not None}
    for override in overrides:
        path, value = override_of(override)
        for key, (option, given) in chosen.items():
            parts = tuple(key.split("."))
            same = path[: len(parts)] == parts[: len(path)]
            if same and not (path == parts and type(value) is type(given) and value == given):
                shown = option if given is True else f"{option} {given}"
                raise JobError(
                    f"--set {override} and {shown} are both given, and differ: leave out one of them"
                )
    return [*overrides, *(f"{key}={json.dumps(value)}" for key, (_, value) in chosen.items())]


def override_value(text: str) -> Any:
    """Parse an override's value: TOML, or else a string."""
    try:
        read = typed.toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["value"] if len(read) == 1 else text
