"""Columns of Arrow as arrays of numpy: hashes of texts, numbers, labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.data.tables.kernels import hash_texts
from mpips.errors import DataError, InputError

TRUE = b"1", b"+1", b"1.0", b"true", b"True", b"TRUE"
FALSE = b"0", b"-1", b"0.0", b"-1.0", b"-0", b"-0.0", b"false", b"False", b"FALSE"
"""Labels that need no [data] positive."""
BYTES = "binary", "large_binary", "binary_view"
TEXTS = "string", "large_string", "string_view", *BYTES
"""Types of Arrow."""
Flaws = dict[int, str]
"""What is wrong with rows of a batch, by their places."""


def arrow(module: str = "pyarrow") -> Any:
    """Return a module of pyarrow; raise `InputError` if it is not installed."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError("tables in CSV and Parquet need pyarrow: pip install pyarrow") from None


@contextmanager
def convertible(path: str, name: str) -> Iterator[None]:
    """Raise `DataError` instead of an error of Arrow: it cannot convert a column."""
    try:
        yield
    except (arrow().ArrowException, UnicodeError) as error:
        raise DataError(f"{path}: column {name!r}: {' '.join(str(error).split())[:200]}") from None


def texts_of(column: Any, path: str, name: str) -> Any:
    """Return a column of categories as Arrow's large_binary, perhaps dictionary-encoded.

    Raises:
        DataError: it is of floating-point numbers, whose texts are not well defined, or of lists or structures.
    """
    pa = arrow()
    kind = column.type
    if pa.types.is_dictionary(kind):
        known = column.dictionary
        if pa.types.is_integer(known.type):
            known = known.cast(pa.large_string())
        return pa.DictionaryArray.from_arrays(column.indices, texts_of(known, path, name))
    if pa.types.is_floating(kind):
        raise DataError(
            f"{path}: column {name!r} has floating-point numbers; name it in [data] numeric, or in ignore"
        )
    if pa.types.is_nested(kind):
        raise DataError(f"{path}: column {name!r} has {kind} values; name it in [data] ignore")
    if pa.types.is_temporal(kind) and not pa.types.is_date(kind):
        column = _in_microseconds(column)
    if pa.types.is_integer(kind):
        # There are fewer different numbers than rows, often.
        return texts_of(column.dictionary_encode(), path, name)
    if str(kind) not in BYTES and not pa.types.is_fixed_size_binary(kind):
        column = column.cast(pa.large_string())
    return column.cast(pa.large_binary())


def without_missing(texts: Any, missing: Sequence[str]) -> Any:
    """Return texts with those that represent a missing value as nulls."""
    pa, compute = arrow(), arrow("pyarrow.compute")
    if pa.types.is_dictionary(texts.type):
        return pa.DictionaryArray.from_arrays(texts.indices, without_missing(texts.dictionary, missing))
    names = pa.array([each.encode() for each in missing], pa.large_binary())
    return compute.if_else(compute.is_in(texts, value_set=names), pa.scalar(None, pa.large_binary()), texts)


def hashes_of(texts: Any, seed: np.uint64) -> NDArray[np.uint64]:
    """Return the hash of each text of a column, u8[n]; 0 where it is missing."""
    pa = arrow()
    if pa.types.is_dictionary(texts.type):
        known = np.append(hashes_of(texts.dictionary, seed), np.uint64(0))
        return known[places_in(texts)]
    keys = np.empty(len(texts), np.uint64)
    offsets, data = buffers_of(texts)
    hash_texts(offsets, data, seed, keys)
    if texts.null_count:
        keys[texts.is_null().to_numpy(zero_copy_only=False)] = 0
    return keys


def places_in(coded: Any) -> NDArray[np.int64]:
    """Return the place of each row's value in the dictionary of a column, i8[n]; that behind the last for a null."""
    found: NDArray[np.int64] = (
        coded.indices.cast(arrow().int64()).fill_null(len(coded.dictionary)).to_numpy(zero_copy_only=False)
    )
    return found


def buffers_of(texts: Any) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return offsets i8[n + 1] and bytes of texts, copied if kernels do not take them."""
    _, offsets, data = texts.buffers()
    begin = texts.offset
    places = np.zeros(1, np.int64)
    if len(texts):
        places = np.frombuffer(offsets, np.int64)[begin : begin + len(texts) + 1].copy()
    # Kernels take no read-only array.
    content = np.empty(int(places[-1] - places[0]), np.uint8)
    if len(content):
        content[:] = np.frombuffer(data, np.uint8, len(content), int(places[0]))
    return places - places[0], content


def numbers_of(
    column: Any, path: str, name: str, missing: Sequence[str], flaws: Flaws
) -> NDArray[np.float64]:
    """Return a column of numbers, f8[n]; NaN where one is missing or, as `flaws` says, is none.

    Dates and times are numbers of microseconds.
    """
    pa = arrow()
    if pa.types.is_dictionary(column.type):
        wrong: Flaws = {}
        known = np.append(numbers_of(column.dictionary, path, name, missing, wrong), np.nan)
        places = places_in(column)
        for row in np.flatnonzero(np.isin(places, list(wrong))) if wrong else ():
            flaws.setdefault(int(row), wrong[int(places[row])])
        return known[places]
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif pa.types.is_temporal(kind):
        column = _in_microseconds(column).view(pa.int64())
    elif pa.types.is_nested(kind):
        raise DataError(f"{path}: column {name!r} has {kind} values; name it in [data] ignore")
    if str(kind) in TEXTS:
        texts = without_missing(column.cast(pa.large_binary()), missing)
        numbers = _parsed(texts, name, flaws)
    else:
        try:
            found = column.cast(pa.float64(), safe=False)
        except pa.ArrowException as error:
            raise DataError(f"{path}: column {name!r} has no numbers but {kind}: {error}") from None
        numbers = np.array(found.fill_null(np.nan).to_numpy(zero_copy_only=False), np.float64)
    for row in np.flatnonzero(np.isinf(numbers)):
        flaws.setdefault(int(row), f"column {name!r} has a number that is not finite")
        numbers[row] = np.nan
    return numbers


def _in_microseconds(column: Any) -> Any:
    """Return dates and times in microseconds: files of different programs have different units."""
    pa = arrow()
    kind = column.type
    if pa.types.is_duration(kind):
        target = pa.duration("us")
    elif pa.types.is_time(kind):
        target = pa.time64("us")
    else:
        target = pa.timestamp("us", getattr(kind, "tz", None))
    how = arrow("pyarrow.compute").CastOptions(target_type=target, allow_time_truncate=True)
    return column.cast(options=how)


def _parsed(texts: Any, name: str, flaws: Flaws) -> NDArray[np.float64]:
    """Parse texts as numbers."""
    pa = arrow()
    try:
        found = texts.cast(pa.large_string()).cast(pa.float64())
        return np.array(found.fill_null(np.nan).to_numpy(zero_copy_only=False), np.float64)
    except pa.ArrowInvalid:
        # One is not as Arrow writes numbers: it has spaces or a +, or is wrong.
        pass
    numbers = np.full(len(texts), np.nan)
    for row, text in enumerate(texts.to_pylist()):
        if text is not None:
            try:
                if b"_" in text:
                    raise ValueError
                numbers[row] = float(text)
            except ValueError:
                flaws.setdefault(row, f"{shown(text)} in column {name!r} is not a number")
    return numbers


def labels_of(
    column: Any, positive: str | int | None, name: str, missing: Sequence[str], flaws: Flaws
) -> NDArray[np.float32]:
    """Return a column of labels as f4[n], each -1 or +1; `flaws` has those that are neither, or `missing`.

    `positive` is the label of positive examples: all others are negative. None: labels are -1, 0 or 1, or booleans.
    """
    pa = arrow()
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    known = coded.dictionary
    floating = pa.types.is_floating(known.type)
    if str(known.type) not in BYTES:
        known = known.cast(pa.large_string())
    absent = {each.encode() for each in missing}
    if floating:
        absent.add(b"nan")
    found = [b"" if text is None else text.strip() for text in known.cast(pa.large_binary()).to_pylist()]
    texts = [*(b"" if text in absent else text for text in found), b""]
    if positive is None:
        good, yes = [text in TRUE or text in FALSE for text in texts], [text in TRUE for text in texts]
    elif isinstance(positive, bool):
        good, yes = [bool(text) for text in texts], [text in (TRUE if positive else FALSE) for text in texts]
    else:
        wanted = str(positive).encode()
        good, yes = [bool(text) for text in texts], [_is_label(text, wanted) for text in texts]
    places = places_in(coded)
    for row in np.flatnonzero(~np.array(good)[places]):
        text = texts[places[row]]
        flaw = f"the label, column {name!r}, is missing"
        if text:
            flaw = f"label {shown(text)} in column {name!r} is not one of -1, 0, 1: set [data] positive"
        flaws.setdefault(int(row), flaw)
    return np.where(np.array(yes)[places], np.float32(1), np.float32(-1))


def _is_label(text: bytes, wanted: bytes) -> bool:
    """Return whether two texts are the same, or the same number, as 1 and 1.0."""
    try:
        return text == wanted or float(text) == float(wanted)
    except ValueError:
        return False


def shown(text: bytes) -> str:
    """Return a text for a message: printable, one line, at most 40 characters."""
    word = "".join(each if each.isprintable() else "?" for each in text[:160].decode("utf-8", "replace"))
    return repr(word if len(word) <= 40 else word[:40] + "...")
