"""The results of a sketch: estimates, their errors, the number of distinct keys, and the most frequent keys."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import ALL, MANIFEST, InputError, cells_flaw, explained, load_range, npz, read_manifest, replacing
from mpips.jobs.sketch import kernels
from mpips.jobs.sketch.settings import MOST_CELLS

Keys = NDArray[np.uint64]
Counts = NDArray[np.int64]
FILE, TOP = "sketch.npz", "top.tsv"
"""The files of the table, and of the most frequent keys."""


class Sketch(NamedTuple):
    """A whole table, i8[depth * width]; `text`: keys are hashes of texts, not numbers."""

    table: Counts
    depth: int
    width: int
    seed: int
    text: bool

    def estimate(self, keys: Keys) -> Counts:
        """Estimate the counts of keys: never too low, and too high by more than `bound` with probability e^-depth."""
        out = np.empty(len(keys), np.int64)
        kernels.estimate(keys, self.table, self.depth, self.width, np.uint64(self.seed), out)
        return out

    def save(self, folder: Path) -> Path:
        """Write the sketch to a run's folder; return the file."""
        with replacing(folder / FILE) as file:
            np.savez(file, **self._asdict(), program="sketch")
        return folder / FILE


def assembled(rows: Iterable[tuple[Keys, Counts]], facts: dict[str, Any]) -> Sketch:
    """Assemble a sketch from blocks and their numbers; `facts` are those of the run."""
    depth, width = int(facts["depth"]), int(facts["width"])
    table = np.zeros(0, np.int64)
    for keys, values in rows:
        if not len(table):
            table = np.zeros(depth * width + values.shape[1], np.int64)
            table = table[: len(table) // values.shape[1] * values.shape[1]]
        table.reshape(-1, values.shape[1])[keys.astype(np.int64)] = values
    table = table[: depth * width] if len(table) else np.zeros(depth * width, np.int64)
    return Sketch(table, depth, width, int(facts["seed"]), facts["keys"] == "text")


def load(path: Path) -> Sketch:
    """Read the sketch of a run's folder, of a checkpoint, or of a model file.

    Raises:
        InputError: there is none.
    """
    if (path / MANIFEST).exists():
        with explained("read", path):
            facts = read_manifest(path)["about"]["facts"]
            rows = load_range(path, "table", [ALL], dtype="int64", key_bits=64)
            blocks = _blocks(facts["depth"], facts["width"], facts["seed"], rows.values.shape[1])
            if len(rows.keys) and not rows.keys.max() < blocks:
                raise ValueError(f"its table goes beyond {blocks} blocks")
            return assembled([(rows.keys, rows.values)], facts)
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        raise InputError(f"{path}: has no {FILE}; name the folder of a run that has ended, or a checkpoint")
    with explained("read", file):
        whole = npz.load(file, follow=file == path)
        table = whole["table"]
        depth, width, seed, text = (whole[name].item() for name in Sketch._fields[1:])
        _blocks(depth, width, seed, 1)
        flaw = cells_flaw(table, depth, width)
        if flaw or table.dtype != np.int64:
            raise ValueError(flaw or f"its table is of {table.dtype}, not int64")
    return Sketch(np.ascontiguousarray(table), depth, width, seed, bool(text))


def _blocks(depth: Any, width: Any, seed: Any, cells: int) -> int:
    """Return the number of blocks, of `cells` cells each, of a table; ValueError if the numbers are invalid."""
    if not all(isinstance(each, int) for each in (depth, width, seed)):
        raise ValueError("its depth, width and seed must be whole numbers")
    if not (depth >= 1 and width >= 1 and depth * width <= MOST_CELLS and 0 <= seed < 2**64):
        raise ValueError(f"its depth {depth}, width {width} and seed {seed} are not those of a table")
    return -int(-depth * width // max(1, cells))


def bound(width: int, weight: int) -> float:
    """Return epsilon N: an estimate is too high by more than this with probability at most delta = e^-depth."""
    return math.e / width * weight


def errors(sketch: Sketch, keys: Keys, counts: Counts, weight: int) -> dict[str, Any]:
    """Compare estimates with true counts."""
    over = sketch.estimate(keys) - counts
    allowed = bound(sketch.width, weight)
    return {
        "checked": len(keys),
        "max_overestimate": int(over.max()) if len(keys) else None,
        "bound": allowed,
        "delta": math.exp(-sketch.depth),
        "beyond_bound": float((over > allowed).mean()) if len(keys) else None,
        "underestimates": int((over < 0).sum()),
    }


def _sigma(x: float) -> float:
    if x == 1.0:
        return math.inf
    y, z, before = 1.0, x, -1.0
    while z != before:
        x *= x
        before = z
        z += x * y
        y += y
    return z


def _tau(x: float) -> float:
    if x in (0.0, 1.0):
        return 0.0
    y, z, before = 1.0, 1.0 - x, -1.0
    while z != before:
        x = math.sqrt(x)
        before = z
        y *= 0.5
        z -= (1.0 - x) ** 2 * y
    return z / 3.0


def distinct(registers: NDArray[np.int32]) -> float:
    """Estimate the number of distinct keys from the registers (Ertl, arXiv:1702.01284, algorithm 6).

    The standard error is 1.04 / sqrt(number of registers).
    """
    m, q = len(registers), 64 - kernels.REGISTERS
    counts = np.bincount(registers, minlength=q + 2)
    z = m * _tau(1.0 - counts[q + 1] / m)
    for k in range(q, 0, -1):
        z = 0.5 * (z + counts[k])
    z += m * _sigma(counts[0] / m)
    return m * m / (2.0 * math.log(2.0) * z) if z < math.inf else 0.0


def packed(names: Sequence[bytes], words: int) -> Counts:
    """Return texts as rows for heavy keys: i8[n, 1 + words], first the length plus one; long texts are truncated."""
    rows = np.zeros((len(names), 1 + words), np.int64)
    raw = rows.view(np.uint8)
    for at, name in enumerate(names):
        cut = name[: 8 * words]
        rows[at, 0] = len(cut) + 1
        raw[at, 8 : 8 + len(cut)] = np.frombuffer(cut, np.uint8)
    return rows


def in_line(name: str) -> str:
    r"""Return a key's text without ends of lines, which texts of tables may have.

    >>> in_line("a\n1")
    'a\\n1'
    """
    return name.replace("\r", "\\r").replace("\n", "\\n")


def top(sketch: Sketch, keys: Keys, rows: Counts, most: int) -> list[tuple[str, int]]:
    """Return the `most` most frequent of some keys with their estimates, largest first; rows as from `packed`."""
    estimates = sketch.estimate(keys)
    first = np.lexsort((keys, -estimates))[:most]
    found = []
    for at in first.tolist():
        raw = np.ascontiguousarray(rows[at, 1:]).view(np.uint8).tobytes()[: rows[at, 0] - 1]
        name = raw.decode("utf-8", "replace") if sketch.text else str(int(keys[at]))
        found.append((name, int(estimates[at])))
    return found
