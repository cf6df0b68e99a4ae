"""The script that creates the cluster: refused arguments, and that clusters do not affect each other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtual import SCRIPT, SKIP, Cluster, environment


@pytest.fixture
def short() -> Iterator[Path]:
    """Return a folder that is not there, on a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="mpips-slurm-") as folder:
        yield Path(folder) / "c"


def call(
    *arguments: str | Path, path: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run cluster.sh; the commands in `path` come before the system's."""
    paths = os.pathsep.join([*([str(path)] if path else []), os.environ["PATH"]])
    return subprocess.run(
        [SCRIPT, *map(str, arguments)], env={**os.environ, "PATH": paths, **environ}, text=True, check=False,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=120,
    )  # fmt: skip


def played(folder: Path, **commands: str) -> Path:
    """Make commands that do what they are told."""
    for name, body in commands.items():
        file = folder / name.replace("_", "-")
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
    return folder


def test_the_script_passes_shellcheck() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    beside = Path(sys.executable).parent / "shellcheck"
    checker = beside if beside.exists() else shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([checker, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "commands, reason",
    [
        ({"uname": "echo Darwin"}, "it takes Linux"),
        ({"id": "echo 1000"}, "it takes root"),
        ({"id": "echo 0", "unshare": "exit 1"}, "grants no namespaces"),
    ],
)
def test_where_there_can_be_no_cluster_it_reports_why(
    tmp_path: Path, short: Path, commands: dict[str, str], reason: str
) -> None:
    done = call("up", short, path=played(tmp_path, **commands))
    assert done.returncode == SKIP
    assert reason in done.stderr.splitlines()[-1]
    assert not short.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root")
def test_packages_that_cannot_be_had_are_named(tmp_path: Path, short: Path) -> None:
    commands = {"unshare": "exit 0", "apt_get": "echo no network; exit 100"}
    path = played(tmp_path, dpkg_query='[ "$3" = munge ] && echo installed', **commands)
    done = call("up", short, path=path)
    assert done.returncode == SKIP
    assert "slurmctld slurmd slurm-client libpmix2 cannot be installed" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["a b", "$(touch x)", "x" * 80])
def test_paths_that_cannot_be_are_refused(name: str) -> None:
    done = call("up", f"/tmp/mpips-slurm-{name}")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert not Path(f"/tmp/mpips-slurm-{name}").exists()


def test_a_folder_without_a_cluster_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    assert call("down", tmp_path).returncode == 1
    assert (tmp_path / "thesis.tex").exists()
    assert call("down", tmp_path / "nothing").returncode == 0


def living(folder: Path) -> list[str]:
    """List the processes of a cluster: its folder is in their command lines or environments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
                if f"{folder}/".encode() in command + (entry / "environ").read_bytes() and command:
                    found.append(command.replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


@pytest.mark.slurm
def test_clusters_live_side_by_side_and_leave_nothing(cluster: Cluster) -> None:
    folder = cluster.folder.with_name("d")
    few = {"MPIPS_SLURM_NODES": "2", "MPIPS_SLURM_CPUS": "1"}
    try:
        assert call("up", folder, **few).returncode == 0
        other = Cluster(folder, cluster.home, environment(folder))
        number = other.tell(
            "sbatch", "--parsable", "--nodes=2", "--output=/dev/null", "--wrap=srun setsid sleep 1000"
        )
        assert number == "1\n", "it is a cluster of its own"
        assert call("up", folder, **few).returncode == 0
        assert "sleep" not in cluster.tell("squeue", "--noheader")
        assert call("crash", "n2", folder).returncode == 0
        assert call("crash", "n2", folder).returncode == 1
        assert call("up", folder, **few).returncode == 0
        assert other.tell("sinfo", "--noheader", "--Node", "--format=%N").split() == ["n1", "n2"]
    finally:
        assert call("down", folder).returncode == 0
    assert not living(folder) and not folder.exists()
    assert "n1" in cluster.tell(
        "sinfo", "--noheader", "--Node", "--states=idle,mixed,allocated", "--format=%N"
    )
