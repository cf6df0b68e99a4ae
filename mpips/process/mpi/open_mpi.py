"""Avoids two faults of Open MPI 5 when MPI is initialized.

A pause of a second. The BTL `ofi` serves one-sided communication over fabrics with RDMA. Where libfabric has no such
fabric, Open MPI closes it again, and closing it sleeps for one second (`mca_btl_ofi_component_close`). Messages never
use it by default, so nothing is lost without it: over such fabrics they go by the MTL `ofi` or by UCX.

A segmentation fault. A rank registers MPI_COMM_WORLD for messages after the last fence of `MPI_Init`. A rank that
leaves the fence earlier may send to one that has not left it, and that one crashes in
`mca_pml_ob1_recv_frag_callback_match` (open-mpi/ompi, issue 12495 and pull request 13559). Within a host ranks leave it
at about the same time; with Slurm's PMIx and two nodes, 1 to 5 of 100 starts crashed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

SELECTION = "OMPI_MCA_btl"
"""The environment variable that selects BTLs; `mpirun --mca btl` sets it too."""

PARAMETER_FILES = "OMPI_MCA_mca_base_param_files"
"""The environment variable that names other parameter files than the usual ones."""

FABRICS = ("/sys/class/infiniband", "/sys/class/cxi")
"""Folders with an entry for each device that libfabric can use for RDMA: InfiniBand, Omni-Path, EFA; Slingshot."""

SPREAD = 0.05
"""Seconds within which the ranks of all hosts leave `MPI_Init`."""


def initialize(mpi: Any, level: int | None = None) -> None:
    """Initialize MPI with a thread level, by default MPI_THREAD_MULTIPLE; `mpi` is `mpi4py.MPI`."""
    leave_out_ofi(os.environ)
    mpi.Init_thread(mpi.THREAD_MULTIPLE if level is None else level)
    await_world(os.environ)


def leave_out_ofi(
    environ: MutableMapping[str, str], fabrics: Iterable[str] = FABRICS, files: Iterable[Path] | None = None
) -> None:
    """Exclude the BTL `ofi`, before MPI is initialized.

    Nothing is changed if a device for RDMA exists, or if the user or the site selects BTLs.

    Args:
        environ: the environment that Open MPI reads.
        fabrics: folders that have entries if the machine has a fabric with RDMA.
        files: Open MPI's parameter files; by default those of the user and of the libraries that are loaded.

    >>> environ = {}
    >>> leave_out_ofi(environ, fabrics=[], files=[])
    >>> environ
    {'OMPI_MCA_btl': '^ofi'}
    """
    if SELECTION in environ or PARAMETER_FILES in environ:
        return
    if any(_has_entries(folder) for folder in fabrics):
        return
    if any(_selects(file) for file in (_parameter_files(environ) if files is None else files)):
        return
    environ[SELECTION] = "^ofi"


def await_world(environ: Mapping[str, str], sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until other hosts' ranks have left `MPI_Init` too; call it before the first message.

    Args:
        environ: this rank's environment, in which the launcher gives the numbers of ranks or nodes.
        sleep: waits for some seconds.

    >>> await_world({"SLURM_STEP_NUM_NODES": "2"}, sleep=print)
    0.05
    >>> await_world({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, sleep=print)
    """
    ranks, here = (environ.get(f"OMPI_COMM_WORLD_{name}", "") for name in ("SIZE", "LOCAL_SIZE"))
    if ranks != here or environ.get("SLURM_STEP_NUM_NODES", "1") != "1":
        sleep(SPREAD)


def _has_entries(folder: str) -> bool:
    try:
        return bool(os.listdir(folder))
    except OSError:
        return False


def _parameter_files(environ: Mapping[str, str]) -> list[Path]:
    name = "openmpi-mca-params.conf"
    maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
    libraries = {Path(path) for path in re.findall(r"(/.*/libmpi\.so\S*)$", maps, re.MULTILINE)}
    installed = [library.parent.parent / "etc" / name for library in libraries]
    return [
        Path(environ.get("HOME", "/"), ".openmpi", "mca-params.conf"),
        Path("/etc/openmpi", name),
        *installed,
    ]


def _selects(file: Path) -> bool:
    try:
        text = file.read_text(errors="surrogateescape")
    except OSError:
        return False
    return re.search(r"^\s*btl\s*=", text, re.MULTILINE) is not None
