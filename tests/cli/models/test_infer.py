"""`mpips infer` of model files that do not name a program, and its answers to lines of text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest

from mpips import InputError, Model, Outdated
from mpips.cli.main import main
from mpips.cli.models import serving


@pytest.mark.parametrize("kind", [h5py.h5t.UNIX_D32LE, h5py.h5t.STD_B8LE, h5py.h5t.STD_REF_OBJ])
def test_a_program_name_of_another_type_is_reported(
    tmp_path: Path, kind: h5py.h5t.TypeID, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(tmp_path / "model.h5", "w") as file:
        h5py.h5a.create(file.id, b"program", kind, h5py.h5s.create(h5py.h5s.SCALAR))
    assert main(["infer", str(tmp_path / "model.h5")]) == 2
    assert capsys.readouterr().err.startswith("mpips: error: ")


class Halves(Model):
    """Answers half of each number; the first line may be `number`."""

    asked: list[list[str]]

    def __init__(self) -> None:
        self.asked, self.outdated = [], False

    def is_head(self, line: str) -> bool:
        return line == "number"

    def score_lines(self, lines: Sequence[str], head: str = "") -> list[str]:
        self.asked.append([head, *lines])
        if self.outdated:
            raise Outdated("too old")
        if "x" in lines:
            raise InputError("x is no number")
        return [str(int(line) / 2) for line in lines]


def test_each_line_has_an_answer_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    model = Halves()
    wrong = serving.answer_all(model, iter([["\ufeffnumber", "3", "x", "4", "5"], ["8"]]))
    assert capsys.readouterr().out.splitlines() == ["1.5", "error: x is no number", "2.0", "2.5", "4.0"]
    assert (
        wrong == 1 and model.asked[0] == ["number", "3", "x", "4", "5"] and model.asked[-1] == ["number", "8"]
    )
    assert serving.answer_all(model, iter([["number"]])) == 0 == len(capsys.readouterr().out)
    model.outdated = True
    assert serving.answer_all(model, iter([["1", "2"]])) == 2
    assert capsys.readouterr().out == "error: too old\n" * 2
    assert model.asked[-1] == ["", "1", "2"], "others are not answered either"


def test_lines_come_as_they_are_written() -> None:
    reader, writer = os.pipe()
    lines = serving.lines_of(reader)
    os.write(writer, b"a\r\nb")
    assert next(lines) == ["a"]
    os.write(writer, b"\xff\n\nc")
    assert next(lines) == ["b\udcff", ""]
    os.close(writer)
    assert list(lines) == [["c"]]
    os.close(reader)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["new.svm", "--follow"], "leave out FILE and --out"),
        (["--follow", "--out", "o"], "leave out FILE and --out"),
        (["--max-lag", "5"], "--max-lag needs --follow"),
        (["--follow"], "no-such-run: no such run"),
    ],
)
def test_what_cannot_be_answered_line_by_line(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["infer", "no-such-run", *given]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("held", "said"), [(True, "yet; waiting"), (False, "and was killed, or its hosts are gone; waiting")]
)
def test_the_first_checkpoint_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], held: bool, said: str
) -> None:
    monkeypatch.setattr(serving, "is_held", lambda folder: held)
    (tmp_path / "job.toml").write_text('[job]\nprogram = "sparse_lr"\n')
    (tmp_path / "run.json").write_text("{}")
    model, tried = SimpleNamespace(source=tmp_path / "step-000001", lag=1.25), []

    def follow(run: str, **options: object) -> SimpleNamespace:
        tried.append(options)
        if len(tried) < 3:
            raise InputError("has no checkpoint")
        return model

    monkeypatch.setattr(serving, "follow", follow)
    monkeypatch.setattr(serving, "EVERY", 0.0)
    assert serving._once_begun(str(tmp_path), None, 60.0) is model
    assert tried == [{"program": None, "every": None, "max_lag": 60.0}] * 3
    assert capsys.readouterr().err.splitlines() == [
        f"mpips: {tmp_path}: has no checkpoint {said} for the first",
        f"mpips: {tmp_path / 'step-000001'}: 1.2 s behind the run",
    ]
    tried.clear()
    (tmp_path / "result.json").write_text('{"status": "failed"}')
    with pytest.raises(InputError, match="has no checkpoint"):
        serving._once_begun(str(tmp_path), None, None)


def test_that_a_run_was_killed_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    endings, ended = (
        ["", "the run was killed", "the run was killed", "", "the run has failed"],
        SimpleNamespace(),
    )

    def refresh() -> bool:
        model.ended = endings.pop(0)
        return False

    model = SimpleNamespace(source="step-000001", refresh=refresh, ended="")
    ended.wait = lambda seconds: not endings
    serving._keep_new(model, ended)  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == [
        "mpips: warning: step-000001: the run was killed; this model answers until it is resumed",
        "mpips: warning: step-000001: the run has failed; this model answers until it is resumed",
    ]
