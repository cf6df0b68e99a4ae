"""The assignment of documents to workers, also when workers are lost, join or leave.

Chunks of 64 documents are assigned round robin to the parts. Each coarse part (first read), one for each worker,
consists of fine parts (`mpips.scheduler.data_assignment.Cut`); a lost worker's fine parts are distributed among several
workers. Documents that stay with a worker keep their topics, whichever parts it holds; documents new to it have none.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import Cluster, Context, Cut, Workload
from mpips.data import DataSpec, SameFiles, check_sizes
from mpips.jobs.lda.corpus import Block, Corpus, open_corpus

FINE = 8
"""Fine parts of a coarse one."""
Reads = list[list[int]]
"""The parts that a worker reads: [part, number of parts] each."""


class Assignment:
    """The assignment of the parts to workers, at the scheduler."""

    def __init__(self, cluster: Cluster) -> None:
        workers, parts = cluster.workers.addresses, cluster.job.data.parts
        self.cluster = cluster
        self.cut = Cut.for_workers(parts, len(workers), FINE)
        self.table = Workload(self.cut.parts, workers)

    def load(self) -> list[dict[str, Any]]:
        """Let each worker read its new parts; return the summary of each."""
        workers = self.cluster.workers.addresses
        self.table.follow(workers)
        each = [{"reads": self.reads(worker)} for worker in workers]
        scratch = {"scratch": str(self.cluster.folder.path / "documents")}
        facts = self.cluster.workers.call("load", scratch, each=each)
        job, found = self.cluster.job, self.cluster.workers.start("check_files").result()
        check_sizes(job.data, str(job.base), [each.values[:, 0] for each in found])
        return facts

    def reads(self, worker: int) -> Reads:
        """Return the parts of a worker: coarse ones that it has completely, and fine ones."""
        coarse, fine = self.cut
        mine = {part.number for part in self.table.parts if part.worker == worker}
        whole = [c for c in range(coarse) if all(c + coarse * f in mine for f in range(fine))]
        others = sorted(part for part in mine if part % coarse not in whole)
        # A part at the end of the data, which has no chunk.
        nothing = [[self.cut.parts, self.cut.parts]]
        return [[c, coarse] for c in whole] + [[part, self.cut.parts] for part in others] or nothing


class Place(NamedTuple):
    """The place of one block of a corpus."""

    corpus: Corpus
    block: int

    @property
    def documents(self) -> NDArray[np.int64]:
        """Return the documents' indices among all."""
        return self.corpus.documents(self.block)


class Documents:
    """The documents of a worker, in groups of blocks; it samples one group at a time.

    A group has blocks of several parts, up to `most` tokens, since each group pulls the counts of all words.
    """

    def __init__(self, context: Context, data: DataSpec, files: SameFiles, most: int) -> None:
        self._context, self._data, self._files, self._most = context, data, files, most
        self._open: dict[tuple[int, int], Corpus] = {}
        weakref.finalize(self, _close, self._open)
        self.groups: list[list[Place]] = []

    def read(self, reads: Reads, scratch: Path) -> None:
        """Read the parts that are new, and drop those that are not in `reads`."""
        wanted = [(part, of) for part, of in reads]
        before = dict(self._open)
        for each in wanted:
            if each not in before:
                new = self._open[each] = self._read(*each, scratch)
                for old in before.values():
                    _carry(old, new)
        _close({each: self._open.pop(each) for each in before if each not in wanted})
        self.groups = list(_grouped(self._places(), self._most))

    def _read(self, part: int, of: int, scratch: Path) -> Corpus:
        files, vocab = [Path(name) for name in self._data.train], self._data.vocab
        return open_corpus(
            files, Path(vocab) if vocab else None, part, of, scratch, self._most, self._context.polling,
            self._files.check,
        )  # fmt: skip

    def _places(self) -> Iterator[Place]:
        for corpus in self._open.values():
            yield from (Place(corpus, block) for block in range(corpus.blocks))

    @property
    def marks(self) -> NDArray[np.int64]:
        """Return the parts, i8[parts, 3]: number, number of parts, and checksum of each."""
        return np.array([(*part, corpus.mark) for part, corpus in self._open.items()], np.int64)

    @property
    def any(self) -> Corpus:
        """Return any corpus: each has the totals of all documents."""
        return next(iter(self._open.values()))

    @property
    def tokens(self) -> int:
        """Return the number of tokens."""
        return sum(corpus.tokens for corpus in self._open.values())

    @property
    def lacking(self) -> int:
        """Return the number of tokens without a topic."""
        return sum(int((self.topics(group) < 0).sum()) for group in range(len(self.groups)))

    def load(self, group: int) -> tuple[Block, NDArray[np.int32]]:
        """Return a group as one block, and its tokens' topics."""
        blocks = [place.corpus.load(place.block) for place in self.groups[group]]
        if len(blocks) == 1:
            return blocks[0], self.topics(group)
        ends = np.cumsum([0, *(len(block.words) for block in blocks)])
        ptr = [block.ptr[:-1] + end for block, end in zip(blocks, ends[:-1], strict=True)]
        words = np.concatenate([block.words for block in blocks])
        return Block(np.append(np.concatenate(ptr), ends[-1]), words), self.topics(group)

    def topics(self, group: int) -> NDArray[np.int32]:
        """Return the stored topics of a group's tokens."""
        return np.concatenate([place.corpus.topics(place.block) for place in self.groups[group]])

    def keep(self, group: int, z: NDArray[np.int32]) -> None:
        """Store the topics of a group's tokens."""
        at = 0
        for corpus, block in self.groups[group]:
            size = len(corpus.topics(block))
            corpus.keep(block, z[at : at + size])
            at += size

    def first(self, group: int) -> int:
        """Return the index of a group's first document among all."""
        return int(self.groups[group][0].documents[0])


def _close(corpora: dict[tuple[int, int], Corpus]) -> None:
    """Release the disk space."""
    for corpus in corpora.values():
        corpus.close()


def _grouped(places: Iterator[Place], most: int) -> Iterator[list[Place]]:
    group: list[Place] = []
    size = 0
    for place in places:
        tokens = len(place.corpus.topics(place.block))
        if group and size + tokens > most:
            yield group
            group, size = [], 0
        group.append(place)
        size += tokens
    if group:
        yield group


def _carry(old: Corpus, new: Corpus) -> None:
    """Copy the topics of the documents that are in both corpora from the old one to the new one."""
    for b in range(new.blocks):
        ptr, z = new.load(b).ptr, new.topics(b)
        documents = new.documents(b)
        for c in range(old.blocks):
            _, here, there = np.intersect1d(
                documents, old.documents(c), assume_unique=True, return_indices=True
            )
            if not len(here):
                continue
            begins, had = old.load(c).ptr, old.topics(c)
            for d, e in zip(here.tolist(), there.tolist(), strict=True):
                z[ptr[d] : ptr[d + 1]] = had[begins[e] : begins[e + 1]]
