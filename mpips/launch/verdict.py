"""The outcome of `mpips run`: its exit code and last line, from the run's `result.json`.

Launchers do not always pass exit codes on, and a run that has survived deaths, perhaps also that of its launcher, may
have completed.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpips.exit_codes import ExitCode
from mpips.provenance.first_failure import sentence

ERROR = "mpips: error: "
"""The beginning of the line in which a rank prints why it ends."""


def judge(
    result: Mapping[str, Any] | None,
    launcher_code: int,
    folder: Path,
    first: Mapping[str, Any] | None = None,
    output: str = "",
) -> tuple[int, str]:
    """Return the exit code of `mpips run`, from `result.json`, and its last line.

    `first` is the first rank to fail, if it is known; `output` is the last output of the ranks.
    """
    if result is None:
        why = no_result(launcher_code, output)
        blame = f"; first to fail: {sentence(first, why)}" if first else ""
        return code_of(launcher_code), f"mpips: failed: {why}{blame}; run folder: {folder}"
    status, cut_by = result.get("status"), result.get("evaluation_cut_by")
    cut = f", its evaluation cut short by {cut_by}" if cut_by else ""
    if status == "completed":
        return (
            ExitCode.COMPLETED,
            f"mpips: completed{after_recoveries(result.get('recoveries'))}{cut}; run folder: {folder}",
        )
    if status == "stopped":
        why = f" ({result['stopped_by']})" if result.get("stopped_by") else ""
        where = f" from {result['checkpoint']}" if result.get("checkpoint") else ""
        again = f"--run-dir {shlex.quote(str(folder))} --resume latest"
        if result.get("before_training"):
            what = f"resume{where}" if where else "there is no checkpoint; start it again"
            line = (
                f"mpips: stopped before anything was trained{why}; {what} with: {again}; run folder: {folder}"
            )
            return ExitCode.STOPPED, line
        return (
            ExitCode.STOPPED,
            f"mpips: stopped with a checkpoint{why}; resume{where} with: {again}; run folder: {folder}",
        )
    given = result.get("exit_code")
    code = given if isinstance(given, int) and given > 0 else ExitCode.FAILED
    reason = " ".join(str(result.get("error") or ended_text(launcher_code)).split())
    if first and code != ExitCode.BAD_INPUT:
        if f"rank {first['rank']} " in reason:
            reason += f"; first to fail: {sentence(first, reason)}"
        else:
            # The error of another rank, a consequence of the first failure.
            error = str(first["error"])
            reason = f"{error}; first to fail: {sentence(first, error)}; then {reason}"
    return code, f"mpips: failed: {reason}; run folder: {folder}"


def after_recoveries(recoveries: object) -> str:
    """Return how many deaths a run has survived, as text; "" if none."""
    number = len(recoveries) if isinstance(recoveries, list) else 0
    return f" after {number} {'recovery' if number == 1 else 'recoveries'}" if number else ""


def no_result(launcher_code: int, output: str = "") -> str:
    """Return the reason of a run without a result: the error that a rank has printed, if one has."""
    errors = [line for line in output.splitlines() if line.startswith(ERROR)]
    if errors:
        return errors[-1].removeprefix(ERROR)
    return f"the ranks left no result.json ({ended_text(launcher_code)}); their output is above"


def code_of(launcher_code: int) -> ExitCode:
    """Return the exit code of a run without a result: that of the ranks, where launchers pass it on."""
    passed_on = ExitCode.BAD_INPUT, ExitCode.UNWRITABLE
    return ExitCode(launcher_code) if launcher_code in passed_on else ExitCode.FAILED


def ended_text(code: int) -> str:
    """Return how a process ended."""
    if code >= 0:
        return f"the launcher ended with exit code {code}"
    try:
        return f"the launcher was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"the launcher was ended by signal {-code}"
