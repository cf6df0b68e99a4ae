"""A child that ends with its parent: what it becomes, keeps, and finds; launchers that get the pid of a killed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mpips.launch import mpi_launcher
from mpips.launch.checks import launcher_probe
from mpips.process import dependent, subprocess_output

LEFT = 'ls -d "$TMPDIR"/ompi.$$'


def test_it_becomes_its_program_with_the_same_number_arguments_and_signals() -> None:
    code = "import os, sys; print(os.getpid(), sys.argv[1:])"
    child = subprocess.Popen(
        dependent.line([sys.executable, "-c", code, "a b", ""]), stdout=subprocess.PIPE, text=True
    )
    assert child.communicate()[0] == f"{child.pid} ['a b', '']\n"
    status = subprocess.run(
        dependent.line(["grep", "SigIgn", "/proc/self/status"]), capture_output=True, text=True, check=True
    ).stdout
    mine = int(Path("/proc/self/status").read_text().split("SigIgn:")[1].split()[0], 16)
    python = {signal.SIGPIPE, signal.SIGXFSZ}
    assert int(status.split()[1], 16) == mine & ~sum(1 << kind - 1 for kind in python)


def test_it_is_started_by_a_python_that_needs_pythonhome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", sys.base_prefix)
    assert subprocess.run(dependent.line(["sh", "-c", "exit 3"]), check=False).returncode == 3
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    assert subprocess.run(dependent.line(["true"]), check=False, capture_output=True).returncode == 1


def test_one_whose_program_is_not_there_is_an_error_and_one_that_cannot_be_run_ends_with_a_line(
    tmp_path: Path,
) -> None:
    with pytest.raises(FileNotFoundError):
        dependent.line([tmp_path / "missing"])
    program = tmp_path / "program"
    program.write_text("#!/nonexistent/shell\n")
    with pytest.raises(PermissionError):
        dependent.line([program])
    program.chmod(0o755)
    done = subprocess.run(dependent.line([program]), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        dependent.NOT_STARTED,
        f"mpips: error: {program} cannot be started: No such file or directory\n",
    )


def test_it_gets_a_signal_when_its_parent_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "told"
    wait = f"trap 'echo told > {told}; exit' USR2; echo up; while :; do sleep 0.02; done"
    parent = (
        "import signal, subprocess\nfrom mpips.process import dependent\n"
        f"subprocess.run(dependent.line(['sh', '-c', {wait!r}], signal.SIGUSR2))"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", parent], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT}
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        process.kill()
        assert process.stdout.read() == b""  # its child has ended, too
    assert told.read_text() == "told\n"


ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def used_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let each launcher get the number of one that was killed, whose session folder is there."""
    real = dependent.line

    def planted(command: Sequence[str | os.PathLike[str]], by: signal.Signals = signal.SIGTERM) -> list[str]:
        return ["sh", "-c", 'mkdir -p "$TMPDIR"/ompi.$$/0 && exec "$@"', "sh", *real(command, by)]

    monkeypatch.setattr(dependent, "line", planted)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("used_number")
def test_a_launch_of_ranks_finds_no_folder_of_a_launcher_that_had_its_number() -> None:
    launch = mpi_launcher.Launch("openmpi", ("sh", "-c", LEFT), {})
    assert "No such file" in launch.run(10.0).stderr


@pytest.mark.usefixtures("used_number")
def test_a_probe_of_a_launcher_finds_none_either() -> None:
    command = ["sh", "-c", f"{LEFT}; exit 3"]
    assert "No such file" in launcher_probe.start("sh", command, os.environ).said


def test_a_launcher_that_is_killed_leaves_no_folder(used_number: Path) -> None:
    text = "trap '' TERM; mkdir $TMPDIR/ompi.$$; while :; do sleep 0.02; done"
    done = subprocess_output.run(["sh", "-c", text], 0.3, launcher=True, after_term=(0.1,))
    assert done.code is None and list(used_number.iterdir()) == []


FORKS = """
import os
os.register_at_fork(before=lambda: print("forked", flush=True))
from mpips.launch.mpi_launcher import Launch
from mpips.launch.processes import LauncherProcess
launch = Launch("openmpi", ("echo", "run"), {})
print(LauncherProcess(launch).run(), launch.run(10.0))
"""


def test_a_launcher_is_started_without_a_fork_of_this_process() -> None:
    """Which is warned of by JAX, and may stand still for locks of threads that are not copied."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", FORKS],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        check=False,
    )
    assert (done.stderr, done.stdout) == (b"", b"run\n0 Output(code=0, stdout='run\\n', stderr='')\n")
