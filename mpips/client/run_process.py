"""`mpips run` as a child of a Python program: its output and the run's metrics are read, and Ctrl-C is passed on."""

from __future__ import annotations

import codecs
import os
import re
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from mpips.client.announcing import Begun, announced
from mpips.files.json_schema import is_number, parse_json
from mpips.rundir.folder import RunFolder

OnPass = Callable[[dict[str, Any]], object]
STEPS = ("pass", "sweep", "round", "step")
"""Events that are passes, and keys of their number."""
INTERVAL = 0.1
"""Seconds between two looks at `metrics.jsonl`."""
KEPT = 200
"""Lines of output that are kept for an error."""
_LAST_LINE = re.compile(r"mpips(?: run)?: (?:error: |failed: )?(.*)")


def is_pass(line: Mapping[str, Any]) -> bool:
    """Return whether a line of `metrics.jsonl` tells of progress; see `Run.passes`."""
    if line.get("noted"):
        return False
    return line.get("event") in STEPS or any(is_number(line.get(key)) for key in (*STEPS, "seconds"))


class RunProcess:
    """`mpips run` as a child process, which is told where to announce the run's folder.

    Args:
        line: its command, to which `--caller DESCRIPTOR` is added.
        show: whether its output is printed.
    """

    def __init__(self, line: list[str], show: bool) -> None:
        self.begun: Begun | None = None
        self.kept: deque[str] = deque(maxlen=KEPT)
        """The last lines of its stderr."""
        self._show, self._told, self._error = show, b"", b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # Bytes of metrics.jsonl that were read.
        self._read = 0
        told, tell = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*line, "--caller", str(tell)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(tell,),
                # Ctrl-C in a terminal, or in a notebook, reaches the caller's group.
                process_group=0,
            )
        except BaseException:
            os.close(told)
            raise
        finally:
            os.close(tell)
        assert self._process.stdout is not None and self._process.stderr is not None
        self._pipes = selectors.DefaultSelector()
        self._pipes.register(told, selectors.EVENT_READ, self._take_folder)
        self._pipes.register(os.dup(self._process.stdout.fileno()), selectors.EVENT_READ, self._take_output)
        self._pipes.register(os.dup(self._process.stderr.fileno()), selectors.EVENT_READ, self._take_error)
        self._process.stdout.close()
        self._process.stderr.close()

    @property
    def code(self) -> int:
        """The exit code, 128 + its number if a signal has ended it."""
        code = self._process.returncode
        return code if code >= 0 else 128 - code

    @property
    def last_line(self) -> str:
        """The line in which it has said how the run ended."""
        found = [match[1] for line in self.kept if (match := _LAST_LINE.match(line.rstrip("\n")))]
        return found[-1] if found else f"mpips run ended with exit code {self.code}"

    def finish(self, on_pass: OnPass | None) -> bool:
        """Wait for its end; return whether Ctrl-C was pressed meanwhile."""
        try:
            self._follow(on_pass)
        except KeyboardInterrupt:
            self._stop()
            return True
        except BaseException:
            self._stop()
            raise
        return False

    def _stop(self) -> None:
        """Ask it to stop, and wait for that; each further Ctrl-C is passed on."""
        while True:
            with suppress(KeyboardInterrupt):
                self._process.send_signal(signal.SIGINT)
                self._follow(None)
                return

    def _follow(self, on_pass: OnPass | None) -> None:
        """Read what it writes, until its end."""
        while self._pipes.get_map():
            for key, _ in self._pipes.select(INTERVAL):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    self._pipes.unregister(key.fd)
                    os.close(key.fd)
                key.data(data)
            if on_pass is not None:
                for line in self._new_passes():
                    on_pass(line)
            # A process that has escaped may hold a pipe open.
            if self._process.poll() is not None and not self._pipes.select(INTERVAL):
                break
        for descriptor in [key.fd for key in self._pipes.get_map().values()]:
            self._pipes.unregister(descriptor)
            os.close(descriptor)
        self._process.wait()

    def _take_folder(self, data: bytes) -> None:
        self._told += data
        if self.begun is None and self._told.endswith(b"\n"):
            self.begun = announced(self._told)
            self._read = self.begun.metrics

    def _take_output(self, data: bytes) -> None:
        if self._show:
            sys.stdout.write(self._decoder.decode(data))
            sys.stdout.flush()

    def _take_error(self, data: bytes) -> None:
        *lines, self._error = (self._error + data).splitlines(keepends=True) or [b""]
        if self._error.endswith(b"\n") or not data:
            lines, self._error = [*lines, self._error], b""
        for line in lines:
            text = line.decode(errors="replace")
            self.kept.append(text)
            if self._show:
                sys.stderr.write(text)

    def _new_passes(self) -> Iterator[dict[str, Any]]:
        """Yield the passes in the lines of `metrics.jsonl` that are new."""
        if self.begun is None:
            return
        path = RunFolder(self.begun.folder).metrics
        try:
            if path.stat().st_size <= self._read:
                return
            with path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except OSError:
            return
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            # First, since `on_pass` may raise an error.
            self._read += len(line)
            with suppress(ValueError):
                value = parse_json(line)
                if isinstance(value, dict) and is_pass(value):
                    yield value
