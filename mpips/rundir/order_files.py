"""Orders to a running job, from a login node to the leader, by files in the run's folder.

An order is a small JSON file RUN/orders/NAME.json. The leader looks for new orders periodically and answers each by a
file beside it, NAME.answer.json; the sender reads the answer and removes both. Files are created atomically, by rename.
Names begin with the sender's time, so orders of one host are executed in the order in which they were given.

An order without an answer is open, also for a new leader, which takes it again if the first leader died between
execution and answer. Every verb is therefore idempotent: checkpoint, stop, tau, status and stacks are; what has been
done of a join or a leave is known by the order's name. An answered order survives its leader
(`mpips.rank.leader_orders`).

An order names the start that it is for, by the id in run.json: the next start refuses what the former one has left. So
the clocks of the two hosts need not agree.

Files are not synced: after a crash, the user gives a lost order again. An order is executed within the leader's
period, or seconds later on a file system whose clients cache listings.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mpips import typed
from mpips.errors import InputError, cannot_write
from mpips.files.listing import REFRESH, refresh
from mpips.files.safe_open import inside, read_bytes, read_text, replacing
from mpips.rundir.folder import RunFolder

LATEST = "latest"
"""The name of the run under runs/ that was started last."""

VERBS = ("checkpoint", "stop", "join", "leave", "tau", "status", "stacks")
"""The verbs of orders; `check` defines their arguments."""

WANTED = {"join": "role", "leave": "rank", "tau": "tau"}
"""The one argument of the verbs that take any."""

SIGNAL = re.compile("SIG[A-Z0-9]{1,16}")
"""The name of a signal."""

ROLES = ("server", "worker")
"""The roles that a spare can join as."""

ANSWER = ".answer.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.json")
"""Files that are orders: neither answers nor temporary files, which have another dot."""

LONGEST = 65536
"""Bytes that an order, or an answer, can have."""

MOST = 256
"""Files that are read per poll, since other users may fill the folder."""

SHARE = 0.05
"""The largest share of the leader's time for polling the folder, however many files are in it."""

NEVER = (errno.EACCES, errno.ELOOP, errno.EISDIR, errno.EINVAL, errno.ENXIO)
"""Errors of a file that is not an order and cannot become one."""


@dataclass(frozen=True)
class Order:
    """A request to a run: a verb with its arguments, under a unique name."""

    name: str
    verb: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def check(verb: str, arguments: Mapping[str, Any]) -> None:
    """Check the arguments of a verb.

    ``checkpoint``, ``status`` and ``stacks`` take none; ``join`` takes `role` (server or worker), ``leave`` a `rank`
    and ``tau`` a `tau`, both integers from 0. ``stop`` may have `by`, the name of the signal that it stands for.

    Raises:
        InputError: the verb is unknown, or its arguments are invalid.
    """
    if verb not in VERBS:
        raise InputError(f"no order is called {verb!r}; valid: {', '.join(VERBS)}")
    wanted = WANTED.get(verb)
    if verb == "stop" and set(arguments) == {"by"} and SIGNAL.fullmatch(str(arguments["by"])):
        return
    if set(arguments) != ({wanted} if wanted else set()):
        raise InputError(f"{verb} takes {f'one argument, its {wanted}' if wanted else 'no argument'}")
    if wanted == "role":
        if arguments["role"] not in ROLES:
            raise InputError(f"join {arguments['role']!r}: a spare joins as {' or '.join(ROLES)}")
    elif wanted:
        value = arguments[wanted]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InputError(f"{verb} {value!r}: {wanted} must be an integer, at least 0")
        if value > typed.MOST:
            raise InputError(f"{verb} {value}: {wanted} must be at most {typed.MOST:,}")


# --- the leader's side -----------------------------------------------------------------------


class Orders:
    """The leader's side: finds orders in a run's folder, each once, and answers them.

    Errors of the file system are not raised: a file that cannot be read, and an answer that cannot be written, is tried
    again at the next `poll`.

    Args:
        folder: the run's folder.
        now: seconds that only grow.
        period: seconds between two polls of the folder.
        start: the id of this start; "": orders for any start are taken.
    """

    def __init__(
        self,
        folder: Path,
        now: Callable[[], float],
        period: float = 0.2,
        start: str = "",
    ) -> None:
        self._folder, self._now, self._period, self._start = folder / "orders", now, period, start
        self._next = self._refresh = now()
        self._given: set[str] = set()
        self._unsent: dict[str, tuple[bool, str]] = {}
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)

    def poll(self) -> list[Order]:
        """Return new orders, oldest first; polls the folder at most every `period` seconds."""
        now = self._now()
        if now < self._next:
            return []
        self._next = now + self._period
        if self._folder.is_symlink():
            return []
        if now >= self._refresh:
            self._refresh = now + REFRESH
            refresh(self._folder)
        for name, (ok, text) in list(self._unsent.items()):
            self._send(name, ok, text)
        try:
            names = set(os.listdir(self._folder))
        except OSError:
            return []
        orders = sorted(name.removesuffix(".json") for name in names if NAME.fullmatch(name))
        self._given.intersection_update(orders)
        new = [name for name in orders if name not in self._given and name + ANSWER not in names]
        found = [order for name in new[:MOST] if (order := self._open(name)) is not None]
        after = self._now()
        self._next = max(self._next, after + (after - now) / SHARE)
        return found

    def answer(self, order: Order, ok: bool, text: str) -> None:
        """Answer an order: whether it was executed, and a text."""
        self._send(order.name, ok, text)

    def is_open(self, order: Order) -> bool:
        """Return whether its sender still waits for the answer: otherwise it has withdrawn the order."""
        return os.path.lexists(self._folder / f"{order.name}.json")

    def _open(self, name: str) -> Order | None:
        """Read an order; an invalid one is answered, one that cannot be read now is left for the next poll."""
        try:
            text = read_bytes(self._folder / f"{name}.json", follow=False, most=LONGEST)
        except OSError as error:
            if error.errno in NEVER:
                self._given.add(name)
                if error.errno != errno.EISDIR:
                    self._send(name, False, f"not an order: {error.strerror}")
            return None
        self._given.add(name)
        try:
            order, start = parse(name, text)
        except InputError as error:
            self._send(name, False, str(error))
            return None
        if self._start not in ("", start):
            self._send(name, False, "the order was for an earlier start of the run, which has ended")
            return None
        return order

    def _send(self, name: str, ok: bool, text: str) -> None:
        self._unsent[name] = (ok, text)
        try:
            # Without the order's file, its sender no longer waits.
            if os.path.lexists(self._folder / f"{name}.json"):
                create(self._folder / (name + ANSWER), {"ok": ok, "text": text})
        except OSError:
            return
        del self._unsent[name]


def parse(name: str, text: bytes) -> tuple[Order, str]:
    """Parse an order's file; return the order, and the id of the start that it is for.

    Raises:
        InputError: it is not an order.
    """
    try:
        read = json.loads(text)
        verb, arguments, start = read["verb"], read["arguments"], read["start"]
        if not isinstance(verb, str) or not isinstance(arguments, dict) or not isinstance(start, str):
            raise TypeError("its verb or start is not a string, or its arguments are not a table")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"not an order: {type(error).__name__}: {' '.join(str(error).split())}") from None
    check(verb, arguments)
    return Order(name, verb, arguments), start


# --- the login node's side -------------------------------------------------------------------


def ask(
    run_folder: Path,
    verb: str,
    arguments: Mapping[str, Any] | None = None,
    patience: float = 10.0,
) -> tuple[bool, str]:
    """Send an order to a running job and wait for the answer.

    Returns whether it was executed, and the leader's text; False and one line if the run is over or ends before an
    answer, or if there is no answer within `patience` seconds: the order is then withdrawn.

    Raises:
        InputError: the folder is not a run folder, cannot be written, or the order is invalid.
    """
    arguments = dict(arguments or {})
    check(verb, arguments)
    run = RunFolder(run_folder)
    if not (run.run.exists() or run.result.exists()):
        raise InputError(f"{run_folder}: not a run folder (there is no run.json in it)")
    refresh(run.path)
    if over := _end_of(run):
        return False, over
    folder = run.path / "orders"
    name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    order = {"verb": verb, "arguments": arguments, "start": _start_of(run)}
    try:
        inside(run.path, folder.name).mkdir(exist_ok=True)
        create(folder / f"{name}.json", order)
    except OSError as error:
        raise cannot_write(folder, error, "the order cannot be written") from None
    try:
        answered = _await(run, folder / (name + ANSWER), patience)
    finally:
        # Before its answer, without which the order would be open again.
        remove(folder / f"{name}.json")
    # The answer may have been written since the last poll.
    answered = answered or read_answer(folder / (name + ANSWER))
    remove(folder / (name + ANSWER))
    return answered or (
        False,
        f"no answer within {patience:g} s, and the order was withdrawn; is the run alive? {run.path}",
    )


def _await(run: RunFolder, answer: Path, patience: float) -> tuple[bool, str] | None:
    """Wait for an answer or the run's end; None after `patience` seconds without either."""
    began = refreshed = time.monotonic()
    pause = 0.01
    while True:
        now = time.monotonic()
        if now - refreshed >= REFRESH:
            refreshed = now
            refresh(answer.parent)
        # Before the answer is read, since a run answers first and then ends.
        over = _end_of(run)
        if answered := read_answer(answer):
            return answered
        if over:
            return False, over
        if now - began >= patience:
            return None
        time.sleep(min(pause, max(0.0, began + patience - now)))
        pause = min(2 * pause, 0.2)


def _start_of(run: RunFolder) -> str:
    """Return the id of a run's last start; "" if it is not known."""
    with suppress(InputError, OSError):
        return str((run.read_run() or {}).get("id", ""))
    return ""


def _end_of(run: RunFolder) -> str:
    """Return a text if a run is over; "" if it is not."""
    try:
        result = run.read_result()
    except (OSError, ValueError):
        return ""
    # A provisional result: the run was asked to stop and may still finish normally.
    if result is None or result.get("provisional"):
        return ""
    return f"the run is over ({result.get('status', 'failed')}): {run.path}"


def read_answer(path: Path) -> tuple[bool, str] | None:
    """Read an answer; None while there is none."""
    try:
        read = json.loads(read_text(path, follow=False, most=LONGEST))
        return bool(read["ok"]), str(read["text"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def named_run(named: str) -> Path:
    """Return the folder of a run as a command is given it: `latest` is the one under runs/ that was started last.

    Raises:
        InputError: `latest`, and there is none.
    """
    return newest(Path("runs")) if named == LATEST else Path(named)


def newest(runs: Path, among: Iterable[Path] | None = None) -> Path:
    """Find the run under a folder, or `among` some, with the latest start in its run.json; it may have failed.

    Without a start, as of a run on the twin, the modification time of run.json, or else of job.toml, counts. It also
    orders the runs of one second.

    Raises:
        InputError: there is none.
    """
    started = []
    for path in runs.glob("*/") if among is None else among:
        folder = RunFolder(path)
        with suppress(OSError):
            if not folder.run.exists() and not (folder.result.exists() and folder.job.exists()):
                continue
            written = (folder.run if folder.run.exists() else folder.job).lstat().st_mtime
            try:
                start = (folder.read_run() or {}).get("started", "")
                began = datetime.fromisoformat(start).timestamp()
            except (ValueError, OverflowError):
                # Damaged, or of an earlier version.
                began = written
            started.append((began, written, path))
    if not started:
        raise InputError(f"there is no run under {runs}: name a run folder")
    return max(started)[2]


# --- files -----------------------------------------------------------------------------------


def create(path: Path, value: Mapping[str, Any]) -> None:
    """Create a JSON file atomically."""
    with replacing(path, "w", durable=False) as file:
        json.dump(value, file)


def remove(path: Path) -> None:
    """Remove a file if it exists and that is possible."""
    with suppress(OSError):
        path.unlink()
