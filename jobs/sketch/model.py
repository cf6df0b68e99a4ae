"""The sketch of a run as a model: the counts of keys."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpips import Model, UsageError, replacing
from mpips.data.stream import line_blocks
from mpips.jobs.sketch import source
from mpips.jobs.sketch.results import Sketch

BLOCK = 1 << 22
"""Bytes of a file that are looked up at a time."""


class SketchModel(Model):
    """The estimates of a sketch: never too low, and too high by at most e / width of the total with some probability.

    >>> sketch = Sketch(np.full(8, 3), depth=2, width=4, seed=0, text=True)
    >>> SketchModel(sketch).predict(["a", "b"]).tolist()
    [3, 3]
    """

    def __init__(self, sketch: Sketch) -> None:
        self.sketch = sketch

    def predict(self, keys: Iterable[str | bytes | int]) -> NDArray[np.int64]:
        """Return the estimated counts of keys, i8[n]: texts or bytes; whole numbers, if the run has counted these.

        Raises:
            InputError: the run has counted numbers, and a key is not one.
            UsageError: `keys` is one key, not several.
        """
        if isinstance(keys, str | bytes):
            raise UsageError(f"predict takes several keys, as in [{keys!r}]")
        return self.sketch.estimate(source.hashes([_text(key) for key in keys], self.sketch.text))

    def query(self, keys: Sequence[str]) -> list[int]:
        """Return the estimated counts of keys. InputError as `predict`."""
        found: list[int] = self.predict(keys).tolist()
        return found

    def score_lines(self, lines: Sequence[str], head: str = "") -> list[str]:
        """Return the estimated count of the key in each line. InputError as `predict`."""
        return [str(count) for count in self.query(lines)]

    def score_files(self, files: Sequence[Path], out: Path | None) -> None:
        """Write a line KEY<TAB>COUNT for each line of files of keys."""
        with ExitStack() as stack:
            # Opened first, so that an error comes before the work.
            file = None if out is None else stack.enter_context(replacing(out))
            for name in files:
                for block in line_blocks(str(name), BLOCK):
                    lines = bytes(block).decode("utf-8", "surrogateescape").split("\n")[:-1]
                    keys = [line.removesuffix("\r") for line in lines]
                    text = "".join(f"{key}\t{n}\n" for key, n in zip(keys, self.query(keys), strict=True))
                    if file is None:
                        sys.stdout.write(text)
                    else:
                        file.write(text.encode("utf-8", "surrogateescape"))

    def show(self, out: Path | None) -> None:
        """Print the size of the table, and the number that it has counted."""
        sketch = self.sketch
        counted = int(sketch.table[: sketch.width].sum())
        line = f"depth {sketch.depth}, width {sketch.width:,}, of {'texts' if sketch.text else 'numbers'}: "
        line += f"{counted:,} counted\n"
        sys.stdout.write(line)
        if out is not None:
            with replacing(out, "w") as file:
                file.write(line)


def _text(key: str | bytes | int) -> str:
    if isinstance(key, bytes):
        return key.decode("utf-8", "surrogateescape")
    return key if isinstance(key, str) else str(int(key))
