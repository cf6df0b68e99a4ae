"""How the columns of a table become the keys and values of sparse examples.

A text of a category is a key with value 1. A number that is scaled is one key for its column, with a value; a missing
one is a key of its own with value 1. A number in a bin is the key of the bin. Keys are hashes of the names of columns
and the texts, so that a model is independent of the order of columns and of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.data.spec import DataSpec
from mpips.data.tables.summary import Summary
from mpips.errors import DataError, JobError
from mpips.files.json_schema import NUMBER, Each, schema_error
from mpips.keys import KeyArray, text_keys
from mpips.typed import suggestion

BINS = 32
"""Bins of a column that is encoded by quantiles, at most."""
KINDS = "standard", "log", "quantiles", "plain"
SCHEMA = {
    "categorical": Each(str),
    "numeric": Each({"name": str, "kind": str, "mean": NUMBER, "deviation": NUMBER, "edges": Each(NUMBER)}),
    "key_bits": int,
}


@dataclass(frozen=True)
class Scaling:
    """The encoding of a column of numbers."""

    name: str
    kind: str
    """One of `KINDS`."""
    mean: float = 0.0
    deviation: float = 1.0
    edges: tuple[float, ...] = ()
    """Of the bins, ascending: bin i holds edges[i-1] <= x < edges[i]."""

    @property
    def binned(self) -> bool:
        """Return whether a number becomes the key of a bin."""
        return self.kind == "quantiles"

    def scaled(self, numbers: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the values of numbers that are scaled, f4[n]; infinite beyond the range of float32."""
        with np.errstate(over="ignore"):
            return ((transformed(self.kind, numbers) - self.mean) / self.deviation).astype(np.float32)

    def bins(self, numbers: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the bin of each number, i8[n]."""
        return np.searchsorted(np.array(self.edges), numbers, side="right")


def transformed(kind: str, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return numbers as they are summarised: for "log" sign(x) log(1 + |x|), otherwise x."""
    return np.sign(numbers) * np.log1p(np.abs(numbers)) if kind == "log" else numbers


@dataclass(frozen=True)
class Encoding:
    """The columns of a table, and how each is encoded.

    >>> spec = DataSpec(label="y", numeric={"age": "standard"}, ignore=["id"])
    >>> encoding = Encoding.of_columns(["id", "age", "city", "y"], spec, "people.csv")
    >>> encoding.categorical, [each.name for each in encoding.numeric]
    (('city',), ['age'])
    """

    categorical: tuple[str, ...]
    numeric: tuple[Scaling, ...]
    key_bits: int = 64

    @classmethod
    def of_columns(cls, names: Sequence[str], spec: DataSpec, path: str) -> Encoding:
        """Return the encoding of a file's columns, before numbers have been summarised.

        Raises:
            JobError: a column that [data] names is not there, or has two uses; [data] label is not set; or there is
                no column besides it.
        """
        kinds = numeric_kinds(spec)
        if not spec.label:
            raise JobError(f"[data] label: name the column of the labels; {path} has {_listed(names)}")
        crossed = [column for cross in spec.crosses for column in cross]
        for key, columns in (
            ("label", [spec.label]), ("categorical", spec.categorical), ("numeric", list(kinds)),
            ("ignore", spec.ignore), ("crosses", crossed),
        ):  # fmt: skip
            for column in columns:
                if column not in names:
                    raise JobError(
                        f"[data] {key}: {path} has no column {column!r}; {suggestion(str(column), names)}"
                    )
        uses = Counter([spec.label, *kinds, *set(spec.categorical)])
        if twice := [name for name, times in uses.items() if times > 1]:
            raise JobError(f"[data] column {twice[0]!r} can be only one of label, numeric and categorical")
        others = [name for name in names if name not in (*kinds, *spec.ignore, spec.label)]
        encoding = cls(
            tuple(dict.fromkeys(spec.categorical or others)),
            tuple(Scaling(name, kind) for name, kind in kinds.items()),
            spec.key_bits,
        )
        if not encoding.categorical and not encoding.numeric:
            raise JobError(
                f"[data] {path} has no columns but the label, and those to ignore: {_listed(names)}"
            )
        binned = [each.name for each in encoding.numeric if each.binned]
        for column in crossed:
            if column not in encoding.categorical and column not in binned:
                raise JobError(
                    f"[data] crosses: column {column!r} must be one of categories, or numeric with "
                    '"quantiles"'
                )
        return encoding

    def empty_summary(self) -> Summary:
        """Return a summary without rows of the numeric columns."""
        return Summary(len(self.numeric), self._sampled())

    def summary_of(self, array: NDArray[np.float64]) -> Summary:
        """Return the summary that was sent as an array."""
        return Summary.of_array(array, self._sampled())

    @property
    def learns(self) -> bool:
        """Return whether it depends on a summary of the numbers."""
        return any(each.kind != "plain" for each in self.numeric)

    def _sampled(self) -> list[int]:
        return [at for at, each in enumerate(self.numeric) if each.binned]

    def learned(self, summary: Summary) -> Encoding:
        """Return the encoding by a summary of all training data.

        Raises:
            DataError: a column has no number at all, or some whose squares are not finite.
        """
        found = []
        for at, each in enumerate(self.numeric):
            if not summary.counts[at]:
                raise DataError(
                    f"column {each.name!r} of [data] numeric has no number, such as 1.5, in the training data"
                )
            if each.kind == "plain":
                found.append(each)
            elif each.binned:
                found.append(Scaling(each.name, each.kind, edges=_edges(summary.sample(at))))
            else:
                mean, deviation = summary.mean(at), summary.deviation(at)
                if not np.isfinite([mean, deviation]).all():
                    raise DataError(
                        f"column {each.name!r} of [data] numeric has numbers beyond 1e154, whose squares are not "
                        'finite; use "log" or "quantiles"'
                    )
                found.append(Scaling(each.name, each.kind, mean, deviation))
        return Encoding(self.categorical, tuple(found), self.key_bits)

    def table(self) -> dict[str, Any]:
        """Return the encoding as plain JSON data."""
        numeric = [vars(each) | {"edges": list(each.edges)} for each in self.numeric]
        return {"categorical": list(self.categorical), "numeric": numeric, "key_bits": self.key_bits}

    @classmethod
    def of_table(cls, table: Mapping[str, Any], where: str) -> Encoding:
        """Invert `table`; raise `DataError`, naming `where` it is from, if it is not an encoding."""
        problem = schema_error(table, SCHEMA, where)
        if not problem and any(each["kind"] not in KINDS for each in table["numeric"]):
            problem = f"{where}: a kind is not one of {', '.join(KINDS)}"
        if not problem and table["key_bits"] not in (64, 128):
            problem = f"{where}: key_bits is neither 64 nor 128"
        if problem:
            raise DataError(problem)
        numeric = [
            Scaling(
                each["name"],
                each["kind"],
                float(each["mean"]),
                float(each["deviation"]),
                tuple(map(float, each["edges"])),
            )
            for each in table["numeric"]
        ]
        names = [*table["categorical"], *(each.name for each in numeric)]
        if not names or len(set(names)) < len(names):
            raise DataError(f"{where}: it has no columns, or two of one name")
        for each in numeric:
            numbers = np.array([each.mean, each.deviation, *each.edges])
            if not np.isfinite(numbers).all() or each.deviation <= 0 or (np.diff(each.edges) <= 0).any():
                raise DataError(f"{where}: the numbers of column {each.name!r} are no scaling")
        return cls(tuple(table["categorical"]), tuple(numeric), table["key_bits"])

    def keys_of(self, *parts: str) -> KeyArray:
        """Return the key of the column or constant of a name and further words, [1]."""
        keys = text_keys(["\0".join(parts)])
        return keys if self.key_bits == 128 else keys["high"].copy()


def numeric_kinds(spec: DataSpec) -> dict[str, str]:
    """Return the numeric columns and their kinds."""
    return (
        dict(spec.numeric) if isinstance(spec.numeric, Mapping) else dict.fromkeys(spec.numeric, "standard")
    )


def _edges(sample: NDArray[np.float64]) -> tuple[float, ...]:
    """Return edges of bins with equal numbers of values; of few different values each has a bin."""
    values = np.unique(sample)
    if len(values) > BINS:
        places = np.linspace(0.0, 1.0, BINS + 1)[1:-1]
        values = np.unique([values[0], *np.quantile(sample, places, method="inverted_cdf")])
    return tuple(values[1:].tolist())


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 300 else text[:300] + "..."
