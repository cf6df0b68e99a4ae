"""The answer to `mpips ctl RUN stacks`: where each rank is in the program, what it waits for, and since when.

    leader                                        rank
    ------                                        ----
    ask all ranks -------------------------->     in its event loop: its lines of the program, its wait
    after PATIENCE seconds: a rank that does      busy, or hung: it answers nothing
    not answer is asked by a signal, by the
    leader or another rank on its host ----->     the signal's handler, in C, dumps the stack into memory
                                                  that processes of this user on this host can read

The handler is Python's faulthandler. It needs neither the rank's event loop nor Python's global lock.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from mpips.cluster.node import IDLE, Node
from mpips.cluster.registration import Registration
from mpips.errors import InputError
from mpips.process.host import host_name
from mpips.process.program_line import is_program
from mpips.rundir.folder import RunFolder
from mpips.rundir.order_files import LONGEST, Order
from mpips.transport.message import Command, Message

PATIENCE = 0.5
"""Seconds that ranks have to answer, and again those that look at others."""
SIGNAL = signal.SIGURG
"""It is ignored where no handler is installed."""
NAME = "mpips-stacks"
DUMP_TIME = 0.3
"""Seconds within which a stack is dumped; a rank that is stopped or in the kernel does not."""
QUIET = 0.05
"""Seconds without a further piece after which it is whole."""
MOST_BYTES = 1 << 20
"""Bytes of a stack that are read."""
MOST_LINES = 12
"""Lines of a rank's stack that are shown."""
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')


def serve() -> None:
    """Let other processes of this user on this host see the stack of this one; without effect where unsupported."""
    with suppress(OSError, AttributeError, RuntimeError, ValueError):
        faulthandler.register(SIGNAL, os.memfd_create(NAME), all_threads=False)


def dumped(pid: int) -> list[str]:
    """Return the stack of a process on this host, innermost line first; [] if it cannot be seen."""
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(entry).startswith(f"/memfd:{NAME}"):
                size = entry.stat().st_size
                os.kill(pid, SIGNAL)
                return _frames(_appended(entry, size))
    return []


def _appended(file: Path, size: int) -> str:
    """Return what a process appends to a file, piece by piece: once nothing more has come for some time."""
    began = changed = time.monotonic()
    last = size
    while (now := time.monotonic()) < began + DUMP_TIME and not (last > size and now > changed + QUIET):
        time.sleep(0.01)
        if (found := file.stat().st_size) != last:
            last, changed = found, now
    with file.open("rb") as opened:
        opened.seek(size)
        # Any process can have a file of this name.
        return opened.read(MOST_BYTES).decode(errors="replace")


def _frames(text: str) -> list[str]:
    found = [match.groups() for line in text.splitlines() if (match := _FRAME.match(line))]
    return _shortened([(file, int(line), name) for file, line, name in found])


def _shortened(frames: list[tuple[str, int, str]]) -> list[str]:
    """Return a stack, innermost first, without what calls the program; the first lines of a long one."""
    own = [at for at, (file, _, _) in enumerate(frames) if is_program(file)]
    shown = frames[: own[-1] + 1] if own else frames
    return [f"{file}:{line} in {name}" for file, line, name in shown[:MOST_LINES]]


def own_frames(frame: FrameType | None) -> list[str]:
    """Return the lines of the program in a stack, innermost first."""
    frames = []
    while frame is not None:
        frames.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    # The innermost ones answer this question.
    first = next((at for at, (file, _, _) in enumerate(frames) if is_program(file)), len(frames))
    return _shortened(frames[first:])


class Stacks:
    """The stacks of one rank, and at the leader those of all ranks.

    At the leader: `ask`, then answer the orders that `ready` returns with `text`.

    Args:
        node: this rank.
        processes: returns the process id and host of ranks.
    """

    def __init__(self, node: Node, processes: Callable[[], Mapping[int, tuple[int, str]]]) -> None:
        self.node, self._processes = node, processes
        self._pending: list[Order] = []
        self._deadline, self._looked = 0.0, False
        self._found: dict[int, dict[str, Any]] = {}
        node.register(
            Registration(controls={Command.ASK_STACKS: self._answer, Command.STACKS: self._receive})
        )

    def _answer(self, message: Message) -> None:
        """Send the leader this rank's stack, or those of the given processes on this host."""
        pids = message.meta.get("of")
        found = {self.node.rank: self._own()} if pids is None else _dumped_all(pids)
        self.node.control(
            message.sender, Command.STACKS, {"stacks": {str(rank): each for rank, each in found.items()}}
        )

    def _own(self) -> dict[str, Any]:
        node = self.node
        since, waits = node.time_use.since, node.waits_for()
        seconds = 0.0 if since is None else node.van.now() - since
        return {"frames": own_frames(sys._getframe()), "waits": waits, "seconds": seconds}

    def _receive(self, message: Message) -> None:
        self._found |= {int(rank): dict(each) for rank, each in message.meta["stacks"].items()}

    def ask(self, order: Order) -> None:
        """Queue an order, and ask all ranks unless they are asked already."""
        node = self.node
        if not self._pending:
            self._found, self._looked = {node.rank: self._own()}, False
            self._deadline = node.van.now() + PATIENCE
            for rank in node.view.alive:
                if rank != node.rank:
                    node.control(rank, Command.ASK_STACKS, {})
        self._pending.append(order)

    def ready(self) -> list[Order]:
        """Return the queued orders, once all ranks have answered or the time is over."""
        if not self._pending:
            return []
        silent = [rank for rank in self.node.view.alive if rank not in self._found]
        if silent and self.node.van.now() < self._deadline:
            return []
        if silent and not self._looked:
            self._looked, self._deadline = True, self.node.van.now() + PATIENCE + DUMP_TIME * len(silent)
            self._look_at(silent)
            return []
        orders, self._pending = self._pending, []
        return orders

    def _look_at(self, silent: list[int]) -> None:
        """Have silent ranks looked at by signals, on each host by a rank that answers."""
        processes = self._processes()
        by_host: dict[str, dict[str, int]] = {}
        for rank in silent:
            if rank in processes:
                pid, host = processes[rank]
                by_host.setdefault(host, {})[str(rank)] = pid
        for host, pids in by_host.items():
            there = [rank for rank in self._found if processes.get(rank, (0, ""))[1] == host]
            if host == host_name():
                self._found |= _dumped_all(pids)
            elif there:
                self.node.control(there[0], Command.ASK_STACKS, {"of": pids})

    def text(self) -> str:
        """Return the stacks, a block of lines for each rank, or for several with the same."""
        blocks: dict[str, list[int]] = {}
        for rank in self.node.view.alive:
            blocks.setdefault(_block(self._found.get(rank)), []).append(rank)
        lines = []
        for block, ranks in blocks.items():
            names = ", ".join(f"rank {rank} ({self.node.layout.places[rank]})" for rank in ranks)
            lines.append(f"{names} {block}")
        text = "\n".join(lines)
        # An answer is a small file.
        return text if len(text) < LONGEST // 2 else text[: LONGEST // 2] + "\n..."


def text_here(folder: RunFolder) -> str:
    """Return the stacks of a run's ranks on this host, by signals only: its leader does not answer; "" if none live."""
    here = {str(rank): pid for rank, (pid, host) in processes_of(folder).items() if host == host_name()}
    found = {rank: each for rank, each in _dumped_all(here).items() if each["frames"]}
    return "\n".join(f"rank {rank} {_block(each)}" for rank, each in found.items())


def _dumped_all(pids: Mapping[str, int]) -> dict[int, dict[str, Any]]:
    return {int(rank): {"frames": dumped(pid), "waits": None, "seconds": 0.0} for rank, pid in pids.items()}


def _block(found: Mapping[str, Any] | None) -> str:
    if found is None or (found["waits"] is None and not found["frames"]):
        return "does not answer, and its stack cannot be seen"
    if found["waits"] is None:
        head = "is busy, in"
    elif found["waits"] == "":
        head = "works, in" if found["frames"] else "works"
    elif found["waits"] == IDLE:
        return f"waits for {IDLE}"
    else:
        head = f"has waited {found['seconds']:.1f} s for {found['waits']}"
    return "\n  ".join([head, *found["frames"]])


def processes_of(folder: RunFolder) -> dict[int, tuple[int, str]]:
    """Return the process id and host of each rank of a run, as its `run.json` has them."""
    with suppress(InputError, KeyError):
        return {
            each["rank"]: (each["pid"], each["host"]) for each in (folder.read_run() or {}).get("ranks", [])
        }
    return {}
