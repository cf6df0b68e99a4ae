"""Host names of any bytes, and the address by which other ranks reach this host."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Started
from hypothesis import given
from hypothesis import strategies as st

from mpips.process import host

JOB = Path(__file__).parents[1] / "jobs" / "programs" / "job.toml"
ODD = [
    "a" * 64,
    "a..b",
    ".",
    "n\udcff1",
    "\udcff" * 64,
    "ü" * 32,
    "tab\there\x1b[2J",
    "\u202eevil",
    "",
    "a b",
    "-n",
]
"""Names that a kernel takes; bytes that are not UTF-8 are surrogates, as Python has them."""


@pytest.mark.parametrize("name", ODD)
def test_any_host_name_becomes_a_short_printable_text(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(host.socket, "gethostname", lambda: name)
    text = host.host_name()
    assert 0 < len(text.encode()) <= host.NAME_BYTES
    assert text.isprintable()
    assert len(host.machine()) == 8
    socket.inet_aton(host.host_address())


@given(name=st.binary(max_size=64), other=st.binary(max_size=64))
def test_names_that_differ_are_distinguished(name: bytes, other: bytes) -> None:
    def named(raw: bytes) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host.socket, "gethostname", lambda: os.fsdecode(raw))
            return host.host_name()

    assert named(b"node-07.cluster") == "node-07.cluster"
    if b"\\" not in name + other and name and other and name != other:
        assert named(name) != named(other)


@pytest.mark.parametrize(
    ("found", "here", "expected"),
    [
        (["127.0.1.1", "10.1.2.3"], ["10.1.2.3"], "10.1.2.3"),
        (["192.168.0.5", "10.1.2.3"], ["192.168.0.5", "10.1.2.3"], "192.168.0.5"),
        (["192.168.0.5", "10.1.2.3"], ["10.1.2.3"], "10.1.2.3"),
    ],
)
def test_the_address_is_what_the_name_stands_for_if_it_is_here(
    monkeypatch: pytest.MonkeyPatch, found: list[str], here: list[str], expected: str
) -> None:
    answer = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (each, 0)) for each in found]
    monkeypatch.setattr(host.socket, "getaddrinfo", lambda *_: answer)
    monkeypatch.setattr(host, "_is_here", lambda each: each in here)
    assert host.host_address() == expected


def test_a_machine_without_a_name_or_a_route_has_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(host.socket, "getaddrinfo", refuse)
    monkeypatch.setattr(host.socket.socket, "connect", refuse)
    assert host.host_address() == "127.0.0.1"


def test_only_own_addresses_are_here() -> None:
    assert host._is_here("127.0.0.1")
    assert not host._is_here("192.0.2.1")


CALLED = """
import ctypes, os, sys
name = os.fsencode(sys.argv[1])
if ctypes.CDLL(None).sethostname(name, len(name)):
    sys.exit("no such name")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs a command on a host of another name; in a namespace of its own, or else this one has it."""


@pytest.mark.drawn(1)
@pytest.mark.ranks
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a" * 64, marks=pytest.mark.once),
        pytest.param("a..b", marks=pytest.mark.once),
        "n\udcff1",
    ],
)
def test_a_run_on_a_host_of_an_odd_name(
    start: Callable[..., Started], starter: Any, tmp_path: Path, name: str
) -> None:
    if starter.mpi.kind == "mpich" and len(name) == 64:
        pytest.skip("MPICH itself takes 63 bytes at most")
    if os.geteuid() or subprocess.run(["unshare", "-u", "true"], check=False).returncode:
        pytest.skip("cannot give this machine another name here")
    mpips = [sys.executable, "-m", "mpips.cli", "run", JOB, "--run-dir", "run", "--set", "failing.rounds=3"]
    done = start(["unshare", "-u", sys.executable, "-c", CALLED, name, *mpips], cwd=tmp_path).finish(40.0)
    assert done.code == 0, done.stderr
    reported = json.loads((tmp_path / "run" / "run.json").read_text())
    shown = os.fsencode(name).decode(errors="backslashreplace")
    assert {reported["host"], *(each["host"] for each in reported["ranks"])} == {shown}
