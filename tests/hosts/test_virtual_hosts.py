"""Virtual hosts are separate, and what befalls one is noticed by the others as it would be on real ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hosts.virtual_hosts import VirtualHosts, address

PORT = 7000
SOON = 20.0
ECHO = """
import socket, sys
with socket.create_server(("", {port})) as listener:
    sys.stdout.write("listens\\n"), sys.stdout.flush()
    link, _ = listener.accept()
    while raw := link.recv(64):
        link.send(raw)
"""
ASK = """
import socket, time
link = socket.create_connection(({host!r}, {port}))
link.settimeout({seconds})
for number in range(1000):
    try:
        link.send(b"x")
        print("answered" if link.recv(64) else "closed", flush=True)
    except TimeoutError:
        print("silent", flush=True)
    except OSError:
        print("closed", flush=True)
    time.sleep(0.01)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def talking(hosts: VirtualHosts, folder: Path) -> Iterator[Callable[[], list[str]]]:
    """Let host 1 send to host 2, which answers, all the time; yields a function that returns what host 1 sees."""
    python, environ = [sys.executable, "-SsE", "-c"], dict(os.environ)
    with (folder / "echo").open("wb") as echo, (folder / "ask").open("wb") as ask:
        server = hosts.start(2, [*python, ECHO.format(port=PORT)], environ, folder, echo)
        wait_for(lambda: "listens" in (folder / "echo").read_text())
        client = hosts.start(
            1, [*python, ASK.format(host=address(2), port=PORT, seconds=0.05)], environ, folder, ask
        )
        with server, client:
            yield lambda: (folder / "ask").read_text().split()


def then(said: Callable[[], list[str]], word: str) -> None:
    """Wait until a new line is `word`."""
    before = len(said())
    wait_for(lambda: word in said()[before:])


def test_a_host_has_a_name_an_address_and_processes_of_its_own(hosts: Callable[[int], VirtualHosts]) -> None:
    two = hosts(2)
    assert two.run(1, "hostname") == (0, "h1\n") and two.run(2, "hostname") == (0, "h2\n")
    assert two.run(1, "sh", "-c", "exit 3")[0] == 3
    code, listed = two.run(1, "sh", "-c", "ls -d /proc/[0-9]* | wc -l; ls /dev/shm")
    assert code == 0 and int(listed.split()[0]) < 6 and len(listed.split()) == 1
    ssh = Path(two.environment({})["PRTE_MCA_plm_ssh_agent"])
    environ = {**os.environ, **two.environment({})}
    done = subprocess.run([ssh, "-x", "h2", "echo", "$TMPDIR;", "hostname"], env=environ, capture_output=True)
    assert done.stdout == b"/dev/shm\nh2\n"


@pytest.mark.parametrize(("sends", "receives"), [(True, True), (True, False), (False, True)])
def test_what_is_cut_is_silent_and_goes_on_when_it_is_mended(
    hosts: Callable[[int], VirtualHosts], tmp_path: Path, sends: bool, receives: bool
) -> None:
    two = hosts(2)
    with talking(two, tmp_path) as said:
        then(said, "answered")
        two.cut(2, sends, receives)
        then(said, "silent")
        two.mend(2)
        then(said, "answered")
        assert set(said()) == {"answered", "silent"}


def test_a_frozen_host_is_silent_and_a_killed_one_closes_its_connections(
    hosts: Callable[[int], VirtualHosts], tmp_path: Path
) -> None:
    two = hosts(2)
    with talking(two, tmp_path) as said:
        then(said, "answered")
        two.freeze(2)
        then(said, "silent")
        two.thaw(2)
        then(said, "answered")
        two.kill(2)
        wait_for(lambda: "closed" in said())
    two.up(2)
    assert two.run(2, "hostname") == (0, "h2\n")


def test_nobody_is_told_of_a_power_loss(hosts: Callable[[int], VirtualHosts], tmp_path: Path) -> None:
    two = hosts(2)
    with talking(two, tmp_path) as said:
        then(said, "answered")
        two.lose_power(2)
        then(said, "silent")
        time.sleep(0.3)
        assert set(said()) == {"answered", "silent"}


def test_nothing_is_left_when_hosts_end(hosts: Callable[[int], VirtualHosts], tmp_path: Path) -> None:
    one = hosts(1)
    with tempfile.TemporaryFile() as out, one.start(1, ["sleep", "600"], {}, tmp_path, out):
        wait_for(lambda: any("sleep" in line for line in one.processes(1).values()))
        (sleeps,) = [pid for pid, line in one.processes(1).items() if "sleep" in line]
        one.close()
    wait_for(lambda: not Path(f"/proc/{sleeps}").exists())
    assert not one.folder.exists()


SENT = 1 << 20
"""Bytes; a second at 8 Mbit/s, but for what a token bucket lets through at once (128 KB)."""
TAKE = """
import socket, sys
with socket.create_server(("", {port})) as listener:
    sys.stdout.write("listens\\n"), sys.stdout.flush()
    link, _ = listener.accept()
    while link.recv(65536):
        pass
    link.send(b"x")
"""
SEND = """
import socket, time
link = socket.create_connection(({host!r}, {port}))
began = time.monotonic()
link.sendall(bytes({sent}))
link.shutdown(socket.SHUT_WR)
link.recv(1)
print(time.monotonic() - began)
"""


def test_a_rate_limit_holds_until_it_is_removed(hosts: Callable[[int], VirtualHosts], tmp_path: Path) -> None:
    if shutil.which("tc") is None:
        pytest.skip("rate limits need the command tc")
    two = hosts(2)

    def seconds() -> float:
        python = [sys.executable, "-SsE", "-c"]
        take = [*python, TAKE.format(port=PORT)]
        with (tmp_path / "take").open("wb") as out, two.start(2, take, dict(os.environ), tmp_path, out):
            wait_for(lambda: "listens" in (tmp_path / "take").read_text())
            code, said = two.run(1, *python, SEND.format(host=address(2), port=PORT, sent=SENT))
        assert code == 0, said
        return float(said)

    two.limit("8mbit")
    limited = seconds()
    two.limit()
    assert limited > 0.8 and seconds() < limited
