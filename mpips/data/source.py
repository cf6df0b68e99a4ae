"""The data of a run on one worker: its files, which stay the same, and the encoding of tables.

The workers learn the encoding together: each summarises a part of the training data, and the scheduler merges the
summaries (`learned`) and tells every worker, also one that joins later, what came out (`Source.take`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.data.examples import Examples, Tally
from mpips.data.read import field_count, read, table_files
from mpips.data.same_files import SameFiles
from mpips.data.spec import DataSpec, as_list
from mpips.data.tables.encoding import Encoding
from mpips.data.tables.reader import begun_encoding, summarise

EncodingTable = dict[str, Any]
"""An encoding as plain JSON data (`Encoding.table`)."""


class Source:
    r"""Read the files of resolved [data]; with `fields` examples have the field of each key.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.csv").write_text("age,city,y\n20,Paris,1\n40,Rome,0\n")
    ...     spec = DataSpec(train=str(Path(folder, "a.csv")), label="y", numeric=["age"])
    ...     source = Source(spec)
    ...     source.take(learned([source.summarise(0, 1)]))
    ...     [batch.values.tolist() for batch in source.read("train", 0, 1, Tally())], source.field_count()
    ([[-1.0, 1.0, 1.0, 1.0, 1.0, 1.0]], 3)
    """

    def __init__(self, spec: DataSpec, fields: bool = False) -> None:
        self.spec, self.files, self._fields = spec, SameFiles(spec), fields
        self.encoding: Encoding | None = None
        self.table: EncodingTable | None = None
        """The encoding of tables, in both forms."""

    def summarise(self, part: int, of: int) -> tuple[EncodingTable | None, NDArray[np.float64]]:
        """Return the encoding as far as column names say, None if the files are no tables, and a part's summary."""
        files = table_files(self.spec)
        if not files:
            return None, np.empty((0, 1))
        begun = begun_encoding(files, self.spec)
        return begun.table(), summarise(files, self.spec, begun, part, of).array()

    def take(self, table: EncodingTable | None) -> None:
        """Use an encoding that the workers have learned."""
        self.table = table
        self.encoding = None if table is None else Encoding.of_table(table, "[data] encoding")

    def read(
        self, files: str | Sequence[str], part: int, of: int, tally: Tally, coarse: int = 0
    ) -> Iterator[Examples]:
        """Read part `part` of `of` of "train", "test", or some of the files, as `mpips.data.read`."""
        names = as_list(getattr(self.spec, files)) if isinstance(files, str) else files
        return read(names, self.spec, part, of, tally, self.files.check, self.encoding, coarse, self._fields)

    def field_count(self) -> int:
        """Return the number of fields of columns and crosses; 0 if the files' own format says the field of each key."""
        return field_count(self.spec, self.encoding)


def learned(found: Sequence[tuple[EncodingTable | None, NDArray[np.float64]]]) -> EncodingTable | None:
    """Return the encoding by what all workers have summarised; None if the files are no tables.

    Raises:
        DataError: a numeric column has no number.

    >>> encoding: EncodingTable | None = learned([(None, np.empty((0, 1)))])  # svmlight has none
    >>> encoding is None
    True
    """
    table, _ = found[0]
    if table is None:
        return None
    begun = Encoding.of_table(table, "[data] encoding")
    summary = begun.empty_summary()
    for _, array in found if begun.learns else ():
        summary.merge(begun.summary_of(array))
    return (begun.learned(summary) if begun.learns else begun).table()
