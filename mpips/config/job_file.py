"""The job file: one TOML, read once into frozen dataclasses, each defined beside the noun that it is about.

What is wrong with it is one line that names the file, the line in it (or the `--set` that brought it) and
what would be right. A job that was loaded can be written back (`to_toml`) and loaded again to the same job
from anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mpips import typed
from mpips.cluster.faults import FaultsSpec
from mpips.cluster.layout import LayoutSpec
from mpips.consistency import ConsistencySpec
from mpips.data.spec import DataSpec
from mpips.errors import JobError
from mpips.files.safe_open import AS_BYTES, read_text
from mpips.filters.named import chain_of
from mpips.tracing.recorder import TraceSpec
from mpips.typed import Misfit

PERIODS = 3
"""Signs of life that must be missing before a rank counts as dead."""

LARGEST = 1 << 24
"""Bytes of a job file."""

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class ProgramLike(Protocol):
    """What the job file needs of a program: its name and the dataclass of its table."""

    @property
    def name(self) -> str:
        """The name of its table in the job file."""

    @property
    def settings(self) -> type:
        """The dataclass of that table."""


@dataclass(frozen=True)
class JobSpec:
    """Which program runs, under which name and seed."""

    program: str
    """A program of mpips.jobs ("sparse_lr"), a dotted module, or a .py file beside the job file."""
    name: str = ""
    """Names the run's folder and its checkpoints; the program's name unless given."""
    seed: int = field(default=0, metadata={"at_least": 0, "at_most": 2**63 - 1})
    """Seeds everything that is random."""
    time_limit: float = field(default=0.0, metadata={"at_least": 0})
    """Seconds that a run may take: before they are over it stops with a checkpoint, as if it had been asked to; 0: any.
    The end of a Slurm allocation is known without it."""
    base: str = ""
    """The folder that relative paths start from; the job file's own unless given."""

    def __post_init__(self) -> None:
        if not self.program:
            raise ValueError("program must not be empty")
        if self.name and not SAFE_NAME.fullmatch(self.name):
            raise ValueError(f"name must be letters, digits and ._+- (it names a folder), got {self.name!r}")


@dataclass(frozen=True)
class ProvenanceSpec:
    """What a run writes down of where it came from (run.json, and every checkpoint's manifest)."""

    hash_inputs: Literal["full", "quick", "none"] = "quick"
    """Of the files in [data]: "full" hashes every byte, in the background, and the end of the run waits for it; "quick"
    does so for files up to 16 MiB, and of larger ones hashes size, first and last MiB; "none": size and time only."""


@dataclass(frozen=True)
class RingSpec:
    """How keys are spread over servers (paper, section 4.3)."""

    virtual_servers: int = field(default=0, metadata={"at_least": 0, "at_most": 1 << 16})
    """Points of each server on the ring; 0 leaves it to the ring."""
    replicas: int = field(default=1, metadata={"at_least": 0})
    """Copies that other servers hold of each server's keys: a run survives the loss of so many servers at once.
    Where MPI ends all ranks when one dies (all but Open MPI with ULFM), or there is one server, none are kept."""
    repair_bandwidth: float = field(default=200e6, metadata={"at_least": 0})
    """Bytes per second that making the copies whole again may take from each server; 0: no limit."""
    key_cache: float = field(default=256e6, metadata={"at_least": 0})
    """Bytes of key lists that each server remembers, so that a list which comes again need not travel; 0: none."""


@dataclass(frozen=True)
class HeartbeatSpec:
    """When a rank that is silent counts as dead (paper, section 4.5)."""

    period: float = field(default=0.1, metadata={"above": 0})
    """Seconds between two signs of life of a rank."""
    patience: float = field(default=1.0, metadata={"above": 0})
    """Seconds of silence after which a rank counts as dead; at least 3 periods."""
    give_up: float = field(default=300.0, metadata={"at_least": 0})
    """Seconds of silence after which a rank that the run cannot do without ends it: nobody else has its keys, or this
    MPI ends all ranks when one dies. 0: it is waited for, for ever."""

    def __post_init__(self) -> None:
        least = PERIODS * self.period
        if self.patience < least * (1 - 1e-9):  # 3 * 0.1 is a little above 0.3
            raise ValueError(
                f"patience must be at least {PERIODS} periods ({least:g} s), got {self.patience:g}: "
                "one late sign of life must not count as a death"
            )


@dataclass(frozen=True)
class FiltersSpec:
    """What messages go through, in order (paper, section 5.1): "zstd", or {name = "fixed_point", bytes = 1}."""

    push: tuple[str | dict[str, Any], ...] = ()
    """Filters on the way to the servers, by name, or as tables with a name and settings."""
    pull: tuple[str | dict[str, Any], ...] = ()
    """Filters on the way back."""

    def __post_init__(self) -> None:
        for direction, entries in (("push", self.push), ("pull", self.pull)):
            try:
                chain_of(entries)
            except ValueError as error:
                raise ValueError(f"{direction}: {error}") from error


@dataclass(frozen=True)
class CheckpointSpec:
    """When parameters are written down, and where."""

    every: int = field(default=0, metadata={"at_least": 0})
    """Passes between two checkpoints; with 0 here and in every_seconds, none unless asked for or to stop."""
    every_seconds: float = field(default=0.0, metadata={"at_least": 0})
    """Seconds between two checkpoints; may be given beside `every`; 0 goes by passes alone."""
    keep: int = field(default=2, metadata={"at_least": 1})
    """How many checkpoints stay; older ones are removed."""
    before_end: float = field(default=60.0, metadata={"at_least": 0})
    """Seconds to have left when the run stops by itself before the end of its allocation or of job.time_limit, at most
    a quarter of the time; what steps and checkpoints have taken so far is added. 0: it does not look at the time."""
    grace: float = field(default=0.0, metadata={"at_least": 0})
    """Seconds within which a run that is asked to stop has to have stopped; then it ends as failed, and says what it
    waits for. 0: as long as its allocation lasts, where that has an end."""
    directory: str = ""
    """The folder that holds them; checkpoints/NAME unless given."""


@dataclass(frozen=True)
class RecordSpec:
    """Whether the run can be done again to the bit, whatever its consistency model (`mpips reproduce`)."""

    on: bool = False
    """Write down in which order messages took effect, and what was decided, in the run folder's `record`."""


TABLES: dict[str, type] = {
    "job": JobSpec,
    "layout": LayoutSpec,
    "ring": RingSpec,
    "heartbeat": HeartbeatSpec,
    "consistency": ConsistencySpec,
    "filters": FiltersSpec,
    "checkpoint": CheckpointSpec,
    "data": DataSpec,
    "provenance": ProvenanceSpec,
    "faults": FaultsSpec,
    "trace": TraceSpec,
    "record": RecordSpec,
}
"""Every table that is the same for all programs, in the order in which it is written."""


@dataclass(frozen=True)
class Job:
    """A whole job, as resolved: what the file says, what the overrides changed, and the defaults."""

    program: str
    name: str
    seed: int
    time_limit: float
    layout: LayoutSpec
    ring: RingSpec
    heartbeat: HeartbeatSpec
    consistency: ConsistencySpec
    filters: FiltersSpec
    checkpoint: CheckpointSpec
    data: DataSpec
    provenance: ProvenanceSpec
    faults: FaultsSpec
    trace: TraceSpec
    record: RecordSpec
    settings: Any
    """The program's own table, as its `Settings`."""
    table: str
    """That table's name."""
    path: Path
    """The file it came from."""
    base: Path
    """The folder that its relative paths start from."""

    def resolve(self, path: str) -> Path:
        """Turn a path of the job file into one that holds from anywhere."""
        return self.base / os.path.expanduser(path)

    def tables(self) -> dict[str, dict[str, Any]]:
        """Give every table as plain values, the defaults included."""
        job = {"program": self.program, "name": self.name, "seed": self.seed, "base": str(self.base)}
        job["time_limit"] = self.time_limit
        shared = {name: typed.table_of(getattr(self, name)) for name in TABLES if name != "job"}
        return {"job": job, **shared, self.table: typed.table_of(self.settings)}

    def to_toml(self) -> str:
        """Write the job as resolved; loading the text gives the same job. Names of files may be of any bytes."""
        text = write_toml(self.tables())
        return AS_BYTES + text if re.search("[\udc80-\udcff]", text) else text

    def digest(self) -> str:
        """Name the job by its contents (SHA-256, hexadecimal): the same for the same job in any folder."""
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
        programs: finds a program by its name and the folder of the job file; `mpips.config.program.load_program`
            unless given.

    Raises:
        JobError: one line that says what is wrong, where, and what would be right.
    """
    path = Path(path)
    text, tables = _read(path)
    origins = _apply(overrides, tables)

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
                raise Misfit((name,), f"unknown table [{name}]; {typed.suggestion(name, known)}")
        specs: dict[str, Any] = {
            name: typed.build(cls, _table(tables, name), (name,))
            for name, cls in known.items()
            if name != "job"
        }
    except Misfit as misfit:
        raise JobError(f"{place(misfit.path)}: {misfit}") from misfit
    settings = specs.pop(program.name)
    name = job.name or program.name
    made = Job(
        job.program, name, job.seed, job.time_limit, **specs,
        settings=settings, table=program.name, path=path, base=base,
    )  # fmt: skip
    if made.layout.exact_sums and (reason := _inexact(made, program)):
        raise JobError(f"{place(('layout', 'exact_sums'))}: exact_sums: {reason}")
    return made


def _inexact(job: Job, program: ProgramLike) -> str:
    """Say why the result of a job hangs on the number of its workers, whatever is summed exactly; "" if it does not."""
    says: Callable[[Job], str] | None = getattr(program, "exact_sums", None)
    if says is None:
        return f'program {job.program!r} does not say that it can: let it define exact_sums(job) -> str, "" if it can'
    if reason := says(job):
        return reason
    if not job.consistency.is_sequential:
        return "only a sequential run repeats: use consistency.tau = 0"
    for direction in ("push", "pull"):
        for step in chain_of(getattr(job.filters, direction)).steps:
            if step.coder.rounds or step.coder.drops:
                return f"the filter {step.name!r} ([filters] {direction}) rounds or leaves out numbers, by worker"
    return ""


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = read_text(path, follow=True, most=LARGEST)
        return text, typed.toml(text.removeprefix("\ufeff"))
    except FileNotFoundError:
        raise JobError(f"{path}: no such job file") from None
    except OSError as error:
        raise JobError(f"{path}: the job file cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: the job file is not UTF-8 text (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = f":{found[1]}" if found else ""
        raise JobError(f"{path}{line}: not TOML: {str(error).split(' (at ')[0]}") from None


def _apply(overrides: Sequence[str], tables: dict[str, Any]) -> dict[typed.Path, str]:
    """Put the overrides into the tables; returns the `--set` that each of their paths came from."""
    origins: dict[typed.Path, str] = {}
    for override in overrides:
        parts, value = override_of(override)
        if parts[0] not in tables:
            origins[parts[:1]] = f"--set {override}"
        table = tables
        for part in parts[:-1]:
            inner = table.setdefault(part, {})
            if not isinstance(inner, dict):
                raise JobError(f"--set {override}: {part} is a value, not a table")
            table = inner
        table[parts[-1]] = value
        origins[parts] = f"--set {override}"
    return origins


def override_of(text: str) -> tuple[tuple[str, ...], Any]:
    """Read an override: the path of its key, and its value. JobError if it is none."""
    key, equals, value = text.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or len(parts) < 2 or not all(parts):
        raise JobError(f"--set {text}: write --set table.key=value, as in --set layout.servers=2")
    return parts, override_value(value)


def with_switches(overrides: Sequence[str], switches: Mapping[str, tuple[str, Any]]) -> list[str]:
    """Add to overrides what switches of a command say: (switch, value) by key; those that are None were not given.

    Raises:
        JobError: an override says something else of the same key.
    """
    given = {key: each for key, each in switches.items() if each[1] is not None}
    for override in overrides:
        path, value = override_of(override)
        for key, (switch, said) in given.items():
            parts = tuple(key.split("."))
            same = path[: len(parts)] == parts[: len(path)]
            if same and not (path == parts and type(value) is type(said) and value == said):
                shown = switch if said is True else f"{switch} {said}"
                raise JobError(
                    f"--set {override} and {shown} are both given, and differ: leave out one of them"
                )
    return [*overrides, *(f"{key}={json.dumps(said)}" for key, (_, said) in given.items())]


def override_value(text: str) -> Any:
    """Read an override's value: TOML, or else a string as it stands."""
    try:
        read = typed.toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["value"] if len(read) == 1 else text


def _table(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, Mapping):
        raise Misfit((name,), f"{name} must be a table, written [{name}]; {typed.got(table)}")
    return table


def _find_program(name: str, base: Path, programs: Callable[[str, Path], ProgramLike] | None) -> ProgramLike:
    if programs is None:
        from mpips.config.program import load_program  # the program's own imports come with it

        programs = load_program
    try:
        program = programs(name, base)
    except JobError as error:
        raise Misfit(("job", "program"), str(error)) from error
    if program.name in TABLES:
        raise Misfit(
            ("job", "program"),
            f"a program cannot be called {program.name!r}: the table [{program.name}] is taken",
        )
    if not is_dataclass(program.settings):
        raise Misfit(("job", "program"), f"the Settings of {name!r} must be a dataclass")
    return program


_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_ENTRY = re.compile(rf"\s*({_DOTTED})\s*=")


def line_of(text: str, path: typed.Path) -> int | None:
    """Find the line (from 1) on which a path of a TOML text is written, or the nearest thing around it."""
    lines: dict[typed.Path, int] = {}
    table: typed.Path = ()
    counts: dict[typed.Path, int] = {}
    quoted = False
    for number, line in enumerate(text.splitlines(), 1):
        inside, quoted = quoted, quoted ^ (max(line.count('"""'), line.count("'" * 3)) % 2 == 1)
        if inside:
            continue
        if header := _HEADER.match(line):
            table = _split(header[2])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                lines.setdefault(table, number)
                table = (*table, counts[table])
            lines.setdefault(table, number)
        elif entry := _ENTRY.match(line):
            lines.setdefault(table + _split(entry[1]), number)
    return next((lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines), None)


def _split(name: str) -> typed.Path:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, name))


def write_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Write tables of plain values as TOML."""
    blocks = []
    for name, table in tables.items():
        lines = [f"{_name(key)} = {_value(value)}" for key, value in table.items()]
        blocks.append("\n".join([f"[{_name(name)}]", *lines]) + "\n")
    return "\n".join(blocks)


def _name(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_name(key)} = {_value(item)}" for key, item in value.items()) + "}"
    return repr(value)
