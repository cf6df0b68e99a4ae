"""Whose a checkpoint is: that of the run which wrote it, and of the runs that go on from it.

Every start of a job is a run with an id of its own (`run.json`). The manifest of a checkpoint says which run wrote it.
A run that resumes goes on from one checkpoint; that one and those of the same run before it are the run's, too, and
so on back to the first. Only these count for it: as the latest, and where old ones are removed. Checkpoints of other
runs may lie in the same folder. A checkpoint that was copied from elsewhere may name any run as its own: it and those
before it count only in the folder that it lies in.

An attempt has no manifest yet. Its folder is made exclusively, and bears a mark, `.run.json`, until the manifest is
there: the run's id and folder. One run at a time has a folder, so what a former start of the same folder left torn is
the present one's to remove. An attempt without a mark is nobody's: its run was killed in between, or is of an earlier
version.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mpips.checkpoint.manifest import held, order_of, read_manifest
from mpips.errors import CheckpointError
from mpips.files.safe_open import inside, read_bytes

MARK = ".run.json"
_LARGEST_MARK = 16384

Order = tuple[int, int]


class Ancestor(NamedTuple):
    """A checkpoint that a run goes on from: who wrote it, and which it is."""

    run: str
    order: Order


class Lineage(NamedTuple):
    """A run and what it goes on from. An empty id stands for programs that write checkpoints outside of a run."""

    run: str = ""
    folder: str = ""
    """The run's."""
    before: tuple[Ancestor, ...] = ()
    """The oldest first."""
    origin: str = ""
    """The folder that holds the last of them, without symbolic links."""

    def generation(self, owner: str, path: Path) -> int | None:
        """Say how young a checkpoint is among this lineage's; None if it is another's.

        One that does not say whose it is, is no ancestor's: it may be of any run.
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
        for path, manifest in held(directory):
            generation = self.generation(owner_of(manifest), path)
            if generation is not None:
                found.append((generation, order_of(path), path))
        return [path for _, _, path in sorted(found)]

    def latest(self, directory: Path) -> Path | None:
        """Return this lineage's newest complete checkpoint in a directory; None if there is none."""
        found = self.checkpoints(directory)
        return found[-1] if found else None

    def left(self, attempt: Path) -> bool:
        """Tell whether an attempt that has no manifest was made by this run, or by a former start in its folder."""
        run, folder = _marked(attempt)
        return run == self.run or (folder == self.folder != "")

    def mark(self, attempt: Path) -> None:
        """Mark the new folder of an attempt as this run's. OSError if that cannot be done, or it has a mark."""
        if self.run:
            with (attempt / MARK).open("x", encoding="utf-8") as file:
                file.write(json.dumps({"run": self.run, "folder": self.folder}))


def of_run(folder: Path, facts: Mapping[str, Any] | None, resume: Path | None = None) -> Lineage:
    """Give a run's lineage.

    Args:
        folder: the run's.
        facts: its `run.json`; where there is none, the folder's path names the run.
        resume: what it goes on from, where there is no `run.json` to say so.
    """
    place = str(Path(folder).absolute())
    if facts is None:
        run, ancestry = hashlib.sha256(os.fsencode(place)).hexdigest()[:32], _before(resume)
    else:
        run, ancestry = str(facts.get("id", "")), facts.get("ancestry", [])
    origin = os.path.dirname(os.path.realpath(ancestry[-1]["checkpoint"])) if ancestry else ""
    return Lineage(run, place, tuple(map(_ancestor, ancestry)), origin)


def _before(resume: Path | None) -> list[dict[str, Any]]:
    if resume is None:
        return []
    try:
        manifest = read_manifest(resume)
    except CheckpointError:  # whoever wants to read the rest will say so
        return []
    facts = manifest.get("provenance") or {}
    last = {"id": owner_of(manifest), "checkpoint": str(resume), "step": manifest["about"].get("step", 0)}
    return [*facts.get("ancestry", []), last]


def _ancestor(entry: Mapping[str, Any]) -> Ancestor:
    try:
        order = order_of(Path(entry["checkpoint"]))
    except ValueError:  # it was given another name
        order = (int(entry.get("step") or 0), 1)
    return Ancestor(str(entry.get("id", "")), order)


def owner_of(manifest: Mapping[str, Any]) -> str:
    """Return the id of the run that wrote a checkpoint; "" if it does not say."""
    return str(manifest.get("run") or (manifest.get("provenance") or {}).get("id") or "")


def newest_run(directory: Path) -> Path | None:
    """Return the newest checkpoint of the run that was started last of all that have one in a directory.

    A run that does not say when it was started counts as older than all that do. None if there is no checkpoint.
    """
    runs: dict[str, tuple[tuple[str, int], Path]] = {}
    for path, manifest in held(directory):  # oldest first
        started = str((manifest.get("provenance") or {}).get("started", ""))
        try:
            written = path.stat().st_mtime_ns  # tells apart those of one second
        except OSError:  # removed meanwhile
            continue
        runs[owner_of(manifest)] = ((started, written), path)
    return max(runs.values())[1] if runs else None


def _marked(attempt: Path) -> tuple[str, str]:
    try:
        mark = json.loads(read_bytes(inside(attempt, MARK), follow=False, most=_LARGEST_MARK))
        return str(mark["run"]), str(mark["folder"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "", ""
