"""The worker: counts its parts of the stream batch by batch, or requests estimates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import Answer, Context, KeyRange, Task, at_once
from mpips.data import SameFiles, resolve
from mpips.jobs.sketch import kernels, results, scan, servers, source
from mpips.jobs.sketch.deltas import Batch, Deltas
from mpips.jobs.sketch.servers import Shape
from mpips.jobs.sketch.settings import Settings
from mpips.jobs.sketch.source import Chunk

ASKED = 1 << 13
"""Number of keys in a query."""
SAMPLE = 1 << 18
"""Number of keys that a worker draws for its queries."""


class Stream:
    """The batches of one part, of which `done` have been taken."""

    def __init__(self, batches: Iterator[Iterator[Chunk]], part: int, done: int) -> None:
        self.part, self.done, self._batches = part, done, batches

    def take(self) -> Iterator[Chunk] | None:
        """Return the next batch; None if there is none left."""
        batch = next(self._batches, None)
        self.done += batch is not None
        return batch


class Worker:
    """The worker of this program."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.settings: Settings = context.job.settings
        self.data = resolve(context.job.data, str(context.base))
        self.files = SameFiles(self.data)
        self.zipf = source.zipf_of(self.settings, context.job.seed)
        self._held: dict[int, list[list[Chunk]]] = {}
        self._stream: Stream | None = None
        self._deltas: Deltas | None = None
        self._skipped: list[str] = []
        self._pushes: list[Task] = []
        self._answers: Answers | None = None
        self._enough = -1

    def read_queries(self) -> None:
        """Read the keys to query, to report errors before anything is counted."""
        self._sample()

    def load(self, parts: list[int], of: int) -> None:
        """Prepare the worker; draw the items that are kept in memory."""
        self.deltas  # noqa: B018
        self._pushes.clear()
        if self.zipf is not None and self.settings.hold:
            for part in parts:
                drawn = (self.context.polling(batch) for batch in self.zipf.batches(part, of, 0))
                self._held[part] = [list(batch) for batch in drawn]

    def check_files(self) -> Answer:
        """Check that the data files are those of the start; return their names and sizes, i8[1 + files, 1]."""
        return Answer(values=self.files.check_all()[:, None])

    @property
    def shape(self) -> Shape:
        """The shape of the sketch on the servers."""
        spec, settings = self.context.vectors["table"].spec, self.settings
        seed = servers.seed_for(self.context.job.seed)
        shift, parts = spec.width.bit_length() - 1, int(spec.settings["parts"])
        return Shape(settings.depth, settings.width, seed, shift, parts)

    @property
    def deltas(self) -> Deltas:
        """The counts of the present batch."""
        if self._deltas is None:
            wide, settings = self.data.weight != "", self.settings
            self._deltas = Deltas(self.shape, wide, settings.exact, settings.conservative)
        return self._deltas

    def insert(self, parts: list[list[int]], of: int, count: int, step: int) -> dict[str, Any]:
        """Count and push some batches of parts: [number, batches done] each; return the progress.

        A batch is pushed when the servers have answered the previous one, as `servers` requires; the next one is
        counted while the servers apply it.
        """
        report = []
        self._skipped.clear()
        for part, done in parts:
            stream = self._at(part, of, done)
            items = weight = 0
            batch = None
            while count and (batch := stream.take()) is not None:
                self.context.step(step)
                counted, own = self._count(batch, part, stream.done)
                items, weight = items + counted, weight + own
                count, step = count - 1, step + 1
            report.append([part, stream.done - done, batch is None and count > 0, items, weight])
            if not count:
                break
        self._wait()
        skipped = [len(self._skipped), self._skipped[0]] if self._skipped else None
        return {"parts": report, "skipped": skipped}

    def _at(self, part: int, of: int, done: int) -> Stream:
        stream = self._stream
        if stream is None or (stream.part, stream.done) != (part, done):
            stream = self._stream = Stream(self._batches(part, of, done), part, done)
        return stream

    def _batches(self, part: int, of: int, done: int) -> Iterator[Iterator[Chunk]]:
        if part in self._held:
            return map(iter, self._held[part][done:])
        if self.zipf is not None:
            return self.zipf.batches(part, of, done)
        size = source.block_size(self.data.train, of)
        blocks = self.context.polling(source.blocks(self.data, part, of, size, self.files.check))
        return source.Text(self.data, self.settings.batch, self._skipped, blocks).batches(done)

    def _count(self, batch: Iterator[Chunk], part: int, number: int) -> tuple[int, int]:
        """Count a batch and begin to push it; return its items and their weight."""
        deltas, chunks, items = self.deltas, list[Chunk](), 0
        for chunk in self.context.polling(batch):
            with self.context.working():
                deltas.add(chunk.keys, chunk.weights)
            items += len(chunk.keys)
            if chunk.text is not None:
                chunks.append(chunk)
        self._wait()
        with self.context.working():
            counted = deltas.finish(part, number)
            names = _names(chunks, counted.heavy)
        self._push(counted, names, part, number)
        return items, counted.weight

    def _push(self, batch: Batch, names: NDArray[np.int64], part: int, number: int) -> None:
        if not len(batch.blocks):
            # All lines were empty.
            return
        vectors, table = self.context.vectors, self.context.vectors["table"]
        everything = len(batch.blocks) == table.spec.extent
        blocks = KeyRange(0, table.spec.extent) if everything else batch.blocks
        sampled = np.empty((len(batch.sampled), 3), batch.rows.dtype)
        sampled[:, 0], sampled[:, 1], sampled[:, 2] = batch.counts, part, number
        at = np.flatnonzero(batch.registers)
        self._pushes = [
            table.push(blocks, batch.rows),
            vectors["exact"].push(batch.sampled, sampled),
            vectors["registers"].push(at.astype(np.uint64), batch.registers[at]),
            vectors["heavy"].push(batch.heavy, names),
        ]

    def _wait(self) -> None:
        self.context.wait_all(self._pushes)
        self._pushes = []

    # --- asking

    def ask(self, round: int, times: int = 0) -> dict[str, Any]:
        """Query the counts of keys `times` times, or at least once and until a call of `enough`."""
        if self._answers is None:
            self._answers = Answers(self.context, self.shape, self._sample())
        asked, begin = 0, self.context.wall()
        while not asked or (asked < times if times else self._enough < round):
            self._answers.ask(asked)
            asked += 1
        return {"keys": asked * ASKED, "seconds": self.context.wall() - begin}

    @at_once
    def enough(self, round: int) -> None:
        """End `ask`: the other workers have inserted all their items."""
        self._enough = max(self._enough, round)

    def _sample(self) -> NDArray[np.uint64]:
        """Draw keys to query: from the test data, or with the distribution of the inserted keys."""
        if self.zipf is not None:
            drawn = self.zipf._replace(items=SAMPLE, batch=SAMPLE).batches(
                self.context.index_of_all + 1, 1, 0
            )
            return np.concatenate([chunk.keys for chunk in next(drawn, iter([]))] or [np.ones(1, np.uint64)])
        spec = replace(self.data, train=self.data.test) if self.data.test else self.data
        block = next(source.blocks(spec, 0, 1, source.block_size(spec.train, 1), self.files.check), None)
        return np.empty(0, np.uint64) if block is None else source.parsed(block, spec, []).keys[:SAMPLE]


class Answers:
    """Estimates for keys by pulling their cells."""

    def __init__(self, context: Context, shape: Shape, keys: NDArray[np.uint64]) -> None:
        self.context, self.shape = context, shape
        self.keys = np.resize(keys, max(len(keys), ASKED)) if len(keys) else np.arange(ASKED, dtype=np.uint64)
        self._marks = np.zeros(shape.blocks, np.int32)
        self._cells = np.empty(ASKED * shape.depth, np.int64)
        self._blocks = np.empty(min(shape.blocks, ASKED * shape.depth), np.uint64)
        self._rows = np.empty((len(self._blocks), 1 << shape.shift), np.int64)

    def ask(self, time: int) -> NDArray[np.int64]:
        """Estimate the counts of some keys, different ones each time: i8[ASKED]."""
        depth, width, seed, shift = self.shape.depth, self.shape.width, self.shape.seed, self.shape.shift
        begin = time * ASKED % (len(self.keys) - ASKED + 1)
        keys, out = self.keys[begin : begin + ASKED], np.empty(ASKED, np.int64)
        n = kernels.asked(keys, shift, depth, width, np.uint64(seed), self._marks, self._cells, self._blocks)
        blocks, rows = self._blocks[:n], self._rows[:n]
        self.context.vectors["table"].pull(blocks, out=rows).result()
        kernels.answered(rows, blocks, shift, depth, self._marks, self._cells, out)
        return out


def _names(chunks: list[Chunk], heavy: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Look up the texts of heavy keys in the text of their batch; return their rows."""
    if not chunks:
        return np.ones((len(heavy), 1), np.int64)
    names = [b""] * len(heavy)
    left = np.arange(len(heavy))
    for chunk in chunks:
        found = np.empty(len(left), np.int64)
        scan.locate(chunk.keys, heavy[left], found)
        for at in np.flatnonzero(found >= 0).tolist():
            names[left[at]] = chunk.name(int(found[at]))
        left = left[found < 0]
        if not len(left):
            break
    return results.packed(names, servers.WORDS)
