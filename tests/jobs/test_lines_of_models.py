"""The predictions of models for lines of text: those of the same lines in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpips.data import DataSpec, Examples, read
from mpips.data.read import encoding_of
from mpips.errors import DataError
from mpips.jobs.fm.form import Form
from mpips.jobs.fm.model import FactorizationModel
from mpips.jobs.sketch.model import SketchModel
from mpips.jobs.sketch.results import Sketch
from mpips.jobs.sparse_lr.model import LogisticModel

TEXTS = {
    "a.svm": "+1 3:0.5 8:1\n-1 3:1\n0 9:2\n",
    "a.ffm": "1 0:3:0.5 1:8:1\n0 1:3:1\n",
    "named.tsv": "label\tcity\thour\n1\tRome\t7\n0\tOslo\t\n1\tRome\t8\n",
    "plain.tsv": "1\tRome\t7\n0\tOslo\t8\n",
    "people.csv": 'hour,bought,city\n7,yes,Rome\n8,no,"Oslo, Norway"\n',
}


def model_of(path: Path) -> LogisticModel:
    """Return a model with a weight for each key of a file."""
    spec = DataSpec(train=[str(path)], label="bought" if path.suffix == ".csv" else "", positive="yes")
    encoding = encoding_of([str(path)], spec) if spec.label else None
    batches: list[Examples] = list(read([str(path)], spec, encoding=encoding))
    keys = np.unique(np.concatenate([batch.keys for batch in batches]))
    return LogisticModel(keys, np.linspace(-2.0, 1.0, len(keys)) ** 3, spec, encoding)


@pytest.mark.parametrize("name", TEXTS)
def test_lines_are_read_as_the_training_data_are(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(TEXTS[name])
    model = model_of(path)
    lines = TEXTS[name].splitlines()
    head = lines.pop(0) if name in ("named.tsv", "people.csv") else ""
    assert model.is_head(head or lines[0]) == bool(head)
    expected = [f"{chance:.9g}" for chance in model.predict_proba(str(path))[:, 1]]
    assert len(set(expected)) > 1
    assert model.score_lines(lines, head) == expected
    assert [model.score_lines([line], head)[0] for line in lines] == expected
    assert model.score_lines([], head) == []
    if name == "named.tsv":
        # Names decide which column is which; without a line of names, the columns are those of the training data.
        assert model.score_lines(lines) == expected
        assert model.score_lines(["1\t7\tRome"], "label\thour\tcity") == expected[:1]
        model.data = DataSpec(train=[str(path)], header=False)
        assert not LogisticModel(model.keys, model.weights, model.data).is_head(head)


def test_a_wrong_line_is_an_error_without_a_place_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.svm"
    path.write_text(TEXTS["a.svm"])
    model = model_of(path)
    with pytest.raises(DataError, match=r"^'x' is not of the form id:value, as in 7:0\.5$"):
        model.score_lines(["+1 3:1", "+1 x"])
    for nothing in ("", "# a comment"):
        with pytest.raises(DataError, match=r"holds no examples|2 lines hold 1 examples"):
            model.score_lines([nothing, "+1 3:1"])
        with pytest.raises(DataError, match=r"^holds no examples"):
            model.score_lines([nothing])
    skipping = LogisticModel(model.keys, model.weights, DataSpec(train=[str(path)], on_error="skip"))
    with pytest.raises(DataError, match="is not of the form"):
        skipping.score_lines(["+1 x"])


def test_lines_for_a_field_aware_machine(tmp_path: Path) -> None:
    path = tmp_path / "a.ffm"
    path.write_text(TEXTS["a.ffm"])
    keys = np.array([3, 8], np.uint64)
    factors = np.arange(4, dtype=np.float32).reshape(2, 2)
    spec = DataSpec(train=[str(path)])
    model = FactorizationModel(keys, np.ones(2, np.float32), np.ones(2, bool), factors, spec, form=Form(1, 2))
    expected = [f"{chance:.9g}" for chance in model.predict_proba(str(path))[:, 1]]
    assert model.score_lines(TEXTS["a.ffm"].splitlines()) == expected
    assert model.score_lines(["1 0:77:1"]) == ["0.5"], "an id that was never seen"


def test_a_sketch_counts_the_key_of_each_line() -> None:
    assert (
        SketchModel(Sketch(np.full(8, 3), depth=2, width=4, seed=0, text=True)).score_lines(["a", ""])
        == ["3"] * 2
    )


def test_a_line_is_one_example_whatever_is_in_it(tmp_path: Path) -> None:
    """A quote that is open, and ends of lines after it, must not exchange the answers of others."""
    path = tmp_path / "people.csv"
    path.write_text(TEXTS["people.csv"])
    model, head = model_of(path), "hour,bought,city"
    whole = ["7,yes,Rome", "8,no,Oslo"]
    for attack in (['7,yes,"', whole[1], '"\r8,no,Rome\r8,no,Rome'], [whole[0], "8,no,Oslo\r8,no,Rome"]):
        with pytest.raises(DataError, match="a line has the end of another line in it"):
            model.score_lines(attack, head)
    with pytest.raises(DataError, match="a line has the end of another line in it"):
        model.score_lines(whole, head + "\r8,no,Oslo")
    with pytest.raises(DataError):
        model.score_lines(['7,yes,"', '8,no"'], head)
