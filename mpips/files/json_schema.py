"""Checks that values read from JSON or TOML files satisfy a schema; untrusted files may hold any value.

A schema is

    a type, or None                 one of these; a boolean is not a number, and integers are at most 2**1000
    ANY                             any value
    a range                         an integer of it
    (schema, schema ...)            one of them
    [schema, schema ...]            a list of as many items, each of its schema
    Each(schema)                    a list, every item of the schema
    Table(schema)                   a table with any keys, every value of the schema
    {"key": schema, "other?": ...}  a table with these keys; `?`: it may be missing. Further keys are allowed
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mpips.errors import InputError
from mpips.files.safe_open import read_bytes

ANY = object
"""The schema of any value."""
NUMBER = (int, float)
"""The schema of a number."""
LARGEST_INTEGER = 1 << 1000
"""Larger integers cannot be converted to floating point."""
COUNT = range(1 << 63)
"""Nonnegative integers."""
LARGEST_FILE = 1 << 26
"""The default limit of a JSON file's size, in bytes."""

_NAMES = {
    str: "a string", int: "an integer", float: "a number", bool: "true or false", dict: "a table", list: "a list",
    type(None): "null",
}  # fmt: skip


class Each(NamedTuple):
    """A list, every item of a schema.

    >>> schema_error([1, "2"], Each(NUMBER))
    '[1] is a string, and should be an integer or a number'
    """

    schema: Any


class Table(NamedTuple):
    """A table with any keys, every value of a schema."""

    schema: Any


def schema_error(value: Any, schema: Any, where: str = "") -> str:
    """Describe where a value violates a schema, and what it should be; "" if it does not.

    >>> schema_error({"ranks": [{"rank": "0"}]}, {"ranks": Each({"rank": int})})
    'ranks[0].rank is a string, and should be an integer'
    """
    if schema is ANY:
        return ""
    if isinstance(schema, tuple) and not isinstance(schema, Each | Table):
        errors = [schema_error(value, each, where) for each in schema]
        if "" in errors:
            return ""
        return errors[0] if isinstance(value, dict | list) else _describe_mismatch(value, schema, where)
    if schema is None or isinstance(schema, type | range):
        return "" if _is_of(value, schema) else _describe_mismatch(value, schema, where)
    parts: Iterable[tuple[str, Any, Any]]
    if isinstance(schema, Each):
        if not isinstance(value, list):
            return _describe_mismatch(value, schema, where)
        parts = ((f"{where}[{at}]", item, schema.schema) for at, item in enumerate(value))
    elif isinstance(schema, list):
        if not isinstance(value, list) or len(value) != len(schema):
            return _describe_mismatch(value, schema, where)
        parts = ((f"{where}[{at}]", *both) for at, both in enumerate(zip(value, schema, strict=True)))
    elif not isinstance(value, dict):
        return _describe_mismatch(value, schema, where)
    elif isinstance(schema, Table):
        parts = ((_join(where, key), item, schema.schema) for key, item in value.items())
    else:
        missing = next((key for key in schema if key[-1] != "?" and key not in value), None)
        if missing is not None:
            return f"{_join(where, missing)} is missing"
        named = [(key.removesuffix("?"), each) for key, each in schema.items()]
        parts = ((_join(where, key), value[key], each) for key, each in named if key in value)
    return next((found for name, item, each in parts if (found := schema_error(item, each, name))), "")


def _is_of(value: Any, type_: type | range | None) -> bool:
    if isinstance(type_, range):
        return type(value) is int and value in type_
    if type_ is None or value is None or type_ is bool or isinstance(value, bool):
        return type(value) is (type(None) if type_ is None else type_)
    return isinstance(value, type_) and (
        not isinstance(value, int) or -LARGEST_INTEGER <= value <= LARGEST_INTEGER
    )


def is_number(value: Any) -> bool:
    """Return whether a value is a number, perhaps not a finite one."""
    return _is_of(value, int) or _is_of(value, float)


def _describe_mismatch(value: Any, schema: Any, where: str) -> str:
    schemas = schema if isinstance(schema, tuple) and not isinstance(schema, Each | Table) else (schema,)
    wanted = [_type_name(_type_of(each)) for each in schemas]
    found = _type_name(type(value))
    if found in wanted:
        found = f"{found} out of bounds" if isinstance(value, NUMBER) else f"{found} of another form"
    return f"{where or 'it'} is {found}, and should be {' or '.join(dict.fromkeys(wanted))}"


def _type_of(schema: Any) -> type | None:
    if schema is None or isinstance(schema, type):
        return schema
    if isinstance(schema, range):
        return int
    return list if isinstance(schema, Each | list) else dict


def _type_name(type_: type | None) -> str:
    return _NAMES.get(type_ or type(None), getattr(type_, "__name__", ""))


def _join(where: str, key: str) -> str:
    key = key if key.isidentifier() else json.dumps(key[:60])
    return f"{where}.{key}" if where else key


def read_json(path: Path, schema: Any, most: int = LARGEST_FILE) -> Any:
    """Read a JSON file of a schema; it must be a regular file, not a link.

    Raises:
        FileNotFoundError: it does not exist.
        InputError: it cannot be read, is not JSON, or violates the schema; one line, with the file's name.
    """
    try:
        value = parse_json(read_bytes(path, follow=False, most=most))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: is damaged: not JSON: {error}") from None
    problem = schema_error(value, schema)
    if problem:
        raise InputError(f"{path}: is not what a run writes: {problem}")
    return value


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; ValueError, with a text of one line, if it is invalid."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
