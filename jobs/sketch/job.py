"""Distributed sketching (paper, section 5.3): the frequencies of the keys in a stream that is too long to store.

    scheduler                          worker r                                   server
    until every part is counted:       for each batch of its parts:               add the deltas of a batch,
        a few batches each                 count the keys in a local table            unless already applied
        record each part's progress        push the table's blocks                    (`servers`)

Meanwhile, the workers of a group named `query` request estimates. When a worker is lost, another one continues its
part from the recorded progress; the servers ignore batches that they have already applied.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpips import (
    COUNT,
    Cluster,
    DataError,
    Each,
    Group,
    InputError,
    Job,
    JobError,
    WorkerLost,
    Workload,
    finish,
    progress,
    read_manifest,
    regroup,
    replacing,
    retry_on_loss,
    schema_error,
)
from mpips.data import DataSpec, check_sizes, resolve, unusual_files
from mpips.jobs.sketch import kernels, results, servers, source
from mpips.jobs.sketch.settings import Settings as Settings
from mpips.jobs.sketch.worker import Worker as Worker

if TYPE_CHECKING:
    from mpips import Model

T = TypeVar("T")
OUTPUTS = results.FILE, results.TOP
"""The files that a run writes."""
COLUMNS = (
    progress.Column("seconds", "seconds", 8, progress.seconds),
    progress.Column("inserts", "inserts", 9, progress.si),
    progress.Column("inserts/s", "inserts/s", 9, progress.si),
    progress.Column("waiting", "waiting", 11, progress.shares),
    progress.Column("sent", "sent", 9, progress.bytes_si),
)
BATCHES = 4
"""Batches of each worker per call: at most as many are counted again when a worker is lost."""
PARTS_PER_WORKER = 4
"""Parts per worker where parts can be reassigned, unless the job sets the number."""
QUERY = "query"
"""The worker group that queries while the others insert."""


def load_model(source: Path, job: dict[str, Any]) -> Model:
    """Load the sketch; see `mpips.Model`."""
    # Only those who apply a model need it.
    from mpips.jobs.sketch.model import SketchModel

    return SketchModel(results.load(source))


# --- The scheduler ---------------------------------------------------------------------------------------------------


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Count the stream; return the run's metrics."""
    return Insertion(cluster, settings).run()


class Totals(NamedTuple):
    """The counted items of a part, and their weight."""

    items: int = 0
    weight: int = 0


class Asked(NamedTuple):
    """The number of keys that workers have queried concurrently, and the seconds this took."""

    keys: int
    seconds: float


def exact_sums(job: Job) -> str:
    """Return why the result depends on the number of workers: counts are exact, but batches are cut from parts."""
    if job.data.parts:
        return ""
    return "sketch cuts the stream into a part for each worker: say how many for all, as in data.parts = 8"


def _together(replies: list[dict[str, Any]]) -> Asked:
    return Asked(sum(each["keys"] for each in replies), max(each["seconds"] for each in replies))


SCHEMA = {"rounds": COUNT, "parts": Each([COUNT, bool]), "totals": Each([COUNT, COUNT])}
"""The form of the state in a checkpoint; for each part the number of batches done, and whether it is finished."""


def unfit(about: dict[str, Any]) -> str:
    """Return why a run cannot continue from a checkpoint's state; "" if it can."""
    state, where = about["state"], "about.state"
    if problem := schema_error(state, SCHEMA, where):
        return problem
    parts, totals = len(state["parts"]), len(state["totals"])
    if not parts == totals > 0:
        return f"{where}.totals is of {totals} parts, and {where}.parts of {parts}"
    # The places up to which parts are counted are those of the old files.
    if other := about.get("other files", []):
        return f"{other[0]}: give the same files, or start a new run"
    # The keys that are counted are those of the old columns.
    reading = about.get("other reading", {})
    changed = [reading[key] for key in ("separator", "header") if key in reading]
    return f"{changed[0]}: set it as it was, or start a new run" if changed else ""


def _check_filters(job: Job) -> None:
    """Raise JobError if a filter would drop counts. Others that drop rows apply to sums only: there are none."""
    for entry in job.filters.push:
        if not isinstance(entry, str) and entry.get("name") == "tail":
            vectors = set(entry.get("vectors") or servers.NAMES)
            if entry.get("at_least") != 1 and vectors & set(servers.NAMES):
                raise JobError(
                    "[filters] push: tail drops the first pushes of each key, which sketch counts: leave it out"
                )


class Insertion:
    """A run: the worker and the progress of each part (`parts`), and the `totals` of the parts."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self.cluster, self.settings, self.rounds = cluster, settings, 0
        job = cluster.job
        self.text = not settings.zipf
        if self.text and not job.data.train:
            raise JobError("[data] train names no files, and [sketch] zipf asks for no generated stream")
        source.check(self._files if self.text else job.data)
        _check_filters(job)
        self.seed = servers.seed_for(job.seed)
        self.parts = self._cut(cluster.decide(lambda: self._kept_parts()))
        self.totals = [Totals() for _ in self.parts.parts]
        cluster.facts |= {
            "seed": self.seed,
            "keys": "text" if self.text else "numbers",
            "items": self._items(),
        }
        cluster.facts |= {
            name: getattr(settings, name) for name in ("depth", "width", "conservative", "exact", "batch")
        }

    def run(self) -> dict[str, Any]:
        """Run all steps; return the metrics."""
        cluster = self.cluster
        if self.text and (
            empty := cluster.decide(lambda: unusual_files(cluster.job.data, str(cluster.job.base)))
        ):
            cluster.say(empty)
        if self.text and (names := cluster.decide(lambda: source.header(self._files))):
            cluster.say(f"the first line of each file was taken for column names: {names}")
            cluster.event("header", names=names)
        elif self.text:
            # Only printed: an error of the file is reported by the worker that reads it.
            with suppress(DataError):
                if row := source.first_row(self._files):
                    more = "[data] header = true would leave it out"
                    cluster.say(f"the first line of each file is counted: {row}; {more}")
        if cluster.job.data.test:
            self._retry(lambda: cluster.workers.call("read_queries"))
        self._retry(self.begin)
        with cluster.phase("load"):
            self._retry(self._load)
        before, queries = self.total.items, list[Asked]()
        with cluster.phase("train"):
            self._insert_all(queries)
        rate = (self.total.items - before) / max(cluster.seconds["train"], 1e-9)
        if not self.total.items and self.parts.finished:
            raise InputError(f"[data] train holds no keys: {cluster.job.data.train}")
        total = {"inserts": self.total.items, "weight": self.total.weight, "inserts_per_second": rate}

        def ask() -> dict[str, Any]:
            asked, spent = (sum(each) for each in zip(*(queries or [self._ask()]), strict=True))
            return {"queries_per_second": asked / max(spent, 1e-9)}

        steps = self._model, self._results, ask
        return finish(cluster, total, *steps, recover=self._follow, save=lambda _: self._save())

    def begin(self) -> None:
        """Create the vectors, or restore a checkpoint."""
        cluster, settings = self.cluster, self.settings
        # Discard the counts of an attempt in which a worker was lost.
        cluster.vectors.clear()
        state = cluster.restore(unfit)
        if state is None:
            shape = servers.shape_for(settings.depth, settings.width, self.seed, len(self.parts.parts))
            for spec in servers.specs(shape, cluster.job.data.weight != "", self.text):
                cluster.create_vector(spec)
            return
        self.rounds = state["rounds"]
        self.totals = [Totals(*each) for each in state["totals"]]
        for part, (done, finished) in zip(self.parts.parts, state["parts"], strict=True):
            part.done, part.finished = done, finished

    @property
    def total(self) -> Totals:
        """Return the totals of all parts."""
        return Totals(*(sum(each) for each in zip(*self.totals, strict=True)))

    @property
    def _files(self) -> DataSpec:
        return resolve(self.cluster.job.data, str(self.cluster.job.base))

    def _items(self) -> list[Any]:
        """Return the description of the stream, which must be the same when the run is resumed."""
        settings, data = self.settings, self.cluster.job.data
        if settings.zipf:
            return [settings.zipf, settings.items, settings.keys]
        files = self._files.train
        size = self.cluster.decide(lambda: source.block_size(files, len(self.parts.parts)))
        return [len(files), size, data.column, data.weight]

    def _kept_parts(self) -> int:
        """Return the number of parts of the stream in the checkpoint that the run resumes from."""
        resume = self.cluster.resume
        with suppress(InputError, KeyError, TypeError):
            # `restore` reports the error.
            return len(read_manifest(resume)["about"]["state"]["parts"]) if resume else 0
        return 0

    def _cut(self, kept: int) -> Workload:
        job, inserters = self.cluster.job, self._inserters().addresses
        each = PARTS_PER_WORKER if job.layout.hand_over else 1
        return Workload(kept or job.data.parts or each * len(inserters), inserters)

    # --- inserting

    def _inserters(self) -> Group:
        """Return the workers that insert: all but those of the query group, or all if there are no others."""
        cluster = self.cluster
        named = cluster.group(QUERY).addresses if QUERY in cluster.groups else ()
        chosen = [rank for rank in cluster.workers.addresses if rank not in named]
        return cluster.some(chosen or cluster.workers.addresses)

    def _askers(self) -> Group:
        """Return the workers of the query group."""
        inserters = self._inserters().addresses
        return self.cluster.some([rank for rank in self.cluster.workers.addresses if rank not in inserters])

    def _load(self) -> None:
        each = [
            {"parts": [part.number for part in self.parts.of(rank)]} for rank in self._inserters().addresses
        ]
        about = {"of": len(self.parts.parts)}
        self._inserters().call("load", about, each=each)
        self._check_files()

    def _check_files(self) -> None:
        """Let each worker check that its data files are still those of the start, and compare names and sizes."""
        if self.text:
            job, found = self.cluster.job, self.cluster.workers.start("check_files").result()
            check_sizes(job.data, str(job.base), [each.values[:, 0] for each in found])

    def _insert_all(self, queries: list[Asked]) -> None:
        cluster, stop = self.cluster, False
        table = cluster.table(COLUMNS)
        while not self.parts.finished and not stop:
            if (later := cluster.compact(lambda: self._restart_state(queries))) is not None:
                self._continue_from(later)
                queries[:] = [Asked(*each) for each in later["queries"]]
            if accounts := self._insert(queries):
                facts = self._shown()
                table.row(facts | accounts)
                cluster.event("inserts", **facts, weight=self.total.weight)
            if cluster.renewed():
                self._regroup()
            self.rounds += 1
            if cluster.due(self.rounds):
                self._retry(self._save)
                stop = cluster.stopping()
        table.close()

    def _insert(self, queries: list[Asked]) -> dict[str, Any]:
        """Let every worker count some more batches; return their accounts, none if a worker was lost."""
        inserters, askers = self._inserters(), self._askers()
        each = [
            {"parts": [[part.number, part.done] for part in self.parts.of(rank)]}
            for rank in inserters.addresses
        ]
        about = {"of": len(self.parts.parts), "count": BATCHES, "step": self.rounds * BATCHES}
        asking = askers.start("ask", {"round": self.rounds}) if len(askers) else None
        lost = False
        done: list[dict[str, Any]] = []
        try:
            done = inserters.call("insert", about, each=each)
        except WorkerLost:
            lost = True
        if asking is not None:
            try:
                askers.call("enough", {"round": self.rounds})
                queries.append(_together([reply.meta for reply in asking.result()]))
            except WorkerLost:
                lost = True
        for one in done:
            self._note(one)
        if lost:
            self._regroup()
            return {}
        if self.cluster.job.layout.hand_over:
            self.parts.hand_over()
        return self.cluster.recent_usage()

    def _note(self, done: dict[str, Any]) -> None:
        for number, batches, finished, items, weight in done["parts"]:
            self.parts.note(number, batches, finished)
            before = self.totals[number]
            self.totals[number] = Totals(before.items + items, before.weight + weight)
        if self.total.weight >= 2**62:
            raise InputError("[data] weight: all weights add up to 2**62 or more, which no cell can hold")
        if done["skipped"]:
            number, first = done["skipped"]
            self.cluster.say(f"skipped {number:,} bad lines, the first: {first}")
            self.cluster.event("skipped", lines=number, first=first)

    def _ask(self) -> Asked:
        """Let all workers query for a while."""
        return _together(self.cluster.workers.call("ask", {"round": self.rounds, "times": 16}))

    # --- workers that are lost, and come

    def _retry(self, step: Callable[[], T]) -> T:
        """Run a step on the workers; if one is lost during it, repeat it on the present workers."""
        return retry_on_loss(self.cluster, step, self._follow)

    def _regroup(self) -> None:
        regroup(self.cluster)
        self._follow()

    def _follow(self) -> None:
        """Reassign the parts of lost workers; new workers have found the files of the others."""
        retry_on_loss(self.cluster, self._check_files)
        self.parts.follow(self._inserters().addresses)

    # --- what is kept and said

    def _save(self) -> None:
        self.cluster.checkpoint(self.rounds, self._state())

    def _state(self) -> dict[str, Any]:
        parts = [[part.done, part.finished] for part in self.parts.parts]
        return {"rounds": self.rounds, "parts": parts, "totals": self.totals}

    def _restart_state(self, queries: list[Asked]) -> dict[str, Any]:
        """Return the state from which a successor of the scheduler continues."""
        more = {"totals": self.totals, "queries": queries}
        return {"rounds": self.rounds, "parts": self.parts.state(), **more}

    def _continue_from(self, state: dict[str, Any]) -> None:
        self.rounds, self.parts = state["rounds"], Workload.restored(state["parts"])
        self.totals = [Totals(*each) for each in state["totals"]]

    def _shown(self) -> dict[str, Any]:
        trained, items = self.cluster.trained, self.total.items
        return {"seconds": trained, "inserts": items, "inserts/s": items / max(trained, 1e-9)}

    def _model(self) -> dict[str, Any]:
        """Read the table, and write `sketch.npz`."""
        cluster = self.cluster
        self.sketch = results.assembled(cluster.export(cluster.vectors["table"]), cluster.facts)
        return {"model": str(self.sketch.save(cluster.folder.path))}

    def _results(self) -> dict[str, Any]:
        """Read the servers' other vectors; write `top.tsv`, and return the metrics."""
        cluster, sketch = self.cluster, self.sketch
        heaviest = results.top(sketch, *self._export("heavy"), self.settings.top)
        keys, counts = self._export("exact")
        at, values = self._export("registers")
        registers = np.zeros(1 << kernels.REGISTERS, np.int32)
        registers[at.astype(np.int64)] = values[:, 0]
        sums = cluster.servers.call("sketch_total", vector=cluster.vectors["table"])
        metrics = {
            "counted": sum(each["total"] for each in sums) // sketch.depth,
            "distinct": round(results.distinct(registers)),
            **results.errors(sketch, keys, counts[:, 0], self.total.weight),
            "top": heaviest[:10],
        }
        # Before the file is written, which may fail.
        cluster.metrics.update(metrics)
        # More is right: what a lost worker has pushed of batches that are not finished, in a run that stops.
        if not self.settings.conservative and metrics["counted"] < self.total.weight:
            filters = " or ".join(cluster.dropping) or "a filter"
            raise InputError(
                f"the servers have counted {metrics['counted']:,} of {self.total.weight:,}: {filters} in [filters] "
                "push drops counts; leave it out"
            )
        most = f"at most {metrics['max_overestimate']} too high (of {metrics['checked']:,} keys; bound"
        cluster.say(
            f"{self.total.items:,} inserts, about {metrics['distinct']:,} different keys; estimates are "
            f"{most if metrics['checked'] else 'not compared with exact counts (bound'} {metrics['bound']:.1f})"
        )
        with replacing(cluster.folder.path / results.TOP, "w") as file:
            file.writelines(f"{results.in_line(name)}\t{count}\n" for name, count in heaviest)
        return metrics

    def _export(self, name: str) -> tuple[NDArray[np.uint64], NDArray[Any]]:
        vector = self.cluster.vectors[name]
        pieces = list(self.cluster.export(vector))
        empty = np.empty((0, vector.spec.width), vector.spec.dtype)
        keys = np.concatenate([np.empty(0, np.uint64), *(keys for keys, _ in pieces)])
        return keys, np.concatenate([empty, *(rows for _, rows in pieces)])
