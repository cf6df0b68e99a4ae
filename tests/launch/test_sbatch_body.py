"""The body of batch scripts, with small scripts in place of `mpips` and `scontrol`: no Slurm, no ranks.

On a real Slurm it is tested in tests/slurm.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mpips.launch.sbatch import Batch, script
from mpips.launch.slurm_parts import Component
from mpips.launch.slurm_site import Site

PLAYER = r"""#!/bin/bash
# Plays `python -P -m mpips.cli run JOB --run-dir RUN`: notes its arguments, does what `play` says, ends with its code.
printf '%s\n' "$@" >>"$PLAYED/called"
[[ ! -e $PLAYED/later ]] || mv "$PLAYED/later" "$PLAYED/state"
run=
while (( $# )); do [[ $1 == --run-dir ]] && run=$2; shift; done
[[ -z $run ]] || mkdir -p "$run"
. "$PLAYED/play"
"""
SCONTROL = r"""#!/bin/bash
printf '%s\n' "$*" >>"$PLAYED/scontrol"
if [[ $1 == show ]]; then
    [[ ! -e $PLAYED/others ]] || echo "JobId=8 ArrayJobId=7 ArrayTaskId=0 JobName=toy JobState=RUNNING Restarts=0 B=1"
    printf 'JobId=7 %sJobName=%s UserId=me(1) JobState=%s Requeue=1 Restarts=%s BatchFlag=1\n' \
        "$(cat "$PLAYED/array" 2>/dev/null)" "$SLURM_JOB_NAME" $(cat "$PLAYED/state")
fi
if [[ $1 == requeue && -e $PLAYED/ends ]]; then echo "PENDING 1" >"$PLAYED/state"; exit 143; fi
[[ $1 != requeue || ! -e $PLAYED/refuses ]]
"""
CHECKPOINT = 'mkdir -p "$run/checkpoints/step-000010"; : >"$run/checkpoints/step-000010/manifest.json"\n'


@dataclass
class Stage:
    """A folder with the scripts that stand for commands, and a job that runs there."""

    folder: Path
    job: Batch
    variables: dict[str, str] = field(default_factory=dict)

    def start(
        self, play: str, restarts: int = 0, state: str = "RUNNING", counted: int | None = None, **more: Any
    ) -> subprocess.Popen[str]:
        """Start it; `counted` are the restarts that Slurm counts once the run continues."""
        (self.folder / "play").write_text(play)
        (self.folder / "state").write_text(f"{state} {restarts}")
        if counted is not None:
            (self.folder / "later").write_text(f"{state} {counted}")
        (self.folder / "scontrol").unlink(missing_ok=True)
        (self.folder / "called").unlink(missing_ok=True)
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MPIPS_"))
        }
        path = f"{self.folder / 'bin'}{os.pathsep}{inherited['PATH']}"
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "toy"} | (
            {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        )
        environ = {**inherited, "PATH": path, "PLAYED": str(self.folder), **slurm, **self.variables}
        text = script(replace(self.job, **more))
        (self.folder / "job.sbatch").write_text(text)
        return subprocess.Popen(
            ["bash", self.folder / "job.sbatch"],
            env=environ,
            text=True,
            stderr=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )

    def run(self, play: str, **more: Any) -> tuple[int, str]:
        process = self.start(play, **more)
        return finish(process)

    def called(self) -> list[str]:
        return (self.folder / "called").read_text().splitlines()

    def requeued(self) -> list[str]:
        path = self.folder / "scontrol"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.removeprefix("requeue ") for line in lines if line.startswith("requeue")]

    def is_task(self, job: str, task: str) -> None:
        """Let the job be a task of an array."""
        self.variables |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": task}
        (self.folder / "array").write_text(f"ArrayJobId={job} ArrayTaskId={task} ")

    @property
    def runs(self) -> Path:
        return self.folder / "work here" / "runs"


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        try:
            _, said = process.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    (tmp_path / "bin").mkdir()
    (tmp_path / "work here").mkdir()
    for name, text in (("python", PLAYER), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    job = Batch(
        name="toy", job="/a b/job.toml", directory=str(tmp_path / "work here"), requeue=True,
        python=str(tmp_path / "bin" / "python"), parts=(Component(1, 2, 2),), arguments=("--set", "toy.word=a  b; $x"),
    )  # fmt: skip
    return Stage(tmp_path, job)


def after(called: Sequence[str], option: str) -> list[str]:
    return [called[at + 1] for at, word in enumerate(called) if word == option]


def test_it_runs_the_job_in_folders_of_its_own(stage: Stage) -> None:
    assert stage.run("exit 0") == (
        0,
        f"mpips: start 1 of job 7 on {os.uname().nodename}, run folder: runs/toy-7\n",
    )
    called = stage.called()
    assert called[:5] == ["-P", "-m", "mpips.cli", "run", "/a b/job.toml"]
    assert after(called, "--run-dir") == ["runs/toy-7"]
    assert after(called, "--launcher") == ["auto"]
    assert after(called, "--set") == [
        "toy.word=a  b; $x",
        f"checkpoint.directory={stage.runs}/toy-7/checkpoints",
    ]
    assert "--resume" not in called and "--pmi" not in called


def test_bad_input_is_not_tried_again(stage: Stage) -> None:
    code, _ = stage.run(CHECKPOINT + "exit 2")
    assert (code, stage.requeued()) == (2, [])


def test_a_run_that_stopped_goes_back_into_the_queue_and_resumes(stage: Stage) -> None:
    code, said = stage.run(CHECKPOINT + "exit 85")
    assert (code, stage.requeued()) == (0, ["7"])
    assert "stopped: requeued, to continue" in said
    code, said = stage.run("exit 0", restarts=1)
    assert code == 0 and said.startswith("mpips: start 2 of job 7")
    assert after(stage.called(), "--resume") == ["latest"]
    assert after(stage.called(), "--run-dir") == ["runs/toy-7"]


UNTRAINED = """printf '{"before_training": true}' >"$run/result.json"
exit 85"""


def test_a_run_that_stopped_before_it_trained_is_started_again_but_not_forever(stage: Stage) -> None:
    for restarts in range(4):
        code, said = stage.run(UNTRAINED, restarts=restarts)
        assert (code, stage.requeued()) == (0, ["7"])
        assert "stopped before anything was trained: requeued, to start again" in said
        assert "--resume" not in stage.called()
    code, said = stage.run(UNTRAINED, restarts=4)
    assert (code, stage.requeued()) == (85, [])
    assert "stopped 5 times in a row without a new checkpoint" in said


def test_without_requeue_it_reports_how_it_ended(stage: Stage) -> None:
    assert stage.run(CHECKPOINT + "exit 85", requeue=False)[0] == 85
    assert stage.requeued() == []


def test_it_is_not_started_again_forever(stage: Stage) -> None:
    code, said = stage.run(CHECKPOINT + "exit 85", restarts=50)
    assert (code, stage.requeued()) == (85, [])
    assert "not restarted: it was restarted 50 times" in said


def test_a_refused_requeue_reports_how_to_continue(stage: Stage) -> None:
    (stage.folder / "refuses").touch()
    code, said = stage.run(CHECKPOINT + "exit 85")
    assert code == 85
    assert f"submit the job again, with --resume {stage.runs}/toy-7/checkpoints/STEP" in said


def test_a_requeue_that_ends_the_script_is_not_reported_as_refused(stage: Stage) -> None:
    (stage.folder / "ends").touch()
    code, said = stage.run(CHECKPOINT + "exit 85")
    assert (code, stage.requeued()) == (0, ["7"])
    assert "refused" not in said


def test_a_job_that_lost_a_rank_is_requeued_while_there_are_new_checkpoints(stage: Stage) -> None:
    for restarts in (0, 1):
        assert stage.run(CHECKPOINT + "exit 1", restarts=restarts)[0] == 0
        assert stage.requeued() == ["7"]
    more = CHECKPOINT.replace("10", "20")
    for restarts in (2, 3, 4, 5):  # there is a newer checkpoint: it is counted anew
        assert stage.run(more + "exit 137", restarts=restarts)[0] == 0
        assert stage.requeued() == ["7"]
    code, said = stage.run("exit 137", restarts=6)
    assert (code, stage.requeued()) == (137, [])
    assert "failed 5 times in a row without a new checkpoint" in said


def test_a_program_that_failed_is_not_tried_again(stage: Stage) -> None:
    code, said = stage.run(CHECKPOINT + 'echo \'{"fault": "program"}\' >"$run/result.json"; exit 1')
    assert (code, stage.requeued()) == (1, [])
    assert "the program failed, so a restart would fail too" in said


def test_a_restart_without_a_checkpoint_begins_anew_and_keeps_what_was_written(stage: Stage) -> None:
    stage.run('echo first >"$run/run.json"; echo 1 >"$run/metrics.jsonl"; exit 1')
    code, _ = stage.run("[[ ! -e $run/run.json ]] || exit 2; exit 0", restarts=1)
    assert code == 0
    assert "--resume" not in stage.called()
    assert (stage.runs / "toy-7" / "start-1" / "run.json").read_text() == "first\n"


def test_an_incomplete_checkpoint_is_not_resumed(stage: Stage) -> None:
    stage.run('mkdir -p "$run/checkpoints/step-000010"; exit 1')
    stage.run("exit 0", restarts=1)
    assert "--resume" not in stage.called()


def test_the_first_start_continues_from_a_named_checkpoint_and_later_ones_from_the_last(stage: Stage) -> None:
    stage.run("exit 1", resume="/old/step-000005")
    assert after(stage.called(), "--resume") == ["/old/step-000005"]
    stage.run(CHECKPOINT + "exit 1", restarts=1, resume="/old/step-000005")
    assert after(stage.called(), "--resume") == ["/old/step-000005"]
    stage.run("exit 0", restarts=2, resume="/old/step-000005")
    assert after(stage.called(), "--resume") == ["latest"]


def test_each_task_of_an_array_has_its_values_and_folders(stage: Stage) -> None:
    stage.is_task("5", "1")
    sweep = (("job.seed=1", "toy.word=x y"), ("job.seed=2", "toy.word=it's $HOME"))
    code, _ = stage.run(CHECKPOINT + "exit 85", sweep=sweep, checkpoints="/scratch/c")
    assert (code, stage.requeued()) == (
        0,
        ["5_1"],
    )  # by 7, the last task's number, the whole array could be meant
    assert after(stage.called(), "--set")[1:] == [
        "checkpoint.directory=/scratch/c/toy-5_1", "job.seed=2", "toy.word=it's $HOME",
    ]  # fmt: skip
    assert after(stage.called(), "--run-dir") == ["runs/toy-5_1"]
    stage.run("exit 0", sweep=sweep, run_dir="/scratch/runs")
    assert after(stage.called(), "--run-dir") == ["/scratch/runs/1"]


def test_on_more_nodes_there_are_more_workers(stage: Stage) -> None:
    stage.variables = {"SLURM_JOB_NUM_NODES": "3"}
    stage.run("exit 0", parts=(Component(2, 4, 0, most=5),), fixed=3)
    assert after(stage.called(), "--workers") == ["9"]


def test_modules_setup_and_variables_come_in_this_order(stage: Stage, tmp_path: Path) -> None:
    setup = tmp_path / "my setup.sh"
    setup.write_text('echo "setup $WHO" >>"$PLAYED/log"; WHO=setup\n')
    module = 'module() { echo "module $*" >>"$PLAYED/log"; export WHO=module; }; export -f module\n'
    stage.variables = {"BASH_ENV": str(tmp_path / "env")}
    (tmp_path / "env").write_text(module)
    site = Site(
        modules=("a/1", "b"), module_paths=("/m",), setup=str(setup), environment={"WHO": "`site` $x"}
    )
    stage.run('echo "run $WHO" >>"$PLAYED/log"; exit 0', site=site)
    assert (stage.folder / "log").read_text().splitlines() == [
        "module use /m", "module load a/1", "module load b", "setup module", "run `site` $x",
    ]  # fmt: skip


def test_a_missing_python_folder_or_module_is_reported_in_one_line(stage: Stage, tmp_path: Path) -> None:
    host = os.uname().nodename
    for more, said in (
        ({"python": "/no/python"}, f"there is no Python /no/python on {host}"),
        ({"directory": "/no/folder"}, f"{host} does not see /no/folder"),
        # The latter where this machine has a module command.
        ({"site": Site(modules=("a",))}, (f"no module command on {host}", f"module load a failed on {host}")),
        ({"site": Site(setup="/no/setup")}, f"/no/setup failed on {host}"),
    ):
        code, text = stage.run("exit 0", **more)
        assert code == 2
        found = text.splitlines()[-1].removeprefix("mpips: error: ")
        assert found.startswith(said)


WAITS = r"""
import os, signal, sys, time
heard = []
def hear(number, frame):
    heard.append(number)
    open(os.environ["PLAYED"] + "/heard", "w").close()
signal.signal(signal.SIGUSR1, hear)
open(os.environ["PLAYED"] + "/ready", "w").close()
while len(heard) < int(sys.argv[1]):
    time.sleep(0.02)
sys.exit(85)
"""


def strike(stage: Stage, *kinds: signal.Signals, needed: int = 1, **more: Any) -> tuple[int, str]:
    waits = stage.folder / "waits.py"
    waits.write_text(WAITS)
    process = stage.start(f"{CHECKPOINT}exec {sys.executable} -S {waits} {needed}", **more)
    seen = ["ready", *["heard"] * (len(kinds) - 1)]
    for kind, name in zip(kinds, seen, strict=True):
        deadline = time.monotonic() + 30
        while not (stage.folder / name).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(kind)
    return finish(process)


def test_the_signal_before_the_time_limit_stops_the_run_and_requeues_it(stage: Stage) -> None:
    code, said = strike(stage, signal.SIGUSR1)
    assert (code, stage.requeued()) == (0, ["7"])
    assert "stopped: requeued, to continue" in said


def test_a_signal_that_is_lost_comes_again(stage: Stage) -> None:
    code, _ = strike(stage, signal.SIGUSR1, needed=2)
    assert (code, stage.requeued()) == (0, ["7"])


def test_a_cancelled_job_stays_cancelled(stage: Stage) -> None:
    code, said = strike(stage, signal.SIGTERM, state="COMPLETING")
    assert (code, stage.requeued()) == (85, [])
    assert "this script got SIGTERM, and asks the run to stop by SIGUSR1" in said
    assert "stopped, since the job was cancelled" in said


def test_a_job_at_its_time_limit_goes_back_though_slurm_is_ending_it(stage: Stage) -> None:
    code, _ = strike(stage, signal.SIGUSR1, signal.SIGTERM, needed=2, state="COMPLETING")
    assert (code, stage.requeued()) == (0, ["7"])


def test_a_job_that_slurm_has_requeued_is_not_requeued_twice(stage: Stage) -> None:
    code, said = strike(stage, signal.SIGTERM, state="COMPLETING", counted=1)
    assert (code, stage.requeued()) == (0, [])
    assert "Slurm has requeued the job already" in said


def test_reproducing_follows_success_only(stage: Stage) -> None:
    stage.run("exit 0", reproduce=True)
    assert stage.called()[-5:] == ["-P", "-m", "mpips.cli", "reproduce", "runs/toy-7"]
    stage.run("exit 0", reproduce=True, program="/a b/toy.py")
    assert stage.called()[-3:] == ["runs/toy-7", "--program", "/a b/toy.py"]
    stage.run("exit 1", reproduce=True)
    assert "reproduce" not in stage.called()


def test_it_takes_a_job_by_hand_as_it_is(stage: Stage) -> None:
    body = Path(__file__).parents[2] / "slurm" / "job.sbatch"
    (stage.folder / "play").write_text("exit 0")
    environ = {
        "PATH": os.environ["PATH"],
        "PLAYED": str(stage.folder),
        "MPIPS_PYTHON": stage.job.python,
        "SLURM_JOB_ID": "8",
    }
    line = ["bash", body, "/x/my job.toml", "--servers", "2"]
    subprocess.run(line, env=environ, cwd=stage.folder, check=True, capture_output=True)
    assert stage.called()[:6] == ["-P", "-m", "mpips.cli", "run", "/x/my job.toml", "--run-dir"]
    assert after(stage.called(), "--run-dir") == ["runs/my job-8"]
    assert after(stage.called(), "--servers") == ["2"]
    done = subprocess.run(
        ["bash", body], env=environ, cwd=stage.folder, check=False, capture_output=True, text=True
    )
    assert done.returncode == 2 and "no job file" in done.stderr


def test_the_last_task_of_an_array_is_asked_for_by_its_own_name(stage: Stage) -> None:
    """By the plain number Slurm tells of all tasks, of which others run."""
    stage.is_task("7", "3")
    (stage.folder / "others").touch()
    code, said = stage.run(CHECKPOINT + "exit 85", state="COMPLETING")
    assert (code, stage.requeued()) == (85, []) and "since the job was cancelled" in said
    assert stage.run(CHECKPOINT + "exit 85")[0] == 0
    assert stage.requeued() == ["7_3"]


def test_shell_options_and_folder_of_a_setup_file_have_no_effect(stage: Stage) -> None:
    setup = stage.folder / "setup.sh"
    setup.write_text('for each; do echo "sees $each" >&2; done\nset -euo pipefail\ncd /tmp\nset -- gnu\n')
    code, said = stage.run(CHECKPOINT + "exit 85", site=Site(setup=str(setup)))
    assert code == 0 and stage.requeued() == ["7"] and "sees" not in said
    assert stage.called()[4] == "/a b/job.toml"
    assert after(stage.called(), "--set")[-1] == f"checkpoint.directory={stage.runs}/toy-7/checkpoints"


def test_a_start_that_makes_no_folder_counts_as_a_failure(stage: Stage) -> None:
    code, said = stage.run('rmdir "$run" runs; exit 1')
    assert code == 0 and stage.requeued() == ["7"] and "No such file" not in said
    codes = [stage.run("exit 1", restarts=number)[0] for number in range(1, 5)]
    assert codes == [0, 0, 0, 1]


def test_a_count_of_restarts_that_another_job_has_left_does_not_mean_requeued(stage: Stage) -> None:
    stage.variables["SLURM_RESTART_COUNT"] = "2"
    assert stage.run(CHECKPOINT + "exit 85")[0] == 0
    assert stage.requeued() == ["7"] and "--resume" not in stage.called()


PARENT = {
    "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "3", "SLURM_HET_SIZE": "2",
    "SLURM_STEP_ID": "0", "PMIX_RANK": "4", "PMIX_SERVER_URI2": "x", "OMPI_COMM_WORLD_RANK": "4",
}  # fmt: skip


def test_a_job_that_was_submitted_from_inside_another_is_itself(stage: Stage) -> None:
    """sbatch passes on what it is called with: the array, the restarts and the ranks of the job around it."""
    stage.variables |= PARENT
    code, said = stage.run(f'env >"$PLAYED/env"\n{CHECKPOINT}exit 85')
    assert (code, stage.requeued()) == (0, ["7"])
    assert said.startswith("mpips: start 1 of job 7 ") and "--resume" not in stage.called()
    assert after(stage.called(), "--run-dir") == ["runs/toy-7"]
    names = {line.partition("=")[0] for line in (stage.folder / "env").read_text().splitlines()}
    assert names & PARENT.keys() == {"SLURM_RESTART_COUNT"}


def test_facts_of_a_job_are_not_read_from_its_name(stage: Stage) -> None:
    stage.variables["SLURM_JOB_NAME"] = "x ArrayJobId=5 ArrayTaskId=1 Restarts=9 JobState=FAILED"
    assert stage.run(CHECKPOINT + "exit 85")[0] == 0
    assert stage.requeued() == ["7"] and after(stage.called(), "--run-dir") == ["runs/toy-7"]


def test_no_job_is_requeued_if_the_controller_does_not_answer(stage: Stage) -> None:
    stage.variables |= PARENT
    (stage.folder / "bin" / "scontrol").write_text('#!/bin/bash\necho "$*" >>"$PLAYED/scontrol"\nexit 1\n')
    code, said = stage.run(CHECKPOINT + "exit 85")
    assert (code, stage.requeued()) == (85, [])
    assert "Slurm's controller does not answer" in said


@pytest.mark.parametrize("name", ["MPIPS_RESTARTS", "MPIPS_PER_NODE", "MPIPS_SWEEP_WIDTH"])
def test_numbers_from_the_environment_are_numbers(tmp_path: Path, name: str) -> None:
    body = Path(__file__).parents[2] / "slurm" / "job.sbatch"
    environ = {"PATH": os.environ["PATH"], name: f"a[$(touch {tmp_path}/ran)]"}
    done = subprocess.run(
        ["bash", body, "job.toml"], env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, f"mpips: error: {name} is not a number\n")
    assert not (tmp_path / "ran").exists()
