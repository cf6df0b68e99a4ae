"""`mpips doctor` in an allocation: which launcher and PMI fit, with scripts in place of the launchers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpips.cli import main
from mpips.cli.launching import doctor
from mpips.launch import mpi_launcher
from mpips.launch.checks.launcher_probe import (
    REPORT_PREFIX,
    lines_to_use,
    outcome,
    plugins,
    start,
    try_all,
    worth_trying,
)

LIST = {
    "22.05": "MPI plugin types are...\n\tpmix\n\tnone\n\tpmi2\nspecific pmix plugin versions available: pmix_v4\n",
    "20.11": "srun: MPI types are...\nsrun: cray_shasta\nsrun: none\nsrun: pmi2\n",
}


def world(size: int, hosts: int = 1, **more: Any) -> str:
    return REPORT_PREFIX + json.dumps({"size": size, "hosts": hosts, **more}) + "\n"


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def srun(tmp_path: Path) -> str:
    """Return an srun that connects ranks by pmix only; otherwise each is a world of its own."""
    text = f"""
    case "$*" in
      *--mpi=list*) printf '%s' '{LIST["22.05"]}' >&2; exit 0;;
      *--mpi=pmix*) echo '{world(2, 2).strip()}'; exit 0;;
      *--mpi=pmi2*) echo 'srun: error: no, not that' >&2; exit 3;;
    esac
    echo '{world(1).strip()}'; echo '{world(1).strip()}'"""
    return script(tmp_path / "bin" / "srun", text)


def test_the_reports_of_ranks_are_counted() -> None:
    fits = outcome("mpirun", f"noise\n0: {world(2)}", 0)
    assert (fits.fits, fits.said) == (True, "one world of 2 ranks on one node")
    assert outcome("x", world(2, 2), 0).said.endswith("on 2 nodes")
    apart = outcome("srun", world(1) + world(1), 0)
    assert (apart.fits, apart.said) == (False, "2 worlds of one rank each")
    assert (
        outcome("srun", "", 1, "** srun: error: no **\n** srun: error: no **").said
        == "exit code 1: srun: error: no"
    )
    assert outcome("srun", "", None).said == "no end in time"
    assert outcome("srun", REPORT_PREFIX + "{", 0).said == "exit code 0: no output"


def test_one_that_hangs_is_given_up(tmp_path: Path) -> None:
    hangs = script(tmp_path / "hangs", "trap '' TERM; echo here; exec sleep 60")
    trial = start("hangs", [hangs], os.environ, timeout=0.2)
    assert (trial.fits, trial.said) == (False, "no end in time")
    assert "cannot be started" in start("none", [str(tmp_path / "none")], os.environ).said


@pytest.mark.parametrize("version", LIST)
def test_the_plugins_of_srun_are_read(tmp_path: Path, version: str) -> None:
    found = plugins(script(tmp_path / "srun", f"printf '%s' '{LIST[version]}'"))
    assert "pmi2" in found and "none" in found and "types" not in found and "plugin" not in found
    assert plugins(str(tmp_path / "no")) == []


def test_only_what_may_fit_is_tried() -> None:
    assert worth_trying("openmpi", ["pmix", "none", "pmi2"]) == ["", "pmix", "pmi2"]
    assert worth_trying("mpich", ["none", "pmi2", "cray_shasta"]) == ["", "pmi2", "cray_shasta"]
    assert worth_trying("mpich", []) == ["", "pmi2", "cray_shasta", "pmix"], "srun does not say what it has"


def test_srun_is_tried_with_each_plugin(srun: str) -> None:
    environ = {"PATH": str(Path(srun).parent) + os.pathsep + os.environ["PATH"], "SLURM_JOB_ID": "7"}
    found = try_all("openmpi", environ)
    assert found["plugins"] == ["pmix", "none", "pmi2", "pmix_v4"]
    assert [(trial["launcher"], trial["fits"], trial["said"]) for trial in found["trials"]] == [
        ("srun", False, "2 worlds of one rank each"),
        ("srun --mpi=pmix", True, "one world of 2 ranks on 2 nodes"),
        ("srun --mpi=pmi2", False, "exit code 3: srun: error: no, not that"),
    ]
    assert try_all("openmpi", {"PATH": environ["PATH"]}) == {}, "there is no allocation"
    assert try_all("openmpi", {"PATH": "/nowhere", "SLURM_JOB_ID": "7"}) == {}


def test_the_lines_to_use_are_those_that_worked() -> None:
    pmix = {"launcher": "srun --mpi=pmix", "fits": True}
    pmi2 = {"launcher": "srun --mpi=pmi2", "fits": False}
    plain = {"launcher": "srun", "fits": True}
    assert lines_to_use("openmpi", True, [pmix], True)[0].startswith("mpips run JOB.toml    # continues")
    assert lines_to_use("openmpi", False, [pmi2, pmix], False) == [
        "mpips run JOB.toml --launcher srun",
        "srun --mpi=pmix --distribution=cyclic --kill-on-bad-exit=1 --ntasks=N python -P -m mpips JOB.toml",
    ]
    assert lines_to_use("mpich", False, [pmix], False)[0] == "mpips run JOB.toml --launcher srun --pmi pmix"
    assert lines_to_use("mpich", False, [plain], False)[1].startswith("srun --distribution")
    assert lines_to_use("mpich", False, [pmi2], False) == []


# The whole command.


@pytest.fixture
def allocation(srun: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Be in an allocation with that srun; an Open MPI whose mpirun does as it is told."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in {"JOB_ID": "7", "JOB_NODELIST": "n[1-2]", "NNODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", str(Path(srun).parent) + os.pathsep + os.environ["PATH"])
    mpi = mpi_launcher.Mpi(
        "openmpi", "Open MPI", "5.0.11", "3.1", str(tmp_path / "lib/libmpi.so"), "Open MPI v5.0.11", True
    )
    monkeypatch.setattr(mpi_launcher, "find_mpi", lambda *_: mpi)

    def mpirun(says: str) -> None:
        script(
            tmp_path / "bin" / "mpirun", f'[ "$1" = --version ] && echo "mpirun (Open MPI) 5" && exit\n{says}'
        )

    return mpirun


def test_in_an_allocation_it_says_what_fits(
    allocation: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    talked = world(2, 2, latency_seconds=1e-6, bytes_per_second=1e9, thread_level="x", ulfm=True)
    allocation(f"echo '{talked.strip()}'")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "in job 7 on 2 nodes (n1, n2):" in said
    for line in (
        "  mpirun                   one world of 2 ranks on 2 nodes",
        "  srun                     2 worlds of one rank each",
        "  srun --mpi=pmix          one world of 2 ranks on 2 nodes",
        "  srun --mpi=pmi2          exit code 3: srun: error: no, not that",
        "use: mpips run JOB.toml    # continues when a rank dies",
        "     mpips run JOB.toml --launcher srun",
    ):
        assert line in said.splitlines()
    assert (
        "- N worlds of one rank each are started, without an error, by `srun` and" not in said
        and "each are started, without an error, by `srun`: use `mpips run" in said
    )
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["slurm"]["job_id"] == "7" and [trial["fits"] for trial in found["slurm"]["trials"]] == [
        0,
        1,
        0,
    ]
    assert found["use"][1] == "mpips run JOB.toml --launcher srun"


def test_ranks_that_have_left_srun_survive_a_death() -> None:
    findings = {
        "mpi": {"vendor": "Open MPI", "version": "5.0.11"},
        "launcher": {"kind": "srun"},
        "ping": {"size": 2, "ulfm": False},
    }
    assert doctor.live_recovery(findings).startswith("no: Open MPI 5.0.11 under srun")
    assert doctor.node_loss(findings) == ""
    survived = findings | {"outlives": "rank"}
    assert doctor.live_recovery(survived) == "yes (Open MPI 5.0.11, ULFM)"
    assert doctor.node_loss(survived).startswith("yes, in an allocation")
    ended = findings | {"outlives": ""}
    assert doctor.live_recovery(ended).startswith("no:") and doctor.node_loss(ended).startswith("no:")


def test_srun_alone_will_do(allocation: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    allocation("echo 'it is not for you' >&2; exit 5")
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["use"][0] == "mpips run JOB.toml --launcher srun"
    assert "it is not for you" in found["ping"]["error"]


def test_where_nothing_fits_it_reports_it(
    allocation: Callable[[str], None], srun: str, capsys: pytest.CaptureFixture[str]
) -> None:
    allocation("exit 5")
    script(Path(srun), f"echo '{world(1).strip()}'; echo '{world(1).strip()}'")
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "neither the MPI's launcher nor srun starts one world here" in said and "use:" not in said


@pytest.mark.parametrize(
    "said", ["3", "[]", '{"size": "2"}', '{"size": 2, "hosts": "n1"}', 9000 * "[", 5000 * "9"]
)
def test_other_output_is_not_taken_for_a_report_of_ranks(
    allocation: Callable[[str], None], srun: str, capsys: pytest.CaptureFixture[str], said: str
) -> None:
    allocation(f"echo '{REPORT_PREFIX}{said}'")
    script(Path(srun), f"echo '{REPORT_PREFIX}{said}'")
    assert main(["doctor"]) == 1
    assert "exit code 0: no output" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("writes", "found"), [("", None), ('{"outlives": false}', ""), ('{"outlives": true}', "daemon")]
)
def test_ranks_that_do_not_see_the_folder_tell_nothing_of_node_loss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, writes: str, found: str | None
) -> None:
    def plan(starter: Any, ranks: int, program: list[str], **_: Any) -> mpi_launcher.Launch:
        report = Path(program[-2])
        assert report.parent.parent == tmp_path, "where other nodes may see it"
        line = ("/bin/sh", "-c", f"printf '%s' '{writes}' > {report}" if writes else "true")
        return mpi_launcher.Launch("openmpi", line, {})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "REPORTED", 0.3)
    monkeypatch.setattr(mpi_launcher, "plan", plan)
    monkeypatch.setattr(mpi_launcher, "node_count", lambda environ: 2)
    starter = SimpleNamespace(kind="openmpi", mpi=SimpleNamespace(ulfm=True))
    assert doctor.outliving(starter, {"size": 2}) == found
    assert list(tmp_path.iterdir()) == []


def test_several_copies_of_it_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"STEP_ID": "0", "STEP_NUM_TASKS": "4", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith("mpips: error: srun started 4 copies of `mpips doctor`")
    monkeypatch.setenv("SLURM_PROCID", "3")
    with pytest.raises(SystemExit):
        main(["doctor"])
    assert capsys.readouterr().err == ""
    doctor.check_single_copy({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"})
    doctor.check_single_copy({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": 5000 * "9"})


def test_advice_fits_the_terminal() -> None:
    findings: dict[str, Any] = {
        "mpi": {}, "launcher": {}, "ping": {"error": "none"}, "packages": {}, "hdf5": "1", "python": "3", "cores": 1,
        "kernel_cache": {"path": "/k", "writable": True, "remark": "", "shared": ""}, "advice": ["a word " * 40],
    }  # fmt: skip
    for width in (80, 200):
        lines = doctor.describe(findings, width).splitlines()
        assert max(map(len, lines)) <= width and " ".join(lines).split().count("word") == 40
