"""A run's `run.json`: its provenance, its ranks and its outcome; written at the start, amended, concluded at the end.

Another rank than the one that wrote it may amend and conclude it: all that is needed is in the run's folder. A run that
was killed has no `exit`. No error here fails a run: what cannot be found or written is left out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpips.checkpoint.lineage import of_run, owner_of
from mpips.checkpoint.manifest import complete_checkpoints, read_manifest
from mpips.errors import CheckpointError, InputError
from mpips.files.safe_open import read_bytes
from mpips.provenance.input_hashes import altered_output, outputs_of
from mpips.ranges import coalesce
from mpips.rundir.folder import RunFolder, utc_now, write_json

if TYPE_CHECKING:
    from mpips.cluster.layout import Layout
    from mpips.cluster.view import View
    from mpips.provenance.provenance import Facts, Provenance

BOOKKEEPING = ("job.toml", "run.json", "run.previous.json", "result.json", "result.previous.json", "strikes.jsonl",
               "report.html")  # fmt: skip
"""Files of a run's folder that are not outputs of its program."""


def rank_facts(layout: Layout, processes: Sequence[tuple[int, str]], view: View) -> list[Facts]:
    """Return role, host and initial keys of each rank.

    Args:
        layout: the places.
        processes: (process id, host) by rank.
        view: the first one.

    Returns:
        `rank`, `role`, `index`, `group` (workers), `host`, `pid`; for servers also `ranges`, texts BEGIN:END, in the
        key space [0, 2**64); the key space of each vector is partitioned in the same proportions.
    """
    ranks: list[Facts] = []
    for place, (pid, host) in zip(layout.places, processes, strict=True):
        facts: Facts = {"rank": place.rank, "role": place.role.value, "index": place.index}
        facts |= {"group": place.group} if place.group else {}
        facts |= {"host": host, "pid": pid}
        if place.role.value == "server":
            owned = coalesce(view.ring.range(shard) for shard in view.primary_of(place.rank))
            facts["ranges"] = [f"{part.begin}:{part.end}" for part in owned]
        ranks.append(facts)
    return ranks


def ancestry(checkpoint: Path) -> list[Facts]:
    """Return the ancestry of a run that resumes from a checkpoint: that checkpoint, after those before it.

    Each is `checkpoint`, `step`, `manifest_sha256`, and of the run that wrote it `run`, `started`, `job_digest` and
    `commit`, as far as the checkpoint has them.
    """
    try:
        manifest = read_manifest(checkpoint)
    except CheckpointError:
        # Reported when the rest is read.
        return []
    run = manifest.get("provenance") or {}
    known = {key: run[key] for key in ("id", "started", "job_digest", "folder") if key in run}
    owner = owner_of(manifest)
    known |= {"id": owner} if owner else {}
    commit = (run.get("source") or {}).get("commit")
    step = {
        "checkpoint": str(checkpoint.absolute()),
        "step": manifest["about"].get("step"),
        "manifest_sha256": manifest["sha256"],
        **known,
        **({"commit": commit} if commit else {}),
    }
    return [*run.get("ancestry", []), step]


def write_run(
    folder: RunFolder, provenance: Provenance, ranks: Sequence[Mapping[str, Any]], **more: object
) -> None:
    """Write `run.json`, with the ids of the earlier starts in the folder.

    Args:
        folder: the run's folder.
        provenance: as collected at the start.
        ranks: the result of `rank_facts`, or at least {`rank`, `role`, `host`, `pid`} per rank.
        more: further entries, such as the MPI library's name.
    """
    before = read_run(folder) or {}
    earlier = [*before.get("earlier", []), *([before["id"]] if "id" in before else [])]
    facts = {"folder": str(folder.path), **asdict(provenance), **more, "earlier": earlier}
    write_json(folder.run, {**facts, "ranks": [dict(rank) for rank in ranks]})


def read_run(folder: RunFolder) -> Facts | None:
    """Read `run.json`; None if it does not exist or is damaged. `RunFolder.read_run` raises the error."""
    try:
        return folder.read_run()
    except InputError:
        return None


def latest(folder: RunFolder, directory: Path) -> Path | None:
    """Return the newest checkpoint that a run can resume from: its own, or the one that it has itself resumed from.

    Args:
        folder: the run's folder.
        directory: the folder of its checkpoints.
    """
    facts = read_run(folder)
    if facts is None:
        return None
    found = of_run(folder, facts).latest(directory)
    if found is None and facts.get("ancestry"):
        before = facts["ancestry"][-1]
        path = Path(before["checkpoint"])
        # ValueError: it cannot be the name of a file.
        with suppress(CheckpointError, ValueError):
            found = path if read_manifest(path)["sha256"] == before.get("manifest_sha256") else None
    return found


def lost_origin(folder: RunFolder) -> str:
    """Return a text if a run without checkpoints of its own was resumed from one, which is no longer there; else ""."""
    before = (read_run(folder) or {}).get("ancestry")
    if not before:
        return ""
    return f", and {before[-1]['checkpoint']}, which it was resumed from, was removed or replaced since"


def trained_nothing(facts: Mapping[str, Any]) -> bool:
    """Return whether the run of a `run.json` was stopped before it trained anything."""
    ended = facts.get("exit", {})
    return ended.get("status") == "stopped" and ended.get("before_training") is True


def is_at_its_beginning(folder: RunFolder) -> bool:
    """Return whether a run was stopped before it trained anything, and had resumed from no checkpoint."""
    facts = read_run(folder) or {}
    return trained_nothing(facts) and not facts.get("ancestry")


def check_continues(folder: RunFolder, program: str, resume: str) -> None:
    """Raise InputError if a start would replace a run that has ended in order by one that does not continue it.

    Args:
        folder: the run's folder.
        program: that of the job.
        resume: `latest`, or the checkpoint to resume from.
    """
    facts = read_run(folder) or {}
    if facts.get("exit", {}).get("status") not in ("completed", "stopped") or trained_nothing(facts):
        return
    was = facts.get("job", {}).get("job", {}).get("program", program)
    if was != program:
        raise InputError(
            f"{folder.path}: holds a run of program {was!r}, not {program!r}; name another --run-dir"
        )
    owner = "" if resume == "latest" else owner_of(read_manifest(Path(resume)))
    if owner and owner not in {facts.get("id"), *(each.get("id") for each in facts.get("ancestry", []))}:
        raise InputError(
            f"{folder.path}: holds another run than the one that wrote {resume}; name another --run-dir"
        )


def check_outputs_are_own(folder: RunFolder, patterns: Iterable[str]) -> None:
    """Raise InputError if a start would replace a file that no run has written, or that has been changed since.

    Args:
        folder: the run's folder; it may not exist.
        patterns: the names, or patterns of names, of the files that the program writes into it.
    """
    try:
        there = sorted(os.listdir(folder.path))
    except OSError:
        return
    patterns = list(patterns)
    # No program writes another program, or a job file.
    present = [
        name
        for name in there
        if not name.endswith((".py", ".toml")) and any(fnmatchcase(name, each) for each in patterns)
    ]
    facts = read_run(folder)
    # A run that was killed, or has failed, has listed none of its files.
    if not present or (facts is None and (folder.result.exists() or folder.has_own_job())):
        return
    if facts is None:
        foreign = f"{folder.path / present[0]}: no run has written it, and this one would replace it"
        raise InputError(f"{foreign}; move it, or name another --run-dir")
    if "outputs" not in facts:
        return
    listed = {file["name"] for file in listed_outputs(folder)}
    changed = altered_outputs(folder, present)
    changed += [
        f"{folder.path / name}: is not what the run has written" for name in present if name not in listed
    ]
    if changed:
        raise InputError(f"{changed[0]}; the run would replace it: move it, or name another --run-dir")


def newest_of(job: str, runs: Path = Path("runs")) -> RunFolder | None:
    """Return the run of a job, by its name, that was started last among those in a folder; None if there is none."""
    found = []
    for path in runs.glob("*/run.json"):
        folder = RunFolder(path.parent)
        facts = read_run(folder) or {}
        if facts.get("job", {}).get("job", {}).get("name") == job:
            found.append((facts.get("started", ""), folder.path))
    return RunFolder(max(found)[1]) if found else None


def amend(folder: RunFolder, **more: object) -> None:
    """Add entries to `run.json`; errors are ignored."""
    facts = read_run(folder)
    if facts is not None:
        with suppress(OSError):
            write_json(folder.run, facts | more)


def conclude(
    folder: RunFolder, result: Mapping[str, Any], checkpoints: Path | None = None, text: str = ""
) -> None:
    """Add exit status and outputs to `run.json`; errors are ignored.

    Args:
        folder: the run's folder.
        result: the contents of `result.json`.
        checkpoints: the folder of its checkpoints. Nothing is hashed for a run that failed, so that it ends quickly.
        text: the text of `result.json`, which is written after `run.json`; "" if it is not known.
    """
    facts = read_run(folder)
    if facts is None or "exit" in facts:
        return
    facts |= {"ended": utc_now().isoformat(), "exit": _exit(result)}
    if result.get("status") != "failed":
        with suppress(OSError, CheckpointError):
            facts["outputs"] = {
                "files": outputs_of(folder.path, BOOKKEEPING),
                "own": _own(folder, text),
                "checkpoints": [] if checkpoints is None else _checkpoints_of(checkpoints, facts.get("id")),
                "parameters_sha256": result.get("parameters_sha256", ""),
            }
    with suppress(OSError):
        write_json(folder.run, facts)


def altered_outputs(folder: RunFolder, names: Container[str] | None = None) -> list[str]:
    """Describe which of a run's outputs are not as the run has written them, a line each; also its job and result.

    Args:
        folder: the run's folder; [] if it is none, or has no outputs in its `run.json`.
        names: the files to compare; None: all that `run.json` lists.
    """
    chosen = (file for file in listed_outputs(folder) if names is None or file["name"] in names)
    return [reason for file in chosen if (reason := altered_output(folder.path, file))]


def listed_outputs(folder: RunFolder) -> list[Facts]:
    """Return the files of a run's folder whose hashes its `run.json` has."""
    outputs = (read_run(folder) or {}).get("outputs") or {}
    return [*outputs.get("own", []), *outputs.get("files", [])]


def check_outputs(folder: RunFolder, names: Container[str] | None = None) -> None:
    """Raise InputError if an output is not as the run has written it; see `altered_outputs`."""
    for reason in altered_outputs(folder, names):
        raise InputError(reason)


def _own(folder: RunFolder, result: str) -> list[Facts]:
    """Return name, bytes and hash of a run's job, and of its result, which has still to be written."""
    contents = {folder.result.name: result.encode("utf-8", "surrogateescape")} if result else {}
    with suppress(OSError):
        contents[folder.job.name] = read_bytes(folder.job, follow=False)
    return [
        {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    ]


def _exit(result: Mapping[str, Any]) -> Facts:
    status = str(result.get("status", "failed"))
    default = {"completed": "the program ended", "stopped": "asked to stop"}.get(status, "unknown")
    if result.get("evaluation_cut_by") and status == "completed":
        default += f", its evaluation was cut short by {result['evaluation_cut_by']}"
    reason = result.get("error") if status == "failed" else result.get("stopped_by")
    facts = {"status": status, "code": result.get("exit_code"), "reason": reason or default}
    return facts | {key: result[key] for key in ("failed_rank", "before_training") if key in result}


def _checkpoints_of(checkpoints: Path, run: object) -> list[Facts]:
    """List the existing checkpoints that a run has written."""
    found = []
    for path, manifest in complete_checkpoints(checkpoints):
        if owner_of(manifest) == run:
            step = manifest["about"].get("step")
            found.append(
                {"folder": str(path.absolute()), "step": step, "manifest_sha256": manifest["sha256"]}
            )
    return found


def summary(facts: Mapping[str, Any]) -> list[str]:
    """Return a readable summary of a run's provenance, in a few lines."""
    ranks: list[Facts] = facts.get("ranks", [])
    hosts = list(dict.fromkeys(str(rank.get("host", "?")) for rank in ranks))
    shown = ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")
    lines = [
        f"run: {facts.get('folder', '?')}, started {facts.get('started', '?')}",
        f"command: {' '.join(facts.get('argv', []))}",
        f"job: {facts.get('job_file', '?')}, sha256 {facts.get('job_digest', '?')}",
    ]
    for name, state in (("mpips", facts.get("source")), ("job's tree", facts.get("repository"))):
        if state:
            lines.append(f"{name}: {state_line(state)}")
    lines.append(
        f"ranks: {len(ranks)} on {shown or '?'}; Python {facts.get('python', '?')}; {facts.get('mpi', '?')}"
    )
    for each in facts.get("inputs", []):
        value = each.get("sha256") or each.get("sample_sha256") or "not hashed"
        kind = "sha256 " if "sha256" in each else "sample_sha256 " if "sample_sha256" in each else ""
        lines.append(
            f"{each.get('role', '?')}: {each.get('path', '?')}, {each.get('bytes', 0):,} bytes, {kind}{value}"
        )
    for each in facts.get("ancestry", []):
        lines.append(f"resumed from: {each['checkpoint']}")
    return lines


def state_line(state: Mapping[str, Any]) -> str:
    """Return the state of a source tree in a line."""
    if not state.get("commit"):
        return f"installed, files' sha256 {state.get('record_sha256', '?')}"
    if state.get("dirty"):
        return f"commit {state['commit']}, changed: diff sha256 {state.get('diff_sha256', '?')}"
    return f"commit {state['commit']}" + ("" if state.get("dirty", False) is False else ", perhaps changed")
