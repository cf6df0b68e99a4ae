"""The job file: one TOML file, read once into frozen dataclasses, each defined in the module of its subject.

An error is one line that names the file, the line in it (or the `--set` option) and a correct value. A loaded job can
be written (`to_toml`) and loaded again as the same job from any folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mpips import typed
from mpips.cluster.faults import FaultsSpec, check_ranks
from mpips.cluster.hash_ring import MOST_HOLDERS, MOST_POINTS
from mpips.cluster.layout import LayoutSpec
from mpips.config.overrides import apply
from mpips.config.toml_text import line_of, read_toml, write_toml
from mpips.consistency import ConsistencySpec
from mpips.data.spec import DataSpec
from mpips.errors import JobError
from mpips.files.safe_open import NON_UTF8_NOTE
from mpips.filters.named import chain_of
from mpips.storage.disk.spec import StoreSpec
from mpips.tracing.recorder import TraceSpec
from mpips.typed import InvalidValue

PERIODS = 3
"""Heartbeats that must be missing before a rank counts as dead."""

SECONDS = {"or_zero": True, "at_least": 0.001, "at_most": typed.LONGEST}
"""Bounds of a duration that 0 switches off."""

BYTES = {"or_zero": True, "at_least": 1000, "at_most": typed.LARGEST}
"""Bounds of a size, or of bytes per second, that 0 switches off."""

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class ProgramLike(Protocol):
    """The part of a program that the job file needs: its name and the dataclass of its table."""

    @property
    def name(self) -> str:
        """The name of its table in the job file."""

    @property
    def settings(self) -> type:
        """The dataclass of that table."""


@dataclass(frozen=True)
class JobSpec:
    """The program, its name and its seed."""

    program: str
    """A program of mpips.jobs ("sparse_lr"), a dotted module, or a .py file beside the job file."""
    name: str = ""
    """Name of the run's folder and its checkpoints; default: the program's name."""
    seed: int = field(default=0, metadata={"at_least": 0, "at_most": 2**63 - 1})
    """Seed of all random numbers."""
    time_limit: float = field(default=0.0, metadata=SECONDS | {"at_least": 1})
    """Time limit of a run in seconds: before its end the run stops with a checkpoint, as on a stop request; 0: none.
    The end of a Slurm allocation is known without it."""
    base: str = ""
    """The folder that relative paths start from; default: the job file's folder."""

    def __post_init__(self) -> None:
        if not self.program:
            raise ValueError("program must not be empty")
        if self.name and not SAFE_NAME.fullmatch(self.name):
            raise ValueError(f"name must be letters, digits and ._+- (it names a folder), got {self.name!r}")


@dataclass(frozen=True)
class ProvenanceSpec:
    """What a run records of its provenance (run.json, and every checkpoint's manifest)."""

    hash_inputs: Literal["full", "quick", "none"] = "quick"
    """Hashes of the files in [data]: "full" hashes every byte, in the background, and the end of the run waits for it;
    "quick" does so for files up to 16 MiB, and hashes size, first and last MiB of larger ones; "none": size and time
    only."""


@dataclass(frozen=True)
class RingSpec:
    """Distribution of keys over servers (paper, section 4.3)."""

    virtual_servers: int = field(default=0, metadata={"at_least": 0, "at_most": 1 << 16})
    """Points of each server on the ring (virtual servers); 0: chosen automatically."""
    replicas: int = field(default=1, metadata={"at_least": 0, "at_most": typed.MOST})
    """Copies of each server's keys on other servers: a run survives the loss of as many servers at once. Where MPI ends
    all ranks when one dies (all but Open MPI with ULFM), or there is one server, there are no copies."""
    repair_bandwidth: float = field(default=200e6, metadata=BYTES)
    """Bytes per second that each server may spend on restoring copies; 0: no limit."""
    key_cache: float = field(default=256e6, metadata=BYTES)
    """Bytes of key lists that each server caches, so that a repeated list is not sent again; 0: none."""


@dataclass(frozen=True)
class HeartbeatSpec:
    """Failure detection by heartbeats (paper, section 4.5)."""

    period: float = field(default=0.1, metadata={"at_least": 0.001, "at_most": 3600})
    """Seconds between two heartbeats of a rank."""
    patience: float = field(default=1.0, metadata={"at_least": 0.003, "at_most": typed.LONGEST})
    """Seconds without a heartbeat after which a rank counts as dead; at least 3 periods."""
    give_up: float = field(default=300.0, metadata=SECONDS)
    """Seconds without a heartbeat after which the run ends with an error if it cannot continue without the rank: no
    other rank has its keys, or this MPI ends all ranks when one dies. 0: it waits without limit."""

    def __post_init__(self) -> None:
        least = PERIODS * self.period
        # In floating point 3 * 0.1 is slightly more than 0.3.
        if self.patience < least * (1 - 1e-9):
            raise ValueError(
                f"patience must be at least {PERIODS} periods ({least:g} s), got {self.patience:g}: "
                "one late heartbeat must not count as a death"
            )


@dataclass(frozen=True)
class FiltersSpec:
    """Filters of messages, in order (paper, section 3.6): "zstd", or {name = "fixed_point", bytes = 1}."""

    push: tuple[str | dict[str, Any], ...] = ()
    """Filters of messages to the servers, by name, or as tables with a name and settings."""
    pull: tuple[str | dict[str, Any], ...] = ()
    """Filters of the answers."""

    def __post_init__(self) -> None:
        for direction, entries in (("push", self.push), ("pull", self.pull)):
            try:
                chain_of(entries)
            except ValueError as error:
                raise ValueError(f"{direction}: {error}") from error


@dataclass(frozen=True)
class CheckpointSpec:
    """When and where checkpoints are written."""

    every: int = field(default=0, metadata={"at_least": 0, "at_most": typed.MOST})
    """Passes between two checkpoints; 0 here and in every_seconds: only on request, and to stop."""
    every_seconds: float = field(default=0.0, metadata=SECONDS)
    """Seconds between two checkpoints; can be combined with `every`; 0: passes only. A checkpoint waits for the end of
    a pass, but not in online learning with `incremental`."""
    keep: int = field(default=2, metadata={"at_least": 1, "at_most": typed.MOST})
    """Number of checkpoints to keep; older ones are removed, unless deltas that are kept need them."""
    incremental: int = field(default=0, metadata={"at_least": 0, "at_most": 1000})
    """Number of deltas, checkpoints of what has changed since the one before, between two whole ones; 0: all are whole.
    Each server keeps 32 bytes for each row then."""
    before_end: float = field(default=60.0, metadata=SECONDS)
    """Seconds left when the run stops by itself before the end of its allocation or of job.time_limit, at most a
    quarter of the time; the duration of a step and of checkpoints so far is added. 0: it does not stop for time."""
    grace: float = field(default=0.0, metadata=SECONDS)
    """Seconds after a stop request within which the run must have stopped; then it ends as failed, and reports what it
    waits for. 0: until its allocation ends, if it does."""
    directory: str = ""
    """The folder of the checkpoints; default: checkpoints/NAME."""
    at_end: bool = True
    """Whether a program of your own that has completed leaves its vectors in the run's folder, as vectors.h5, for
    `Run.vector` and `mpips export`."""


@dataclass(frozen=True)
class RecordSpec:
    """Recording of a run for bitwise replay under any consistency model (`mpips reproduce`)."""

    on: bool = False
    """Record the order in which messages took effect, and all decisions, in the run folder's `record`."""


@dataclass(frozen=True)
class DebugSpec:
    """Checks of a program that cost time."""

    check_buffers: bool = False
    """Whether keys and rows that the program overwrites before their push is finished are an error, which names the
    program's line."""


TABLES: dict[str, type] = {
    "job": JobSpec,
    "layout": LayoutSpec,
    "ring": RingSpec,
    "store": StoreSpec,
    "heartbeat": HeartbeatSpec,
    "consistency": ConsistencySpec,
    "filters": FiltersSpec,
    "checkpoint": CheckpointSpec,
    "data": DataSpec,
    "provenance": ProvenanceSpec,
    "faults": FaultsSpec,
    "trace": TraceSpec,
    "record": RecordSpec,
    "debug": DebugSpec,
}
"""All tables that do not depend on the program, in the order in which they are written."""


@dataclass(frozen=True)
class Job:
    """A resolved job: the job file, the overrides, and the defaults.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "job.toml").write_text('job.program = "sparse_lr"')
    ...     job: Job = load(Path(folder, "job.toml"), ["layout.servers=2"])
    ...     job.layout.servers, job.resolve("a.svm") == Path(folder, "a.svm")
    (2, True)
    """

    program: str
    name: str
    seed: int
    time_limit: float
    layout: LayoutSpec
    ring: RingSpec
    store: StoreSpec
    heartbeat: HeartbeatSpec
    consistency: ConsistencySpec
    filters: FiltersSpec
    checkpoint: CheckpointSpec
    data: DataSpec
    provenance: ProvenanceSpec
    faults: FaultsSpec
    trace: TraceSpec
    record: RecordSpec
    debug: DebugSpec
    settings: Any
    """The program's own table, as its `Settings`."""
    table: str
    """The name of that table."""
    path: Path
    """The job file."""
    base: Path
    """The folder that its relative paths start from."""

    def resolve(self, path: str) -> Path:
        """Return the absolute form of a path of the job file."""
        return self.base / os.path.expanduser(path)

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return all tables as plain values, including the defaults."""
        job = {"program": self.program, "name": self.name, "seed": self.seed, "base": str(self.base)}
        job["time_limit"] = self.time_limit
        shared = {name: typed.table_of(getattr(self, name)) for name in TABLES if name != "job"}
        return {"job": job, **shared, self.table: typed.table_of(self.settings)}

    def to_toml(self) -> str:
        """Return the resolved job as TOML; loading it gives the same job. File names may have any bytes."""
        text = write_toml(self.tables())
        return NON_UTF8_NOTE + text if re.search("[\udc80-\udcff]", text) else text

    def digest(self) -> str:
        """Return the SHA-256 (hexadecimal) of the job's contents: the same for the same job in any folder."""
        tables = self.tables()
        del tables["job"]["base"]
        return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    programs: Callable[[str, Path], ProgramLike] | None = None,
) -> Job:
    """Read a job file.

    Args:
        path: the TOML file.
        overrides: ``table.key=value`` each, the value in TOML or else a string; later ones win.
        programs: finds a program by its name and the folder of the job file; default:
            `mpips.config.program.load_program`.

    Raises:
        JobError: one line with the error, its place, and a correct value.
    """
    path = Path(path)
    text, tables = read_toml(path, "job file", JobError)
    origins = apply(overrides, tables)

    def place(at: typed.Path) -> str:
        for length in range(len(at), 0, -1):
            if at[:length] in origins:
                return origins[at[:length]]
        line = line_of(text, at)
        return f"{path}:{line}" if line else str(path)

    try:
        job = typed.build(JobSpec, _table(tables, "job"), ("job",))
        base = Path(job.base or path.parent).absolute()
        program = _find_program(job.program, base, programs)
        known = {**TABLES, program.name: program.settings}
        for name in tables:
            if name not in known:
                raise InvalidValue((name,), f"unknown table [{name}]; {typed.suggestion(name, known)}")
        specs: dict[str, Any] = {
            name: typed.build(cls, _table(tables, name), (name,))
            for name, cls in known.items()
            if name != "job"
        }
        check_ranks(specs["faults"], specs["layout"])
        _check_holders(specs["layout"], specs["ring"])
    except InvalidValue as error:
        raise JobError(f"{place(error.path)}: {error}") from error
    settings = specs.pop(program.name)
    name = job.name or program.name
    made = Job(
        job.program, name, job.seed, job.time_limit, **specs,
        settings=settings, table=program.name, path=path, base=base,
    )  # fmt: skip
    if made.layout.exact_sums and (reason := _inexact(made, program)):
        raise JobError(f"{place(('layout', 'exact_sums'))}: exact_sums: {reason}")
    return made


def _check_holders(layout: LayoutSpec, ring: RingSpec) -> None:
    """Raise InvalidValue if every rank would compute the holders of too many shards."""
    slots, most = layout.servers + layout.spares, min(ring.replicas + 1, layout.servers)
    count = slots * max(ring.virtual_servers, MOST_POINTS) * most
    if count > MOST_HOLDERS:
        raise InvalidValue(
            ("layout", "servers"),
            f"{slots:,} servers and spares, {ring.replicas:,} replicas and {ring.virtual_servers:,} virtual servers "
            f"are about {count:,} parts of the keys and copies; a job has at most {MOST_HOLDERS:,}: use fewer of one",
        )


def _inexact(job: Job, program: ProgramLike) -> str:
    """Return why a job's result depends on the number of workers even with exact sums; "" if it does not."""
    exact_sums: Callable[[Job], str] | None = getattr(program, "exact_sums", None)
    if exact_sums is None:
        return f'program {job.program!r} does not declare support: define exact_sums(job) -> str, "" if supported'
    if reason := exact_sums(job):
        return reason
    if not job.consistency.is_sequential:
        return "only a sequential run is reproducible: use consistency.tau = 0"
    for direction in ("push", "pull"):
        for step in chain_of(getattr(job.filters, direction)).steps:
            if step.coder.rounds or step.coder.drops:
                return (
                    f"the filter {step.name!r} ([filters] {direction}) rounds or drops values of each worker"
                )
    return ""


def _table(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, Mapping):
        raise InvalidValue((name,), f"{name} must be a table, written [{name}]; {typed.got(table)}")
    return table


def _find_program(name: str, base: Path, programs: Callable[[str, Path], ProgramLike] | None) -> ProgramLike:
    if programs is None:
        # Imported late: it imports the program's own modules.
        from mpips.config.program import load_program

        programs = load_program
    try:
        program = programs(name, base)
    except JobError as error:
        raise InvalidValue(("job", "program"), str(error)) from error
    if program.name in TABLES:
        raise InvalidValue(
            ("job", "program"),
            f"a program cannot be called {program.name!r}: the table [{program.name}] is taken",
        )
    if not is_dataclass(program.settings):
        raise InvalidValue(("job", "program"), f"the Settings of {name!r} must be a dataclass")
    return program
