"""`mpips doctor`: check whether ranks can run here, and how fast they communicate."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from mpips.process.argument_parser import add_command, add_launcher

DESCRIPTION = """\
Check what a run needs (MPI and its launcher, HDF5, a folder for compiled kernels, cores), and exchange messages
between two ranks. Reports problems and their solutions; exit code 1 if no run can work here. In a Slurm allocation it
also tries srun with each plugin that may fit the MPI, some seconds each, and shows the command line that starts a job
as one world. With another one, N ranks may start as N worlds of one rank each. On several nodes it also tries whether
ranks of the chosen launcher continue without a node.

  mpips doctor
  salloc -N 2 mpips doctor                      which launcher and PMI fit, in an allocation
  salloc -N 2 mpips doctor --launcher srun      what ranks survive under srun
  mpips doctor --json                           the same as JSON
"""

LATENCY = 20e-6
"""One-way latency of two ranks of one machine, s: rarely exceeded unless they share a core."""
PATIENCE = 60.0
"""Time limit for two ranks to start and exchange messages, s."""
REPORTED = 15.0
"""Time limit for ranks to report that they have outlived their launcher, after its end, s."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "doctor", "check this machine: MPI, launcher, speed", DESCRIPTION, command
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    add_launcher(parser)


def command(arguments: argparse.Namespace) -> int:
    """Examine the machine and print the findings."""
    import os

    from mpips.process.printable import json_text
    from mpips.process.terminal.width import width

    check_single_copy(os.environ)
    findings = examine(arguments.launcher)
    findings["advice"] = advice(findings)
    print(json_text(findings) if arguments.json else describe(findings, width()))
    return 0 if findings["ping"].get("size") == 2 or _fitting(findings) else 1


def check_single_copy(environ: Mapping[str, str], name: str = "doctor") -> None:
    """Raise InputError if srun started several copies of a command: each would examine the same machine."""
    from mpips.errors import InputError
    from mpips.exit_codes import ExitCode
    from mpips.launch.slurm_env import number

    tasks = number(environ.get("SLURM_STEP_NUM_TASKS")) or 1
    if environ.get("SLURM_STEP_ID", "").isdecimal() and tasks > 1:
        if environ.get("SLURM_PROCID", "0") != "0":
            raise SystemExit(ExitCode.BAD_INPUT)
        raise InputError(
            f"srun started {tasks} copies of `mpips {name}`: run it once, in the batch script or after salloc"
        )


def _fitting(findings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List the trials of srun that started one world."""
    return [trial for trial in findings.get("slurm", {}).get("trials", ()) if trial["fits"]]


def examine(launcher: str) -> dict[str, Any]:
    """Collect all findings; a failure is a finding too."""
    import os
    import platform
    import time

    from mpips.errors import InputError
    from mpips.launch import mpi_launcher, slurm_env
    from mpips.launch.checks import launcher_probe, machine
    from mpips.provenance.provenance import hdf5_version, versions

    findings: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": versions(),
        "hdf5": hdf5_version(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel_cache": machine.kernel_folder_facts(),
        "mpi": {},
        "launcher": {},
        "ping": {},
    }
    findings |= slurm_env.facts(os.environ, slurm_env.end_time(os.environ, time.time()))
    try:
        mpi = mpi_launcher.find_mpi()
    except InputError as error:
        findings["ping"] = {"error": str(error)}
        return findings
    if "slurm" in findings:
        findings["slurm"] |= launcher_probe.try_all(mpi.kind)
    name = " ".join(mpi.text.split("\n")[0].split(",")[0].split())
    findings["mpi"] = {"vendor": mpi.vendor, "version": mpi.version, "standard": mpi.standard}
    findings["mpi"] |= {"library": mpi.library, "name": name}
    try:
        starter = mpi_launcher.find_starter(launcher)
        findings["launcher"] = {"kind": starter.kind, "path": starter.path}
        findings["ping"] = ping(starter)
        findings["outlives"] = outliving(starter, findings["ping"])
    except InputError as error:
        findings["ping"] = {"error": str(error)}
    if "slurm" in findings:
        succeeds, trials = findings["ping"].get("size") == 2, findings["slurm"].get("trials", [])
        by_mpirun = succeeds and findings["launcher"]["kind"] != "srun"
        findings["use"] = launcher_probe.lines_to_use(
            mpi.kind, by_mpirun, trials, bool(findings["ping"].get("ulfm"))
        )
    return findings


def ping(starter: Any) -> dict[str, Any]:
    """Exchange messages between two ranks, with ULFM if the launcher supports it."""
    from mpips.launch import mpi_launcher
    from mpips.launch.checks import launcher_probe
    from mpips.process import interpreter

    failure = ""
    nothing, ranks = mpi_launcher.Survival.NOTHING, mpi_launcher.Survival.RANKS
    for survive in (ranks, nothing) if starter.kind == "openmpi" else (nothing,):
        program = [
            *interpreter.python(),
            "-m",
            "mpips.launch.checks.ping",
            "-",
            *(["--may-die"] if survive else []),
        ]
        planned = mpi_launcher.plan(starter, 2, program, survive=survive)
        trial = launcher_probe.start(str(planned), planned.line, planned.environment(), PATIENCE)
        if trial.found:
            return dict(trial.found)
        failure = f"{planned}: {trial.said}"
    return {"error": failure}


def outliving(starter: Any, ping: Mapping[str, Any]) -> str | None:
    """Test whether ranks outlive a daemon of their launcher; under srun, whose daemons are root's, another rank.

    Returns "daemon" or "rank", what they outlive; "" if they do not. None if it was not tested: the MPI does not
    support it, there is one node only, or the ranks do not see the folder of their report.
    """
    import json
    import os
    import tempfile
    import time
    from contextlib import suppress
    from pathlib import Path

    from mpips.launch import mpi_launcher
    from mpips.process import interpreter

    if not starter.mpi.ulfm or ping.get("size") != 2 or mpi_launcher.node_count(os.environ) < 2:
        return None
    killed = "rank" if starter.kind == "srun" else "daemon"
    # Under salloc, this may be a login node, of which other nodes do not see /tmp.
    here = os.getcwd() if os.access(os.getcwd(), os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix=".mpips-doctor-", dir=here, ignore_cleanup_errors=True) as folder:
        report = Path(folder) / "outlives.json"
        result: dict[str, Any] = {}
        program = [*interpreter.python(), "-m", "mpips.launch.checks.outliving", str(report), killed]
        planned = mpi_launcher.plan(starter, 2, program, survive=mpi_launcher.Survival.NODES)
        planned.run(PATIENCE)
        # Ranks that outlive the launcher report after its end.
        deadline = time.monotonic() + REPORTED
        while not result.get("outlives") and time.monotonic() < deadline:
            time.sleep(0.1)
            with suppress(OSError, ValueError):
                result = json.loads(report.read_text())
    if not result:
        return None
    return killed if result.get("outlives") else ""


def advice(findings: Mapping[str, Any]) -> list[str]:
    """Describe problems, and how to solve them."""
    from mpips.launch.checks import machine

    problems, ping, packages = [], findings["ping"], findings["packages"]
    if "error" in ping:
        problems.append(f"two ranks could not exchange messages: {ping['error']}")
    elif ping["size"] != 2:
        problems.append(
            "two ranks started as two worlds of one rank: the launcher does not belong to the MPI that mpi4py loads; "
            "under srun, use --mpi=pmix for Open MPI and --mpi=pmi2 for MPICH"
        )
    elif ping["latency_seconds"] > LATENCY and ping.get("hosts", 1) == 1:
        problems.append(
            "messages between two ranks of this machine are slow: do they share a core, or is the machine busy?"
        )
    problems += _srun_advice(findings)
    checks = [machine.wheels(packages), machine.kernel_folder(findings["kernel_cache"])]
    checks.append(machine.cores(findings["cores"]))
    problems += [check.mend for check in checks if check.mend]
    return problems


def _srun_advice(findings: Mapping[str, Any]) -> list[str]:
    """Describe which launchers start worlds of one rank here, and which to use instead."""
    trials, use = findings.get("slurm", {}).get("trials", []), findings.get("use", [])
    apart = [trial["launcher"] for trial in trials if "worlds of one" in trial["said"]]
    if not use:
        return (
            ["neither the MPI's launcher nor srun starts one world here: see the lines above"]
            if trials
            else []
        )
    if not apart:
        return []
    lines = " or ".join(f"`{line.split('  #')[0].strip()}`" for line in use)
    return [
        f"N worlds of one rank each are started, without an error, by `{'` and `'.join(apart)}`: use {lines}"
    ]


def live_recovery(findings: Mapping[str, Any]) -> str:
    """Describe whether a run can continue here when a rank dies, as tested by killing one."""
    mpi, succeeds = findings["mpi"], findings["ping"].get("ulfm")
    # Ranks under srun survive the death of another one only after they have left srun.
    succeeds = True if findings.get("outlives") == "rank" else succeeds
    if succeeds is None:
        return "-"
    name = f"{mpi['vendor']} {mpi['version']}"
    if succeeds:
        return f"yes ({name}, ULFM)"
    if findings["launcher"].get("kind") == "srun":
        name = f"{name} under srun"
    return f"no: {name}: a rank's death ends the run; continue with --resume latest"


def node_loss(findings: Mapping[str, Any]) -> str:
    """Describe whether a run can continue here without a node; "" if that was not tested."""
    return {
        None: "",
        "": "no: the loss of a node ends the run; continue with --resume latest",
        "daemon": "yes (tested by killing a launch daemon)",
        "rank": "yes, in an allocation that Slurm does not end with a node: --no-kill (tested by killing a rank)",
    }[findings.get("outlives")]


def describe(findings: Mapping[str, Any], width: int = 1000) -> str:
    """Format the findings as text, for lines of `width` characters."""
    import textwrap

    from mpips.rundir.progress import bytes_si

    mpi, ping, cache = findings["mpi"], findings["ping"], findings["kernel_cache"]
    rows = [
        ("MPI", f"{mpi['name']} (MPI {mpi['standard']})" if mpi else "none"),
        ("library", mpi.get("library") or "-"),
        ("launcher", findings["launcher"].get("path", "none")),
        ("thread level", ping.get("thread_level", "-")),
        ("live recovery", live_recovery(findings)),
    ]
    rows += [("node loss", lost)] if (lost := node_loss(findings)) else []
    if "latency_seconds" in ping:
        speed = bytes_si(ping["bytes_per_second"])
        rows.append(("ping", f"{ping['latency_seconds'] * 1e6:.1f} us one way, {speed}/s"))
    rows += [
        ("HDF5", f"{findings['hdf5']} (h5py {findings['packages'].get('h5py', '?')})"),
        ("kernels in", f"{cache['path']}{'' if cache['writable'] else ' (cannot be written)'}"),
        ("cores", str(findings["cores"])),
        ("Python", findings["python"]),
    ]
    lines = [f"{name:<13} {value}" for name, value in rows]
    lines += _allocation_lines(findings)
    problems = findings["advice"] or ["no problems found"]
    start = "- " if findings["advice"] else ""
    said: list[str] = []
    for each in problems:
        said += textwrap.wrap(each, width, initial_indent=start, subsequent_indent=" " * len(start),
                              break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return "\n".join([*lines, "", *said])


def _allocation_lines(findings: Mapping[str, Any]) -> list[str]:
    """Format the trials in the allocation, and which launcher to use."""
    slurm = findings.get("slurm")
    if slurm is None:
        return []
    nodes = slurm["nodes"] or []
    names = ", ".join(nodes[:4]) + (f" and {len(nodes) - 4} more" if len(nodes) > 4 else "")
    lines = ["", f"in job {slurm['job_id']} on {len(nodes)} node{'' if len(nodes) == 1 else 's'} ({names}):"]
    ping = findings["ping"]
    if findings["launcher"].get("kind") in ("openmpi", "mpich"):
        size = ping.get("size")
        where = f"on {ping['hosts']} nodes" if ping.get("hosts", 1) > 1 else "on one node"
        world = f"one world of 2 ranks {where}" if size == 2 else "worlds of one rank each"
        name = findings["launcher"]["path"].rpartition("/")[2]
        lines.append(f"  {name:<24} {world if size else 'no: ' + ping.get('error', '')[-160:]}")
    for trial in slurm.get("trials", ()):
        lines.append(f"  {trial['launcher']:<24} {trial['said'][:120]}")
    if slurm.get("plugins"):
        lines.append(f"  srun has {', '.join(slurm['plugins'])}")
    use = findings.get("use", [])
    return [*lines, *(f"{'use:' if not number else '    '} {line}" for number, line in enumerate(use))]
