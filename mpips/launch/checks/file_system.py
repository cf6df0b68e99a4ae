"""Checks of a file system by ranks on several nodes: what a run's folder relies on.

visibility      what one node writes is soon seen by the others: orders, results, checkpoints
atomic rename   who reads a file that is being replaced gets one of its versions, whole, and none that is older than
                what it has read before
fsync           writes reach the disk, without an error and in reasonable time: checkpoints
locks           flock (compiled kernels, HDF5), and exclusive creation (the claim of a run's folder)

Each check is a list of steps. All ranks take a step at the same time, and wait for each other after it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from mpips.files.safe_open import create_exclusively, read_bytes
from mpips.launch.checks.check import Check, Verdict
from mpips.rundir.folder import write_text

SEEN_LIMIT = 10.0
"""Seconds until a file must be seen; `mpips ctl` waits as long for an answer."""
SEEN_WARNING = 1.0
REPLACING = 0.5
"""Seconds for which a file is replaced again and again."""
SYNCS, SYNC_WARNING = 5, 0.5
"""Number of syncs, and seconds of one above which checkpoints take long."""
SIZE = 4096
POLL = 0.005
NAMES = ("visibility", "atomic rename", "fsync", "locks")
Facts = dict[str, Any]
Step = Callable[[], Facts]


class Files(Protocol):
    """What the checks do to files; a test passes file systems with faults."""

    def replace(self, path: Path, text: str) -> None:
        """Replace a file, atomically and durably."""

    def read(self, path: Path) -> str:
        """Read a file. OSError if there is none."""

    def create(self, path: Path, text: str) -> bool:
        """Create a file; return whether this call has created it."""

    def lock(self, path: Path) -> Callable[[], None]:
        """Lock a file; return what releases it. BlockingIOError if it is locked, OSError if there are no locks."""


class RealFiles:
    """The file system, through the functions that runs use."""

    def replace(self, path: Path, text: str) -> None:
        """See `Files`."""
        write_text(path, text)

    def read(self, path: Path) -> str:
        """See `Files`."""
        return read_bytes(path, follow=False).decode(errors="replace")

    def create(self, path: Path, text: str) -> bool:
        """See `Files`."""
        return create_exclusively(path, text.encode())

    def lock(self, path: Path) -> Callable[[], None]:
        """See `Files`."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(handle)
            raise
        return lambda: os.close(handle)


def take(steps: Sequence[Step], barrier: Callable[[], None]) -> Facts:
    """Take the steps of a check together with the other ranks; return this rank's facts, with the first `error`."""
    facts: Facts = {}
    for step in steps:
        try:
            facts |= step()
        except OSError as error:
            facts.setdefault("error", f"{error.strerror or error}")
        barrier()
    return facts


def steps(name: str, files: Files, folder: Path, rank: int, limit: float = SEEN_LIMIT) -> list[Step]:
    """Return the steps of a check for a rank; `limit` is how long it waits for a file (s)."""
    return {"visibility": _visibility, "atomic rename": _rename, "fsync": _sync, "locks": _locks}[name](
        files, folder, rank, limit
    )


def _until(read: Callable[[], bool], limit: float) -> float | None:
    """Return after how many seconds something is read; None if it is not within `limit`."""
    begin = time.monotonic()
    while True:
        with suppress(FileNotFoundError):
            if read():
                return time.monotonic() - begin
        if time.monotonic() - begin > limit:
            return None
        time.sleep(POLL)


def _visibility(files: Files, folder: Path, rank: int, limit: float) -> list[Step]:
    path = folder / "seen"

    def absent() -> Facts:
        # A client of NFS remembers for some time that there is no such file.
        with suppress(FileNotFoundError):
            files.read(path)
        return {}

    def written(text: str) -> Step:
        def step() -> Facts:
            if rank == 0:
                files.replace(path, text)
            return {}

        return step

    def seen(name: str, text: str) -> Step:
        return lambda: {name: _until(lambda: files.read(path) == text, limit)}

    return [absent, written("first"), seen("created", "first"), written("second"), seen("replaced", "second")]


def _rename(files: Files, folder: Path, rank: int, limit: float) -> list[Step]:
    path = folder / "replaced"
    last = "last"

    def text(version: object) -> str:
        return f"{version} ".ljust(9) * (SIZE // 9)

    def first() -> Facts:
        if rank == 0:
            files.replace(path, text(0))
        return {}

    def write() -> Facts:
        version, until = 0, time.monotonic() + REPLACING
        try:
            while time.monotonic() < until:
                version += 1
                files.replace(path, text(version))
        finally:
            files.replace(path, text(last))
        return {"versions": version}

    def read() -> Facts:
        counts = {"reads": 0, "torn": 0, "missing": 0, "older": 0}
        newest, until = 0, time.monotonic() + REPLACING + limit
        while time.monotonic() < until:
            counts["reads"] += 1
            try:
                found = files.read(path)
            except OSError:
                counts["missing"] += 1
                continue
            word = found.split(" ", 1)[0]
            if found != text(word):
                counts["torn"] += 1
            elif word == last:
                return {**counts, "ended": True}
            elif word.isdecimal():
                counts["older"] += int(word) < newest
                newest = max(newest, int(word))
            time.sleep(0)
        return {**counts, "ended": False}

    return [first, write if rank == 0 else read]


def _sync(files: Files, folder: Path, rank: int, limit: float) -> list[Step]:
    def step() -> Facts:
        taken = []
        for number in range(SYNCS):
            text = f"{rank} {number}".ljust(SIZE)
            begin = time.monotonic()
            files.replace(folder / f"synced-{rank}", text)
            taken.append(time.monotonic() - begin)
            if files.read(folder / f"synced-{rank}") != text:
                return {"error": "what was written is not read back"}
        return {"seconds": median(taken)}

    return [step]


def _locks(files: Files, folder: Path, rank: int, limit: float) -> list[Step]:
    path = folder / "locked"
    held: list[Callable[[], None]] = []

    def hold() -> Facts:
        if rank == 0:
            held.append(files.lock(path))
        return {}

    def refused() -> Facts:
        if rank:
            with suppress(BlockingIOError):
                files.lock(path)()
                return {"granted": True}
        return {}

    def release() -> Facts:
        for each in held:
            each()
        return {}

    def take_it() -> Facts:
        def locked() -> bool:
            with suppress(BlockingIOError):
                files.lock(path)()
                return True
            return False

        return {"taken": _until(locked, limit) is not None}

    def create() -> Facts:
        return {"created": files.create(folder / "claimed", str(rank))}

    return [hold, refused, release, take_it, create]


def seconds(value: float) -> str:
    """Write a duration: 0.3 ms, 1.2 s."""
    return f"{value:.1f} s" if value >= 0.9995 else f"{1e3 * value:.1f} ms"


# --- Verdicts ----------------------------------------------------------------------------------------------


def judge(name: str, found: Mapping[int, Facts], hosts: Mapping[int, str], folder: str) -> Check:
    """Return the outcome of a check, from the facts of all ranks that have reported it."""
    broken = [(rank, facts["error"]) for rank, facts in found.items() if "error" in facts]
    if broken and name != "locks":
        rank, error = broken[0]
        mend = (
            f"let every node see {folder} under the same path, and you write there; or name another --folder"
        )
        value = f"rank {rank} on {hosts.get(rank, '?')}: {error}"
        return Check(name, Verdict.FAIL, value, "no error", mend, {"error": error})
    return {"visibility": _judge_seen, "atomic rename": _judge_rename, "fsync": _judge_sync, "locks": _judge_locks}[
        name
    ](found, hosts)  # fmt: skip


def _judge_seen(found: Mapping[int, Facts], hosts: Mapping[int, str]) -> Check:
    name, against = "visibility", f"{seconds(SEEN_WARNING)}; fails after {seconds(SEEN_LIMIT)}"
    blind = [rank for rank, facts in found.items() if None in (facts.get("created"), facts.get("replaced"))]
    if blind:
        value = f"rank {blind[0]} on {hosts.get(blind[0], '?')} does not see what rank 0 on {hosts.get(0, '?')} writes"
        mend = "put runs on a file system that all nodes share (NFS, Lustre, GPFS), and name it: --folder DIR"
        return Check(name, Verdict.FAIL, value, against, mend)
    slowest = max(found, key=lambda rank: max(found[rank]["created"], found[rank]["replaced"]))
    longest = max(found[slowest]["created"], found[slowest]["replaced"])
    value = f"seen by all ranks after {seconds(longest)}"
    if longest <= SEEN_WARNING:
        return Check(name, Verdict.OK, value, against, facts={"seconds": longest})
    mend = "clients cache names: orders by `mpips ctl` take as long; mount with actimeo=1 or lookupcache=positive"
    where = f" (rank {slowest} on {hosts.get(slowest, '?')} last)"
    return Check(name, Verdict.WARN, value + where, against, mend, {"seconds": longest})


def _judge_rename(found: Mapping[int, Facts], hosts: Mapping[int, str]) -> Check:
    counts = {key: sum(facts.get(key, 0) for facts in found.values()) for key in ("torn", "missing", "older")}
    reads = sum(facts.get("reads", 0) for facts in found.values())
    stuck = [rank for rank, facts in found.items() if facts.get("ended") is False]
    wrong = [f"{number} {key}" for key, number in counts.items() if number]
    wrong += [f"rank {stuck[0]} on {hosts.get(stuck[0], '?')} never saw the last version"] if stuck else []
    written = max((facts.get("versions", 0) for facts in found.values()), default=0)
    value = f"{reads:,} reads while a file was replaced {written:,} times: " + (
        ", ".join(wrong) or "all whole"
    )
    against = "each read finds one whole version, never an older one"
    mend = (
        "a reader can find a damaged or outdated result.json or checkpoint: put runs on a file system with atomic "
        "rename between nodes, not on an object store or a FUSE mount: --folder DIR"
    )
    facts = {**counts, "reads": reads, "versions": written}
    return Check(
        "atomic rename", Verdict.FAIL if wrong else Verdict.OK, value, against, mend if wrong else "", facts
    )


def _judge_sync(found: Mapping[int, Facts], hosts: Mapping[int, str]) -> Check:
    slowest = max(found, key=lambda rank: found[rank]["seconds"])
    longest = found[slowest]["seconds"]
    slow = longest > SYNC_WARNING
    where = f" (rank {slowest} on {hosts.get(slowest, '?')})" if slow else ""
    value = f"{seconds(longest)} for a durable write{where}"
    mend = "checkpoints and results wait for the disk: choose a faster file system, or checkpoint less often"
    return Check("fsync", Verdict.WARN if slow else Verdict.OK, value, f"at most {seconds(SYNC_WARNING)}",
                 mend if slow else "", {"seconds": longest})  # fmt: skip


def _judge_locks(found: Mapping[int, Facts], hosts: Mapping[int, str]) -> Check:
    against = "one holder at a time"
    creators = [rank for rank, facts in found.items() if facts.get("created")]
    if len(creators) != 1:
        who = " and ".join(f"{rank} on {hosts.get(rank, '?')}" for rank in creators[:3]) or "none"
        value = f"exclusive creation of a file succeeds for ranks {who}"
        mend = "two runs could claim one folder: put runs on a file system with hard links or O_EXCL between nodes"
        return Check("locks", Verdict.FAIL, value, "exactly one rank", mend)
    broken = next(((rank, facts["error"]) for rank, facts in found.items() if "error" in facts), None)
    twice = [rank for rank, facts in found.items() if facts.get("granted")]
    never = [rank for rank, facts in found.items() if facts.get("taken") is False]
    if broken or twice or never:
        value = f"no flock: {broken[1]} (rank {broken[0]} on {hosts.get(broken[0], '?')})" if broken else (
            f"flock is granted to ranks 0 on {hosts.get(0, '?')} and {twice[0]} on {hosts.get(twice[0], '?')} at once"
            if twice else f"rank {never[0]} on {hosts.get(never[0], '?')} cannot lock a released file"
        )  # fmt: skip
        mend = (
            "runs do not need flock, but nodes that start at once then compile kernels twice: mount with flock "
            "(Lustre: -o flock; NFS: local_lock=none), or set NUMBA_CACHE_DIR to a folder of the node"
        )
        return Check("locks", Verdict.WARN, value, against, mend)
    return Check("locks", Verdict.OK, "flock and exclusive creation have one holder", against)
