"""The checkpoint that a run resumes from: its description, and whether it fits the job."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mpips.checkpoint import inspection, loading
from mpips.checkpoint.manifest import read_manifest
from mpips.config.job_file import Job
from mpips.data.spec import DataSpec, expand
from mpips.errors import CheckpointError, InputError
from mpips.files.fingerprint import QUICK_LIMIT, SAMPLE, fingerprint, hash_kind, stat_facts
from mpips.files.json_schema import ANY, NUMBER, Each, schema_error
from mpips.files.json_schema import Table as Form
from mpips.files.json_values import json_data, keep
from mpips.storage.updates import VectorSpec, settings_of
from mpips.typed import table_of

_RESUMED = {
    "program": str, "workers": int, "trained": NUMBER, "state": Form(ANY), "facts": Form(ANY),
    "vectors": Each(Each(ANY)),
}  # fmt: skip
"""The fields of a manifest's `about` in a checkpoint that a run can resume from."""
_FILES = ("train", "test", "vocab", "parts", "keep_parsed", "keep_unpacked", "keep_minibatches")
"""The settings in [data] that do not say how files are read."""
_DECIDE = {"job": ("seed",), "layout": ("exact_sums",), "consistency": (), "filters": ()}
"""Other tables whose settings decide the result, and which ones; (): all."""
_READ_AGAIN = 2**26
"""Bytes of training files that are read to see whether those of the same name and size have the same content."""


def newest_sound(candidates: Iterable[Path], turn: Callable[[], object]) -> tuple[Path, list[str]]:
    """Return the first checkpoint that is sound, and a line for each one before it.

    All bytes are read; `turn` is called between two pieces.

    Raises:
        CheckpointError: none is sound; says what is wrong with the first.
    """
    passed: list[str] = []
    # Deltas need the same ones.
    valid = set[Path]()
    for path in candidates:
        try:
            read_manifest(path)
        except CheckpointError as error:
            passed.append(str(error))
            continue
        problems = inspection.verify(path, turn, valid)
        if not problems:
            return path, passed
        passed.append(f"checkpoint {path} is damaged: {problems[0]}")
    raise CheckpointError(passed[0])


def read(
    candidates: Iterable[Path], job: Job, turn: Callable[[], object]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the descriptions of the first sound checkpoint, and of its vectors. Arguments and errors: `newest_sound`.

    Of the description, `path` is the checkpoint; `passed over`: what is wrong with those before it; `other files`: how
    the job's training data differ; `other reading`: see `changed_reading`; `other job`: see `changed_program`
    and `changed_job`.
    """
    resume, passed = newest_sound(candidates, turn)
    manifest = read_manifest(resume)
    specs = {name: asdict(spec) for name, spec in loading.vectors(resume).items()}
    problem = schema_error(manifest["about"], _RESUMED)
    unknown = [] if problem else [name for name, _ in manifest["about"]["vectors"] if name not in specs]
    if problem or unknown:
        raise CheckpointError(
            f"checkpoint {resume} cannot be resumed: {problem or f'it has no vector {unknown[0]!r}'}"
        )
    run = manifest.get("provenance") or {}
    about = manifest["about"]
    added = {
        "other files": changed_files(run.get("inputs", []), job, turn),
        "other reading": changed_reading(about, job),
        "other job": changed_program(run, job) + changed_job(about, job),
    }
    added |= {"path": str(resume), "passed over": passed}
    return about | {"run": run.get("folder", "")} | added, specs


def check(resume: Path, about: dict[str, Any], job: Job, facts: dict[str, Any]) -> None:
    """Raise CheckpointError if a checkpoint is of another program, or was written under other `facts`.

    The error also names what has changed in [data], the files and how they are read: facts may depend on both, such as
    sgd's l1 for each example.
    """
    if about["program"] != job.program:
        raise CheckpointError(f"checkpoint {resume} is of program {about['program']!r}, not {job.program!r}")
    for fact, value in facts.items():
        if about["facts"].get(fact) != value:
            data = [*about.get("other files", []), *about.get("other reading", {}).values()]
            raise CheckpointError(
                f"checkpoint {resume} was written with {fact} = {about['facts'].get(fact)}, not {value}"
                + (f"; {', '.join(data)}: set it as it was, or start a new run" if data else "")
            )


def changed_reading(about: dict[str, Any], job: Job) -> dict[str, str]:
    """Describe the settings in [data], other than which files there are, that differ from those in a checkpoint.

    One that did not exist in the version that wrote the checkpoint had its default value.
    """
    before = table_of(DataSpec()) | about.get("job", {}).get("data", {})
    return {
        key: f"[data] {key} = {json.dumps(value)}, was {json.dumps(before[key])}"
        for key, value in table_of(job.data).items()
        if key not in _FILES and before[key] != value
    }


def changed_job(about: dict[str, Any], job: Job) -> list[str]:
    """Describe other settings that decide the result, outside of [data] and the program's table, and have changed.

    One that did not exist in the version that wrote the checkpoint is not compared.
    """
    before, now = about.get("job", {}), job.tables()
    return [
        f"[{table}] {key} = {json.dumps(now[table][key])}, was {json.dumps(before[table][key])}"
        for table, keys in _DECIDE.items()
        for key in keys or now.get(table, {})
        if key in before.get(table, {})
        and json_data(before[table][key], keep) != json_data(now[table][key], keep)
    ]


def changed_program(run: Mapping[str, Any], job: Job) -> list[str]:
    """Describe a program of the user's own that was changed since a run; [] if it was not, or it is not known."""
    known = (run.get("program") or {}).get("sha256")
    if known is None or not job.program.endswith(".py"):
        return []
    path = job.base / job.program
    found = fingerprint(path, QUICK_LIMIT).get("sha256", known)
    return [] if found == known else [f"[job] program: {path.name} has another content"]


def changed_files(
    inputs: Sequence[Mapping[str, Any]], job: Job, turn: Callable[[], object] = lambda: None
) -> list[str]:
    """Describe the first of a job's training files that differs from `inputs` of a run; [] if none.

    By name, size, or content: that of files that were written since, as far as `_READ_AGAIN` bytes go. A program that
    has read some of the old ones would take the same places of the new ones as read.
    """
    facts = [each for each in inputs if each.get("role") == "train" and "path" in each and "bytes" in each]
    was = [(Path(each["path"]).name, each["bytes"]) for each in facts]
    if not was:
        return []
    now, paths = [], []
    # Where they are read, the error is reported.
    with suppress(InputError, OSError):
        paths = [Path(path) for path in expand(job.data.train, str(job.base))]
        now = [(path.name, path.stat().st_size) for path in paths]
    if not now:
        return []
    if was == now:
        return _other_content(paths, facts, turn)
    shown = (
        "none" if each is None else f"{each[0]} of {each[1]:,} bytes"
        for each in next(pair for pair in zip_longest(now, was) if pair[0] != pair[1])
    )
    return [f"[data] train: {', was '.join(shown)}"]


def _other_content(
    paths: Sequence[Path], facts: Sequence[Mapping[str, Any]], turn: Callable[[], object]
) -> list[str]:
    """Describe the first file with another content than its facts say; [] if none is found."""
    left = _READ_AGAIN
    for path, each in zip(paths, facts, strict=True):
        kind, now = hash_kind(each), stat_facts(path)
        if not kind or now.get("modified") == each.get("modified"):
            continue
        size = now["bytes"] if kind == "sha256" else 0
        left -= size or 2 * SAMPLE
        if left < 0:
            break
        found = fingerprint(path, size, lambda: bool(turn() and False))
        if kind in found and found[kind] != each[kind]:
            return [f"[data] train: {path.name} has another content"]
    return []


def changed_settings(resume: Path, about: dict[str, Any], specs: dict[str, Any], job: Job) -> list[str]:
    """List the program's settings that differ from those in a checkpoint.

    A vector keeps its initial values and the settings of its update; a different one in the job file would be ignored,
    and is an error.
    """
    table, found = job.table, []
    before = about.get("job", {}).get(table, {})
    for key, value in job.tables()[table].items():
        was = before.get(key, value)
        if json_data(was, keep) == json_data(value, keep):
            continue
        if any(key in kept and kept[key] == was for kept in map(_kept, specs.values())):
            raise CheckpointError(
                f"checkpoint {resume} was written with [{table}] {key} = {was}, which its vectors keep, not {value}"
            )
        found.append(f"[{table}] {key} = {value}, was {was}")
    return found


def kept_fields(restored: VectorSpec, wanted: VectorSpec, resume: str) -> list[str]:
    """Describe the settings and initial values that a restored vector keeps, and that a program wants otherwise.

    Args:
        restored: the specification in the checkpoint.
        wanted: that of the program.
        resume: the checkpoint.

    Raises:
        CheckpointError: another field differs, such as the width.
    """
    was, now = asdict(restored), asdict(wanted)
    for name, value in now.items():
        if name not in ("settings", "init") and value != was[name]:
            raise CheckpointError(
                f"checkpoint {resume}: vector {wanted.name!r} has {name} {was[name]!r}, and the program wants {value!r}"
            )
    before, after = ({**settings_of(each), "init": asdict(each)["init"]} for each in (restored, wanted))
    return [
        f"vector {wanted.name!r} keeps {key} = {before[key]} of the checkpoint, not {value}"
        for key, value in after.items()
        if before[key] != value and (key == "init" or key in wanted.settings)
    ]


def _kept(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the fixed settings of a vector, by their names in a job file."""
    init = spec.get("init", 0.0)
    kept: dict[str, Any] = spec["settings"] | {"init": init} | (init if isinstance(init, dict) else {})
    return kept
