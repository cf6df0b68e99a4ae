"""Examples in single lines of text, as a stream has them, in the format of the training data."""

from __future__ import annotations

import os
from typing import Literal

from mpips.data.read import first_head, format_of
from mpips.data.spec import DataSpec, as_list
from mpips.data.text import seems_label

Format = Literal["auto", "svmlight", "libffm", "tsv", "csv"]


def format_of_lines(spec: DataSpec, tables: bool) -> Format:
    """Return the format of lines of text: that of the training data, csv of `tables`; of HDF5 by the lines' content.

    >>> format_of_lines(DataSpec(train="gone.tsv"), tables=False)
    'auto'
    """
    if tables:
        return "csv"
    train = next((path for path in as_list(spec.train) if os.path.isfile(path)), None)
    found = format_of(train, spec) if train else spec.format
    # mypy knows the choice only when it is compared.
    return found if found in ("svmlight", "libffm", "tsv") else "auto"  # type: ignore[return-value]


def names_columns(line: str, spec: DataSpec) -> bool:
    """Return whether a first line has the names of columns.

    >>> spec = DataSpec(format="tsv", separator=";")
    >>> names_columns("label;city", spec), names_columns("1;Rome", spec)
    (True, False)
    """
    if spec.format not in ("tsv", "csv"):
        return False
    if spec.header != "auto":
        return spec.header
    return spec.format == "csv" or not seems_label(line.split(spec.separator)[0])


def names_line(spec: DataSpec) -> str:
    """Return the line of names that the training data begin with; "" if their columns have none, or are not known."""
    head = first_head([], spec) if spec.format == "tsv" else None
    return spec.separator.join(head.fields) if head is not None and head.size else ""
