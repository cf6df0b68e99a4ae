"""`mpips bench filters`: its counts and its plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mpips.bench import _runs
from mpips.bench._runs import FinishedRun
from mpips.bench.applications import filters
from mpips.cli import main
from mpips.config.job_file import load
from mpips.config.overrides import override_value
from mpips.errors import InputError

CHAIN = ({"name": "fixed_point", "bytes": 1}, "zstd")
BEST = 100.0


def traffic(worker: int, server: int, **per_filter: Any) -> dict[str, Any]:
    return {"worker_sent": worker, "server_sent": server, "server_raw": 2 * server, "per_filter": per_filter}


def part(raw: int, wire: int, seconds: float) -> dict[str, Any]:
    return {"raw": raw, "wire": wire, "seconds": seconds}


def a_run(folder: Path, sent: dict[str, Any], objectives: Sequence[float] = (150.0, 100.05)) -> FinishedRun:
    """Make the files of a run."""
    folder.mkdir(parents=True)
    lines = [
        {"event": "pass", "pass": n + 1, "seconds": n + 1.0, "objective": f, "filtered": n / 2}
        for n, f in enumerate(objectives)
    ]
    lines.append({"event": "trained", "traffic": sent})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"passes": len(objectives), "objective": objectives[-1]}
    result = {"metrics": metrics, "layout": {"servers": 1, "workers": 2}}
    (folder / "result.json").write_text(json.dumps(result))
    return _runs.read_run(folder)


def test_every_combination_is_a_job_that_loads() -> None:
    combos = filters.combinations(filters.CHAINS)
    assert combos[0] is filters.NONE and len({each.name for each in combos}) == len(combos) == 8
    for combo in combos:
        job = load(_runs.job_file(), combo.settings)
        assert job.settings.kkt == combo.kkt and (job.ring.key_cache > 0) == combo.caching
        assert list(job.filters.push) == list(job.filters.pull) == list(combo.chain)
    assert [each.name for each in filters.combinations(filters.QUICK_CHAINS, quick=True)] == [
        "none", "key caching", "KKT, key caching", "+ zstd",
    ]  # fmt: skip


def test_a_chain_is_written_as_it_is_read() -> None:
    chain = ["zeros", {"name": "zstd", "level": 3, "shuffle": False}]
    assert override_value(filters.chain_toml(chain)) == chain
    own = filters.combinations([("zstd",), chain, ("zstd",)])[len(filters.WITHOUT_CHAINS) :]
    assert [each.chain for each in own] == [("zstd",), tuple(chain)]


def test_a_run_is_measured_up_to_the_end_of_its_training(tmp_path: Path) -> None:
    sent = traffic(
        700, 300, zstd={"worker": part(4000, 1000, 2e-6), "server": part(900, 400, 3e-6)},
        fixed_point={"worker": part(5000, 4500, 1e-6)}, kkt={"worker": part(10**6, 10, 0.0)},
    )  # fmt: skip
    combo = filters.Combination("+ both", True, True, CHAIN)
    found = filters.measured(combo, a_run(tmp_path / "run", sent), BEST, 100.1)
    assert (found["seconds"], found["passes"], found["worker"], found["server"]) == (2.0, 2, 700, 300)
    assert found["excess"] == pytest.approx(5e-4) and found["filtered"] == [0.0, 0.5]
    assert found["saved"] == 3000 + 500 + 500, "what the chain has saved: neither KKT nor key caching"
    assert found["cost"] == pytest.approx(1e9 * 6e-6 / 4000)
    missed = filters.measured(combo, a_run(tmp_path / "missed", sent, (150.0, 120.0)), BEST, 100.1)
    assert missed["seconds"] is None and missed["excess"] == pytest.approx(0.2)


def a_report(folder: Path) -> dict[str, Any]:
    sizes = [(8000, 4000), (4000, 4000), (900, 300), (800, 300), (200, 50)]
    combos = filters.combinations([CHAIN])
    runs = [
        filters.measured(combo, a_run(folder / str(n), traffic(*size)), BEST, 100.1)
        for n, (combo, size) in enumerate(zip(combos, sizes, strict=True))
    ]
    return {
        "conditions": {"cpu": "c", "cores": 2, "load": 0.0},
        "layout": {"servers": 1, "workers": 2},
        "l1": 1.0,
        "optimum": BEST,
        "optimum_from": "given",
        "target": 100.1,
        "settle": False,
        "runs": runs,
        "table": filters.table(runs),
        "filtered": filters.filtered(runs),
    }


def test_bytes_are_compared_with_those_of_no_filter(tmp_path: Path) -> None:
    report = a_report(tmp_path)
    first, *others = report["table"]
    assert "worker_fewer" not in first and first["counted"] == 8000
    assert [row["worker_fewer"] for row in others] == pytest.approx([2.0, 8000 / 900, 10.0, 40.0])
    assert [row["server_fewer"] for row in others] == pytest.approx([1.0, 40 / 3, 40 / 3, 80.0])
    assert [row["server_counted"] for row in others] == pytest.approx([2.0, 80 / 3, 80 / 3, 160.0])
    assert report["filtered"] == {"KKT": [0.0, 0.5]}, "the same shares are named once"
    text = filters.text(report)
    assert "none: servers sent 4.00kB; as the paper counts, with keys, 8.00kB" in text
    assert "in each pass, KKT: 0.0 50.0" in text and "not every run" not in text
    report["table"][-1]["seconds"] = None
    assert filters.text(report).endswith("not every run reached the target: + fixed_point 1, zstd")


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    report = a_report(tmp_path)
    filters.draw(report, tmp_path / "filters.svg")
    figure = ElementTree.fromstring((tmp_path / "filters.svg").read_text())
    texts = [each.text for each in figure.iter("{http://www.w3.org/2000/svg}text")]
    assert "features left out by the KKT filter" in texts and "8.00kB" in texts
    assert len(list(figure.iter("{http://www.w3.org/2000/svg}polyline"))) == 1
    bars = [
        each for each in figure.iter("{http://www.w3.org/2000/svg}rect") if each.get("class") in ("k0", "k1")
    ]
    assert len(bars) == 2 * len(report["table"])


def test_the_whole_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Sequence[str]] = []

    def run(job: Path, folder: Path, settings: Sequence[str], launcher: str) -> FinishedRun:
        asked.append(settings)
        return a_run(folder, traffic(1000 // len(asked), 500 // len(asked)))

    monkeypatch.setattr(_runs, "run", run)
    file = tmp_path / "filters.json"
    switches = ["--quick", "--optimum", "100", "--filter", '["zeros"]', "--json", str(file)]
    assert filters.main(switches) == 0
    report = json.loads(file.read_text())
    assert [row["name"] for row in report["table"]][-1] == "+ zeros" and len(asked) == 5
    job = load(_runs.job_file(), asked[-1])
    assert job.filters.push == ("zeros",) and job.settings.target == pytest.approx(100.1)
    assert file.with_suffix(".svg").exists()
    assert file.with_suffix(".txt").read_text() == capsys.readouterr().out
    file.with_suffix(".txt").write_text("mine")
    with pytest.raises(InputError, match=r"filters\.txt: exists, and is no earlier output"):
        filters.main(switches)
    assert filters.main(["--quick", "--optimum", "90", "--target", "1.0001", "--settle"]) == 1, "missed"
    job = load(_runs.job_file(), asked[-1])
    assert job.settings.target == 0.0 and job.settings.epsilon == pytest.approx(2e-5)


def test_wrong_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no filter 'zsdt'"):
        filters.main(["--filter", "zsdt"])
    with pytest.raises(SystemExit):
        filters.main(["--target", "0.9"])
    assert main(["bench", "filters", "--plot", "no/such/folder/x.png"]) == 2
    assert "--plot no/such/folder/x.png: must be" in capsys.readouterr().err
