"""What `mpips run` does about ranks that outlive their launcher."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Started

from mpips.launch.detached_run import PATIENCE, DetachedRun
from mpips.launch.node_beat import FILE
from mpips.launch.processes import TASK_ENDED
from mpips.process.host import host_name
from mpips.process.supervisor import given
from mpips.rundir import claim
from mpips.rundir.folder import RunFolder
from mpips.rundir.order_files import Orders


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return a run's folder that this process has claimed."""
    return RunFolder.claim(tmp_path / "run")


def begun(folder: RunFolder, *hosts: str) -> None:
    """Let a run begin on these hosts."""
    ranks = [{"rank": rank, "host": host} for rank, host in enumerate(hosts)]
    folder.run.write_text(json.dumps({"ranks": ranks}))


def test_ranks_know_the_process(folder: RunFolder) -> None:
    found = given(DetachedRun(folder, "srun").arguments())
    assert found is not None and (found.launcher, found.pid, found.is_here) == ("srun", os.getpid(), True)


def test_a_stop_is_an_order_until_it_is_answered(folder: RunFolder) -> None:
    begun(folder, "h1")
    run, leader = DetachedRun(folder, "openmpi"), Orders(folder.path, time.monotonic, period=0.0)
    run.ask_to_stop("SIGINT")
    run.ask_to_stop("SIGTERM")
    orders, deadline = [], time.monotonic() + 20.0
    while not orders and time.monotonic() < deadline:
        orders = leader.poll()
    assert [(each.verb, each.arguments) for each in orders] == [("stop", {"by": "SIGINT"})]
    leader.answer(orders[0], True, "stops")
    assert run._ordering is not None
    run._ordering.join(20.0)
    assert not run._ordering.is_alive() and leader.poll() == []


def test_a_kill_is_a_result_unless_there_is_one(folder: RunFolder) -> None:
    run = DetachedRun(folder, "openmpi")
    run.kill("on request")
    run.kill("again")
    assert (folder.read_result() or {})["error"] == "on request"


def test_ranks_elsewhere_live_as_long_as_they_renew_the_claim(folder: RunFolder) -> None:
    now = 0.0
    run = DetachedRun(folder, "openmpi", lambda: now)
    assert not run.lives_elsewhere(), "it has not begun"
    begun(folder, host_name())
    assert not run.lives_elsewhere(), "all ranks are of this host"
    begun(folder, host_name(), "elsewhere")
    now += 1.1 * PATIENCE
    assert not run.lives_elsewhere(), "no rank has claimed the folder"
    assert folder.held is not None
    held = claim.take(folder.path, folder.held.id)
    assert run.lives_elsewhere()
    now += 0.9 * PATIENCE
    assert run.lives_elsewhere()
    os.utime(held.path, (1, 1))
    now += 0.9 * PATIENCE
    assert run.lives_elsewhere()
    os.utime(held.path, (1, 1))
    now += 1.1 * PATIENCE
    assert not run.lives_elsewhere()


def test_ranks_elsewhere_live_while_the_folder_cannot_be_read(folder: RunFolder) -> None:
    run = DetachedRun(folder, "openmpi")
    begun(folder, host_name(), "elsewhere")
    assert folder.held is not None
    claim.take(folder.path, folder.held.id)
    assert run.lives_elsewhere()
    for text in ("[", None):
        folder.run.unlink() if text is None else folder.run.write_text(text)
        assert run.lives_elsewhere()


def test_the_result_of_another_host_is_looked_for_anew(folder: RunFolder) -> None:
    """A client of NFS may know for a minute that there is none, unless the folder is changed here."""
    now = 0.0
    run = DetachedRun(folder, "openmpi", lambda: now)
    begun(folder, host_name(), "elsewhere")
    for later, anew in [(0.0, True), (1.0, False), (2.5, True)]:
        os.utime(folder.path, (1, 1))
        now = later
        run.lives_elsewhere()
        assert (folder.path.stat().st_mtime > 1) is anew


LAUNCHER = """
import json, os, subprocess, sys, time
from pathlib import Path
rank = '''
import json, sys, time
from pathlib import Path
from mpips.process.host import host_name
from mpips.launch.node_beat import FILE
from mpips.rundir import output_files
folder = Path(sys.argv[1])
output_files.redirect(folder, 0)
print("begun", flush=True)
(folder / "run.json").write_text(json.dumps({"ranks": [{"rank": 0, "host": host_name()}]}))
while not (folder / "go").exists():
    time.sleep(0.01)
print("goes on", flush=True)
if sys.argv[2] == "completes":
    (folder / "part").write_text(json.dumps({"status": "completed"}))
    (folder / "part").rename(folder / "result.json")
'''
subprocess.Popen([sys.executable, "-c", rank, *sys.argv[1:]], start_new_session=True)
while not (Path(sys.argv[1]) / "run.json").exists():
    time.sleep(0.01)
print("launched")
sys.exit(3)
"""
RUN = """
import sys
from mpips.launch import processes
from mpips.launch.detached_run import DetachedRun
from mpips.launch.mpi_launcher import Launch
from mpips.rundir.folder import RunFolder
processes.ORPHAN_GRACE = processes.EXIT_TIME = 5.0
folder = RunFolder.claim(sys.argv[1])
launch = Launch("openmpi", (sys.executable, "-c", sys.argv[2], sys.argv[1], sys.argv[3]), {})
detached = DetachedRun(folder, "openmpi")
process = processes.LauncherProcess(launch, folder.read_result, None, folder.run.exists, detached=detached)
code = process.run()
assert "goes on" in process.last_output
sys.exit(code)
"""


FAILS = """
import sys
from mpips.launch import processes
from mpips.launch.detached_run import DetachedRun
from mpips.launch.mpi_launcher import Launch
from mpips.rundir.folder import RunFolder
folder = RunFolder.claim(sys.argv[1])
launch = Launch("openmpi", (sys.executable, "-c", "import time; time.sleep(60)"), {})
processes.LauncherProcess(launch, lambda: 1 / 0, None, detached=DetachedRun(folder, "openmpi")).run()
"""


def test_ranks_elsewhere_end_when_mpips_run_fails(start: Callable[..., Started], tmp_path: Path) -> None:
    done = start([sys.executable, "-c", FAILS, tmp_path]).finish(30)
    assert "ZeroDivisionError" in done.stderr
    found = (RunFolder(tmp_path).read_result() or {})["error"]
    assert found == "mpips run has failed: ZeroDivisionError: division by zero"


@pytest.mark.parametrize("how", ["completes", "ends"])
def test_a_run_goes_on_without_its_launcher(start: Callable[..., Started], tmp_path: Path, how: str) -> None:
    started = start([sys.executable, "-c", RUN, tmp_path, LAUNCHER, how])
    started.wait_for(lambda: "the run continues without it" in started.stderr)
    (tmp_path / "go").touch()
    done = started.finish(30)
    assert done.code == 3, "the launcher's"
    assert sorted(done.stdout.splitlines()) == ["begun", "goes on", "launched"]


def test_a_node_that_gives_no_sign_is_lost_while_others_do(folder: RunFolder) -> None:
    now = [0.0]
    run = DetachedRun(folder, "srun", now=lambda: now[0])
    assert folder.held is not None
    own, other = (folder.path / FILE.format(folder.held.id, node) for node in ("n1", "n2"))
    earlier = folder.path / FILE.format("ab", "n3")
    earlier.write_text("7")

    def pass_(seconds: int, *renewed: Path) -> str:
        for _ in range(seconds):
            now[0] += 1.0
            for path in renewed:
                path.write_text(str(now[0]))
            if found := run.lost_node():
                return found
        return ""

    assert pass_(30) == "", "no node has begun"
    assert pass_(30, own, other) == ""
    assert pass_(30) == "", "the file system does not answer"
    assert pass_(30, own, other) == ""
    assert pass_(15, own) == "" and pass_(10, own) == "n2"
    other.unlink()
    assert pass_(30, own) == "", "it ended in order"
    run.close()
    assert not own.exists() and earlier.exists()


LOST_AT_START = """
import sys
from mpips.launch import processes
from mpips.launch.detached_run import DetachedRun
from mpips.launch.mpi_launcher import Launch
from mpips.process.stand_in import LOST
from mpips.rundir.folder import RunFolder
processes.START_GRACE = 0.5
folder = RunFolder.claim(sys.argv[1])
waits = "import sys, time; print('srun: error: n2: task 1: Killed', file=sys.stderr, flush=True); time.sleep(60)"
launch = Launch(sys.argv[2], (sys.executable, "-c", waits), {})
detached = DetachedRun(folder, sys.argv[2])
if sys.argv[2] == "openmpi":
    (folder.path / LOST.format(folder.held.id)).write_text("rank 1 on n2: SIGKILL")
begins = folder.run.exists if sys.argv[3] == "before" else lambda: True
process = processes.LauncherProcess(launch, folder.read_result, None, begins, detached=detached)
process.run()
detached.close()
"""


@pytest.mark.parametrize(
    ("launcher", "who"), [("srun", "srun: error: n2: task 1: Killed"), ("openmpi", "rank 1 on n2: SIGKILL")]
)
def test_a_rank_that_fails_before_the_others_have_begun_ends_the_run(
    start: Callable[..., Started], tmp_path: Path, launcher: str, who: str
) -> None:
    start([sys.executable, "-c", LOST_AT_START, tmp_path, launcher, "before"]).finish(30)
    found = (RunFolder(tmp_path).read_result() or {})["error"]
    assert found == f"a rank has ended at its start ({who})"
    assert not list(tmp_path.glob(".lost-*"))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("srun: error: h2: task 1: Killed", True),
        ("srun: error: n[1-2]: tasks 0,3-6: Exited with exit code 1", True),
        ("srun: error: Node failure on h2", True),
        ("srun: error: Unable to create step for job 2: Job/step already completing or completed", False),
        ("it says srun: error: h2: task 1: Killed", False),
    ],
)
def test_the_lines_in_which_srun_reports_that_ranks_have_failed(line: str, found: bool) -> None:
    assert (TASK_ENDED.search(f"before\n{line}\nafter".encode()) is not None) == found


@pytest.mark.parametrize("launcher", ["srun", "openmpi"])
def test_a_rank_that_fails_later_does_not(
    start: Callable[..., Started], tmp_path: Path, launcher: str
) -> None:
    started = start([sys.executable, "-c", LOST_AT_START, tmp_path, launcher, "after"])
    started.wait_for(lambda: "Killed" in started.stderr)
    time.sleep(1.0)
    assert RunFolder(tmp_path).read_result() is None and started.process.poll() is None
    started.kill()
