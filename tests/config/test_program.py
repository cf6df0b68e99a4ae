"""Which programs are loaded for a run, a model or a checkpoint that is not trusted."""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import pytest

from mpips.cli.main import main
from mpips.config.program import load_program, trusted_loader
from mpips.errors import JobError, UsageError
from mpips.rundir.folder import RunFolder
from mpips.storage import updates
from mpips.storage.updates import update_named

OWN = """
from dataclasses import dataclass
from pathlib import Path
import beside

(Path(__file__).parent / "ran").touch()


@dataclass(frozen=True)
class Settings:
    colour: str = "red"


def schedule(cluster, settings):
    return {}


class Worker:
    pass


def query(source, keys):
    return [f"{beside.WORD} {key}" for key in keys]


def infer(model, files, out):
    print(beside.WORD, model.name)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return a program that records when it is run, with a module beside it."""
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs/beside.py").write_text("WORD = 'found'\n")
    (tmp_path / "programs/own.py").write_text(OWN)
    return tmp_path / "programs/own.py"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return the folder of a run that names it."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.job.write_text(
        f'[job]\nprogram = "own.py"\nbase = "{tmp_path}/programs"\n[own]\ncolour = "blue"\n'
    )
    folder.result.write_text('{"status": "completed"}')
    return folder


@pytest.mark.parametrize(
    "name", ["own.py", "own", "os.path", "mpips.launch.checks.ping", "mpips.cli.main", "../own.py", "\x1b[2J"]
)
def test_a_program_that_does_not_come_with_mpips_is_not_loaded(name: str, own: Path) -> None:
    with pytest.raises(JobError, match="--program"):
        trusted_loader(None)(name, own.parent)
    assert not (own.parent / "ran").exists()


@pytest.mark.parametrize("name", ["sketch", "mpips.jobs.sketch.job"])
def test_a_program_that_comes_with_mpips_is_loaded(name: str, tmp_path: Path) -> None:
    (tmp_path / "sketch.py").write_text("raise AssertionError")
    assert trusted_loader(None)(name, tmp_path).module.__name__ == "mpips.jobs.sketch.job"


def test_what_the_user_names_is_loaded_whatever_the_file_says(own: Path, tmp_path: Path) -> None:
    assert trusted_loader(str(own))("/a/stranger's.py", tmp_path).name == "own"
    assert (own.parent / "ran").exists()


def test_a_program_of_ones_own_answers_once_it_is_named(
    own: Path,
    folder: RunFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tmp_path / "model.h5"
    with h5py.File(model, "w") as file:
        file.attrs["program"] = str(own)
    monkeypatch.chdir(tmp_path)
    for command in (["query", str(folder.path), "a"], ["infer", str(folder.path)], ["infer", str(model)]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert f"--program {own}" in said and said.count("\n") == 1
        assert not (own.parent / "ran").exists()
    for command, said in (
        (["query", str(folder.path), "a"], "a\tfound a\n"),
        (["infer", str(folder.path)], "found run\n"),
        (["infer", str(model)], "found model.h5\n"),
    ):
        assert main([*command, "--program", "programs/own.py"]) == 0
        assert capsys.readouterr().out == said


def test_a_file_is_the_module_that_import_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise what numba caches for it on disk cannot be loaded where it is imported."""
    monkeypatch.setattr("sys.path", [*sys.path])
    text = "from dataclasses import dataclass\n@dataclass\nclass Settings: pass\nschedule = Worker = lambda *_: None\n"
    for name in ("a_program_of_ones_own", "json", "two.dots"):
        (tmp_path / f"{name}.py").write_text(text)
    own = load_program("a_program_of_ones_own.py", tmp_path).module
    assert own.__name__ == "a_program_of_ones_own" and importlib.import_module(own.__name__) is own
    # Of a name that means another module, it is not that one.
    for name in ("json", "two.dots"):
        assert load_program(f"{name}.py", tmp_path).module.__name__ == f"mpips_program_{name}"
    assert hasattr(json, "loads") and sys.modules["json"] is json


def test_a_program_is_loaded_once_until_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    path = tmp_path / "loaded_once.py"
    text = OWN.replace("import beside\n", "").replace("return {}", "return isinstance(settings, Settings)")
    path.write_text(text)
    first, again = (load_program(path.name, tmp_path) for _ in range(2))
    assert again.module is first.module
    settings = first.settings()
    assert again.schedule(None, settings) is True
    assert pickle.loads(pickle.dumps(settings)) == settings
    path.write_text(text.replace('"red"', '"crimson"'))
    assert load_program(path.name, tmp_path).settings().colour == "crimson"
    # One that does not load leaves what was there, and is not taken for it.
    before = sys.modules["loaded_once"]
    path.write_text("Settings = 1\n1 / 0\n")
    for _ in range(2):
        with pytest.raises(JobError, match=rf"ZeroDivisionError: division by zero, at {path}:2$"):
            load_program(path.name, tmp_path)
        assert sys.modules["loaded_once"] is before
    path.rename(tmp_path / "never_loaded.py")
    with pytest.raises(JobError, match="does not load"):
        load_program("never_loaded.py", tmp_path)
    assert "never_loaded" not in sys.modules


UPDATE = """
from dataclasses import dataclass
from mpips import update
@dataclass(frozen=True)
class Settings: pass
schedule = Worker = lambda *_: None
@update("of_programs")
def of_programs(values, state, slots, rows, settings):
    values[slots] += {factor} * rows
"""


def test_the_functions_of_a_program_are_its_own_in_a_process_that_loads_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is edited, so that a function has moved: as in a notebook, and in tests of several programs."""
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("sys.dont_write_bytecode", True)

    def pushed(name: str) -> float:
        load_program(name, tmp_path)
        values = np.zeros(1)
        update_named("of_programs").apply(values, {}, np.zeros(1, np.int32), np.ones(1), {})
        return float(values[0])

    with patch.dict(updates._updates):
        (tmp_path / "one_of_two.py").write_text(UPDATE.format(factor=1))
        assert pushed("one_of_two.py") == 1
        (tmp_path / "one_of_two.py").write_text("\n\n" + UPDATE.format(factor=2))
        assert pushed("one_of_two.py") == 2
        (tmp_path / "two_of_two.py").write_text(UPDATE.format(factor=3))
        assert [pushed(name) for name in ("two_of_two.py", "one_of_two.py", "two_of_two.py")] == [3, 2, 3]
        # One that does not load changes nothing.
        (tmp_path / "one_of_two.py").write_text(UPDATE.format(factor=4) + "1 / 0\n")
        with pytest.raises(JobError, match="ZeroDivisionError"):
            load_program("one_of_two.py", tmp_path)
        values = np.zeros(1)
        update_named("of_programs").apply(values, {}, np.zeros(1, np.int32), np.ones(1), {})
        assert values[0] == 3
        # What others have taken away is there again.
        del updates._updates["of_programs"]
        assert pushed("two_of_two.py") == 3
    with pytest.raises(UsageError, match="unknown update 'of_programs'"):
        update_named("of_programs")
