"""Virtual hosts that are the nodes of a Slurm: its controller is at the switch, and one slurmd on each host."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from glob import glob
from pathlib import Path

from hosts.virtual_hosts import VirtualHosts, address

CONTROLLER = 254
"""The number in the controller's address."""
DAEMONS = ("slurmd", "slurmstepd", "salloc", "srun")
"""Slurm's own processes on a host."""
PORT, NODE_PORT = 6817, 6818
CPUS = 8
"""Processors that each node claims."""
READY = 60.0
"""Seconds within which all nodes take jobs on a busy machine."""
COMMON = Path(__file__).resolve().parents[2] / "slurm/testing/common.conf"
CONFIGURATION = """\
ClusterName=hosts
SlurmctldHost=localhost({controller})
SlurmctldPort={port}
SlurmdPort={node_port}
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile=/dev/shm/slurmd.pid
SlurmdLogFile={folder}/logs/slurmd-%n.log
SlurmdSpoolDir=/dev/shm/spool
TmpFS=/dev/shm
NodeName=h[1-{count}] NodeAddr={nodes} CPUs={cpus} RealMemory=64000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
"""


def slurm_unavailable() -> str:
    """Return why there can be no Slurm on virtual hosts; "" if there can."""
    for tool in ("munged", "slurmctld", "slurmd", "salloc"):
        if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
            return f"there is no {tool}: slurm/testing/cluster.sh up installs it"
    return ""


class SlurmHosts(VirtualHosts):
    """See the module; what befalls a host befalls its slurmd."""

    def __init__(self, count: int) -> None:
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._nodes: list[socket.socket] = []
        super().__init__(count)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all hosts, and the Slurm; idempotent."""
        for link in self._nodes:
            link.close()
        for process in self._daemons:
            process.kill()
            process.wait()
        self._nodes.clear()
        self._daemons.clear()
        super().close()

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a command on a host that may submit jobs."""
        return {**super().environment(environ), "SLURM_CONF": str(self.folder / "slurm.conf")}

    def allocation(self) -> list[str]:
        """Return the beginning of a command line that runs its end in an allocation of all hosts."""
        nodes = len(self.numbers)
        return ["salloc", "--quiet", "--no-kill", f"--nodes={nodes}", f"--ntasks={nodes * CPUS}", "--time=60"]

    def _start(self) -> None:
        folder = self.folder
        folder.chmod(0o755)
        for name in ("munge", "state", "logs", "pmix"):
            (folder / name).mkdir(mode=0o755)
        (folder / "munge/key").write_bytes(os.urandom(1024))
        (folder / "munge/key").chmod(0o600)
        (folder / "slurm.conf").write_text(
            COMMON.read_text()
            + CONFIGURATION.format(
                controller=address(CONTROLLER), port=PORT, node_port=NODE_PORT, folder=folder, cpus=CPUS,
                count=len(self.numbers), nodes=f"10.77.0.[1-{len(self.numbers)}]",
            )
        )  # fmt: skip
        self._daemon(
            "/usr/sbin/munged", "--foreground", f"--key-file={folder}/munge/key", f"--socket={folder}/munge/socket",
            f"--pid-file={folder}/munge/pid", f"--log-file={folder}/logs/munged.log",
            f"--seed-file={folder}/munge/seed", "--num-threads=2",
        )  # fmt: skip
        self._ip(self._switch.pid, f"addr add {address(CONTROLLER)}/24 dev switch", "link set lo up")
        with_pmix = pmix_script(folder / "pmix")
        self._wait((folder / "munge/socket").exists)
        self._daemon(
            *("nsenter", f"--net=/proc/{self._switch.pid}/ns/net", "unshare", "--mount", "sh", "-ec"),
            f"{with_pmix} exec /usr/sbin/slurmctld -D -i -f {folder}/slurm.conf",
        )
        line = ["sh", "-ec", f"{with_pmix} exec /usr/sbin/slurmd -D -f {folder}/slurm.conf"]
        for number in self.numbers:
            with (folder / f"logs/h{number}").open("wb") as out:
                self._nodes.append(self.start(number, line, dict(os.environ), Path("/"), out))
        self._await_nodes()

    def _daemon(self, *line: str) -> None:
        self._daemons.append(
            subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        )

    def _await_nodes(self) -> None:
        """Wait until all nodes take jobs."""
        deadline, said = time.monotonic() + READY, ""
        while said.split().count("idle") < len(self.numbers):
            if time.monotonic() > deadline:
                raise RuntimeError(f"Slurm's nodes did not start within {READY} s: {said}")
            time.sleep(0.1)
            said = self.run(1, "sinfo", "--noheader", "--Node", "--format=%t")[1]


def pmix_script(folder: Path) -> str:
    """Return commands of a shell by which Slurm finds Debian's PMIx: its plugin opens the name without a version."""
    for library in glob("/usr/lib/*/pmix2/lib"):
        if not Path(library, "libpmix.so").exists():
            subprocess.run(["cp", "-an", f"{library}/.", folder], check=True)
            (folder / "libpmix.so").symlink_to("libpmix.so.2")
            return f"mount --bind {folder} {library};"
    return ""
