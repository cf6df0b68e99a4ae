"""The first process of a virtual host: it starts commands on the host for clients, as a daemon of ssh would.

A client sends a JSON object {argv, cwd, env} with its standard streams over a Unix socket, and receives the exit code.
The kernel ends all processes of the host with this one, which ends when its standard input is closed.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress

MOST = 1 << 20
"""Bytes of a request."""


def start(client: socket.socket) -> int:
    """Start the command that a client asks for; return its process id."""
    raw, streams, *_ = socket.recv_fds(client, MOST, 3)
    asked = json.loads(raw)
    pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        return pid
    try:
        os.setsid()
        for number, stream in enumerate(array.array("i", streams)):
            os.dup2(stream, number)
        os.closerange(3, 256)
        for kind in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT):
            signal.signal(kind, signal.SIG_DFL)
        os.chdir(asked["cwd"])
        os.execvpe(asked["argv"][0], asked["argv"], asked["env"])
    except BaseException as error:
        os.write(2, f"{asked['argv'][:1]}: {error}\n".encode())
    finally:
        os._exit(127)


def reap(clients: dict[int, socket.socket]) -> None:
    """Collect the processes that have ended, and send the exit codes of commands."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        client = clients.pop(pid, None)
        if client is not None:
            code = os.waitstatus_to_exitcode(status)
            with suppress(OSError):  # the client has ended
                client.send(str(code if code >= 0 else 128 - code).encode())
            client.close()


def main() -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Clients wait for the file, and may connect as soon as there is one.
    listener.bind(f"{sys.argv[1]}.new")
    listener.listen(64)
    os.rename(f"{sys.argv[1]}.new", sys.argv[1])
    ended, wakes = os.pipe()
    os.set_blocking(ended, False)
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    clients: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([0, listener, ended], [], [])
        if 0 in ready and not os.read(0, 1):
            return
        if ended in ready:
            os.read(ended, 4096)
        if listener in ready:
            client, _ = listener.accept()
            clients[start(client)] = client
        reap(clients)


main()
