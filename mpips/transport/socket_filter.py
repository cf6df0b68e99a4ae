"""A socket filter: the kernel accepts only datagrams of one length that begin with a token, and drops all others.

Every user of a machine can send to its ports and to its abstract Unix sockets. A dropped datagram takes no space in the
socket's buffer, wakes no process, and costs only its sender time. Linux only (SO_ATTACH_FILTER, classic BPF).
"""

from __future__ import annotations

import ctypes
import secrets
import socket
import struct
import sys

TOKEN_BYTES = 16
# From asm-generic/socket.h.
_SO_ATTACH_FILTER = 26
# The fields of struct sock_filter: code, jump if true, jump if false, constant.
_INSTRUCTION = struct.Struct("=HBBI")
_LENGTH, _LOAD, _EQUAL, _RETURN = 0x80, 0x20, 0x15, 0x06


def token() -> bytes:
    """Draw a token of `TOKEN_BYTES` bytes."""
    return secrets.token_bytes(TOKEN_BYTES)


def attach(sock: socket.socket, token: bytes, size: int, header: int = 0) -> bool:
    """Let a socket accept only datagrams of `size` bytes that begin with a token; return whether the kernel does so.

    Call it before the socket is bound, so that no other datagram is ever queued. `header`: bytes of the protocol header
    that the kernel shows a filter before the datagram, 8 for UDP, 0 for Unix sockets.
    """
    if sys.platform != "linux":
        return False
    code = b"".join(_INSTRUCTION.pack(*each) for each in program(token, size, header))
    kept = ctypes.create_string_buffer(code)
    try:
        sock.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("HP", len(code) // _INSTRUCTION.size, ctypes.addressof(kept)),
        )
    except OSError:
        return False
    return True


def program(token: bytes, size: int, header: int) -> list[tuple[int, int, int, int]]:
    """Return the filter's instructions: a comparison that fails jumps to the last instruction, which drops."""
    compared = [(_LENGTH, 0, header + size)]
    compared += [(_LOAD, header + 4 * at, word) for at, word in enumerate(struct.unpack(">4I", token))]
    made = []
    for number, (code, at, value) in enumerate(compared):
        made += [(code, 0, 0, at), (_EQUAL, 0, 2 * (len(compared) - number) - 1, value)]
    return [*made, (_RETURN, 0, 0, 0xFFFFFFFF), (_RETURN, 0, 0, 0)]
