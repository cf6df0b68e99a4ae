"""The benchmarks: their comparisons are correct, and wrong arguments give one line and exit code 2."""

from __future__ import annotations

import importlib
import json
import os
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from conftest import Finished, TinyData
from synthetic import optimum

from mpips.bench import _runs
from mpips.bench._runs import FinishedRun
from mpips.bench.applications import _liblinear, _solvers, delay, ftrl, memory, sparse_lr
from mpips.cli import main
from mpips.cli.bench import modules
from mpips.config.job_file import load
from mpips.data import DataSpec
from mpips.errors import InputError
from mpips.rundir.progress import Column

CONDITIONS = {"cpu": "a machine", "cores": 2, "load": 0.01, "python": "3", "at": "now"}


def a_run(objectives: list[float], folder: Path = Path(), **line: object) -> FinishedRun:
    passes = [
        {"event": "pass", "pass": i + 1, "seconds": (i + 1) / 2, "objective": value, "blocks": 4, **line}
        for i, value in enumerate(objectives)
    ]
    result = {
        "waiting": 0.25,
        "seconds": {"load": 0.1, "train": len(passes) / 2},
        "metrics": {"passes": len(passes), "objective": objectives[-1], "nonzeros": 3, "auc": None},
        "traffic": {"worker_sent": 1000, "server_sent": 500},
        "layout": {"servers": 1, "workers": 2},
    }
    return FinishedRun(folder, result, passes)


# --- runs ----------------------------------------------------------------------------------------------


def test_the_first_pass_at_the_target_counts() -> None:
    run = a_run([10.0, 7.0, 5.0, 5.5, 4.9])
    reached = run.reached(5.0)
    assert reached is not None and (reached["pass"], reached["seconds"]) == (3, 1.5)
    assert run.reached(4.0) is None
    assert run.sent == 1500


def test_waiting_is_that_of_the_passes_up_to_the_target_where_they_tell() -> None:
    assert _runs.waiting(a_run([3.0, 2.0])) == 0.25
    run = a_run([3.0, 2.0, 1.0])
    for line, (end, share) in zip(run.passes, [(1.0, 0.8), (1.5, 0.2), (9.0, 0.0)], strict=True):
        line.update(seconds=end, waiting=share)
    assert _runs.waiting(run, run.reached(2.0)) == pytest.approx((0.8 * 1.0 + 0.2 * 0.5) / 1.5)
    assert _runs.waiting(run) == pytest.approx((0.8 * 1.0 + 0.2 * 0.5) / 9.0)


def test_result_and_passes_of_a_run_are_read(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"status": "completed"}')
    lines = [{"event": "start"}, {"event": "pass", "pass": 1}, {"event": "checkpoint"}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = _runs.read_run(tmp_path)
    assert run.result == {"status": "completed"} and run.passes == [{"event": "pass", "pass": 1}]


def test_a_table_is_aligned_and_leaves_gaps_open() -> None:
    columns = (Column("a", "first", 2), Column("b", "b", 3, "{:.1f}".format))
    shown = _runs.table(columns, [{"a": "x" * 9, "b": 1.25}, {"a": 1}]).splitlines()
    assert shown == ["    first    b", "xxxxxxxxx  1.2", "        1    -"]


def test_load_of_other_processes_is_reported() -> None:
    assert "noise" not in _runs.described(CONDITIONS)
    assert "times are unreliable" in _runs.described(CONDITIONS | {"load": 5.0})
    assert {"cpu", "cores", "load"} <= _runs.conditions().keys()


def test_folders_are_removed_unless_kept(tmp_path: Path) -> None:
    with _runs.folders(None) as folder:
        (folder / "file").write_text("x")
    assert not folder.exists()
    with _runs.folders(str(tmp_path / "kept")) as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / "kept" / "file").exists()
    with pytest.raises(InputError, match="not an empty folder"), _runs.folders(str(tmp_path / "kept")):
        pass


# --- arguments -----------------------------------------------------------------------------------------


def test_every_benchmark_is_listed_and_its_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(modules()) == [
        "checkpoint", "coding", "ctr", "delay", "elastic", "factorization", "faults", "filters", "fm", "ftrl", "idle",
        "index", "lda", "memory", "overlap", "overload", "paper", "pushpull", "record", "recovery", "replication",
        "restart", "scale", "sketch", "soak", "sparse_lr", "store", "tables", "trace", "worlds",
    ]  # fmt: skip
    for name, module in modules().items():
        with pytest.raises(SystemExit) as caught:
            importlib.import_module(module).main(["--help"])
        assert caught.value.code == 0
        assert f"\n  mpips bench {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sparse_lr", "--repeat", "0"], "--repeat: must be at least 1, got 0"),
        (["sparse_lr", "--target", "1"], "--target: must be a number above 1"),
        (["sparse_lr", "--l1", "nan"], "--l1: must be at least"),
        (["sparse_lr", "--train", "no-such.svm"], "no such data file: no-such.svm"),
        (["sparse_lr", "--test", "x.svm"], "--test needs --train"),
        (["sparse_lr", "--set", "sparse_lr.epsilom=1"], "unknown key"),
        (["sparse_lr", "--no-such"], "--no-such"),
        (["delay", "--tau", "1,-2"], "whole numbers from 0"),
        (["delay", "--tau", "1,1"], "different whole numbers"),
        (["delay", "--slow", "0.5"], "--slow: must be at least 1"),
        (["delay", "--chance", "0"], "--chance: must be a probability above 0"),
        (
            ["paper", "--only", "delay,fig9"],
            "--only: 'fig9' is none of lines, solvers, filters, delay, topics",
        ),
        (["record", "--jobs", "svm"], "--jobs: 'svm' is none of darlin, ftrl, lda, sketch"),
        (["paper", "--train", __file__], "--train needs --optimum, and vice versa"),
        (["delay", "--plot", "no/such/folder/x.png"], "--plot no/such/folder/x.png: must be"),
        (["memory", "--parts", "0.5,2"], "numbers above 0 and up to 1"),
        (["ftrl", "--sample", "ten"], "'ten' is not a number"),
    ],
)
def test_wrong_arguments_are_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["bench", *arguments])
    except SystemExit as caught:
        code = caught.code  # type: ignore[assignment]
    assert code == 2
    captured = capsys.readouterr()
    assert said in captured.err.splitlines()[-1] and captured.out == ""


def test_data_of_the_users_own_has_no_crosses_unless_set(tiny_data: TinyData) -> None:
    parser = _runs.common_parser("x", "")
    asked = parser.parse_args(
        ["--train", str(tiny_data.train), "--set", "sparse_lr.l1=2.0", "--workers", "3"]
    )
    job = load(_runs.job_file(), _runs.overrides(asked))
    assert job.data.train == [str(tiny_data.train)] and job.data.test == [] and job.data.crosses == []
    assert (job.settings.l1, job.layout.workers) == (2.0, 3)
    own = load(_runs.job_file(), _runs.overrides(parser.parse_args([])))
    assert own.data.crosses and own.layout.servers == 1


def test_the_straggler_and_the_delay_reach_the_job() -> None:
    asked = delay.parsed(["--blocks", "64"])
    job = load(_runs.job_file(), delay.straggling(asked, 4))
    (slow,) = job.faults.slow
    assert (slow.role, slow.index, slow.factor, slow.probability) == ("worker", 0, 3.0, 1.0)
    assert (job.consistency.model, job.consistency.tau, job.settings.blocks) == ("bounded", 4, 64)


def test_stragglers_by_chance_are_all_workers_besides_what_makes_them_small() -> None:
    asked = delay.parsed(
        ["--slow", "4", "--chance", "0.2", "--spell", "0.01", "--slower", "8", "--workers", "3"]
    )
    found = load(_runs.job_file(), ["layout.workers=3", *delay.straggling(asked, 0)]).faults.slow
    assert [(each.index, each.factor, each.probability, each.spell) for each in found] == [
        *((index, 4.0, 0.2, 0.01) for index in range(3)),
        *((index, 8.0, 1.0, 0.0) for index in range(3)),
    ]
    reported = delay.straggler({"slow": 4.0, "chance": 0.2, "spell": 0.01, "slower": 8.0})
    assert (
        reported
        == "each 8 times slower than a core, each slowed down 4 times for 20 % of its work, for 10ms at a time"
    )


def test_the_online_job_is_one_pass_of_the_same_features() -> None:
    online, darlin = load(_runs.job_file("ftrl.toml")), load(_runs.job_file())
    assert online.data == darlin.data
    assert online.settings.algorithm == "ftrl" and (online.settings.passes or 1) == 1


# --- reports -------------------------------------------------------------------------------------------


def delay_report(times: dict[int, list[float]]) -> dict[str, object]:
    runs = []
    for tau, objectives in times.items():
        runs.append(delay.measured(tau, a_run(objectives), 1.0))
    rows = [delay.summary(tau, runs) for tau in times]
    return {
        "conditions": CONDITIONS, "layout": {"servers": 1, "workers": 2}, "slow": 3.0, "chance": 1.0,
        "spell": 0.0, "slower": 1.0, "l1": 1.0, "optimum": 0.99, "optimum_from": "given", "target": 1.0,
        "runs": runs, "table": rows,
    }  # fmt: skip


def test_the_delay_report_says_whether_a_delay_is_faster() -> None:
    pays = delay.text(delay_report({0: [3.0, 2.0, 1.5, 1.0], 4: [2.0, 1.0]}))
    assert "tau = 4 is faster than tau = 0: 2.00 times; waiting 25 % there, 25 % here" in pays
    costs = delay.text(delay_report({0: [2.0, 1.0], 4: [3.0, 2.0, 1.5, 1.0]}))
    assert "tau = 4 is the best with a delay, but not faster than tau = 0: 0.50 times" in costs
    missed = delay.text(delay_report({0: [2.0, 1.0], 4: [3.0, 2.0]}))
    assert "not every run reached the target: tau = [4]" in missed


def test_the_delay_plot_is_drawn_where_a_tau_missed_too(tmp_path: Path) -> None:
    delay.plot(delay_report({0: [2.0, 1.0], 4: [3.0, 2.0]}), str(tmp_path / "delay.svg"))
    drawn = (tmp_path / "delay.svg").read_text()
    assert drawn.startswith("<svg") and "tau = 0" in drawn and "tau = 4" not in drawn


def test_the_bottleneck_is_the_lowest_limit() -> None:
    stages = {"unpack": 0.5, "parse": 0.5, "unique": 0.4, "gradient": 0.6, "pull": 0.1, "push": 0.3}
    report = {"stages": stages, "layout": {"servers": 2, "workers": 2}, "conditions": CONDITIONS}
    found = list(ftrl.ceilings(report).values())
    assert found == pytest.approx([2e6, 1e6, 5e6, 2e6 / (2 * (0.5 + 1.0) + 0.4)])
    run = {
        "examples": 1000, "seconds": 0.002, "examples_per_second": 500_000.0, "waiting": 0.1, "sent": 1,
        "auc": None, "logloss": None, "nonzeros": 3, "passes": 1,
    }  # fmt: skip
    about = {"consistency": {"model": "bounded", "tau": 2}, "batch": 500, "runs": [run]}
    report |= about | {"ceilings": ftrl.ceilings(report)}
    said = ftrl.text(report)
    assert "the lowest limit: all of it on 2 cores; measured 85 % of it" in said and "the bound:" not in said
    run["examples_per_second"] = 250_000.0
    assert "the bottleneck: messages, waiting and idle cores" in ftrl.text(report)


def test_stages_alone_learn_what_the_job_learns(tmp_path: Path) -> None:
    job = load(_runs.job_file("ftrl.toml"))
    took = ftrl.measure_stages(job, 2, 2000, tmp_path / "sample")
    assert took.keys() == {"unpack", "parse", "unique", "pull", "gradient", "push"}
    assert all(value > 0.0 for value in took.values())
    assert list(tmp_path.iterdir()) == []


def test_the_first_lines_keep_the_column_names(tmp_path: Path) -> None:
    source, target = tmp_path / "a.tsv", tmp_path / "b.tsv"
    source.write_text("label\tx\n" + "".join(f"{i % 2}\tv{i}\n" for i in range(50)))
    spec = DataSpec(train=[str(source)])
    assert memory.count_lines(spec) == 51
    memory.write_lines(spec, 3, target)
    assert target.read_text() == "label\tx\n0\tv0\n1\tv1\n0\tv2\n"


def test_the_peak_of_a_process_is_read_and_of_none_is_0() -> None:
    assert memory.peak_memory(os.getpid()) > 1e6
    assert memory.peak_memory(2**30) == 0


# --- LIBLINEAR -----------------------------------------------------------------------------------------


def test_liblinear_finds_the_optimum_and_remembers_it(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process makes all fits: it takes seconds to start."""
    data, cache = tmp_path / "data.npz", tmp_path / "cache" / "optimum.json"
    size = _liblinear.write_data(DataSpec(train=str(tiny_data.train)), tmp_path, data)
    assert size["examples"] == 240 and size["nonzeros"] == np.count_nonzero(tiny_data.train_rows)
    with _liblinear.fits(data, 1.0) as fit:
        started = deque([nullcontext(fit)])
        monkeypatch.setattr(_liblinear, "fits", lambda *_: started.popleft())
        best, source = _liblinear.optimum(data, 1.0, cache)
        assert best == pytest.approx(optimum(tiny_data.train_rows, tiny_data.train_labels, 1.0), rel=1e-6)
        assert _liblinear.optimum(data, 1.0, cache) == (best, source + ", computed before")
        tolerance = _liblinear.loosest_tolerance(fit, 1.01 * best)
        loose, tight = fit(tolerance), fit(1e-6)
        assert best * (1 - 1e-6) <= tight["objective"] <= loose["objective"] <= 1.01 * best
        assert loose["iterations"] <= tight["iterations"]
        with pytest.raises(InputError, match="is --optimum too low"):
            _liblinear.loosest_tolerance(fit, 0.9 * best)
    w = np.zeros(40)  # at 0 the objective is n log 2, whatever the labels
    assert _liblinear.objective(tiny_data.train_rows, tiny_data.train_labels, w, 1.0) == pytest.approx(
        240 * np.log(2)
    )
    assert best < 240 * np.log(2)


# What another test starts, too.
SOLVERS = [
    pytest.param(each, marks=[pytest.mark.long] * (each == "liblinear")) for each in _solvers.installed()
]


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_installed_solver_reaches_the_target(tiny_data: TinyData, tmp_path: Path, solver: str) -> None:
    data = tmp_path / "data.npz"
    _liblinear.write_data(DataSpec(train=str(tiny_data.train)), tmp_path, data)
    best = optimum(tiny_data.train_rows, tiny_data.train_labels, 1.0)
    with _liblinear.fits(data, 1.0, solver) as fit:
        found = fit(_liblinear.loosest_tolerance(fit, 1.01 * best, solver))
    assert best * (1 - 1e-6) <= found["objective"] <= 1.01 * best


@pytest.mark.ranks
@pytest.mark.once
def test_the_whole_benchmark(tiny_data: TinyData, tmp_path: Path, run_mpips: Callable[..., Finished]) -> None:
    report = tmp_path / "report.json"
    own = ["--train", tiny_data.train, "--test", tiny_data.test, "--repeat", "1", "--workers", "1"]
    done = run_mpips(
        "bench", "sparse_lr", *own, "--json", report, timeout=120,
        environ={"XDG_CACHE_HOME": str(tmp_path)}, cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    said = json.loads(report.read_text())
    (run,) = said["mpips"]
    assert said["optimum"] * (1 - 1e-6) <= run["objective"] <= said["target"]
    for solver in said["solvers"].values():
        assert solver["fits"][0]["objective"] <= said["target"]
    assert 0 < run["seconds"] <= run["seconds_train"] and "times liblinear's time" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mpips", "report.json"]


@pytest.mark.ranks
@pytest.mark.once
def test_a_failing_run_is_one_line_and_leaves_nothing(
    tmp_path: Path, run_mpips: Callable[..., Finished]
) -> None:
    bad = tmp_path / "bad.svm"
    bad.write_text("+1 1:1\n-1 2:x\n")
    done = run_mpips("bench", "memory", "--train", bad, "--parts", "1", cwd=tmp_path)
    assert done.code in (1, 2)
    assert "bad.svm" in done.last_line or "first-" in done.last_line
    assert [path.name for path in tmp_path.iterdir()] == ["bad.svm"]


def test_the_known_optimum_is_only_for_the_jobs_own_data(tmp_path: Path) -> None:
    job = load(_runs.job_file())
    assert sparse_lr.known_optimum(None, job, False, tmp_path)[0] == sparse_lr.FLIGHTS_OPTIMUM
    assert sparse_lr.known_optimum(5.0, job, False, tmp_path) == (5.0, "given")
