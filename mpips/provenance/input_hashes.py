"""Input and output files of a run: size, time and hash.

Reading tens of gigabytes must not delay a run: a low-priority thread of the leader hashes them while the run proceeds,
and files not finished at its end stay without a hash. `[provenance] hash_inputs` says how much it reads. `sha256` is
the hash of all bytes of a file, `sample_sha256` that of its size (8 bytes, little-endian), its first MiB and its last
MiB.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mpips.data.spec import DataSpec, expand
from mpips.errors import InputError
from mpips.files.fingerprint import QUICK_LIMIT, Facts, fingerprint, hash_kind, stat_facts
from mpips.files.safe_open import inside

if TYPE_CHECKING:
    from mpips.config.job_file import Job

OUTPUT_LIMIT = 2**30
"""The same for output files, which are still in the page cache."""
_NICE = 10


def files_of(data: DataSpec, base: Path) -> list[tuple[str, Path]]:
    """Return (role, path) of every existing file in the job's [data]: train, test, vocab."""
    found: list[tuple[str, Path]] = []
    for role in ("train", "test", "vocab"):
        # The program reports the error.
        with suppress(InputError):
            found += [(role, Path(name)) for name in expand(getattr(data, role), str(base))]
    return found


class Altered(NamedTuple):
    """A changed file: the kind of hash (`sha256`, `sample_sha256`), the recorded hash, and the present one."""

    path: str
    kind: str
    expected: str
    found: str


def first_altered(recorded: Iterable[Mapping[str, Any]]) -> Altered | None:
    """Hash files again that `Inputs` has described (`facts`); return the first changed one, or None."""
    for facts in recorded:
        kind, path = hash_kind(facts), str(facts.get("path"))
        if kind:
            now = fingerprint(Path(path), float("inf") if kind == "sha256" else -1)
            found = now.get(kind) or f"cannot be read: {now['problem']}"
            if found != facts[kind]:
                return Altered(path, kind, str(facts[kind]), found)
    return None


def altered_output(folder: Path, recorded: Mapping[str, Any]) -> str:
    """Describe how a file in a run's folder differs from its facts in `run.json`; "" if it does not, or is not there.

    Args:
        folder: the run's folder, which may be untrusted: nothing outside of it is read, and at most `OUTPUT_LIMIT`
            bytes of a file.
        recorded: an element of what `outputs_of` has returned.
    """
    kind = hash_kind(recorded)
    try:
        path = inside(folder, recorded["name"])
        if not kind or not path.exists():
            return ""
        now = {**stat_facts(path), **fingerprint(path, OUTPUT_LIMIT)}
    except OSError as error:
        return f"{folder / str(recorded['name'])!s}: {error.strerror}"
    if (now.get("bytes"), now.get(kind)) == (recorded.get("bytes"), recorded[kind]):
        return ""
    found = (
        f"its {kind} is {now[kind]}"
        if kind in now
        else now.get("problem", f"it has {now.get('bytes')} bytes")
    )
    return f"{path}: is not what the run has written: {found}, and run.json has {recorded[kind]}"


class Inputs:
    """The input files of a job, and their hashes as far as they are known.

    Args:
        files: returns (role, path) of each; called in the background, since there may be many names on a slow file
            system.
        how: `[provenance] hash_inputs`.
    """

    def __init__(self, files: Callable[[], Iterable[tuple[str, Path]]], how: str = "quick") -> None:
        self.how = how
        self._files = files
        self._facts: list[Facts] = []
        self._hashes: list[Facts] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inputs", daemon=True)

    @classmethod
    def of(cls, job: Job) -> Inputs:
        """Return the inputs of a job."""
        return cls(lambda: files_of(job.data, job.base), job.provenance.hash_inputs)

    def start(self) -> None:
        """Start to stat and hash them in the background."""
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the thread is done, once it was started."""
        return not self._thread.is_alive()

    def facts(self) -> list[Facts]:
        """Return the facts known of each file now: role, path, bytes, modified, and a hash."""
        return [facts | hashes for facts, hashes in zip(self._facts, self._hashes, strict=False)]

    def finish(self, patience: float | None) -> list[Facts]:
        """Wait `patience` seconds for the hashes, None: for all of them; return the facts known then.

        A file that has changed since the start has `changed` = true: the run may have read contents other than those
        hashed.
        """
        self._thread.join(patience)
        self._stop.set()
        found = self.facts()
        deadline = None if patience is None else time.monotonic() + patience
        for facts in found:
            if deadline is not None and time.monotonic() > deadline:
                break
            now = stat_facts(Path(facts["path"]))
            if any(facts.get(key) != value for key, value in now.items()):
                facts["changed"] = True
        return found

    def _run(self) -> None:
        # Unknown facts are left out; a thread that fails would end the rank.
        with suppress(Exception):
            self._work()

    def _work(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        files = list(self._files())
        self._hashes = [{} for _ in files]
        self._facts = [{"role": role, "path": str(path), **stat_facts(path)} for role, path in files]
        whole = float("inf") if self.how == "full" else QUICK_LIMIT
        for at, (_, path) in enumerate(files):
            if self.how == "none" or self._stop.is_set():
                return
            self._hashes[at] = fingerprint(path, whole, self._stop.is_set)


def outputs_of(folder: Path, bookkeeping: Iterable[str]) -> list[Facts]:
    """Return name, bytes, modified and a hash of each file in a run's folder; links are left out."""
    kept = set(bookkeeping)
    found = (
        each for each in sorted(folder.iterdir()) if each.name not in kept and not each.name.startswith(".")
    )
    return [
        {"name": path.name, **stat_facts(path), **fingerprint(path, OUTPUT_LIMIT)}
        for path in found
        if path.is_file() and not path.is_symlink()
    ]
