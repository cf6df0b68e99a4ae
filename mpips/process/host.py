"""This machine: its name as a text, its address, and what tells it from others.

A kernel takes any 64 bytes for a host's name: bytes that are no UTF-8, control characters, names that no DNS can hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from pathlib import Path

from mpips.process.printable import printable

NAME_BYTES = 64
"""Bytes that a name from `host_name` has at most, in UTF-8."""
_DIGEST = 8
LOOPBACK = "127.0.0.1"


def host_name() -> str:
    """Give this machine's name, fit to be shown, sent and compared: UTF-8, at most `NAME_BYTES`, never empty.

    Other bytes are shown as escapes; a name that is too long then ends in a hash of all of it.
    """
    raw = os.fsencode(socket.gethostname())
    text = printable(raw.decode(errors="backslashreplace"), keep="") or "localhost"
    shown = text.encode()
    if len(shown) <= NAME_BYTES:
        return text
    end = "~" + hashlib.blake2b(raw, digest_size=_DIGEST).hexdigest()
    return shown[: NAME_BYTES - len(end)].decode(errors="ignore") + end


def machine() -> bytes:
    """Give eight bytes that are the same for processes which reach each other by loopback."""
    parts = [os.fsencode(socket.gethostname())]
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", "rb") as file:
        parts.append(file.read())
    with contextlib.suppress(OSError):
        parts.append(os.readlink(b"/proc/self/ns/net"))
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).digest()


def is_gone(pid: int) -> bool:
    """Tell whether a process of this host has ended, or only waits for its parent to ask how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return os.path.isdir("/proc/self")
    except (OSError, IndexError):
        return False


def host_address() -> str:
    """Give the IPv4 address by which other machines reach this one: what its name stands for, or else where it sends.

    Only an address that a socket here can be bound to counts; loopback if there is none.
    """
    found = []
    with contextlib.suppress(OSError):
        # As bytes: Python would encode a text by IDNA, which refuses names that a hosts file may well have.
        name = os.fsencode(socket.gethostname())
        found += [
            str(host) for *_, (host, *_) in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_DGRAM)
        ]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which interface would
        found.append(str(probe.getsockname()[0]))
    return next((host for host in found if not host.startswith("127.") and _is_here(host)), LOOPBACK)


def _is_here(host: str) -> bool:
    """Tell whether an address is one of this machine's own."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return True
    return False
