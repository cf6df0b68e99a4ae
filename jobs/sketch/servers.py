"""What the servers hold, and what a push does there.

`table`: the sketch in blocks of cells, dense. A worker pushes the deltas of one batch of one part of the stream; a row
is a block's deltas, then the number of the part, then that of the batch, from 1. A block remembers of each part the
last batch that it has had (`applied`), and leaves out what it has had before.

That makes every item count exactly once. A part is cut into the same batches whoever reads it, and a worker pushes a
batch only when all blocks have answered the one before. So a block that has had a batch of some part has had all before
it, and a batch that was pushed to some servers only, by a worker that died, may be pushed again to all of them, as may
any number of batches before it. Nobody needs to know how far the dead worker came.

`exact`: the same for single keys, sparse: the true counts of a sample of the keys. `registers` and `heavy` hold what
pushing twice does not change: the registers of a HyperLogLog sketch, of which the larger counts, and the keys that may
be among the most frequent, by their hash, with their text.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import Column, Settings, State, VectorSpec, call, update
from mpips.jobs.sketch import kernels

Array = NDArray[Any]
BLOCK = 16
"""Cells of a block for each 8 parts: a cache line or two are read for one cell, and `applied` costs a quarter."""
WORDS = 32
"""Words of 8 bytes that a heavy key's text may have; longer ones are cut."""


class Shape(NamedTuple):
    """What a sketch is: a table of depth x width cells, hashed by a seed, in blocks of 2**shift cells, for `parts`."""

    depth: int
    width: int
    seed: int
    shift: int
    parts: int

    @property
    def blocks(self) -> int:
        """Return how many blocks hold the table."""
        return -(-self.depth * self.width >> self.shift)


def seed_for(job_seed: int) -> int:
    """Return the seed of the table's hash functions."""
    return int(np.random.SeedSequence(job_seed).generate_state(1, np.uint64)[0])


def shape_for(depth: int, width: int, seed: int, parts: int) -> Shape:
    """Choose the blocks of a table; see BLOCK."""
    return Shape(depth, width, seed, (BLOCK * -(-parts // 8) - 1).bit_length(), parts)


def specs(shape: Shape, wide: bool, text: bool) -> list[VectorSpec]:
    """Name the vectors; `wide` deltas have 64 bits, and `text` says that keys have one."""
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
    """Add the deltas of a batch, unless the block has had it."""
    kernels.apply(values, state["applied"], slots, rows)


@update("sketch_max", defaults={})
def keep_larger(
    values: Array, state: State, slots: NDArray[np.int32], rows: Array, settings: Settings
) -> None:
    """Keep the larger of what is there and what comes."""
    kernels.raise_to(values, slots, rows)


@call("sketch_total", reads=True)
def total(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Return the sum of all cells of this server."""
    return {"total": int(segment.values[: len(segment)].sum())}
