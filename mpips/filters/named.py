"""Finds filters by their names in a job file."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

from mpips import typed
from mpips.errors import InputError, JobError
from mpips.filters.chain import Chain, Step
from mpips.filters.filter import Filter, known

BUILT_IN = {
    "significant": "significant",
    "random_skip": "random_skip",
    "tail": "tail",
    "zeros": "zeros",
    "fixed_point": "fixed_point",
    "lz4": "compress",
    "zstd": "compress",
}
"""The built-in filters, and their modules in this package."""
Entry = str | Mapping[str, Any]
"""A filter in a job file: its name, or a table with its name and settings."""


def find(name: str) -> Filter:
    """Return a filter by name.

    Raises:
        JobError: there is none.
    """
    if name not in known and name in BUILT_IN:
        import_module(f"mpips.filters.{BUILT_IN[name]}")
    if name not in known:
        raise JobError(f"there is no filter {name!r}; {typed.suggestion(name, {*BUILT_IN, *known})}")
    return known[name]


def parse_entry(entry: Entry) -> tuple[Filter, Any]:
    """Return a filter of a job file, and its settings.

    Raises:
        JobError: there is no such filter, or its settings are wrong.
    """
    table = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = table.pop("name", None)
    if not isinstance(name, str):
        raise JobError("a filter is a name, or a table with a name and settings")
    found = find(name)
    return found, typed.build(found.settings, table, (name,))


def chain_of(entries: Iterable[Entry], seed: int = 0) -> Chain:
    """Return the chain of some entries.

    Raises:
        JobError: an entry is wrong or repeated, or drops rows after a filter that encodes them as bytes.
    """
    steps: list[Step] = []
    for entry in entries:
        found, settings = parse_entry(entry)
        if any(step.name == found.name for step in steps):
            raise JobError(f"the filter {found.name!r} is named twice")
        step = Step(found.name, found.make(settings))
        if step.coder.drops and steps and not steps[-1].coder.drops:
            raise JobError(f"{found.name!r}, which drops rows, must come before {steps[-1].name!r}")
        steps.append(step)
    return Chain(steps, seed)


def check(entries: Sequence[Entry]) -> None:
    """Check that this rank has the packages that its filters need.

    Raises:
        InputError: a package is missing; names the filter.
    """
    for entry in entries:
        found, _ = parse_entry(entry)
        if lacking := found.lacks():
            raise InputError(f"filter {found.name!r} is not available: it needs {lacking}")


def fingerprint(entries: Sequence[Entry]) -> bytes:
    """Return a hash of 8 bytes, the same on two ranks only if settings and code of the filters are."""
    digest = hashlib.blake2b(digest_size=8)
    for entry in entries:
        found, settings = parse_entry(entry)
        try:
            source = inspect.getsource(inspect.getmodule(found.make) or found.make)
        except (OSError, TypeError):
            source = ""
        digest.update(f"{found.name} {settings!r} {source}\0".encode())
    return digest.digest()
