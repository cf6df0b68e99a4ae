"""Typed tables: converts plain TOML values to frozen dataclasses, by their annotations.

A spec is an ordinary dataclass. Annotations give the types of keys, defaults the values of missing keys, and the string
under a field (or ``metadata={"doc": ...}``) a key's meaning. Bounds are in the metadata as `at_least`, `above`,
`at_most`, with `or_zero` where 0 is valid below them; conditions on several keys are checked by the spec's
``__post_init__``, which raises ValueError with a text that begins with the key's name (``tau ...``, ``[data] format
...``). So a new key is one line in one place, from which reading, checking, documenting and writing follow.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, Union

T = TypeVar("T")
Path = tuple[str | int, ...]

LONGEST = 1e9
"""The largest duration that a setting can have, in seconds: 30 years."""
LARGEST = 1e15
"""The largest size that a setting can have, in bytes: a petabyte."""
MOST = 2**31 - 1
"""The largest count that a setting can have."""

SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


class InvalidValue(ValueError):
    """A value has the wrong type or range: `path` is its place in the file, the text says why."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(text)
        self.path = path


class KeyDoc(NamedTuple):
    """The documentation of a key, for help and for comments in the job file."""

    name: str
    type: str
    default: str
    doc: str


def toml(text: str) -> dict[str, Any]:
    """Parse TOML; TOMLDecodeError, with a text of one line, if it is invalid."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError("it is nested too deeply") from None
    except tomllib.TOMLDecodeError:
        raise
    # An integer with more digits than Python reads.
    except ValueError:
        raise tomllib.TOMLDecodeError("a number has too many digits") from None


def dotted(path: Path) -> str:
    """Write a path the way `--set` takes it: ``layout.servers``."""
    return ".".join(str(part) for part in path)


def key_of(path: Path) -> str:
    """Name the key at the end of a path: ``servers``, ``train[1]``."""
    last = max((at for at, part in enumerate(path) if isinstance(part, str)), default=0)
    return str(path[last]) + "".join(f"[{part}]" for part in path[last + 1 :])


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return a text with the most similar of the known words, and all of them."""
    names = sorted(known)
    near = _nearest(word, names)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}valid: {', '.join(names)}" if names else "none is valid here"


def _nearest(word: str, names: Sequence[str]) -> list[str]:
    """Return the most similar of the names, if any is similar."""
    # Only a mistake needs this module.
    import difflib

    return difflib.get_close_matches(word, names, n=1)


def got(value: object) -> str:
    """Describe a TOML value in the terms of TOML."""
    if isinstance(value, bool):
        return f"got {'true' if value else 'false'}"
    if isinstance(value, Mapping):
        return "got a table"
    if isinstance(value, list):
        return "got a list"
    return f"got {value!r}"


def expected(hint: Any) -> str:
    """Describe the values that an annotation admits."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in SCALARS:
        return SCALARS[hint]
    if origin is Literal:
        choices = [f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in args]
        return "one of " + ", ".join(choices) if len(choices) > 1 else choices[0]
    if origin in (Union, types.UnionType):
        return " or ".join(expected(arg) for arg in args if arg is not type(None))
    if origin in (list, tuple) or hint in (list, tuple):
        return f"a list (each {expected(args[0])})" if args and args[0] is not Any else "a list"
    return "a value" if hint is Any else "a table"


def build(cls: type[T], table: Mapping[str, Any], path: Path = ()) -> T:
    """Return a `cls` made from a table.

    Raises:
        InvalidValue: an unknown, missing, ill-typed or refused key.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    where = f" in [{dotted(path)}]" if path else ""
    for key in table:
        if key not in fields:
            raise InvalidValue((*path, key), f"unknown key {key!r}{where}; {suggestion(key, fields)}")
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = convert(table[name], hints[name], (*path, name))
            _check_bounds(values[name], field.metadata, (*path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InvalidValue(path, f"key {name!r} is missing{where}: {expected(hints[name])}")
    try:
        return cls(**values)
    except ValueError as error:
        text = str(error)
        first = re.match(r"(?:\[\w+\] )?([\w.]+)", text)
        named = next((part for part in first[1].split(".") if part in fields), None) if first else None
        raise InvalidValue((*path, named) if named else path, text if named else f"{text}{where}") from error


def _check_bounds(value: Any, bounds: Mapping[str, Any], path: Path) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    name = path[-1]
    if bounds.get("or_zero"):
        if value == 0:
            return
        name = f"{name} must be 0, or"
    else:
        name = f"{name} must be"
    if "at_least" in bounds and not value >= bounds["at_least"]:
        raise InvalidValue(path, f"{name} at least {bounds['at_least']}, {got(value)}")
    if "above" in bounds and not value > bounds["above"]:
        raise InvalidValue(path, f"{name} above {bounds['above']}, {got(value)}")
    if "at_most" in bounds and not value <= bounds["at_most"]:
        raise InvalidValue(path, f"{name} at most {bounds['at_most']}, {got(value)}")


def convert(value: Any, hint: Any, path: Path) -> Any:
    """Turn one TOML value into what the annotation names, or raise InvalidValue."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, args, hint, path)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
        near = _nearest(value, [str(a) for a in args]) if isinstance(value, str) else []
        raise _mismatch(value, hint, path, f"; did you mean {near[0]!r}?" if near else "")
    if hint in SCALARS:
        return _convert_scalar(value, hint, path)
    if (origin or hint) in (list, tuple, Sequence):
        return _convert_list(value, origin or hint, args, hint, path)
    if (origin or hint) in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _mismatch(value, hint, path)
        each = args[1] if len(args) == 2 else Any
        return {key: convert(item, each, (*path, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise _mismatch(
                value, hint, path, f" with the keys {', '.join(f.name for f in dataclasses.fields(hint))}"
            )
        return build(hint, value, path)
    raise TypeError(f"{dotted(path)}: no TOML value fits the annotation {hint!r}")


def _mismatch(value: Any, hint: Any, path: Path, more: str = "") -> InvalidValue:
    return InvalidValue(path, f"{key_of(path)} must be {expected(hint)}, {got(value)}{more}")


def _convert_scalar(value: Any, hint: type, path: Path) -> Any:
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise InvalidValue(path, f"{key_of(path)} must be {expected(hint)} below 1.8e308") from None
    if type(value) is not hint:
        raise _mismatch(value, hint, path)
    return value


def _convert_union(value: Any, args: tuple[Any, ...], hint: Any, path: Path) -> Any:
    deepest: InvalidValue | None = None
    for arg in args:
        if arg is type(None):
            continue
        try:
            return convert(value, arg, path)
        except InvalidValue as error:
            if len(error.path) > len(path) and (deepest is None or len(error.path) > len(deepest.path)):
                deepest = error
    raise deepest or _mismatch(value, hint, path)


def _convert_list(value: Any, kind: Any, args: tuple[Any, ...], hint: Any, path: Path) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _mismatch(value, hint, path)
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise _mismatch(value, hint, path, f" of {len(value)}, not {len(args)}")
        return tuple(
            convert(item, arg, (*path, i)) for i, (item, arg) in enumerate(zip(value, args, strict=True))
        )
    each = args[0] if args else Any
    items = [convert(item, each, (*path, i)) for i, item in enumerate(value)]
    return items if kind is list else tuple(items)


def table_of(spec: Any) -> dict[str, Any]:
    """Convert a spec to a plain table; None is left out, since TOML has no null."""
    return {
        field.name: _plain(getattr(spec, field.name))
        for field in dataclasses.fields(spec)
        if field.init and getattr(spec, field.name) is not None
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return table_of(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def documented(cls: type) -> list[KeyDoc]:
    """List a spec's keys with type, default and meaning, in the order they are written."""
    hints, docs, keys = typing.get_type_hints(cls), _field_docs(cls), []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        if field.default is not dataclasses.MISSING:
            default = "" if field.default is None else _literal(_plain(field.default))
        elif field.default_factory is not dataclasses.MISSING:
            default = _literal(_plain(field.default_factory()))
        else:
            default = "required"
        doc = str(field.metadata.get("doc", docs.get(field.name, "")))
        kind = ", ".join(filter(None, (expected(hints[field.name]), _bounds(field.metadata))))
        keys.append(KeyDoc(field.name, kind, default, " ".join(doc.split())))
    return keys


def _bounds(bounds: Mapping[str, Any]) -> str:
    """Describe the bounds of a number; "" if there are none."""
    named = [
        f"{name.replace('_', ' ')} {bounds[name]:g}"
        if isinstance(bounds[name], float)
        else f"{name.replace('_', ' ')} {bounds[name]:,}"
        for name in ("at_least", "above", "at_most")
        if name in bounds
    ]
    return ("0 or " if bounds.get("or_zero") else "") + ", ".join(named)


def _literal(value: Any) -> str:
    return repr(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def _field_docs(cls: type) -> dict[str, str]:
    """Return the strings under the fields; none if the source is not available."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return {}
    body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.ClassDef) else []
    docs = {}
    for field, below in itertools.pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = text
    return docs
