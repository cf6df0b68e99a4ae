"""The manifest of a checkpoint: it lists the files, and marks the checkpoint as complete (checkpoints/README.md).

It has every file's size and SHA-256 and, for a shard, the rows of each key range. It is written last: a folder with a
manifest is a checkpoint. That of a delta names the checkpoint that it follows, by the hash of its manifest: so nothing
can be left out, repeated or exchanged between a base and the last delta.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mpips.errors import CheckpointError
from mpips.files.json_schema import ANY, NUMBER, Each, Table, parse_json, schema_error
from mpips.files.json_values import json_data, keep
from mpips.files.safe_open import inside, open_regular, read_bytes, replacing
from mpips.files.safe_open import sync as sync
from mpips.rundir.folder import RUN

FORMAT = "mpips checkpoint"
VERSION = 1
DELTA_VERSION = 2
"""Version of a delta's manifest and shards: who knows the first only would take its rows for all of them."""
MANIFEST = "manifest.json"
NOTE = "."
"""Separates a vector's name from that of a server function's note on some of its keys."""

CHOICE = 5
"""Checkpoints that an error names."""
_STEP = re.compile(r"step-(\d{6,})(?:-(\d+))?")
_PIECE = 2**24

SCHEMA = {
    "about": {
        "step?": int, "program?": str, "workers?": int, "servers?": int, "groups?": Table(int), "trained?": NUMBER,
        "taken?": NUMBER, "job?": Table(Table(ANY)),
        "state?": Table(ANY), "facts?": Table(ANY), "vectors?": Each(Each((str, int))),
    },
    "files": Each(
        {
            "name": str,
            "kind": str,
            "number": int,
            "bytes": int,
            "sha256": str,
            "vectors?": Table(
                {
                    "spec": {
                        "name": str, "dtype": str, "width": range(1, 2**20 + 1), "extent": int, "update": str,
                        "settings": Table((str, int, float, bool)), "dense": bool, "aggregate": bool,
                        "init?": (int, float, Table(NUMBER)), "key_bits?": (range(64, 65), range(128, 129)),
                    },
                    "rows": int,
                    "ranges": Each(Each(int)),
                    "deleted?": int,
                }
            ),
        }
    ),
    "provenance?": (RUN, None),
    "run?": str,
    "follows?": {"checkpoint": str, "sha256": str},
    "sha256": str,
}  # fmt: skip
"""The schema of a manifest, see `mpips.files.json_schema`."""

Entry = dict[str, Any]
"""One file of a checkpoint as its manifest lists it."""

Link = tuple[Path, dict[str, Any]]
"""A checkpoint, and its manifest."""


class StoredRange(NamedTuple):
    """Where a range of a vector lies: `rows` rows of `file`, from row `first` on, in key order."""

    begin: int
    end: int
    first: int
    rows: int
    file: str


# Folders.


def step_folder(directory: Path, step: int, attempt: int = 1) -> Path:
    """Return the folder of a step's checkpoint; a second one of the same step has a suffix."""
    return Path(directory) / (f"step-{step:06d}" + (f"-{attempt}" if attempt > 1 else ""))


def order_of(path: Path) -> tuple[int, int]:
    """Return (step, attempt) of a checkpoint's folder: the larger, the newer. ValueError if it is no such name."""
    named = _STEP.fullmatch(path.name)
    if named is None:
        raise ValueError(f"{path} is not named as a checkpoint's folder")
    return int(named[1]), int(named[2] or 1)


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return order_of(path)[0]


def folders(directory: Path) -> list[Path]:
    """Return the step folders below a directory, complete or not, oldest first; symbolic links are passed over."""
    found = step_paths(directory)
    with explained("list", directory):
        return [path for path in found if path.is_dir() and not path.is_symlink()]


def step_paths(directory: Path) -> list[Path]:
    """Return all paths named like a step's folder below a directory, of any type, oldest first.

    Raises:
        CheckpointError: the directory cannot be read.
    """
    directory = Path(directory)
    with explained("list", directory):
        names = os.listdir(directory) if directory.is_dir() else []
    return sorted((directory / name for name in names if _STEP.fullmatch(name)), key=order_of)


def complete_checkpoints(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the complete checkpoints below a directory with their manifests, oldest first.

    A checkpoint is complete if its manifest is valid and all files exist with the right size; a delta, if those that it
    needs are complete, too.
    """
    return [(path, found) for path, found in _examined(directory) if isinstance(found, dict)]


def _examined(directory: Path) -> Iterator[tuple[Path, dict[str, Any] | CheckpointError]]:
    """Yield each folder, oldest first, with its manifest, or the error if it is no complete checkpoint.

    Each folder is read once, however many deltas need it, also where one of these is missing or damaged.
    """
    read, known = _once(_read_if_whole), dict[Path, CheckpointError | None]()
    for path in folders(directory):
        way: list[Link] = []
        problem: CheckpointError | None = None
        try:
            way.append((path, read(path)))
            while way[-1][0] not in known and way[-1][1].get("follows"):
                way.append(_before(*way[-1], read))
            problem = known.get(way[-1][0])
        except CheckpointError as error:
            problem = error
        # What one lacks, all deltas after it lack.
        known |= {each: problem for each, _ in way}
        yield path, problem or way[0][1]


def _once(read: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    """Return a function that reads each manifest once, and raises the same error again where that fails."""

    @cache
    def tried(path: Path) -> dict[str, Any] | CheckpointError:
        try:
            return read(path)
        except CheckpointError as error:
            return error

    def found(path: Path) -> dict[str, Any]:
        manifest = tried(path)
        if isinstance(manifest, CheckpointError):
            raise manifest
        return manifest

    return found


def manifest_if_complete(
    path: Path, read: Callable[[Path], dict[str, Any]] | None = None
) -> dict[str, Any] | None:
    """Return the manifest of a complete checkpoint, see `complete_checkpoints`; None if it is not complete."""
    with suppress(OSError, CheckpointError):
        return from_base(path, read or _read_if_whole)[-1][1]
    return None


def _read_if_whole(path: Path) -> dict[str, Any]:
    """Read a manifest; CheckpointError unless all of its files exist with the right size."""
    manifest = read_manifest(path)
    with suppress(OSError):
        files = [(inside(path, each["name"]).lstat(), each["bytes"]) for each in manifest["files"]]
        if all(stat.S_ISREG(file.st_mode) and file.st_size == size for file, size in files):
            return manifest
    raise CheckpointError(f"{path} is damaged: a file is missing, or has another size than its manifest says")


def damaged(directory: Path, after: Path | None = None) -> list[str]:
    """Return a line for each folder that has a manifest and is not a complete checkpoint, the oldest first.

    `after`: only those whose manifest was written no earlier than this checkpoint's. What a killed run has left has no
    manifest, and is not damage.
    """
    # By time: steps of different runs say nothing about which is newer.
    since = 0 if after is None else _written(after)
    found = [
        str(problem)
        for path, problem in _examined(directory)
        if isinstance(problem, CheckpointError) and _written(path) >= since
    ]
    # One that is missing is that of all deltas after it.
    return list(dict.fromkeys(found))


def _written(path: Path) -> int:
    """Return when the manifest of a checkpoint was written, in ns; -1 if there is none."""
    try:
        return (path / MANIFEST).lstat().st_mtime_ns
    except OSError:
        return -1


def complete(directory: Path) -> list[Path]:
    """Return the complete checkpoints below a directory, oldest first; see `complete_checkpoints`."""
    return [path for path, _ in complete_checkpoints(directory)]


def latest(directory: Path) -> Path | None:
    """Return the newest complete checkpoint below a directory, of any run; None if there is none."""
    found = complete(directory)
    return found[-1] if found else None


# The manifest itself.


def write_manifest(
    folder: Path,
    entries: list[Entry],
    about: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
    run: str = "",
    follows: Mapping[str, str] | None = None,
) -> Path:
    """Write the manifest durably and atomically: the checkpoint is complete from now on; arguments: `commit`.

    CheckpointError if it could not be read back.
    """
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION if follows is None else DELTA_VERSION,
        "about": json_data(about, keep, "about"),
        "files": entries,
    }
    if follows is not None:
        manifest["follows"] = dict(follows)
    if run:
        manifest["run"] = run
    if provenance is not None:
        manifest["provenance"] = json_data(provenance, keep, "provenance")
    target = folder / MANIFEST
    with explained("write", target):
        manifest["sha256"] = _own_hash(manifest)
        if problem := schema_error(manifest, SCHEMA) or _inconsistency(manifest):
            raise CheckpointError(f"cannot write {target}: {problem}")
        sync(folder)
        with replacing(target, "w") as file:
            file.write(text_of(manifest))
    return target


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint folder; CheckpointError if it is missing or damaged.

    >>> read_manifest(Path("step-000001"))
    Traceback (most recent call last):
        ...
    mpips.errors.CheckpointError: there is no checkpoint step-000001
    """
    path = Path(path)
    try:
        manifest = parse_json(read_bytes(path / MANIFEST, follow=False))
    except OSError as error:
        raise CheckpointError(
            _reason_missing(path) or f"{path} is not a complete checkpoint: {MANIFEST}: {error.strerror}"
        ) from None
    except ValueError:
        raise CheckpointError(f"{path / MANIFEST} is damaged: it is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path / MANIFEST} is not a manifest of an {FORMAT}")
    have = manifest.get("version")
    if type(have) is not int or have not in (VERSION, DELTA_VERSION):
        raise CheckpointError(
            f"{path / MANIFEST}: format version {have}, this mpips reads {VERSION} and {DELTA_VERSION}"
        )
    if manifest.get("sha256") != _own_hash(manifest):
        raise CheckpointError(f"{path / MANIFEST} is damaged: its sha256 differs")
    problem = schema_error(manifest, SCHEMA) or _inconsistency(manifest)
    if problem:
        raise CheckpointError(f"{path / MANIFEST} is damaged: {problem}")
    return manifest


def from_base(path: Path, read: Callable[[Path], dict[str, Any]] | None = None) -> list[Link]:
    """Return a checkpoint and its manifest, after those that it needs: a base first, deltas in their order.

    `read` reads a manifest; default: `read_manifest`.

    Raises:
        CheckpointError: one cannot be read; or is missing, or is another than the one that the next delta follows.
    """
    read, path = read or read_manifest, Path(path)
    found = [(path, read(path))]
    while found[-1][1].get("follows"):
        found.append(_before(*found[-1], read))
    return found[::-1]


def _before(later: Path, manifest: dict[str, Any], read: Callable[[Path], dict[str, Any]]) -> Link:
    """Return the checkpoint that a delta follows, and its manifest. Errors: as of `from_base`."""
    follows, delta = manifest["follows"], f"{later} is a delta: it has what changed"
    if later.is_symlink() or not later.name:
        later = Path(os.path.realpath(later))
    before = later.with_name(follows["checkpoint"])
    # As everywhere, links in place of a folder are passed over.
    if os.path.islink(before) or not os.path.exists(before):
        raise CheckpointError(f"{delta} after {before.name}, which is missing in {before.parent}")
    try:
        found = read(before)
    except CheckpointError as error:
        raise CheckpointError(f"{delta} after {before.name}, which cannot be read: {error}") from None
    if found["sha256"] != follows["sha256"]:
        raise CheckpointError(
            f"{delta} after another {before.name} than the one in {before.parent}: the sha256 of its manifest "
            f"was {follows['sha256'][:16]}..., not {found['sha256'][:16]}..."
        )
    return before, found


def check_present(path: Path) -> None:
    """Raise CheckpointError if a path is neither a folder of checkpoints nor that of one, complete or not."""
    reason = _reason_missing(path)
    if reason and not folders(path):
        raise CheckpointError(reason)
    if not reason and not os.path.lexists(path / MANIFEST) and _STEP.fullmatch(path.resolve().name) is None:
        raise CheckpointError(f"{path} is not a checkpoint, and holds none: it has no {MANIFEST}")


def _reason_missing(path: Path) -> str:
    """Return an error text for a path that is not a checkpoint, with the checkpoints near it; "" if it may be one."""
    if folders(path):
        return f"{path} is a folder of checkpoints: name one of them{_choice(path)}"
    if os.path.lexists(path):
        return "" if path.is_dir() else f"{path} is not a checkpoint: it is not a folder"
    return f"there is no checkpoint {path}{_choice(path.parent)}"


def _choice(directory: Path) -> str:
    """List the complete checkpoints in a folder, the last few."""
    names = [path.name for path in complete(directory)]
    few = ", ".join(names[-CHOICE:])
    return f"; in {directory}: {'... ' if len(names) > CHOICE else ''}{few}" if names else ""


def _inconsistency(manifest: Mapping[str, Any]) -> str:
    """Describe what in a manifest of the right form is inconsistent; "" if nothing is."""
    for vector in manifest["about"].get("vectors", []):
        if [type(each) for each in vector] != [str, int]:
            return f"about.vectors: {vector} is not a name and a number"
    follows = manifest.get("follows")
    if (follows is not None) != (manifest["version"] == DELTA_VERSION):
        return f"version {manifest['version']} {'has' if follows else 'lacks'} the checkpoint that it follows"
    if follows is not None and _STEP.fullmatch(follows["checkpoint"]) is None:
        return f"follows: {follows['checkpoint']!r} is not named as a checkpoint's folder"
    for at, entry in enumerate(manifest["files"]):
        where = f"files[{at}]"
        if entry["name"] in ("", ".", "..") or "/" in entry["name"] or "\0" in entry["name"]:
            return f"{where}: {entry['name']!r} is not a plain file name"
        if min(entry["bytes"], entry["number"]) < 0:
            return f"{where}: bytes and number are at least 0"
        for problem in _range_problems(entry):
            return f"{where}: {problem}"
    return ""


def _range_problems(entry: Entry) -> Iterator[str]:
    for name, part in entry.get("vectors", {}).items():
        for run in part["ranges"]:
            if len(run) != 4 or not 0 <= run[0] <= run[1] <= 2**64 or min(run[2:]) < 0:
                yield f"vector {name!r}: {run} is not a range"
            elif run[2] + run[3] > part["rows"]:
                yield f"vector {name!r}: {run} lies beyond its {part['rows']} rows"
        if part.get("deleted", 0) < 0:
            yield f"vector {name!r}: deleted is at least 0"


def text_of(manifest: Mapping[str, Any]) -> str:
    """Return the text of a manifest: JSON with one line per file."""
    lines = []
    for key, value in manifest.items():
        text = json.dumps(value)
        if key == "files":
            text = "[\n  " + ",\n  ".join(json.dumps(entry) for entry in value) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _own_hash(manifest: Mapping[str, Any]) -> str:
    """Hash a manifest but for the hash itself, in a canonical form."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# The contents of its entries.


def vector_names(entries: list[Entry]) -> list[str]:
    """Return the names of all vectors, sorted."""
    return sorted({name for entry in entries for name in entry.get("vectors", {})})


def spec_of(entries: list[Entry], name: str) -> dict[str, Any]:
    """Return the fields of a vector's specification, as the first of its shards has them."""
    return dict(next(e["vectors"][name]["spec"] for e in entries if name in e.get("vectors", {})))


def runs_of(entries: list[Entry], name: str) -> list[StoredRange]:
    """Return where the ranges of a vector lie, in key order."""
    holders = [entry for entry in entries if name in entry.get("vectors", {})]
    parts = [(part, entry["name"]) for entry in holders for part in entry["vectors"][name]["ranges"]]
    return sorted(StoredRange(begin, end, first, rows, file) for (begin, end, first, rows), file in parts)


def cover_problems(entries: list[Entry]) -> list[str]:
    """Return a line for each reason why the shards do not hold every key of every vector exactly once."""
    problems = [f"{entry['name']}: {problem}" for entry in entries for problem in _range_problems(entry)]
    if problems:
        return problems
    for name in vector_names(entries):
        specs = [dict(e["vectors"][name]["spec"]) for e in entries if name in e.get("vectors", {})]
        if any(spec | {"settings": {}} != specs[0] | {"settings": {}} for spec in specs):
            problems.append(f"the shards of vector {name!r} differ in its specification")
        at = 0
        for run in [*runs_of(entries, name), StoredRange(int(specs[0]["extent"]), 0, 0, 0, "")]:
            # A note need not cover all keys.
            if run.begin > at and NOTE not in name:
                problems.append(f"no shard holds the keys of vector {name!r} in [{at}, {run.begin})")
            if run.begin < at:
                problems.append(f"more than one shard holds the keys of vector {name!r} at {run.begin}")
            at = max(at, run.end)
    return problems


# Files.


def entry_of(
    path: Path, kind: str, number: int, between_pieces: Callable[[], object] = lambda: None
) -> Entry:
    """Describe a file on the disk: name, kind, number, bytes and sha256. `between_pieces` is called between reads."""
    # In large pieces: between two of them a thread may wait long for the GIL while another one computes.
    hashed, size = hashlib.sha256(), 0
    with explained("read", path), open_regular(path, follow=False) as file:
        piece = memoryview(bytearray(min(_PIECE, os.fstat(file.fileno()).st_size + 1)))
        while count := file.readinto(piece):
            hashed.update(piece[:count])
            size += count
            between_pieces()
    return {"name": path.name, "kind": kind, "number": number, "bytes": size, "sha256": hashed.hexdigest()}


@contextmanager
def explained(verb: str, path: Path) -> Iterator[None]:
    """Convert errors of the operating system and HDF5 to one line that names the file.

    >>> try:
    ...     with explained("read", Path("weights.h5")):
    ...         raise FileNotFoundError(2, "No such file or directory")
    ... except CheckpointError as error:
    ...     print(error)
    cannot read weights.h5: No such file or directory
    """
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(f"cannot {verb} {path}: {reason}") from error
