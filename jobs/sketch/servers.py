"""The vectors of the sketch on the servers, and their updates.

`table`: the sketch in blocks of cells, dense. A worker pushes the deltas of one batch of one part of the stream; a row
is a block's deltas, then the number of the part, then that of the batch, from 1. A block records the last batch of each
part that it has applied (`applied`), and ignores batches that it has already applied.

So every item is counted exactly once. A part is cut into the same batches by every worker, and a worker pushes a batch
only when all blocks have answered the previous one. So a block that has applied a batch of a part has applied all
earlier ones. A batch that a dead worker has pushed to only some servers may be pushed again to all of them, and so may
any number of earlier batches: the progress of the dead worker need not be known.

`exact`: the same for single keys, sparse: the true counts of a sample of the keys. The updates of `registers` and
`heavy` are idempotent: the registers of a HyperLogLog sketch, whose maximum is kept, and the keys that may be among the
most frequent, by their hash, with their text.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import Column, Settings, State, VectorSpec, call, update
from mpips.jobs.sketch import kernels

Array = NDArray[Any]
BLOCK = 16
"""Cells of a block per 8 parts: one cell costs one or two cache lines, and `applied` a quarter of the memory."""
SUMMED = 1 << 12
"""Blocks whose cells are added up at a time."""
NAMES = "table", "exact", "registers", "heavy"
"""The vectors."""
WORDS = 32
"""Largest number of 8-byte words of a heavy key's text; longer texts are truncated."""


class Shape(NamedTuple):
    """The shape of a sketch: a table of depth x width cells, a hash seed, blocks of 2**shift cells, and `parts`."""

    depth: int
    width: int
    seed: int
    shift: int
    parts: int

    @property
    def blocks(self) -> int:
        """Return the number of blocks of the table."""
        return -(-self.depth * self.width >> self.shift)


def seed_for(job_seed: int) -> int:
    """Return the seed of the table's hash functions."""
    return int(np.random.SeedSequence(job_seed).generate_state(1, np.uint64)[0])


def shape_for(depth: int, width: int, seed: int, parts: int) -> Shape:
    """Choose the blocks of a table; see BLOCK."""
    return Shape(depth, width, seed, (BLOCK * -(-parts // 8) - 1).bit_length(), parts)


def specs(shape: Shape, wide: bool, text: bool) -> list[VectorSpec]:
    """Return the vectors' specifications; `wide`: deltas have 64 bits; `text`: keys have a text."""
    settings: dict[str, Any] = {"parts": shape.parts, "deltas": "int64" if wide else "int32"}
    counted: dict[str, Any] = {"dtype": "int64", "update": "sketch_add", "settings": settings}
    return [
        VectorSpec("table", width=1 << shape.shift, extent=shape.blocks, dense=True, **counted),
        VectorSpec("exact", **counted),
        VectorSpec("registers", "int32", extent=1 << kernels.REGISTERS, update="sketch_max", dense=True),
        VectorSpec("heavy", "int64", 1 + WORDS * text, update="assign"),
    ]


def _applied(spec: VectorSpec) -> dict[str, Column]:
    return {"applied": Column("int32", int(spec.settings["parts"]))}


def _deltas(spec: VectorSpec) -> Column:
    return Column(str(spec.settings["deltas"]), spec.width + 2)


def _add_range(values: Array, state: State, rows: Array, settings: Settings) -> None:
    kernels.apply_range(values, state["applied"], rows)


@update(
    "sketch_add",
    columns=_applied,
    push_row=_deltas,
    apply_range=_add_range,
    defaults={"parts": 1, "deltas": "int32"},
)
def add(values: Array, state: State, slots: NDArray[np.int32], rows: Array, settings: Settings) -> None:
    """Add the deltas of a batch, unless the block has already applied it."""
    kernels.apply(values, state["applied"], slots, rows)


@update("sketch_max", defaults={})
def keep_larger(
    values: Array, state: State, slots: NDArray[np.int32], rows: Array, settings: Settings
) -> None:
    """Keep the maximum of the value and the pushed row."""
    kernels.raise_to(values, slots, rows)


@call("sketch_total", reads=True)
def total(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Return the sum of all cells of this server.

    Each row of the table adds up to the total weight, so the sum of all may exceed 64 bits.
    """
    cells, total = segment.values[: len(segment)], 0
    for begin in range(0, len(cells), SUMMED):
        part = cells[begin : begin + SUMMED]
        total += (int((part >> 32).sum()) << 32) + int((part & 0xFFFFFFFF).sum())
    return {"total": total}
