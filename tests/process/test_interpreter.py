"""No module of the working folder is imported in place of mpips, mpi4py or another module of a command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mpips.process.interpreter import forget_working_folder, python

TRAPS = ("mpi4py", "numpy", "numba", "h5py", "json", "argparse", "typing")
SPRUNG = "from pathlib import Path\n(Path(__file__).parent / 'sprung').touch()\n"


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """Return a folder of modules that must not be loaded."""
    for name in TRAPS:
        (tmp_path / f"{name}.py").write_text(SPRUNG)
    return tmp_path


@pytest.mark.parametrize(
    "module", ["mpips", "mpips.cli", "mpips.launch.checks.ping", "mpips.bench.applications._liblinear"]
)
@pytest.mark.parametrize("path", [f"{ROOT}", f":{ROOT}"])
def test_no_module_of_the_working_folder_is_loaded(module: str, path: str, trapped: Path) -> None:
    if path.startswith(":"):  # Python itself has loaded what it starts with by then
        for name in ("json", "argparse", "typing"):
            (trapped / f"{name}.py").unlink()
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=trapped, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert not (trapped / "sprung").exists(), done.stderr
    assert done.returncode == 0 or module in (
        "mpips.launch.checks.ping",
        "mpips.bench.applications._liblinear",
    )


def test_a_folder_named_mpips_is_not_run_by_our_own_lines(tmp_path: Path) -> None:
    (tmp_path / "mpips").mkdir()
    for name in ("__init__", "__main__"):
        (tmp_path / f"mpips/{name}.py").write_text(SPRUNG)
    line = [*python(), "-m", "mpips", "--help"]
    done = subprocess.run(
        line,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "mpips/sprung").exists()


def test_every_line_that_starts_python_leaves_the_working_folder_out() -> None:
    starts = re.compile(r"""sys\.executable, *"-[mc]"|python3? +-[mc] +mpips|PYTHON"? -[mc]""")
    files = [
        *ROOT.glob("mpips/**/*.py"),
        *ROOT.glob("jobs/**/*"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("slurm/*"),
    ]
    texts = {
        path: path.read_text("utf-8", "replace") for path in [*files, ROOT / "README.md"] if path.is_file()
    }
    found = {
        str(path): line for path, text in texts.items() for line in text.splitlines() if starts.search(line)
    }
    # The two that say which lines are meant.
    kept = {str(ROOT / "docs/trust.md"), str(ROOT / "mpips/process/interpreter.py")}
    assert {path: line for path, line in found.items() if path not in kept} == {}


@pytest.mark.parametrize(
    ("named", "path", "by_module", "left", "reported"),
    [
        (None, ["HERE", "/lib"], True, ["/lib"], None),
        (None, ["HERE", "/lib", "HERE"], True, ["/lib", "HERE"], None),  # a package is installed in it
        (None, ["/bin", "/lib", "HERE"], False, ["/bin", "/lib", "HERE"], None),
        ("", ["/bin", "HERE"], False, ["/bin", "HERE"], ""),
        (":/a", ["/bin", "HERE", "/a"], False, ["/bin", "/a"], "/a"),
        ("/a:", ["HERE", "/a", "HERE", "/lib"], True, ["/a", "/lib"], "/a"),
        (":", ["/bin", "HERE"], False, ["/bin"], ""),
        ("/a:.", ["HERE", "/a", "HERE"], True, ["/a", "HERE"], "/a:."),
        (":.", ["/bin", "HERE"], False, ["/bin", "HERE"], "."),
    ],
)
def test_the_working_folder_is_removed_from_the_module_path(
    named: str | None, path: list[str], by_module: bool, left: list[str], reported: str | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if named is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", named)
    here = os.getcwd()
    monkeypatch.setattr(sys, "path", [here if each == "HERE" else each for each in path])
    forget_working_folder(by_module)
    assert sys.path == [here if each == "HERE" else each for each in left]
    assert os.environ.get("PYTHONPATH") == reported


def test_a_checkout_that_is_the_working_folder_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [str(ROOT), "/lib"])
    forget_working_folder(by_module=True)
    assert sys.path == [str(ROOT), "/lib"]


def test_a_command_in_a_folder_that_was_removed_says_so(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('[job]\nprogram = "sketch"\n')
    job = tmp_path / "job.toml"
    for module, arguments in (
        ("mpips.cli", f"render {job} --nodes 1"),
        ("mpips.cli", "report runs/a"),
        ("mpips", f"{job} --warm-up"),
    ):
        (tmp_path / "gone").mkdir()
        line = f'rmdir "$PWD" && exec {sys.executable} -P -m {module} {arguments}'
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path / "gone", env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        said = "mpips: error: the working folder was removed: change to one that exists\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
