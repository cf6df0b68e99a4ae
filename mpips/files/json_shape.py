"""Checks that values read from JSON or TOML files have an expected form; untrusted files may hold any value.

A form is

    a type, or None                 one of these; a boolean is not a number, and integers are at most 2**1000
    ANY                             whatever it is
    a range                         an integer of it
    (form, form ...)                one of them
    [form, form ...]                a list of as many items, each of its form
    Each(form)                      a list, every item of the form
    Table(form)                     a table with any keys, every value of the form
    {"key": form, "other?": form}   a table with these keys; `?`: it may be missing. Further keys are free
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mpips.errors import InputError
from mpips.files.safe_open import read_bytes

ANY = object
NUMBER = (int, float)
MOST = 1 << 1000
"""Larger integers cannot be converted to floating point."""
COUNT = range(1 << 63)
"""Nonnegative integers."""
LARGEST = 1 << 26
"""The default limit of a JSON file's size, in bytes."""

_NAMES = {
    str: "a text", int: "an integer", float: "a number", bool: "true or false", dict: "a table", list: "a list",
    type(None): "null",
}  # fmt: skip


class Each(NamedTuple):
    """A list, every item of a form.

    >>> misfit([1, "2"], Each(NUMBER))
    '[1] is a text, and should be an integer or a number'
    """

    form: Any


class Table(NamedTuple):
    """A table with any keys, every value of a form."""

    form: Any


def misfit(value: Any, form: Any, where: str = "") -> str:
    """Describe where a value differs from a form, and what it should be; "" if it has the form.

    >>> misfit({"ranks": [{"rank": "0"}]}, {"ranks": Each({"rank": int})})
    'ranks[0].rank is a text, and should be an integer'
    """
    if form is ANY:
        return ""
    if isinstance(form, tuple) and not isinstance(form, Each | Table):
        said = [misfit(value, each, where) for each in form]
        if "" in said:
            return ""
        return said[0] if isinstance(value, dict | list) else _told(value, form, where)
    if form is None or isinstance(form, type | range):
        return "" if _is(value, form) else _told(value, form, where)
    parts: Iterable[tuple[str, Any, Any]]
    if isinstance(form, Each):
        if not isinstance(value, list):
            return _told(value, form, where)
        parts = ((f"{where}[{at}]", item, form.form) for at, item in enumerate(value))
    elif isinstance(form, list):
        if not isinstance(value, list) or len(value) != len(form):
            return _told(value, form, where)
        parts = ((f"{where}[{at}]", *both) for at, both in enumerate(zip(value, form, strict=True)))
    elif not isinstance(value, dict):
        return _told(value, form, where)
    elif isinstance(form, Table):
        parts = ((_within(where, key), item, form.form) for key, item in value.items())
    else:
        missing = next((key for key in form if key[-1] != "?" and key not in value), None)
        if missing is not None:
            return f"{_within(where, missing)} is missing"
        named = [(key.removesuffix("?"), each) for key, each in form.items()]
        parts = ((_within(where, key), value[key], each) for key, each in named if key in value)
    return next((found for name, item, each in parts if (found := misfit(item, each, name))), "")


def _is(value: Any, kind: type | range | None) -> bool:
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if kind is None or value is None or kind is bool or isinstance(value, bool):
        return type(value) is (type(None) if kind is None else kind)
    return isinstance(value, kind) and (not isinstance(value, int) or -MOST <= value <= MOST)


def is_number(value: Any) -> bool:
    """Return whether a value is a number, perhaps not a finite one."""
    return _is(value, int) or _is(value, float)


def _told(value: Any, form: Any, where: str) -> str:
    forms = form if isinstance(form, tuple) and not isinstance(form, Each | Table) else (form,)
    wanted = [_name(_kind(each)) for each in forms]
    found = _name(type(value))
    if found in wanted:
        found = f"{found} out of bounds" if isinstance(value, NUMBER) else f"{found} of another form"
    return f"{where or 'it'} is {found}, and should be {' or '.join(dict.fromkeys(wanted))}"


def _kind(form: Any) -> type | None:
    if form is None or isinstance(form, type):
        return form
    if isinstance(form, range):
        return int
    return list if isinstance(form, Each | list) else dict


def _name(kind: type | None) -> str:
    return _NAMES.get(kind or type(None), getattr(kind, "__name__", ""))


def _within(where: str, key: str) -> str:
    key = key if key.isidentifier() else json.dumps(key[:60])
    return f"{where}.{key}" if where else key


def read_json(path: Path, form: Any, most: int = LARGEST) -> Any:
    """Read a JSON file of a form; it must be a regular file, not a link.

    Raises:
        FileNotFoundError: it does not exist.
        InputError: it cannot be read, is not JSON, or has another form; one line, with the file's name.
    """
    try:
        value = parsed(read_bytes(path, follow=False, most=most))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: is damaged: not JSON: {error}") from None
    problem = misfit(value, form)
    if problem:
        raise InputError(f"{path}: is not what a run writes: {problem}")
    return value


def parsed(text: str | bytes) -> Any:
    """Parse JSON; ValueError, with a text of one line, if it is invalid."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
