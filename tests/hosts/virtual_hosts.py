"""Virtual hosts on this machine, and what befalls hosts and networks: for tests, as root on Linux.

Each host has network, UTS, mount, IPC and PID namespaces of its own, a `/dev/shm` of its own, and an address on an
Ethernet switch (a bridge) in a namespace that is connected to nothing else. The file systems are shared, as on a
cluster. No name is registered anywhere, and hosts end with the process that has made them, so nothing is left behind.

Frames in one direction between two hosts are dropped by a wrong hardware address: as on a failed link, nobody is told,
and TCP sends them again after the link is mended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
NAMESPACES = ("--uts", "--mount", "--ipc", "--pid")
NOBODY = "02:4d:48:ff:ff:ff"
"""A hardware address that no host has."""
STARTS = 20.0
"""Seconds within which a host starts on a busy machine."""


def unavailable() -> str:
    """Return why there can be no virtual hosts here; "" if there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "virtual hosts need root on Linux"
    for tool in ("unshare", "nsenter", "ip", "mount"):
        if shutil.which(tool) is None:
            return f"virtual hosts need the command {tool}"
    tried = subprocess.run(
        ["unshare", "--net", *NAMESPACES, "--fork", "ip", "link", "add", "type", "veth"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"no virtual hosts here: {tried.stderr.strip()}" if tried.returncode else ""


def address(number: int) -> str:
    """Return the IPv4 address of host `number`."""
    return f"10.77.0.{number}"


def hardware_address(number: int) -> str:
    """Return the hardware address of host `number`."""
    return f"02:4d:48:00:00:{number:02x}"


class VirtualHosts:
    """Hosts h1 to hN, and the switch between them; numbers are from 1 on."""

    def __init__(self, count: int) -> None:
        self.numbers = range(1, count + 1)
        self.folder = Path(tempfile.mkdtemp(prefix="virtual-hosts-"))
        self._log = (self.folder / "log").open("ab")
        self._dropped: set[tuple[int, int]] = set()
        # By host: the process that keeps its network, and the one that keeps all else.
        self._networks: dict[int, subprocess.Popen[bytes]] = {}
        self._spaces: dict[int, subprocess.Popen[bytes]] = {}
        names = "".join(f"{address(number)} h{number}\n" for number in self.numbers)
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        self._switch = _network()
        try:
            for number in self.numbers:
                self._networks[number] = _network()
            for each in (self._switch, *self._networks.values()):
                self._wait(lambda each=each: _has_own_network(each.pid))
            self._ip(self._switch.pid, "link add name switch type bridge", "link set switch up")
            for number in self.numbers:
                self._connect(number)
                self._begin(number)
            for number in self.numbers:
                self._wait(lambda number=number: self._path(number, "sock").exists())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VirtualHosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all hosts and the switch; idempotent."""
        for process in (*self._spaces.values(), *self._networks.values(), self._switch):
            _end(process)
        self._spaces.clear()
        self._networks.clear()
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- hosts -------------------------------------------------------------------------------

    def up(self, number: int) -> None:
        """Start a host again that was killed or has lost its power."""
        _end(self._spaces.pop(number))
        self._path(number, "power-loss").unlink(missing_ok=True)
        self._begin(number)
        self._wait(lambda: self._path(number, "sock").exists())
        self.mend(number)

    def _begin(self, number: int) -> None:
        self._path(number, "sock").unlink(missing_ok=True)
        script = (
            'echo "$1" >/proc/sys/kernel/hostname; mount --bind "$2/hosts" /etc/hosts; '
            'mount -t tmpfs -o size=2g,mode=1777 tmpfs /dev/shm; exec "$3" -SsE "$4" "$2/$1.sock"'
        )
        words = [f"h{number}", self.folder, sys.executable, HERE / "init.py"]
        self._spaces[number] = subprocess.Popen(
            [
                *("nsenter", self._net(number), "unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"),
                *("sh", "-ec", script, "_", *words),
            ],
            stdin=subprocess.PIPE, stderr=self._log, start_new_session=True,
        )  # fmt: skip

    def _connect(self, number: int) -> None:
        """Connect a host's network to the switch."""
        space = self._networks[number].pid
        self._ip(
            self._switch.pid,
            f"link add h{number} type veth peer name eth0 netns {space}",
            f"link set h{number} master switch up",
        )
        self._ip(
            space,
            "link set lo up",
            f"link set eth0 address {hardware_address(number)}",
            f"addr add {address(number)}/24 dev eth0",
            "link set eth0 up",
            *(_neighbour(other, hardware_address(other)) for other in self.numbers if other != number),
        )

    def start(
        self, number: int, argv: Sequence[str | Path], environ: Mapping[str, str], cwd: Path, out: IO[Any]
    ) -> socket.socket:
        """Start a command on a host, with its output in a file; return the socket that gets its exit code."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        asked = {"argv": [*map(str, argv)], "cwd": str(cwd), "env": self.environment(environ)}
        try:
            link.connect(str(self._path(number, "sock")))
            with open(os.devnull, "rb") as empty:
                streams = [empty.fileno(), out.fileno(), out.fileno()]
                socket.send_fds(link, [json.dumps(asked).encode()], streams)
        except BaseException:
            link.close()
            raise
        return link

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a command on a host that may start others on other hosts."""
        return {
            **environ,
            "TMPDIR": "/dev/shm",
            "MPIPS_VIRTUAL_HOSTS": str(self.folder),
            "PRTE_MCA_plm_ssh_agent": str(HERE / "ssh"),
        }

    def run(self, number: int, *argv: str | Path, seconds: float = STARTS) -> tuple[int, str]:
        """Run a command on a host; return its exit code and output."""
        with tempfile.TemporaryFile("w+") as out:
            with self.start(number, argv, dict(os.environ), Path("/"), out) as link:
                link.settimeout(seconds)
                code = link.recv(16)
            out.seek(0)
            return int(code or 255), out.read()

    def processes(self, number: int) -> dict[int, str]:
        """Return the command lines of a host's processes, by the process ids outside; without the first one."""
        first = self._first(number)
        space = os.readlink(f"/proc/{first}/ns/pid")
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and entry.name != str(first):
                with suppress(OSError):
                    if os.readlink(entry / "ns/pid") == space:
                        raw = (entry / "cmdline").read_bytes()
                        found[int(entry.name)] = raw.replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def _first(self, number: int) -> int:
        """Return the process id, outside, of a host's first process."""
        pid = self._spaces[number].pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    # --- what befalls them --------------------------------------------------------------------

    def kill(self, number: int) -> None:
        """Kill all processes of a host at once; the kernel closes their connections, so their peers are told."""
        os.kill(self._first(number), signal.SIGKILL)

    def lose_power(self, number: int) -> None:
        """Kill all processes of a host, and tell nobody."""
        self._path(number, "power-loss").touch()
        self.cut(number)
        self.kill(number)

    def freeze(self, number: int) -> None:
        """Stop all processes of a host."""
        self._signal(number, signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        """Continue all processes of a host."""
        self._signal(number, signal.SIGCONT)

    def _signal(self, number: int, kind: signal.Signals) -> None:
        for pid in self.processes(number):
            with suppress(ProcessLookupError):
                os.kill(pid, kind)

    def cut(self, number: int, sends: bool = True, receives: bool = True) -> None:
        """Drop the frames that a host sends to the others, or receives from them, or both."""
        pairs = set()
        for other in self.numbers:
            if other != number:
                pairs |= ({(number, other)} if sends else set()) | ({(other, number)} if receives else set())
        self.drop(pairs)

    def mend(self, number: int) -> None:
        """Pass all frames from and to a host again."""
        self._route({pair for pair in self._dropped if number in pair}, drop=False)

    def drop(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Drop the frames from the first to the second host of each pair."""
        self._route(set(pairs), drop=True)

    def _route(self, pairs: set[tuple[int, int]], drop: bool) -> None:
        self._dropped = self._dropped | pairs if drop else self._dropped - pairs
        for source in {source for source, _ in pairs}:
            lines = [
                _neighbour(to, NOBODY if drop else hardware_address(to))
                for each, to in pairs
                if each == source
            ]
            self._ip(self._networks[source].pid, *lines)

    def limit(self, rate: str = "") -> None:
        """Limit the rate of each link, such as "100mbit", in both directions; "": no limit."""
        bucket = f"tbf rate {rate} burst 128kb latency 100ms"
        for number in self.numbers:
            for space, device in ((self._networks[number].pid, "eth0"), (self._switch.pid, f"h{number}")):
                how = f"replace dev {device} root {bucket}" if rate else f"del dev {device} root"
                subprocess.run(
                    ["nsenter", f"--net=/proc/{space}/ns/net", "tc", "qdisc", *how.split()], check=True
                )

    # --- parts -------------------------------------------------------------------------------

    def _path(self, number: int, what: str) -> Path:
        return self.folder / f"h{number}.{what}"

    def _net(self, number: int) -> str:
        return f"--net=/proc/{self._networks[number].pid}/ns/net"

    def _wait(self, condition: Any) -> None:
        deadline = time.monotonic() + STARTS
        while not condition():
            if time.monotonic() > deadline or any(each.poll() is not None for each in self._spaces.values()):
                why = (self.folder / "log").read_text(errors="replace").strip()
                raise RuntimeError(f"a virtual host did not start within {STARTS} s: {why}")
            time.sleep(0.005)

    @staticmethod
    def _ip(space: int, *lines: str) -> None:
        """Run lines of ip(8) in the network namespace of a process."""
        subprocess.run(
            ["nsenter", f"--net=/proc/{space}/ns/net", "ip", "-batch", "-"],
            input="\n".join(lines), text=True, check=True,
        )  # fmt: skip


def _network() -> subprocess.Popen[bytes]:
    """Make a network namespace; return the process that keeps it."""
    return subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    process.kill()
    process.wait()


def _neighbour(number: int, at: str) -> str:
    return f"neigh replace {address(number)} lladdr {at} dev eth0 nud permanent"


def _has_own_network(pid: int) -> bool:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    return False
