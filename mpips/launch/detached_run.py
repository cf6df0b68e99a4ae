"""A run whose ranks outlive their launcher, as `mpips run` sees it.

output      follows the files that ranks write (`mpips.rundir.output_files`)
stop        an order in the run's folder, as `mpips ctl RUN stop` gives it
kill        a result "failed": who is left of the run ends when there is a result (`mpips.rank.detachment`)
end         there is a result; or, once the launcher has ended, no rank of this host lives, and no rank elsewhere
            renews the claim of the run's folder
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from mpips.errors import InputError
from mpips.exit_codes import ExitCode
from mpips.files.listing import REFRESH, refresh
from mpips.files.safe_open import read_text
from mpips.launch import node_beat
from mpips.process.host import host_name
from mpips.process.stand_in import LOST
from mpips.process.supervisor import OPTION, Supervisor
from mpips.rundir import claim, order_files
from mpips.rundir.folder import RunFolder, write_json
from mpips.rundir.output_files import Follower

PATIENCE = 2 * claim.PATIENCE
"""Seconds without a renewal of the claim after which no rank lives: another leader may have to be elected first."""
NODE_PATIENCE = 20.0
"""Seconds without a sign of a node, before the run has begun, after which it is lost: file systems stall at a start."""
_LARGEST = 256
ORDERED = 10.0
"""Seconds that an order to stop is open."""


class DetachedRun:
    """See the module. `launcher` is the kind of the launcher; `folder` is claimed by this process."""

    def __init__(self, folder: RunFolder, launcher: str, now: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._launcher, self._now = folder, launcher, now
        self._follower = Follower(folder.path)
        self._ordering: threading.Thread | None = None
        # The hosts of the ranks, as soon as they are known.
        self._hosts: set[str] = set()
        self._claim = claim.renewal(folder.path)
        # When the result and the claim of another host are looked for again, and the signs of nodes.
        self._refresh = self._claim_since = self._look = now()
        own = "" if folder.held is None else folder.held.id
        self._lost = folder.path / LOST.format(own)
        # By the name of its file: the last sign of each node, and since when.
        self._beats: dict[str, tuple[str, float]] = {}
        self._starting = node_beat.FILE.format(own, "")

    def arguments(self) -> list[str]:
        """Return the arguments by which ranks know this process, and that they shall outlive their launcher."""
        return [OPTION, str(Supervisor.here(self._launcher))]

    def output(self, at_once: bool = False) -> list[tuple[int, bytes]]:
        """Return the new output of the ranks, as (descriptor of the stream, bytes)."""
        return self._follower.poll(at_once)

    def ask_to_stop(self, by: str) -> None:
        """Order the leader to stop the run because of the signal named `by`, until it has answered."""
        if self._ordering is None:
            self._ordering = threading.Thread(target=self._order, args=(by,), name="mpips-stop", daemon=True)
            self._ordering.start()

    def _order(self, by: str) -> None:
        answered = False
        while not answered:
            began = self._now()
            # The folder may not be reachable for some time.
            with suppress(InputError, OSError):
                answered, _ = order_files.ask(self._folder.path, "stop", {"by": by}, ORDERED)
            time.sleep(max(0.0, began + 1.0 - self._now()))

    def lost_at_start(self) -> str:
        """Return which rank has failed before it left the launcher; "" if none has."""
        self._list_anew()
        with suppress(OSError, ValueError):
            return read_text(self._lost, follow=False, most=_LARGEST)
        return ""

    def lost_node(self) -> str:
        """Return which node is lost before the run has begun; "" if none is.

        Only while other nodes give signs: else it is the file system that does not answer.
        """
        now, beats = self._now(), {}
        if now < self._look:
            return ""
        self._look = now + node_beat.PERIOD
        self._list_anew()
        with suppress(OSError):
            for name in os.listdir(self._folder.path):
                if name.startswith(self._starting):
                    text, since = self._read_beat(name), now
                    if name in self._beats and text in ("", self._beats[name][0]):
                        text, since = self._beats[name]
                    beats[name] = text, since
        self._beats = beats
        ages = {name.removeprefix(self._starting): now - since for name, (_, since) in beats.items()}
        silent = [name for name, age in ages.items() if age >= NODE_PATIENCE]
        return min(silent) if silent and min(ages.values()) < NODE_PATIENCE / 2 else ""

    def _read_beat(self, name: str) -> str:
        with suppress(OSError, ValueError):
            return read_text(self._folder.path / name, follow=False, most=_LARGEST)
        return ""

    def close(self) -> None:
        """Remove the files of such ranks and nodes."""
        for path in (self._lost, *self._folder.path.glob(f"{self._starting}*")):
            with suppress(OSError):
                path.unlink()

    def kill(self, why: str) -> None:
        """End all ranks, unless the run has a result."""
        with suppress(InputError, OSError):
            if not self._folder.has_result():
                write_json(
                    self._folder.result, {"status": "failed", "exit_code": ExitCode.FAILED, "error": why}
                )

    def lives_elsewhere(self) -> bool:
        """Return whether ranks of other hosts continue the run, which has no result."""
        # The folder may not be readable for some time.
        with suppress(InputError, OSError):
            run = self._folder.read_run() or {}
            self._hosts = {each.get("host", "") for each in run.get("ranks", ())} or self._hosts
        if self._hosts <= {host_name()}:
            return False
        self._list_anew()
        found, now = claim.renewal(self._folder.path), self._now()
        # Until a rank has claimed the folder, this process renews its own claim.
        own = self._folder.held is not None and found[0] == self._folder.held.id
        if found != self._claim and not own:
            self._claim, self._claim_since = found, now
        return now - self._claim_since < PATIENCE

    def _list_anew(self) -> None:
        """List the folder anew from time to time."""
        if self._now() >= self._refresh:
            self._refresh = self._now() + REFRESH
            refresh(self._folder.path)
