"""The cost model finds the costs that runs were generated with, and extrapolates plausibly."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.cli.launching import plan as command
from mpips.cli.main import main
from mpips.errors import InputError
from mpips.planning.model import Costs, Machine, Measured, RankCounts, best, fit_costs, predict, straggling

COSTS = Costs(
    compute=0.05, message=20e-6, byte=1e-9, round=300e-6, rounds=16, decay=0.4, worker_bytes=2e6, server_bytes=1e6,
    base=100e6, held=400e6, load=2.0, error=0.0,
)  # fmt: skip
LAYOUTS = [
    RankCounts(1, 1),
    RankCounts(1, 2),
    RankCounts(2, 1),
    RankCounts(1, 3),
    RankCounts(2, 2),
    RankCounts(3, 4),
]


def made(costs: Costs, layout: RankCounts, cores: int = 2, noise: float = 1.0) -> Measured:
    """Make the run that a model with these costs would give."""
    said = predict(costs, Machine(cores), layout)
    return Measured(
        layout, cores, costs.rounds, said.seconds * noise, said.worker_sent, said.server_sent, said.server_memory,
        costs.load / min(layout.workers, cores),
    )  # fmt: skip


def test_fitted_costs_are_those_that_the_measurements_were_made_of() -> None:
    found = fit_costs([made(COSTS, layout) for layout in LAYOUTS])
    for name in Costs.__dataclass_fields__:
        assert getattr(found, name) == pytest.approx(getattr(COSTS, name), rel=1e-6, abs=1e-12), name


@given(st.lists(st.floats(0.9, 1.1), min_size=len(LAYOUTS), max_size=len(LAYOUTS)))
def test_noise_makes_no_cost_negative_and_no_prediction_wild(noise: list[float]) -> None:
    found = fit_costs([made(COSTS, layout, noise=each) for layout, each in zip(LAYOUTS, noise, strict=True)])
    assert min(found.compute, found.message, found.byte, found.round) >= 0
    for layout in (RankCounts(2, 3), RankCounts(3, 1), RankCounts(1, 5)):
        said, real = predict(found, Machine(2), layout).seconds, predict(COSTS, Machine(2), layout).seconds
        assert said == pytest.approx(real, rel=0.35)


def test_too_few_or_too_similar_runs_are_refused() -> None:
    for layouts in ([RankCounts(1, 1)] * 3, [RankCounts(1, 2), RankCounts(2, 2), RankCounts(3, 2)]):
        with pytest.raises(InputError, match="at least three layouts"):
            fit_costs([made(COSTS, layout) for layout in layouts])


def test_shared_costs_fall_and_total_bytes_grow_with_the_number_of_workers() -> None:
    machine = Machine(64, 10, 1e9, 10e-6)
    few, many = (predict(COSTS, machine, RankCounts(4, workers)) for workers in (8, 256))
    assert many.compute == pytest.approx(few.compute / 32)
    assert many.worker_sent / 256 < few.worker_sent / 8, "each worker touches fewer keys"
    assert many.worker_sent > few.worker_sent, "but all together more"
    assert predict(COSTS, machine, RankCounts(8, 8)).server_memory < few.server_memory
    copied = predict(COSTS, machine, RankCounts(4, 8, replicas=1))
    assert copied.server_memory - COSTS.base == pytest.approx(2 * (few.server_memory - COSTS.base))
    assert predict(COSTS, machine, RankCounts(1, 8, replicas=3)).server_memory == COSTS.base + COSTS.held


def test_a_slow_network_is_seen_and_a_delay_hides_servers() -> None:
    slow, fast = (predict(COSTS, Machine(8, 4, width, 1e-6), RankCounts(2, 8)) for width in (1e6, 1e10))
    assert slow.network > 100 * fast.network
    assert predict(COSTS, Machine(32), RankCounts(2, 8)).network == 0
    late = predict(COSTS, Machine(32), RankCounts(2, 8, tau=4))
    assert late.seconds < predict(COSTS, Machine(32), RankCounts(2, 8)).seconds
    assert late.rounds == pytest.approx(COSTS.round * COSTS.rounds / 5)


def test_the_best_split_comes_first() -> None:
    found = best(COSTS, Machine(32, 4, 1e9, 5e-6), 128, RankCounts(1, 1))
    assert all(each.layout.servers + each.layout.workers == 127 for each in found)
    assert found[0].seconds == min(each.seconds for each in found)
    with pytest.raises(InputError, match="at least 3 ranks"):
        best(COSTS, Machine(2), 2, RankCounts(1, 1))


def test_stragglers_cost_less_with_a_delay() -> None:
    assert straggling(8, 0, 1.0, 0.1, 0.0) == pytest.approx((1.0, 0.1 / 1.1))
    strict, late = (straggling(16, tau, 1.0, 0.01, 0.5) for tau in (0, 8))
    assert strict.longer > 1.5 > late.longer >= 1.0
    assert strict.waiting > late.waiting
    assert straggling(16, 0, 1.0, 0.01, 0.5) == strict, "the same each time"


# --- The command -----------------------------------------------------------------------------------------------------


def finished(at: Path, layout: RankCounts, steps: int = 4) -> str:
    """Write what a finished run leaves."""
    run, ranks = made(COSTS, layout), []
    for role, count, sent in (
        ("server", layout.servers, run.server_bytes),
        ("worker", layout.workers, run.worker_bytes),
    ):
        ranks += [
            {"role": role, "sent": sent * steps / count, "memory": run.server_memory} for _ in range(count)
        ]
    at.mkdir()
    result = {"layout": {"servers": layout.servers, "workers": layout.workers}, "ranks": ranks,
              "seconds": {"load": run.load}}  # fmt: skip
    (at / "result.json").write_text(json.dumps(result))
    (at / "run.json").write_text(json.dumps({"cores": 2}))
    (at / "job.toml").write_text("[job]\n[layout]\n[ring]\nreplicas = 0\n[consistency]\ntau = 0\n")
    lines = [
        {"event": "pass", "pass": n, "seconds": run.seconds * n, "blocks": 16} for n in range(1, steps + 1)
    ]
    (at / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(at)


def test_a_plan_of_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [finished(tmp_path / str(n), layout) for n, layout in enumerate(LAYOUTS)]
    machine = ["--nodes", "4", "--cores", "8", "--bandwidth", "10Gbit", "--latency", "20us"]
    assert main(["plan", "jobs/sparse_lr/job.toml", *machine, "--from", *runs]) == 0
    said = capsys.readouterr().out
    assert (
        "4 nodes of 8 cores: 32 ranks" in said
        and "these runs within 0 %" in said
        and "20 us a message" in said
    )
    assert main(["plan", "jobs/sparse_lr/job.toml", "--from", *runs[:1]]) == 2
    assert "at least three layouts" in capsys.readouterr().err


def test_a_job_that_cannot_be_kept_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "jobs/sketch/job.toml"]) == 2
    assert "has no setting `passes` or `sweeps`" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "value"), [("10Gbit", 1.25e9), ("2GB", 2e9), ("8bit", 1.0)])
def test_units(text: str, value: float) -> None:
    assert command.measure(command.UNITS)(text) == pytest.approx(value)
    for wrong in ("10", "Gbit", "-1GB", "1 light year"):
        with pytest.raises(argparse.ArgumentTypeError):
            command.measure(command.UNITS)(wrong)
