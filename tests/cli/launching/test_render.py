"""`mpips render` and `mpips submit`: from options, job file and site file to a script, and its submission to Slurm."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mpips.cli import main

PROGRAM = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    '''A program that does nothing.'''
    word: str = "x"
    '''Any.'''
    rate: float = 1.0
    '''Any.'''

def schedule(cluster, settings):
    return {}

class Worker:
    def __init__(self, context):
        pass
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy.py").write_text(PROGRAM)
    path = tmp_path / "job.toml"
    path.write_text('[job]\nprogram = "toy.py"\n[layout]\nservers = 2\nworkers = 4\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MPIPS_SITE", "XDG_CONFIG_HOME", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    return path


def rendered(capsys: pytest.CaptureFixture[str], job: Path, *options: str) -> str:
    assert main(["render", str(job), *options]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], job: Path, *options: str, verb: str = "render") -> str:
    assert main([verb, str(job), *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mpips: error: ")
    return lines[0].removeprefix("mpips: error: ")


def variables(text: str, *names: str) -> list[str]:
    preamble = text[: text.index("# --- the same")]
    show = preamble + "".join(f'printf "%s\\n" "${name}"\n' for name in names) + 'printf "%s\\n" "$@"\n'
    done = subprocess.run(["bash"], input=show, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_script_has_folder_python_and_environment_of_the_caller(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "my modules::my modules")
    text = rendered(capsys, Path("job.toml"), "--nodes", "2", "--set", "toy.word=it's $x", "--workers", "3")
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks=6\n#SBATCH --ntasks-per-node=3\n" in text
    found = variables(text, "MPIPS_DIRECTORY", "MPIPS_PYTHON", "{MPIPS_EXPORTS[*]}")
    assert found == [
        str(job.parent), sys.executable, f"PYTHONPATH={job.parent}/my modules",
        str(job), "--set", "toy.word=it's $x", "--set", "layout.workers=3",
    ]  # fmt: skip


def test_it_can_be_written_to_a_file(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = rendered(capsys, job, "--nodes", "1")
    assert rendered(capsys, job, "--nodes", "1", "-o", "a b.sbatch") == ""
    assert Path("a b.sbatch").read_text() == text
    assert (
        refused(capsys, job, "--nodes", "1", "-o", "no/folder")
        == "no/folder: cannot be written: No such file or directory"
    )


def test_the_command_line_overrides_the_site_file(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.toml").write_text(
        'partition = "a"\naccount = "b"\nlauncher = "srun"\nntasks_per_node = 7\npython = "/py"\n'
    )
    text = rendered(capsys, job, "--nodes", "1", "--site", "site.toml", "--partition", "mine")
    assert "--partition=mine\n" in text and "--account=b\n" in text and "--ntasks-per-node=7\n" in text
    assert variables(text, "MPIPS_PYTHON", "MPIPS_LAUNCHER")[:2] == ["/py", "srun"]
    assert refused(capsys, job, "--nodes", "1", "--partition", "a b").startswith(
        "--partition must be one word"
    )


def test_checkpoints_go_where_the_job_file_says(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = rendered(capsys, job, "--nodes", "1", "--set", "checkpoint.directory=my points")
    assert variables(text, "MPIPS_CHECKPOINTS")[0] == f"{job.parent}/my points"


def test_an_array_has_a_task_for_each_combination(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = rendered(
        capsys, job, "--nodes", "1", "--seeds", "1,2", "--sweep", "toy.rate=0.5,2", "--at-once", "3"
    )
    assert "#SBATCH --array=0-3%3\n" in text and "--output=toy-%A_%a.out\n" in text
    assert variables(text, "MPIPS_SWEEP_WIDTH", "{MPIPS_SWEEP[*]}")[:2] == [
        "2", "job.seed=1 toy.rate=0.5 job.seed=1 toy.rate=2 job.seed=2 toy.rate=0.5 job.seed=2 toy.rate=2",
    ]  # fmt: skip
    Path("tasks").write_text("toy.word='a b'\ntoy.word=c\n")
    text = rendered(capsys, job, "--nodes", "1", "--sweep-file", "tasks")
    assert variables(text, "{MPIPS_SWEEP[0]}")[0] == "toy.word=a b"


def test_servers_can_be_on_nodes_of_another_kind(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--nodes",
        "4",
        "--server-nodes",
        "1",
        "--server-sbatch=--mem=0",
        "--worker-sbatch=--constraint=gpu",
    )
    first, second = rendered(capsys, job, *options).split("#SBATCH hetjob\n")
    assert "--ntasks=3\n" in first and "--mem=0\n" in first and "gpu" not in first
    assert "--ntasks=4\n" in second and "--constraint=gpu\n" in second and "--mem" not in second


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--nodes 2 --ntasks-per-node 3", "the job: 7 ranks, but 2 x 3 have room for 6: use --nodes 3"),
        ("--nodes 9", "the job: 7 ranks are too few for 9 nodes"),
        ("--nodes x", "--nodes x: give a number, or MIN-MAX"),
        ("--nodes 1-2", "--nodes 1-2: all remaining ranks are workers: give --ntasks-per-node"),
        ("--nodes 1-2 --ntasks-per-node 8 --workers 2", "--nodes 1-2: all remaining ranks are workers: leave out"),
        ("--nodes 1 --time 1h", "--time '1h': write minutes, H:M:S or D-H:M:S"),
        ("--nodes 1 --time 1 --grace 60", "--grace 60: the time limit is 60 s"),
        ("--nodes 1 --restarts -1", "--restarts -1: must be from 0 to"),
        ("--nodes 1 --cpus-per-task 0", "--cpus-per-task 0: must be from 1 to 1,048,576"),
        (f"--nodes 1 --ntasks-per-node {10**20}", f"--ntasks-per-node {10**20}: must be from 1 to"),
        (f"--nodes 1 --restarts {10**20}", f"--restarts {10**20}: must be from 0 to"),
        ("--nodes 1 --seeds 1,2 --sweep job.seed=3", "--sweep job.seed: is given twice"),
        ("--nodes 1 --sbatch=--nodes=4", "an option of sbatch: --nodes is decided by --nodes"),
        ("--nodes 1 --set job.name=a;b", "--set job.name=a;b: name must be letters"),
        ("--nodes 1 --set toy.word=a\tb", "an argument must have no newline or other control character, got"),
        ("--nodes 1 --set toy.word=\udcff", "an argument must be UTF-8, got 'toy.word=\\udcff'"),
        ("--nodes 1 --seeds 1,x", "--set job.seed=x: seed must be an integer"),
        ("--nodes 1 --sweep toy.rat=1,2", "--set toy.rat=1: unknown key 'rat'"),
        ("--nodes 1 --sweep layout.workers=4,5", "layout.workers=5: this task has 8 ranks, the job file 7"),
        ("--nodes 1 --sweep job.name=a,b", "job.name=a: each task already has its own name"),
        ("--nodes 1 --at-once 2", "--at-once N: needs --seeds or --sweep"),
        ("--nodes 1 --seeds 1 --sweep-file x", "--sweep-file excludes --seeds and --sweep"),
        ("--nodes 1 --server-nodes 1 --launcher mpirun", "--server-nodes: mpirun sees only the first component"),
        ("--nodes 1 --server-nodes 1 --seeds 1,2", "--server-nodes: Slurm has no arrays of heterogeneous jobs"),
        ("--nodes 1 --server-sbatch=--mem=0", "--server-sbatch and --worker-sbatch need --server-nodes"),
        ("--nodes 1 --spares 1 --launcher srun", "--spares replace ranks that die, but srun ends all"),
        ("--nodes 1 --resume latest", "--resume latest: a new job has no checkpoint yet"),
        ("--nodes 1 --resume none", "there is no checkpoint none"),
        ("--nodes 1 --site none", "--site none: no such file"),
    ],
)  # fmt: skip
def test_invalid_options_are_refused_in_one_line(
    job: Path, capsys: pytest.CaptureFixture[str], options: str, said: str
) -> None:
    assert refused(capsys, job, *options.split(" ")).startswith(said)


def test_a_folder_with_a_newline_in_its_name_is_refused(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = job.parent / "a\nb"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert "directory must have no newline" in refused(capsys, job, "--nodes", "1")


# --- submit --------------------------------------------------------------------------------------------------

SBATCH = """#!/bin/bash
printf '%s\\n' "$*" >"{folder}/arguments"
cat >"{folder}/given"
{then}
"""


def play_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    (folder / "bin").mkdir()
    path = folder / "bin" / "sbatch"
    path.write_text(SBATCH.format(folder=folder, then=then))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")


def test_submit_hands_the_script_to_sbatch_and_reports_where_to_look(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = rendered(capsys, job, "--nodes", "2", "--requeue")
    play_sbatch(job.parent, monkeypatch, "echo '4711;cluster'; echo 'sbatch: lua: hello' >&2")
    assert main(["submit", str(job), "--nodes", "2", "--requeue"]) == 0
    said = capsys.readouterr()
    assert said.out == "4711\n"
    for part in ("squeue -j 4711", "toy-4711.out", "runs/toy-4711", "mpips report runs/toy-4711"):
        assert part in said.err
    assert Path("given").read_text() == text == Path("runs/toy-4711/job.sbatch").read_text()
    assert shlex.split(Path("arguments").read_text()) == ["--parsable"]


def test_submit_leaves_a_script_of_the_users_own_alone(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--nodes", "2", "--run-dir", "mine")
    text = rendered(capsys, job, *options)
    play_sbatch(job.parent, monkeypatch, "echo 4711")
    copy = Path("mine/job.sbatch")
    copy.parent.mkdir()
    for before, after in (("#!/bin/bash\nsrun ./mine\n", None), (text.replace("nodes=2", "nodes=3"), text)):
        copy.write_text(before)
        assert main(["submit", str(job), *options]) == 0
        assert copy.read_text() == (after or before)


def test_submit_passes_a_refusal_on_as_one_line(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = "sbatch: error: Batch job submission failed: Invalid partition name specified"
    play_sbatch(
        job.parent, monkeypatch, f"printf '%s\\n' 'sbatch: error: invalid partition: x' '{error}' >&2; exit 1"
    )
    assert refused(capsys, job, "--nodes", "1", verb="submit") == (
        "sbatch refused the job: invalid partition: x Batch job submission failed: Invalid partition name specified"
    )
    assert not Path("runs").exists()


def test_tasks_on_any_number_of_nodes_have_one_layout(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not a worker is counted once for all of them."""
    (job.parent / "tasks").write_text(
        "layout.servers=1 layout.workers=3\nlayout.servers=2 layout.workers=2\n"
    )
    options = [
        "--nodes",
        "2-4",
        "--ntasks-per-node",
        "4",
        "--set",
        "layout.workers=3",
        "--set",
        "layout.servers=1",
    ]
    said = refused(capsys, job, *options, "--sweep-file", str(job.parent / "tasks"))
    assert "layout.servers=2 layout.workers=2: with --nodes 2-4 all remaining ranks are workers" in said


def test_other_output_of_sbatch_before_the_number_is_ignored(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    play_sbatch(job.parent, monkeypatch, "cat >/dev/null; printf '%s\\n' '---> 12 welcomes' '4711;here'")
    assert main(["submit", str(job), "--nodes", "1"]) == 0
    assert capsys.readouterr().out == "4711\n"


def test_submit_without_slurm_is_one_line(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert refused(capsys, job, "--nodes", "1", verb="submit").startswith("there is no sbatch on the PATH")
