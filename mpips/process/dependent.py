"""A child process that ends with this one: its command line is that of a step between, which becomes the child.

A child of this process has to be prepared after the fork, and before it runs its program. `Popen(preexec_fn=...)` does
that in a copy of this process, where locks of other threads stay locked; JAX warns of each such fork. So a Python
without modules of anybody prepares itself, and then becomes the child: it keeps its process number.

This file is run by its path, and imports the standard library only.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
NOT_STARTED = 127
"""The exit code of a step whose program cannot be started, as a shell's."""


def line(command: Sequence[str | os.PathLike[str]], by: signal.Signals = signal.SIGTERM) -> list[str]:
    """Return the command line of a child that gets the signal `by` when this process ends, even by KILL.

    The signal may come several times: the kernel sends it for each thread of this process that ends.

    Raises:
        OSError: its program is not there, or cannot be executed.

    >>> import subprocess
    >>> subprocess.run(line(["sh", "-c", "exit 3"])).returncode
    3
    """
    program = os.fspath(command[0])
    if os.sep in program:
        with open(program, "rb"):
            pass
        if not os.access(program, os.X_OK):
            raise PermissionError(13, os.strerror(13), program)
    parts = [os.fspath(part) for part in command]
    # A Python that was moved finds its library by PYTHONHOME, which -I ignores.
    alone = ["-P", "-s", "-S"] if os.environ.get("PYTHONHOME") else ["-I", "-S"]
    return [sys.executable, *alone, __file__, str(os.getpid()), str(int(by)), *parts]


def clear_session(pid: int) -> None:
    """Remove the session folder of a killed Open MPI launcher: a launcher that gets the same pid would fail."""
    folder = next((os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if name in os.environ), "/tmp")
    path = os.path.join(folder, f"ompi.{pid}")
    try:
        # As root this process could remove another user's.
        if os.lstat(path).st_uid == os.geteuid():
            # Imported late: it takes longer than all else here.
            import shutil

            shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass


def main(parent: int, by: int, command: Sequence[str]) -> None:
    """Become a program that ends with the process `parent`."""
    # Python has changed them, and an ignored signal stays ignored.
    for kind in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(kind, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent(by)
    # It has ended before that.
    if os.getppid() != parent:
        os.kill(os.getpid(), by)
    clear_session(os.getpid())
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        sys.stderr.write(f"mpips: error: {command[0]} cannot be started: {error.strerror}\n")
        sys.exit(NOT_STARTED)


def end_with_parent(by: int) -> None:
    """Request a signal for this process when its parent ends, 0: none; without effect where unsupported."""
    try:
        # Imported late: no shell needs it.
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
