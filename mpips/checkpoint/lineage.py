"""The lineage of a run: the checkpoints that it wrote, and those that it continues from.

Every start of a job is a run with an id (`run.json`). The manifest of a checkpoint names the run that wrote it. A run
that resumes continues from one checkpoint; this one and the earlier ones of its run belong to the new run's lineage,
too, and so on back to the first run. Only these are considered when the latest checkpoint is sought or old ones are
removed. Checkpoints of other runs may be in the same folder. A checkpoint that was copied from elsewhere may name any
run: it and the earlier ones are considered only in its own folder.

An attempt has no manifest yet. Its folder is created exclusively, and has a mark, `.run.json`, until the manifest is
written: the run's id and folder. One run at a time owns a run folder, and `run.json` has the ids of the earlier starts
in it: their incomplete attempts may be removed. The folder's path alone identifies no run, since nodes may have local
folders of the same path. An attempt without a mark belongs to no run; earlier versions have left them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mpips.checkpoint.manifest import complete_checkpoints, order_of, read_manifest, sync
from mpips.errors import CheckpointError
from mpips.files.safe_open import inside, read_bytes
from mpips.rundir.folder import RunFolder

MARK = ".run.json"
_LARGEST_MARK = 16384


class Ancestor(NamedTuple):
    """A checkpoint that a run continues from: the run that wrote it, and its place."""

    run: str
    order: tuple[int, int]
    """Its step and attempt."""


class Lineage(NamedTuple):
    """A run and the checkpoints it continues from. An empty id: a program that writes checkpoints outside of a run."""

    run: str = ""
    """The run's id."""
    folder: str = ""
    """The run's folder."""
    before: tuple[Ancestor, ...] = ()
    """The oldest first."""
    origin: str = ""
    """The folder that holds the last of them, without symbolic links."""
    earlier: tuple[str, ...] = ()
    """The ids of earlier starts in the run's folder."""

    def generation(self, owner: str, path: Path) -> int | None:
        """Return a checkpoint's generation in this lineage; None if it belongs to another.

        A checkpoint that names no run belongs to no ancestor, since it may be of any run.
        """
        if owner == self.run:
            return len(self.before)
        if not owner or os.path.realpath(path.parent) != self.origin:
            return None
        order = order_of(path)
        return max(
            (at for at, each in enumerate(self.before) if each.run == owner and order <= each.order),
            default=None,
        )

    def checkpoints(self, directory: Path) -> list[Path]:
        """Return this lineage's complete checkpoints in a directory, oldest first."""
        found = []
        for path, manifest in complete_checkpoints(directory):
            generation = self.generation(owner_of(manifest), path)
            if generation is not None:
                found.append((generation, order_of(path), path))
        return [path for _, _, path in sorted(found)]

    def latest(self, directory: Path) -> Path | None:
        """Return this lineage's newest complete checkpoint in a directory; None if there is none."""
        found = self.checkpoints(directory)
        return found[-1] if found else None

    def made_attempt(self, attempt: Path) -> bool:
        """Return whether an attempt without a manifest was made by this run, or by an earlier start in its folder."""
        run, folder = _read_mark(attempt)
        return run == self.run or (run in self.earlier and folder == self.folder)

    def mark(self, attempt: Path) -> None:
        """Mark the new folder of an attempt as this run's, durably. OSError if that fails, or it has a mark."""
        with (attempt / MARK).open("x", encoding="utf-8") as file:
            file.write(json.dumps({"run": self.run, "folder": self.folder}))
            file.flush()
            os.fsync(file.fileno())
        sync(attempt)


def of_run(folder: RunFolder, facts: Mapping[str, Any] | None, resume: Path | None = None) -> Lineage:
    """Return a run's lineage.

    Args:
        folder: the run's folder. A rank of another node may not see it, or see that of another run at its path.
        facts: the `run.json` in it.
        resume: the checkpoint that the run continues from, if that is not its `run.json`.
    """
    if facts is None or folder.start not in ("", facts.get("id")):
        # Outside of a run, the path identifies it.
        run = folder.start or hashlib.sha256(os.fsencode(folder.path)).hexdigest()[:32]
        ancestry, earlier = _ancestry_of(resume), []
    else:
        run, ancestry, earlier = str(facts.get("id", "")), facts.get("ancestry", []), facts.get("earlier", [])
    # The file may be another's.
    ancestry = [each for each in ancestry if "\0" not in each["checkpoint"]]
    origin = os.path.dirname(os.path.realpath(ancestry[-1]["checkpoint"])) if ancestry else ""
    return Lineage(
        run, str(folder.path), tuple([_ancestor(each) for each in ancestry]), origin, tuple(earlier)
    )


def _ancestry_of(resume: Path | None) -> list[dict[str, Any]]:
    if resume is None:
        return []
    try:
        manifest = read_manifest(resume)
    # The error is raised where the checkpoint is read.
    except CheckpointError:
        return []
    facts = manifest.get("provenance") or {}
    last = {"id": owner_of(manifest), "checkpoint": str(resume), "step": manifest["about"].get("step", 0)}
    return [*facts.get("ancestry", []), last]


def _ancestor(entry: Mapping[str, Any]) -> Ancestor:
    try:
        order = order_of(Path(entry["checkpoint"]))
    # Its folder was renamed.
    except ValueError:
        order = (int(entry.get("step") or 0), 1)
    return Ancestor(str(entry.get("id", "")), order)


def owner_of(manifest: Mapping[str, Any]) -> str:
    """Return the id of the run that wrote a checkpoint; "" if the manifest has none."""
    return str(manifest.get("run") or (manifest.get("provenance") or {}).get("id") or "")


def started_of(manifest: Mapping[str, Any]) -> str:
    """Return when the run that wrote a checkpoint was started (UTC); "" if the manifest does not have it."""
    return str((manifest.get("provenance") or {}).get("started", ""))


def newest_run(directory: Path) -> Path | None:
    """Return the newest checkpoint of the run that was started last among those with checkpoints in a directory.

    Runs without a start time count as older than all others. None if there is no checkpoint.
    """
    runs: dict[str, tuple[tuple[str, int], Path]] = {}
    # Oldest first.
    for path, manifest in complete_checkpoints(directory):
        started = started_of(manifest)
        try:
            # Orders those of one second.
            written = path.stat().st_mtime_ns
        # It was removed meanwhile.
        except OSError:
            continue
        runs[owner_of(manifest)] = ((started, written), path)
    return max(runs.values())[1] if runs else None


def _read_mark(attempt: Path) -> tuple[str, str]:
    try:
        mark = json.loads(read_bytes(inside(attempt, MARK), follow=False, most=_LARGEST_MARK))
        return str(mark["run"]), str(mark["folder"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "", ""
