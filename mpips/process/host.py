"""This machine: its name as text, its address, and an identifier.

A kernel accepts any 64 bytes as a host name: invalid UTF-8, control characters, names that are invalid in DNS.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from pathlib import Path

from mpips.process.printable import printable

NAME_BYTES = 64
"""The largest size of a name from `host_name`, in bytes of UTF-8."""
_DIGEST = 8
LOOPBACK = "127.0.0.1"


def host_name() -> str:
    """Return this machine's name for display and comparison: UTF-8, at most `NAME_BYTES`, never empty.

    Other bytes are escaped; a name that is then too long ends in a hash of the whole name.
    """
    raw = os.fsencode(socket.gethostname())
    text = printable(raw.decode(errors="backslashreplace"), keep="") or "localhost"
    shown = text.encode()
    if len(shown) <= NAME_BYTES:
        return text
    end = "~" + hashlib.blake2b(raw, digest_size=_DIGEST).hexdigest()
    return shown[: NAME_BYTES - len(end)].decode(errors="ignore") + end


def machine() -> bytes:
    """Return eight bytes that are the same for processes that can communicate by loopback."""
    parts = [os.fsencode(socket.gethostname())]
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", "rb") as file:
        parts.append(file.read())
    with contextlib.suppress(OSError):
        parts.append(os.readlink(b"/proc/self/ns/net"))
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).digest()


def process_space() -> str:
    """Identify the machine and the process id namespace, within which processes can be checked."""
    space = 0
    with contextlib.suppress(OSError):
        space = os.stat("/proc/self/ns/pid").st_ino
    return f"{machine().hex()}-{space}"


def is_gone(pid: int) -> bool:
    """Return whether a process of this host has ended, or is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return os.path.isdir("/proc/self")
    except (OSError, IndexError):
        return False


def host_address() -> str:
    """Return the IPv4 address by which other machines reach this one: that of its name, or else of its default route.

    The address must be one that a socket can be bound to; loopback if there is none.
    """
    found = []
    with contextlib.suppress(OSError):
        # As bytes: Python would encode a text by IDNA, which refuses names that a hosts file may well have.
        name = os.fsencode(socket.gethostname())
        found += [
            str(host) for *_, (host, *_) in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_DGRAM)
        ]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Sends nothing: it only selects the interface of the route.
        probe.connect(("192.0.2.1", 9))
        found.append(str(probe.getsockname()[0]))
    return next((host for host in found if not host.startswith("127.") and _is_here(host)), LOOPBACK)


def _is_here(host: str) -> bool:
    """Return whether an address is one of this machine."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return True
    return False


def clock_name(host: str) -> str:
    """Return the identity of this machine's monotonic clock: its boot id, or else the name of the host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return host
