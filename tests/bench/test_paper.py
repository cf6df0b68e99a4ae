"""The paper's evaluation: the baseline finds the optimum, and the pages show what was measured."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from synthetic import make, optimum, run_twin

from mpips.bench import _runs, paper
from mpips.bench._paper import code_lines, lbfgs, page
from mpips.bench._paper.experiment import agreement, machines, table
from mpips.config.job_file import load
from mpips.errors import InputError

DOCS = Path(__file__).parents[2] / "docs"
MEASURED = DOCS / "reproduction" / "measured.json"


@pytest.mark.drawn(1)
@pytest.mark.parametrize(
    ("kind", "l1"), [("real", 1.0), ("binary", 3.0), pytest.param("correlated", 0.5, marks=pytest.mark.long)]
)
def test_system_a_finds_the_optimum(tmp_path: Path, kind: str, l1: float) -> None:
    data = make(tmp_path, kind)
    best = optimum(data.x, data.y, l1)
    runs = [
        run_twin(
            data.train,
            servers,
            workers,
            program="mpips.bench._paper.lbfgs",
            settings={"l1": l1, "target": best},
        )
        for servers, workers in ((1, 1), (2, 3))[kind == "correlated" :]
    ]
    for run in runs:
        assert run.metrics["objective"] == pytest.approx(best, rel=1e-5)
        assert run.passes() == sorted(run.passes(), reverse=True)
        assert 0 < run.metrics["nonzeros"] <= 40
        assert run.metrics["passes"] == len(run.passes())


def test_a_direction_is_newtons_where_the_memory_spans_a_quadratic() -> None:
    rng = np.random.default_rng(0)
    half = rng.standard_normal((4, 4))
    hessian = half @ half.T + np.eye(4)
    pairs: deque[tuple[lbfgs.F8, lbfgs.F8]] = deque()
    x = rng.standard_normal(4)
    for _ in range(30):  # exact line searches: L-BFGS is then the method of conjugate gradients
        slope = hessian @ x
        if np.linalg.norm(slope) < 1e-9:
            break
        way = lbfgs.two_loops(slope, pairs)
        step = -(slope @ way) / (way @ hessian @ way) * way
        pairs.append((step, hessian @ step))
        x = x + step
    assert len(pairs) <= 6
    assert np.abs(x).max() < 1e-9


def test_the_pseudo_gradient_is_0_where_the_objective_rises_in_both_directions() -> None:
    w, gradient = np.array([0.0, 0.0, 0.0, 2.0, -2.0]), np.array([0.5, 3.0, -3.0, 0.5, 0.5])
    assert lbfgs.pseudo_gradient(w, gradient, 1.0).tolist() == [0.0, 2.0, -2.0, 1.5, -0.5]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("", 0),
        ('"""A module."""\n\nx = 1  # one\n', 1),
        ("def f():\n    '''It.\n\n    Two.'''\n    # why\n    return (1,\n            2)\n", 3),
        ("x = '''a\nb\n'''\n", 3),
    ],
)
def test_lines_of_code_are_those_that_do_something(source: str, lines: int) -> None:
    assert code_lines.count(source) == lines


def test_figures_agree_within_their_bounds_only() -> None:
    values = (0.99, 1.0, 2.0, 2.01)
    assert [agreement(value, (1.0, 2.0)) for value in values] == ["no", "yes", "yes", "no"]
    assert [agreement(value, (1.0, 2.0), (1.0, 9.0)) for value in values] == ["no", "yes", "yes", "in part"]


def test_small_machines_are_workers_of_a_job(tmp_path: Path) -> None:
    faults = load(_runs.job_file(), ["layout.workers=2", machines(2)]).faults
    assert [(each.index, each.factor, each.probability) for each in faults.slow] == [
        (0, 8.0, 1.0),
        (1, 8.0, 1.0),
        (0, 4.0, 0.2),
        (1, 4.0, 0.2),
    ]


def test_text_is_filled_and_tables_are_tables() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


# --- The pages ------------------------------------------------------------------------------------------


def measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(MEASURED.read_text())
    return found


def test_the_pages_in_docs_equal_the_output_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reproduction").mkdir()
    (tmp_path / "reproduction" / "measured.json").write_text(MEASURED.read_text())
    assert paper.main(["--only", "none", "--out", str(tmp_path)]) == 0
    pages = sorted(path.name for path in tmp_path.glob("*.md"))
    assert pages == sorted(path.name for path in DOCS.glob("reproduction*.md"))
    for name in pages:
        assert (tmp_path / name).read_text() == (DOCS / name).read_text()
    drawn = sorted(path.name for path in (tmp_path / "reproduction").glob("*.svg"))
    assert drawn == sorted(path.name for path in (DOCS / "reproduction").glob("*.svg"))
    assert {f"fig{number}.svg" for number in range(9, 15)} <= set(drawn)
    for name in drawn:
        text = (tmp_path / "reproduction" / name).read_text()
        assert text == (DOCS / "reproduction" / name).read_text()
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    reported = capsys.readouterr().out
    assert all(each.what in reported for section in sections().values() for each in section.claims)


def sections() -> dict[str, Any]:
    found = measured()
    return {name: each.compare(found[name]) for name, each in paper.EXPERIMENTS.items()}


def test_a_figure_that_does_not_agree_is_marked() -> None:
    found = measured()
    reported = [
        paper.compare("lines", found["lines"] | {"method": lines, "listing": 99}) for lines in (400, 401)
    ]
    assert [each.claims[0].agrees for each in reported] == ["yes", "no"]
    assert "| 300 | 401, of which `job.py`, `settings.py` 99 | **no** |" in page.claims(
        {"lines": reported[1]}
    )


@pytest.mark.parametrize(
    "broken", ["null", "5", '{"lines": {}, "solvers": {"runs": {"A": []}}}', '{"lines": 3}']
)
def test_incomplete_measurements_are_reported_before_any_run(tmp_path: Path, broken: str) -> None:
    (tmp_path / "reproduction").mkdir()
    (tmp_path / "reproduction" / "measured.json").write_text(broken)
    rest = ",".join(name for name in paper.EXPERIMENTS if name != "lines")
    with pytest.raises(InputError, match=r"was not written by this command|run it again"):
        paper.main(["--only", rest, "--out", str(tmp_path)])


def test_runs_that_did_not_reach_the_target_are_reported() -> None:
    found = measured()
    for run in found["solvers"]["runs"]["B"]:
        run["seconds"] = None
    with pytest.raises(InputError, match="not every system reached the target"):
        paper.compare("solvers", found["solvers"])
    del found["delay"]["table"][0]["seconds"]
    with pytest.raises(InputError, match="no run with tau = 0 reached the target"):
        paper.compare("delay", found["delay"])


def test_missing_measurements_are_reported(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"has no measurements of lines, solvers, filters, delay, topics, sketch: run them too",
    ):
        paper.main(["--only", "none", "--out", str(tmp_path)])
    (tmp_path / "reproduction").mkdir()
    (tmp_path / "reproduction" / "measured.json").write_text("{")
    with pytest.raises(InputError, match=r"was not written by this command"):
        paper.main(["--only", "none", "--out", str(tmp_path)])


def test_an_unknown_experiment_is_reported_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        paper.main(["--only", "fig9"])
    assert ended.value.code == 2
    assert "fig9" in capsys.readouterr().err


def test_the_counted_lines_are_those_of_the_present_code() -> None:
    here = _runs.job_file().parent
    assert measured()["lines"]["listing"] == code_lines.lines_of([here / "job.py", here / "settings.py"])
    assert measured()["lines"]["method"] == code_lines.lines_of(here / name for name in code_lines.METHOD)


def test_the_documents_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such data file: none\.gz"):
        paper.main(["--only", "topics", "--corpus", "none.gz", "--out", str(tmp_path)])
