"""A benchmark that is linked with ps-lite, started as by ps-lite's tests/local.sh; see `pushpull` for its output."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from mpips.bench._runs import RunFailed
from mpips.errors import InputError

OPS = ("push", "pull")
POLL, PATIENCE = 0.05, 600.0
"""Seconds between two looks at the processes, and until they must have ended."""
_LINE = re.compile(r"(push|pull) +([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*")


def program(text: str) -> Path:
    """Find the program.

    Raises:
        InputError: it is not an executable file.
    """
    path = Path(text).absolute()
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise InputError(f"--ps-lite {text}: no such executable file")
    return path


def measured(path: Path, servers: int, workers: int, arguments: Sequence[int]) -> dict[str, list[float]]:
    """Run the processes; give the seconds of all workers' requests, by operation.

    Raises:
        RunFailed: a process failed, or they take too long, or a worker printed no request.
    """
    roles = ["scheduler", *["server"] * servers, *["worker"] * workers]
    shared = {"DMLC_NUM_SERVER": str(servers), "DMLC_NUM_WORKER": str(workers)}
    shared |= {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(_free_port())}
    command = [str(path), *map(str, arguments)]
    with ExitStack() as stack:
        output = [stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in roles]
        started = list[subprocess.Popen[bytes]]()
        stack.callback(_end, started)
        for role, file in zip(roles, output, strict=True):
            environment = os.environ | shared | {"DMLC_ROLE": role}
            started.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
                )
            )
        deadline = time.monotonic() + PATIENCE
        while any(each.poll() is None for each in started):
            if any(each.poll() for each in started):
                break
            if time.monotonic() > deadline:
                raise RunFailed(f"{path.name}: no end after {PATIENCE:.0f} s")
            time.sleep(POLL)
        for role, each, file in zip(roles, started, output, strict=True):
            if each.poll():
                lines = _text(file).strip().splitlines() or ["no output"]
                raise RunFailed(f"{path.name}: a {role} ended with exit code {each.returncode}: {lines[-1]}")
        return _requests(
            path, [_text(file) for role, file in zip(roles, output, strict=True) if role == "worker"]
        )


def _requests(path: Path, texts: Sequence[str]) -> dict[str, list[float]]:
    """Read the lines of the workers."""
    found: dict[str, list[float]] = {op: [] for op in OPS}
    for text in texts:
        lines = [match for line in text.splitlines() if (match := _LINE.fullmatch(line))]
        for op in OPS:
            mine = [float(match[2]) for match in lines if match[1] == op]
            if not mine:
                raise RunFailed(f"{path.name}: a worker printed no line '{op} SECONDS'")
            found[op] += mine
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the processes that are left."""
    for each in started:
        if each.poll() is None:
            each.kill()
        each.wait()
