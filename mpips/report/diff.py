"""The differences between two runs, or checkpoints: provenance, metrics, parameters.

    Side           one of the two, from its folder
    provenance     by group: keys whose values differ
    metrics        final figures; per pass, the first one at which each figure differs
    parameters     whether the bits are equal; if not, the differing keys and amounts (`mpips.report.table_diff`)

What always differs between two runs (times of day, process and job numbers, the run's own folder) is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mpips.checkpoint.manifest import MANIFEST, read_manifest
from mpips.errors import CheckpointError, InputError
from mpips.files.json_lines import ignored_lines_warning
from mpips.files.json_schema import Each, is_number, schema_error
from mpips.report.table_diff import MODELS, Difference, of_checkpoint, of_model, tables_differ
from mpips.rundir.folder import RunFolder

GROUPS = ("job", "command", "source", "versions", "inputs", "machine", "layout", "environment", "batch")
"""The groups of provenance, in the order in which they are shown."""

RUN_SPECIFIC = re.compile(
    r"PMIX?_(NAMESPACE|SERVER_|SYSTEM_TMPDIR|HOSTNAME|RANK|ID|FD|PORT|SIZE|UNIVERSE)|PRTE_|HYDRA_|MPIPS_|OMPI_(FILE_|ARGV|COMMAND)"
    r"|OMPI_MCA_(PREFIXES|initial_wdir|num_procs|orte_|ess_)|OMPI_(COMM_)?(WORLD|UNIVERSE)_|SLURM_(JOB_?ID|JOB_(START|END)_TIME)"
    r"|SLURM_(STEP|SRUN|TASK_PID|LAUNCH|TOPOLOGY|GTIDS|NODEID|PROCID|LOCALID|ARRAY_JOB_ID|CPU_BIND)"
)
"""Environment variables that differ between any two runs, or repeat other facts."""

TIMES = re.compile(r"seconds|.*_seconds|waiting|sent|unfiltered|wall|time|.*per_second|.*/s|traffic|busy")
"""Figures that differ between any two runs."""


COMPARED = {
    "ranks?": Each({"rank": int, "role": str, "host": str}),
    "inputs?": Each({"role": str, "path": str}),
}
"""The fields that a provenance must have to be compared."""


class Pair(NamedTuple):
    """A value of both sides, or of one (None: it has none)."""

    key: str
    a: Any
    b: Any


class Figure(NamedTuple):
    """A figure of both sides; `relative` is the difference relative to the larger one."""

    name: str
    a: float | None
    b: float | None

    @property
    def difference(self) -> float | None:
        """Return b - a."""
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def relative(self) -> float | None:
        """Return |b - a| / max(|a|, |b|)."""
        if self.a is None or self.b is None:
            return None
        larger = max(abs(self.a), abs(self.b))
        return abs(self.b - self.a) / larger if larger else 0.0


class CurveDifference(NamedTuple):
    """A figure per pass: where it first differs (None: in no pass that both have)."""

    event: str
    name: str
    passes: tuple[int, int]
    first: int | None
    a: float | None
    b: float | None


class Side(NamedTuple):
    """One of the two sides of a comparison."""

    path: Path
    kind: str
    """"run" or "checkpoint"."""
    facts: dict[str, Any]
    """Its provenance; empty if it has none."""
    job: dict[str, Any]
    result: dict[str, Any]
    events: list[dict[str, Any]]
    step: int | None = None
    """The step of a checkpoint."""
    warning: str = ""
    """Data of a run that could not be read, in a line."""

    @property
    def status(self) -> str:
        """Return its status, in a word."""
        return "checkpoint" if self.kind == "checkpoint" else str(self.result.get("status", "unfinished"))


class Parameters(NamedTuple):
    """The comparison of parameters: `same` is None where nothing is known."""

    same: bool | None
    compared: str
    """What was compared."""
    sha256: tuple[str, str]
    tables: list[Difference]
    note: str = ""


class Comparison(NamedTuple):
    """The comparison of two sides; see the functions of its fields' names."""

    a: Side
    b: Side
    provenance: dict[str, list[Pair]]
    metrics: list[Figure]
    costs: list[Figure]
    curves: list[CurveDifference]
    parameters: Parameters


def compare(a: Side, b: Side) -> Comparison:
    """Compare two sides."""
    return Comparison(a, b, provenance(a, b), metrics(a, b), costs(a, b), curves(a, b), parameters(a, b))


# --- the sides ----------------------------------------------------------------------------------------


def side(path: Path) -> Side:
    """Read a run's folder or a checkpoint's; InputError if it is neither, or damaged."""
    if (path / MANIFEST).exists():
        manifest = read_manifest(path)
        about, facts = manifest["about"], manifest.get("provenance") or {}
        _check(path / MANIFEST, facts)
        return Side(path, "checkpoint", facts, about.get("job") or {}, {}, [], about.get("step"))
    folder = RunFolder(path)
    if not (folder.run.exists() or folder.result.exists()):
        what = f"is neither a run's folder nor a checkpoint: it has no run.json and no {MANIFEST}"
        raise InputError(f"{path}: {what if path.exists() else 'no such folder'}")
    facts, result = folder.read_run() or {}, folder.read_result() or {}
    _check(folder.run, facts)
    job, metrics = facts.get("job") or folder.read_job(), folder.read_metrics()
    return Side(
        path,
        "run",
        facts,
        job,
        result,
        metrics.objects,
        warning=ignored_lines_warning(folder.metrics, metrics.bad),
    )


def _check(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise InputError unless a provenance has the compared fields."""
    problem = schema_error(facts, COMPARED)
    if problem:
        raise InputError(f"{path}: cannot be compared: {problem}")


# --- provenance ---------------------------------------------------------------------------------------


def provenance(a: Side, b: Side) -> dict[str, list[Pair]]:
    """Return the differences by group; a group without any is an empty list.

    Where one side has no provenance, only the job is compared.
    """
    left, right = grouped(a), grouped(b)
    found = {}
    for group in GROUPS if a.facts and b.facts else GROUPS[:1]:
        mine, its = left[group], right[group]
        keys = [*mine, *(key for key in its if key not in mine)]
        found[group] = [
            Pair(key, mine.get(key), its.get(key)) for key in keys if mine.get(key) != its.get(key)
        ]
    if "inputs" in found:
        found["inputs"] = _inputs(a.facts.get("inputs", []), b.facts.get("inputs", []))
        found["machine"] = [each for each in found["machine"] if not (each.a is None or each.b is None)]
    return found


def grouped(side: Side) -> dict[str, dict[str, Any]]:
    """Return a side's provenance: group, key, value."""
    facts = side.facts
    job = {name: dict(table) for name, table in side.job.items()}
    job.get("job", {}).pop("base", None)
    job.pop("provenance", None)
    machine = {"cpu": facts.get("cpu"), "cores": facts.get("cores"), "platform": facts.get("platform")}
    layout: dict[str, Any] = {}
    for rank in facts.get("ranks", []):
        what = f"{rank['role']} {rank.get('index', '')}".strip()
        keys = f", keys {', '.join(rank['ranges'])}" if "ranges" in rank else ""
        machine[f"rank {rank['rank']}"] = rank["host"]
        layout[f"rank {rank['rank']}"] = what + keys
    environment = {k: v for k, v in facts.get("environment", {}).items() if not RUN_SPECIFIC.match(k)}
    loaded = [each["name"] for each in facts.get("modules", [])]
    return {
        "job": dict(_flat(job)),
        "command": _command(facts),
        "source": _source(facts),
        "versions": {
            **{key: facts.get(key) for key in ("python", "mpi", "hdf5", "blas")},
            **facts.get("packages", {}),
        },
        "inputs": {},
        "machine": machine,
        "layout": layout,
        "environment": environment | ({"modules": " ".join(loaded)} if loaded else {}),
        "batch": dict(_flat(facts.get("batch", {}))),
    }


def _flat(table: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", list(value) if isinstance(value, tuple) else value


def _command(facts: Mapping[str, Any]) -> dict[str, Any]:
    argv = list(facts.get("argv", []))
    for switch in ("--run-dir", "--claim", "--resume", "--set"):
        # The job says what was set.
        while switch in argv:
            del argv[argv.index(switch) : argv.index(switch) + 2]
    resumed = facts.get("ancestry") or [{}]
    return {
        "arguments": " ".join(argv[1:]),
        "directory": facts.get("working_directory"),
        "python": facts.get("executable"),
        "resumed from step": resumed[-1].get("step"),
    }


def _source(facts: Mapping[str, Any]) -> dict[str, Any]:
    states = {"mpips": facts.get("source"), "job's tree": facts.get("repository")}
    found: dict[str, Any] = {}
    for name, state in states.items():
        if state:
            found[f"{name}: commit"] = state.get("commit") or f"installed, {state.get('record_sha256')}"
            found[f"{name}: changes"] = state.get("diff_sha256") or state.get("problem") or "none"
    program = facts.get("program", {})
    return found | {f"program {program.get('name', '')}".strip(): program.get("sha256")}


def _inputs(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[Pair]:
    """Compare input files, in their order; equal contents under another name are equal."""
    left, right = _numbered(a), _numbered(b)
    found = []
    for key in [*left, *(key for key in right if key not in left)]:
        mine, its = left.get(key, {}), right.get(key, {})
        kind = next((kind for kind in ("sha256", "sample_sha256") if kind in mine and kind in its), "")
        # Without a common hash.
        if not kind and mine and its:
            kind = "modified" if mine.get("bytes") == its.get("bytes") else "bytes"
        if mine.get(kind) != its.get(kind) or not (mine and its):
            found.append(Pair(key, _said(mine, kind), _said(its, kind)))
    return found


def _numbered(files: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for each in files:
        role = str(each["role"])
        found[f"{role} {sum(key.startswith(f'{role} ') for key in found) + 1}"] = each
    return found


def _said(file: Mapping[str, Any], kind: str) -> str | None:
    if not file:
        return None
    return f"{Path(str(file['path'])).name}, {file.get('bytes', 0):,} bytes, {kind} {str(file.get(kind, '?'))[:19]}"


# --- metrics ------------------------------------------------------------------------------------------


def metrics(a: Side, b: Side) -> list[Figure]:
    """Return every final figure of both sides."""
    return _figures(a.result.get("metrics") or {}, b.result.get("metrics") or {})


def costs(a: Side, b: Side) -> list[Figure]:
    """Return the costs of the runs: seconds, fraction of waiting, bytes sent; they differ between any two runs."""
    names = ("worker_sent", "server_sent")
    sides = [
        {
            **{f"seconds {key}": value for key, value in (each.result.get("seconds") or {}).items()},
            **({"waiting": each.result["waiting"]} if "waiting" in each.result else {}),
            **{key: value for key, value in (each.result.get("traffic") or {}).items() if key in names},
        }
        for each in (a, b)
    ]
    return _figures(*sides)


def _figures(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Figure]:
    left, right = ({k: v for k, v in _flat(each) if is_number(v)} for each in (a, b))
    return [
        Figure(key, left.get(key), right.get(key))
        for key in [*left, *(key for key in right if key not in left)]
    ]


def curves(a: Side, b: Side) -> list[CurveDifference]:
    """Compare the figures per pass: events that have a number under their own name (``pass``, ``sweep``)."""
    left, right = _rows(a.events), _rows(b.events)
    found = []
    for event in [name for name in left if name in right]:
        mine, its = left[event], right[event]
        both = [number for number in mine if number in its]
        names = dict.fromkeys(key for number in both for key in mine[number] if key in its[number])
        for name in names:
            if TIMES.fullmatch(name) or name == event:
                continue
            shared = [number for number in both if name in mine[number] and name in its[number]]
            first = next((n for n in shared if not _equal(mine[n][name], its[n][name])), None)
            values = (None, None) if first is None else (mine[first][name], its[first][name])
            found.append(CurveDifference(event, name, (len(mine), len(its)), first, *values))
    return found


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b) or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def _rows(events: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for each in events:
        event = str(each.get("event", ""))
        number = each.get(event)
        if isinstance(number, int) and not isinstance(number, bool):
            figures = {key: value for key, value in each.items() if is_number(value)}
            found.setdefault(event, {})[number] = figures
    return found


# --- parameters ---------------------------------------------------------------------------------------


def parameters(a: Side, b: Side) -> Parameters:
    """Compare parameters: by hash where both sides have one, and number by number where they are on disk."""
    hashes = (str(a.result.get("parameters_sha256") or ""), str(b.result.get("parameters_sha256") or ""))
    known = bool(hashes[0] and hashes[1])
    compared, tables = _on_disk(a, b, known and hashes[0] == hashes[1])
    if not compared:
        if not known:
            return Parameters(None, "nothing", hashes, [], _advice(a, b))
        same = hashes[0] == hashes[1]
        return Parameters(same, "parameters_sha256", hashes, [], _unread(a, b) if same else _advice(a, b))
    same = all(each.same for each in tables) and (not known or hashes[0] == hashes[1])
    return Parameters(same, compared, hashes, tables)


def _unread(a: Side, b: Side) -> str:
    """Return which model files of one run could not be compared, since the other has no such file; "" if none."""
    if not a.kind == b.kind == "run":
        return ""
    names = {path.name for side in (a, b) for path in side.path.iterdir() if path.suffix in MODELS}
    lacking = [
        f"{name} of {label}"
        for name in sorted(names)
        for label, side in (("A", a), ("B", b))
        if name[0] != "." and not (side.path / name).is_file()
    ]
    return f"not compared, as it is missing or no file: {', '.join(lacking)}" if lacking else ""


def _on_disk(a: Side, b: Side, same: bool) -> tuple[str, list[Difference]]:
    """Compare the parameters that both have on disk; return what was compared, "" if nothing."""
    if a.kind == b.kind == "run":
        names = [
            path.name for path in sorted(a.path.iterdir()) if path.suffix in MODELS and path.name[0] != "."
        ]
        common = [name for name in names if (b.path / name).is_file()]
        if common:
            tables = []
            for name in common:
                prefix = f"{name}: " if len(common) > 1 else ""
                found = tables_differ(a.path / name, b.path / name, of_model)
                tables += [each._replace(name=prefix + each.name) for each in found]
            return ", ".join(common), tables
        if same:
            return "", []
    left, right = _checkpoints(a), _checkpoints(b)
    steps = [step for step in left if step in right]
    if a.kind == b.kind == "checkpoint":
        (mine,), (its,) = left.values(), right.values()
    elif steps:
        mine, its = left[steps[-1]], right[steps[-1]]
    else:
        return "", []
    return f"checkpoints {mine} and {its}", tables_differ(mine, its, of_checkpoint)


def _checkpoints(side: Side) -> dict[int, Path]:
    """Return the existing checkpoints of a side, by step, in ascending order."""
    if side.kind == "checkpoint":
        return {int(read_manifest(side.path)["about"].get("step", 0)): side.path}
    listed = [each for each in side.events if each.get("event") == "checkpoint" and "folder" in each]
    found = {}
    for each in listed:
        path = Path(str(each["folder"]))
        with suppress(CheckpointError):
            manifest = read_manifest(path)
            # Not another run's in the same folder.
            if (manifest.get("provenance") or {}).get("id") == side.facts.get("id"):
                found[int(manifest["about"].get("step", 0))] = path
    return dict(sorted(found.items()))


def _advice(a: Side, b: Side) -> str:
    if a.kind != b.kind:
        return "a run and a checkpoint are compared by the run's own checkpoint of the same step, but it has none"
    return (
        "the runs have no comparable parameters on disk: no model file of the same name, no checkpoints of "
        "the same step; to have some: --set checkpoint.every=N"
    )
