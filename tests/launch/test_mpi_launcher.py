"""Launch lines, the choice of the launcher by the MPI that mpi4py loads, and exit codes from the result."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Finished, Started

from mpips.errors import InputError
from mpips.launch import mpi_launcher
from mpips.launch.mpi_launcher import Launch, Mpi, Starter, Survival
from mpips.launch.processes import LauncherProcess, descendants

PROGRAM = ["python", "-m", "mpips", "job.toml"]

OPEN_MPI = Starter("openmpi", "mpirun", Mpi("openmpi", "Open MPI", "5.0.11", "3.1", "", "", ulfm=True))
OLD = Starter("openmpi", "mpirun", Mpi("openmpi", "Open MPI", "4.1.4", "3.1", "", ""))
MPICH = Starter("mpich", "mpiexec.hydra", Mpi("mpich", "MPICH", "5.0.2", "5.0", "", ""))
SRUN = Starter("srun", "srun", OPEN_MPI.mpi)


@pytest.mark.parametrize(
    ("kind", "ranks", "options", "line"),
    [
        ("openmpi", 3, {}, "L -n 3 --map-by :OVERSUBSCRIBE --bind-to none P"),
        ("openmpi", 9, {}, "L -n 9 --map-by :OVERSUBSCRIBE --bind-to none --mca mpi_yield_when_idle 1 P"),
        (
            "openmpi",
            3,
            {"survive": Survival.RANKS},
            "L -n 3 --map-by :OVERSUBSCRIBE --bind-to none --with-ft ulfm P",
        ),
        (
            "openmpi",
            3,
            {"survive": Survival.NODES, "nodes": 2},
            "L -n 3 --map-by node:OVERSUBSCRIBE --bind-to none --with-ft ulfm --mca mpi_add_procs_cutoff 4 P",
        ),
        (
            "openmpi",
            3,
            {"exports": ["OMP_NUM_THREADS"]},
            "L -n 3 --map-by :OVERSUBSCRIBE --bind-to none -x OMP_NUM_THREADS P",
        ),
        ("mpich", 9, {}, "L -n 9 P"),
        ("srun", 9, {}, "L --mpi=pmix --ntasks=9 --kill-on-bad-exit=1 P"),
        (
            "srun",
            9,
            {"pmi": "pmi2", "cpus_per_task": "2"},
            "L --mpi=pmi2 --ntasks=9 --cpus-per-task=2 --kill-on-bad-exit=1 P",
        ),
        # On several nodes ranks are dealt in turn, so that servers, which are neighbours by rank, are spread.
        ("openmpi", 3, {"nodes": 2}, "L -n 3 --map-by node:OVERSUBSCRIBE --bind-to none P"),
        ("mpich", 3, {"nodes": 2}, "L -n 3 -ppn 1 P"),
        ("srun", 3, {"nodes": 2}, "L --mpi=pmix --ntasks=3 --distribution=cyclic --kill-on-bad-exit=1 P"),
        (
            "srun",
            3,
            {"survive": Survival.NODES},
            "L --mpi=pmix --ntasks=3 --no-kill --kill-on-bad-exit=0 P",
        ),
        (
            "srun",
            7,
            {"groups": [(3, ""), (4, "2")]},
            "L --mpi=pmix --het-group=0 --ntasks=3 --distribution=cyclic --kill-on-bad-exit=1 Q"
            " : --het-group=1 --ntasks=4 --cpus-per-task=2 --distribution=cyclic --kill-on-bad-exit=1 P",
        ),
    ],
)
def test_launch_lines(kind: str, ranks: int, options: dict[str, object], line: str) -> None:
    made = mpi_launcher.launch_line(kind, "L", ranks, PROGRAM, cores=8, **options)  # type: ignore[arg-type]
    assert shlex.join(made) == line.replace("Q", shlex.join(PROGRAM)).removesuffix("P") + shlex.join(PROGRAM)


def test_the_parts_of_a_heterogeneous_job_must_have_the_job_files_ranks() -> None:
    environ = {"SLURM_HET_SIZE": "2", "SLURM_NTASKS_HET_GROUP_0": "3", "SLURM_NTASKS_HET_GROUP_1": "4"}
    assert mpi_launcher.het_groups(environ | {"SLURM_CPUS_PER_TASK_HET_GROUP_1": "2"}, 7) == (
        (3, ""),
        (4, "2"),
    )
    assert mpi_launcher.het_groups({"SLURM_NTASKS": "5"}, 7) == ()
    with pytest.raises(InputError, match=r"has 3 \+ 4 tasks, and the job file's layout 8 ranks"):
        mpi_launcher.het_groups(environ, 8)


def test_threads_are_one_unless_the_user_says_otherwise() -> None:
    added = mpi_launcher.launch_environment("mpich", {"OMP_NUM_THREADS": "4"}, root=True)
    assert added == {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def test_only_open_mpi_as_root_gets_permission_to_run_as_root() -> None:
    leave = {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"}
    assert leave <= set(mpi_launcher.launch_environment("openmpi", {}, root=True))
    assert not leave & set(mpi_launcher.launch_environment("openmpi", {}, root=False))


def test_open_mpi_gets_a_home_where_the_environment_names_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = SimpleNamespace(pw_dir=str(tmp_path))
    monkeypatch.setattr(mpi_launcher.user_folders.pwd, "getpwuid", lambda uid: entry)
    assert mpi_launcher.launch_environment("openmpi", {}, root=False)["HOME"] == str(tmp_path)
    entry.pw_dir = "/nowhere"
    assert mpi_launcher.launch_environment("openmpi", {"HOME": ""}, root=False)["HOME"] == "/nonexistent"
    assert "HOME" not in mpi_launcher.launch_environment("openmpi", {"HOME": "/x"}, root=False)


def test_a_launch_can_be_typed() -> None:
    made = Launch("mpich", ("mpiexec", "-n", "2", "a b"), {"B": "1", "A": "x y", "MPIPS_PROGRESS": "live"})
    assert str(made) == "env 'A=x y' B=1 mpiexec -n 2 'a b'"


NOTHING, RANKS, NODES = Survival.NOTHING, Survival.RANKS, Survival.NODES


@pytest.mark.parametrize(
    ("starter", "nodes", "auto", "ranks"),
    [
        (OPEN_MPI, 1, RANKS, RANKS),
        (OPEN_MPI, 2, NODES, RANKS),
        # Under srun only ranks that have left it survive anything.
        (SRUN, 1, NOTHING, NODES),
        (SRUN, 2, NODES, NODES),
    ],
)
def test_what_could_continue_is_launched_so_that_it_can(
    starter: Starter, nodes: int, auto: Survival, ranks: Survival
) -> None:
    assert mpi_launcher.survival("auto", starter, nodes) is auto
    assert mpi_launcher.survival("ranks", starter, nodes) is ranks
    assert mpi_launcher.survival("nodes", starter, nodes) is NODES
    assert mpi_launcher.survival("no", starter, nodes) is NOTHING


@pytest.mark.parametrize("wanted", ["ranks", "nodes"])
@pytest.mark.parametrize(
    ("starter", "name"),
    [
        (MPICH, "MPICH 5.0.2"),
        (OLD, "Open MPI 4.1.4"),
        (Starter("srun", "srun", MPICH.mpi), "MPICH 5.0.2"),
    ],
)
def test_an_mpi_that_cannot_continue_is_not_asked_to(starter: Starter, name: str, wanted: str) -> None:
    assert mpi_launcher.survival("auto", starter, 2) is NOTHING
    assert mpi_launcher.survival("no", starter, 2) is NOTHING
    with pytest.raises(InputError) as caught:
        mpi_launcher.survival(wanted, starter, 2)
    said = f"--survive {wanted}: {name} has no ULFM and ends all ranks when one dies; only Open MPI 5"
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_nodes_are_those_of_the_allocation_or_of_a_host_file(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# two\nh1 slots=4\nh2 slots=4 # of four cores\n\nh1\n")
    named = {mpi_launcher.HOST_FILE: str(tmp_path / "hosts")}
    assert mpi_launcher.node_count(named) == 2
    assert mpi_launcher.node_count({mpi_launcher.HOST_FILE: str(tmp_path / "none")}) == 1
    assert mpi_launcher.node_count({**named, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]"}) == 3
    assert mpi_launcher.node_count({}) == 1


def fake(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_a_launcher_of_another_mpi_is_passed_over(tmp_path: Path) -> None:
    library = tmp_path / "mpi" / "lib" / "libmpi.so.40"
    fake(tmp_path / "mpi" / "bin" / "mpirun", "HYDRA build details")
    right = fake(tmp_path / "mpi" / "bin" / "mpiexec", "mpiexec (OpenRTE) 4.1.4")
    mpi = Mpi("openmpi", "Open MPI", "4.1.4", "3.1", str(library), "")
    assert mpi_launcher.find_launcher(mpi) == right


def test_no_launcher_is_an_error_that_names_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    mpi = Mpi("openmpi", "Open MPI", "4.1.4", "3.1", "/nowhere/lib/libmpi.so.40", "")
    with pytest.raises(InputError, match=r"no launcher of Open MPI 4\.1\.4 \(/nowhere/lib/libmpi\.so\.40\)"):
        mpi_launcher.find_launcher(mpi, str(tmp_path))


def test_a_python_without_mpi4py_is_an_input_error(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -I "$@"\n')
    python.chmod(0o755)
    with pytest.raises(InputError, match=r"mpi4py loads no MPI .*mpips\[openmpi\]"):
        mpi_launcher.find_mpi(str(python))


@pytest.mark.parametrize("says", ["hello", "{}", "[1]", r"printf \\377", ""])
def test_unexpected_output_of_the_python_that_loads_mpi_is_an_input_error(tmp_path: Path, says: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {shlex.quote(says)}; printf '\\377' >&2\n")
    python.chmod(0o755)
    with pytest.raises(InputError, match="mpi4py loads no MPI"):
        mpi_launcher.find_mpi(str(python))


def test_a_python_that_does_not_end_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = fake(tmp_path / "python", "x'; sleep 60; echo '")
    monkeypatch.setattr(mpi_launcher, "LOAD_TIMEOUT", 0.2)
    with pytest.raises(InputError, match=r"mpi4py loads no MPI \(no end within 0\.2 s\)"):
        mpi_launcher.find_mpi(str(python))


def test_the_launcher_is_found_behind_unusable_files_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere" / "python"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "nowhere"))
    for name in ("fifo", "folder", "loop", "binary", "odd", "right"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "fifo" / "mpirun")
    (tmp_path / "folder" / "mpirun").mkdir()
    (tmp_path / "loop" / "mpirun").symlink_to("mpirun")
    (tmp_path / "binary" / "mpirun").write_bytes(b"\0\1\2")
    (tmp_path / "binary" / "mpirun").chmod(0o755)
    fake(tmp_path / "odd" / "mpirun", "'; printf '\\377\\376'; setsid sleep 8 & echo '")
    right = fake(tmp_path / "right" / "mpirun", "mpirun (Open MPI) 5.0.3")
    folders = [
        "x" * 5000,
        "\udcff",
        "",
        *(tmp_path / name for name in ("fifo", "folder", "loop", "binary", "odd", "right")),
    ]
    mpi = Mpi("openmpi", "Open MPI", "5.0.3", "3.1", "", "")
    assert mpi_launcher.find_launcher(mpi, os.pathsep.join(map(str, folders))) == right


def test_the_wrong_launcher_by_name_is_refused() -> None:
    other = "mpich" if mpi_launcher.find_mpi().kind == "openmpi" else "openmpi"
    with pytest.raises(InputError, match=f"--launcher {other}: but mpi4py loads"):
        mpi_launcher.find_starter(other)


@pytest.mark.ranks
def test_ranks_form_one_world(run_ranks: Callable[..., Finished]) -> None:
    script = "import sys; from mpi4py import MPI; sys.stdout.write(f'size {MPI.COMM_WORLD.size}\\n')"
    done = run_ranks(3, "-c", script)
    assert done.code == 0, done.stderr
    assert done.stdout.count("size 3") == 3


SLEEPER = """
import os, signal, sys, time
from pathlib import Path
from mpi4py import MPI
rank, folder = MPI.COMM_WORLD.rank, Path(sys.argv[1])
heard = []
if sys.argv[2] == "heeds":
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
else:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
MPI.COMM_WORLD.Barrier()
(folder / f"up-{rank}").touch()
while not heard:
    time.sleep(0.02)
(folder / f"heard-{rank}").touch()
"""

PARENT = """
import sys
from mpips.launch import mpi_launcher
from mpips.launch.processes import LauncherProcess
planned = mpi_launcher.plan(mpi_launcher.find_starter(), 2, [sys.executable, *sys.argv[1:]])
sys.exit(abs(LauncherProcess(planned).run()))
"""


def sleepers(start: Callable[..., Started], folder: Path, how: str) -> Started:
    script = folder / "sleeper.py"
    script.write_text(SLEEPER)
    started = start([sys.executable, "-c", PARENT, script, folder, how])
    started.wait_for(lambda: len(list(folder.glob("up-*"))) == 2)
    return started


@pytest.mark.ranks
@pytest.mark.parametrize("kind", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_every_stop_signal_reaches_all_ranks_as_usr1(
    start: Callable[..., Started], tmp_path: Path, kind: signal.Signals
) -> None:
    started = sleepers(start, tmp_path, "heeds")
    started.process.send_signal(kind)
    done = started.finish(20)
    assert len(list(tmp_path.glob("heard-*"))) == 2, done.stderr
    assert done.code == 0, done.stderr


@pytest.mark.ranks
def test_a_second_interrupt_kills_ranks_that_ignore_the_first(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    started = sleepers(start, tmp_path, "ignores")
    started.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert started.process.poll() is None
    started.process.send_signal(signal.SIGINT)
    done = started.finish(20)
    assert done.code != 0
    assert list(tmp_path.glob("heard-*")) == []


LEFT_BEHIND = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
stopped = subprocess.Popen(["sleep", "60"], start_new_session=True)
stopped.send_signal(signal.SIGSTOP)
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / "part").write_text(json.dumps({"status": "completed", "recoveries": [{}]}))
(folder / "part").rename(folder / "result.json")
while True:
    time.sleep(60)
"""

LEFT_BEHIND_PARENT = """
import sys
from mpips.launch import processes
from mpips.rundir.folder import RunFolder
from mpips.launch.mpi_launcher import Launch
processes.CHECK_INTERVAL, processes.EXIT_TIME, processes.GRACE, processes.ORPHAN_GRACE = 0.0, 0.3, 0.3, 0.3
line = (sys.executable, *sys.argv[1:])
sys.exit(abs(processes.LauncherProcess(Launch("openmpi", line, {}), RunFolder(sys.argv[2]).read_result).run()))
"""


LEFTOVERS_PARENT = """
import os, sys
from pathlib import Path
from mpips.launch import processes
from mpips.launch.mpi_launcher import Launch
folder, most = Path(sys.argv[1]), int(Path("/proc/sys/kernel/pid_max").read_text())
for number in range(1, 2000):
    (folder / f"ompi.{(os.getpid() + number) % most}").mkdir()
line = ("sh", "-c", f"mkdir {folder}/ompi.$$ && echo $$ > {folder}/number")
code = processes.LauncherProcess(Launch("openmpi", line, {})).run()
sys.exit(code or (folder / ("ompi." + (folder / "number").read_text().strip())).exists())
"""


def test_the_session_folder_of_a_killed_launcher_is_removed(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    started = start(
        [sys.executable, "-c", LEFTOVERS_PARENT, str(tmp_path)], environ={"TMPDIR": str(tmp_path)}
    )
    done = started.finish(20)
    assert done.code == 0, done.stderr


@pytest.mark.parametrize(("how", "code"), [("heeds", signal.SIGTERM), ("deaf", signal.SIGKILL)])
def test_a_launcher_that_waits_for_a_stopped_rank_is_ended_once_there_is_a_result(
    start: Callable[..., Started], tmp_path: Path, how: str, code: int
) -> None:
    script = tmp_path / "launcher.py"
    script.write_text(LEFT_BEHIND)
    done = start([sys.executable, "-c", LEFT_BEHIND_PARENT, script, tmp_path, how]).finish(30)
    assert done.code == code, done.stderr


def test_a_provisional_result_does_not_end_the_wait_for_the_launcher() -> None:
    launch = Launch("openmpi", ("true",), {})
    result = {"status": "failed", "provisional": True}
    assert LauncherProcess(launch, lambda: result)._status() == ""
    assert LauncherProcess(launch, lambda: {"status": "failed"})._status() == "failed"


def test_without_a_result_a_launcher_may_take_its_time(start: Callable[..., Started], tmp_path: Path) -> None:
    script = tmp_path / "launcher.py"
    script.write_text("import time; time.sleep(1.5)")
    done = start([sys.executable, "-c", LEFT_BEHIND_PARENT, script, tmp_path]).finish(30)
    assert done.code == 0, done.stderr


SLOW_READER = """
import os, select, sys, threading, time
from mpips.launch import processes
from mpips.launch.mpi_launcher import Launch
processes.CHECK_INTERVAL, processes.EXIT_TIME, processes.GRACE = 0.0, 0.1, 0.1
reader, writer = os.pipe()
kept = os.dup(1)
os.dup2(writer, 1)
os.close(writer)
size = int(sys.argv[1])

def read():
    left, late = size, 2.0
    while left:
        time.sleep(late)
        left, late = left - len(os.read(reader, 1 << 16)), 0.0
    os.write(kept, b"all")

thread = threading.Thread(target=read, daemon=True)
thread.start()

def result():
    return {"status": "completed"} if select.select([reader], [], [], 0)[0] else None

launch = Launch("openmpi", ("head", "-c", str(size), "/dev/zero"), {})
code = processes.LauncherProcess(launch, result).run()
thread.join(1.0)
sys.exit(abs(code))
"""


@pytest.mark.parametrize("size", [100_000, 400_000], ids=["launcher ends first", "launcher waits"])
def test_a_slow_reader_gets_all_output(start: Callable[..., Started], size: int) -> None:
    done = start([sys.executable, "-c", SLOW_READER, str(size)]).finish(60)
    assert (done.code, done.stdout) == (0, "all"), done.stderr


STOPPED_RANK = """
import json, os, signal, sys, time
from pathlib import Path
from mpi4py import MPI
folder = Path(sys.argv[1])
MPI.COMM_WORLD.Barrier()
if MPI.COMM_WORLD.rank == 2:
    os.kill(os.getpid(), signal.SIGSTOP)
if MPI.COMM_WORLD.rank == 0:
    (folder / "part").write_text(json.dumps({"status": "completed"}))
    (folder / "part").rename(folder / "result.json")
while not (folder / "result.json").exists():  # MPICH's launcher ends all when one leaves so
    time.sleep(0.01)
os._exit(0)
"""

STOPPED_RANK_PARENT = """
import sys
from mpips.launch import processes
from mpips.launch import mpi_launcher, verdict
from mpips.rundir.folder import RunFolder
processes.CHECK_INTERVAL, processes.EXIT_TIME = 0.0, 0.5
starter, folder = mpi_launcher.find_starter(), RunFolder(sys.argv[2])
planned = mpi_launcher.plan(starter, 3, [sys.executable, *sys.argv[1:]], survive=mpi_launcher.survival('auto', starter))
ended = processes.LauncherProcess(planned, folder.read_result).run()
code, line = verdict.judge(folder.read_result(), ended, folder.path)
print(line, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.ranks
def test_a_stopped_rank_does_not_hold_up_a_run_that_has_completed(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(STOPPED_RANK)
    done = start([sys.executable, "-c", STOPPED_RANK_PARENT, script, tmp_path]).finish(30)
    assert done.code == 0, done.stderr
    assert done.last_line == f"mpips: completed; run folder: {tmp_path}"


def test_descendants_are_found(start: Callable[..., Started], tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run(['sleep', '30'])"
    started = start([sys.executable, "-c", code])
    started.wait_for(lambda: len(descendants(os.getpid())) >= 2)
    started.wait_for(lambda: len(descendants(started.process.pid)) == 1)
    started.kill()


def test_progress_of_a_pipe_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPIPS_PROGRESS", raising=False)
    with open(os.devnull, "w") as stream:
        assert mpi_launcher.progress_environment(stream) == {"MPIPS_PROGRESS": "plain"}


def test_what_mpi4py_says_is_json_serialisable() -> None:
    mpi = mpi_launcher.find_mpi()
    assert json.loads(json.dumps(mpi.__dict__))["library"].count("libmpi") == 1
    assert mpi.ulfm is (mpi.vendor == "Open MPI" and int(mpi.version.split(".")[0]) >= 5)
