"""The end of a rank: its final messages, the run's result, and the end of its process, forced after a time limit."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpips.cluster.layout import Cause
from mpips.cluster.view import View
from mpips.errors import InputError, cannot_write, exit_code, in_a_line
from mpips.exit_codes import ExitCode
from mpips.process.first_rank import SUPERVISED
from mpips.process.host import host_name
from mpips.process.printable import brief, printable
from mpips.provenance import first_failure, run_json
from mpips.rank.prepare import Prepared, advice, checkpoints
from mpips.rundir import log
from mpips.rundir.folder import RunFolder, json_of, write_text

LAST = 4.0
"""Seconds for MPI and Python to end; a launcher needs over one of them to act on an abort."""
LONGER = 30.0
"""The same after success, when a slow end is better than a forced one."""


def say(text: str) -> None:
    """Print a line to standard error, also from a signal handler."""
    try:
        print(brief(printable(text)), file=sys.stderr, flush=True)
    except RuntimeError:
        # Called from a signal handler during another print.
        os.write(sys.stderr.fileno(), f"\n{brief(printable(text))}\n".encode())


def end_for_thread(problem: threading.ExceptHookArgs) -> None:
    """End this rank, and so the run: the work of a failed thread of the program is lost."""
    text = "".join(traceback.format_exception(problem.exc_type, problem.exc_value, problem.exc_traceback))
    log.note("failed", logging.ERROR, error=f"a thread failed: {problem.exc_value}", trace=text)
    say(f"{text}mpips: error: a thread failed on {host_name()}: {problem.exc_value}")
    os.kill(os.getpid(), signal.SIGKILL)


def alarm(seconds: float) -> None:
    """End this process after `seconds`: MPI, a thread or an exit function may never return."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def end_hung(view: View, processes: Sequence[tuple[int, str]]) -> None:
    """Kill hung ranks on this host, given (process id, host) by rank: the launcher would wait for them."""
    for loss in view.losses:
        pid, host = processes[loss.rank]
        if loss.cause is Cause.HUNG and host == host_name() and _is_stopped(pid):
            os.kill(pid, signal.SIGKILL)


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


class ResultFile:
    """The run's result, as a rank writes it; without a `folder` nothing is written.

    `recorded`: whether `run.json` exists and is this run's.
    """

    def __init__(
        self, prepared: Prepared | None, folder: RunFolder | None = None, recorded: bool = False
    ) -> None:
        self._prepared, self.folder, self._recorded = prepared, folder, recorded
        self.reported_by_launcher = os.environ.get(SUPERVISED) in sys.argv[1:]
        """Whether `mpips run` reads the result, and reports it."""
        self._wrote = False
        self._unwritten = ExitCode.FAILED
        """The exit code of a run that succeeds, and whose result cannot be written."""

    def end(self, result: dict[str, Any]) -> int:
        """Write the result and print the error; return the exit code of every rank.

        A result that another rank has written is kept: there is one for each run.
        """
        if (others := self._of_another()) is not None:
            log.note("kept", logging.WARNING, result=others.get("status"))
            return ExitCode.COMPLETED if self.reported_by_launcher else int(others.get("exit_code") or 0)
        code, written = int(result["exit_code"]), self._write(result)
        if written and self.reported_by_launcher:
            return ExitCode.COMPLETED
        if "error" in result:
            say(f"mpips: error: {result['error']}")
        if "first_failure" in result:
            known = str(result.get("error", ""))
            say(f"mpips: first to fail: {first_failure.sentence(result['first_failure'], known)}")
        return code if written or "error" in result else self._unwritten

    def _write(self, result: dict[str, Any]) -> bool:
        """Write the result, after run.json's end if there is time for it; return whether it was written."""
        if self.folder is None:
            return False
        failed = "error" in result
        try:
            text = json_of(result)
            if self._recorded and not failed:
                self._conclude(self.folder, result, text)
            write_text(self.folder.result, text)
            self._wrote = True
        except (OSError, TypeError, ValueError) as error:
            if isinstance(error, OSError):
                why = in_a_line(cannot_write(self.folder.result, error))
            else:
                why = f"{self.folder.result}: cannot be written: {in_a_line(error)}"
            self._unwritten = exit_code(error)
            if not failed:
                say(f"mpips: error: {why}")
            return False
        if self._recorded and failed:
            self._conclude(self.folder, result, text)
        return True

    def fail(self, error: str, **facts: Any) -> None:
        """Write the result of a run that failed, if no other rank has written one."""
        if self._of_another() is None:
            self._write({"status": "failed", "exit_code": ExitCode.FAILED, "error": error, **facts})

    def fail_if_absent(self, error: str, over_provisional: bool = False) -> None:
        """Write the result of a run that failed, and how to resume it, if there is no result yet.

        `over_provisional`: also if there is a provisional one.
        """
        if self.folder is not None and (over_provisional or not self.folder.result.exists()):
            hint = "" if self._prepared is None else advice(self._prepared.job, self.folder)
            self.fail(error + hint)

    def _of_another(self) -> dict[str, Any] | None:
        """Return the result that another rank has written, unless it is provisional; None if there is none."""
        if self.folder is None or self._wrote:
            return None
        with suppress(InputError):
            found = self.folder.read_result()
            return None if found is None or found.get("provisional") else found
        return None

    def _conclude(self, folder: RunFolder, result: dict[str, Any], text: str) -> None:
        # Provenance that cannot be written does not fail a run.
        with suppress(Exception):
            where = None if self._prepared is None else checkpoints(self._prepared.job)
            run_json.conclude(folder, result, where, text)
