"""Benchmarks of the data path: counts, comparisons, verdicts, and errors for measurements that are impossible."""

from __future__ import annotations

import argparse
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.bench import _runs
from mpips.bench.requests import _bare, _overlap, _ps_lite, _pushpull, overlap, pushpull
from mpips.bench.requests.pushpull import Size
from mpips.cli import main
from mpips.errors import InputError
from mpips.ranges import KeyRange
from mpips.storage.segment import Segment
from mpips.storage.updates import VectorSpec

CONDITIONS = {"cpu": "a machine", "cores": 2, "load": 0.01, "python": "3", "at": "now"}


def a_cell(**changed: Any) -> dict[str, Any]:
    cell = {
        "mode": "dense",
        "op": "push",
        "keys": 1000,
        "copies": 1,
        "ours": [4e-6, 2e-6, 9e-6],
        "bare": [1e-6, 3e-6, 1e-6],
    }
    return cell | changed


def a_row(ratio: float, **changed: Any) -> dict[str, Any]:
    row = {"layout": "1+1", "mode": "dense", "op": "push", "keys": 10**5, "median_s": 1e-3, "p99_s": 2e-3}
    row |= {"copies": 0, "update": "add", "width": 1}
    return row | {"limit_s": ratio * 1e-3, "ratio": ratio} | changed


# --- the table -----------------------------------------------------------------------------------------


def test_runs_and_workers_are_summed_up_together() -> None:
    runs = [[a_cell()], [a_cell(ours=[20e-6, 1e-6], bare=[2e-6, 3e-6])]]
    (row,) = pushpull.table("2+2", runs, "sgd", 8)
    about = {
        "layout": "2+2",
        "mode": "dense",
        "op": "push",
        "keys": 1000,
        "copies": 1,
        "update": "sgd",
        "width": 8,
    }
    assert row.items() > about.items()
    assert (row["median_s"], row["p99_s"], row["limit_s"], row["ratio"]) == (4e-6, 20e-6, 2e-6, 0.5)


def test_throughput_is_that_of_all_workers() -> None:
    values = pushpull.rates(a_row(0.5, layout="3+2"))
    assert (values["rate"], values["bytes"]) == (pytest.approx(2e8), pytest.approx(8e8))
    assert pushpull.rates(a_row(0.5, mode="sparse"))["bytes"] == pytest.approx(1e8 * 12)
    assert pushpull.rates(a_row(0.5, op="push_pull", width=16))["bytes"] == pytest.approx(1e8 * 16 * 4 * 2)


@given(st.floats(1e-7, 1e-3), st.floats(1e-11, 1e-6))
def test_a_fit_finds_what_a_request_and_a_key_cost(fixed: float, each: float) -> None:
    sizes = [1, 10, 1000, 10**5, 10**7]
    a, b = pushpull.fit(sizes, [fixed + each * n for n in sizes])
    assert (a, b) == (pytest.approx(fixed, rel=1e-3), pytest.approx(each, rel=1e-3))


@given(st.lists(st.tuples(st.integers(1, 10**7), st.floats(1e-7, 1.0)), min_size=1, max_size=8))
def test_a_fit_has_no_negative_cost(measured: list[tuple[int, float]]) -> None:
    a, b = pushpull.fit(*zip(*measured, strict=True))
    assert a >= 0 and b >= 0 and a + b > 0


def test_a_fit_of_falling_or_equal_times_is_a_fixed_cost() -> None:
    assert pushpull.fit([1, 1000], [2e-3, 1e-3])[1] == 0.0
    assert pushpull.fit([7], [3e-3]) == (pytest.approx(3e-3), 0.0)


def test_targets_are_compared_with_the_worst_row() -> None:
    dense, cached, sparse, one = pushpull.TARGETS
    rows = [
        a_row(0.9), a_row(0.79, op="pull"), a_row(0.1, keys=1000), a_row(0.41, keys=1),
        a_row(0.6, mode="cached"), a_row(0.4, mode="sparse"), a_row(0.39, mode="sparse", layout="2+2", keys=10**6),
    ]  # fmt: skip
    assert str(pushpull.check_target(dense, rows)).endswith(
        ": NO, 1 of 2; minimum 0.79 (1+1 dense pull 100,000)"
    )
    assert str(pushpull.check_target(cached, rows)).endswith(
        ": yes, 1 of 1; minimum 0.60 (1+1 cached push 100,000)"
    )
    assert str(pushpull.check_target(sparse, rows)).endswith(
        ": NO, 1 of 2; minimum 0.39 (2+2 sparse push 1,000,000)"
    )
    assert str(pushpull.check_target(one, rows)).endswith(": yes, 1 of 1; minimum 0.41 (1+1 dense push 1)")
    assert pushpull.check_target(cached, rows[:3]) is None


def test_the_report_shows_every_row_and_the_fit() -> None:
    sizes = (1, 1000, 10**6)
    rows = [
        a_row(0.5, keys=n, op=op, median_s=2e-6 + 2e-9 * n, limit_s=1e-6 + 1e-9 * n)
        for op in ("push", "pull")
        for n in sizes
    ]
    said = pushpull.text(CONDITIONS, rows, True)
    assert len(re.findall(r"dense +add +push", said)) == len(sizes)
    fits = pushpull.fits(rows)
    assert [(fit["op"], fit["fixed"], fit["limit_each"]) for fit in fits] == [
        (op, pytest.approx(2e-6), pytest.approx(1e-9)) for op in ("push", "pull")
    ]
    assert "2.00 us   2.00 ns" in said and "by a fit" not in pushpull.text(CONDITIONS, rows)
    assert "at least 0.8 of the limit: NO, 0 of 2" in said


def test_durations_are_short() -> None:
    assert [pushpull.duration(t) for t in (2e-6, -0.5e-3, 12.3e-3)] == ["2.00 us", "-500 us", "12.3 ms"]


# --- what is measured ----------------------------------------------------------------------------------


@given(st.integers(1, 5000))
def test_blocks_make_up_all_repetitions(number: int) -> None:
    found = _pushpull.blocks(number)
    assert sum(found) == number and max(found) <= _pushpull.LONGEST and min(found) >= 1
    assert len(found) >= min(number, _pushpull.BLOCKS)


@pytest.mark.parametrize("mode", _pushpull.MODES)
def test_larger_requests_are_repeated_less(mode: Any) -> None:
    times = [_pushpull.repeats(mode, n) for n in pushpull.SWEEP]
    assert all(less <= more for more, less in pairwise(times)) and times[-1] >= 3
    assert _pushpull.repeats(mode, 10**7, 0.02) == 2


@given(st.integers(0, 300), st.integers(0, 2**32))
def test_random_keys_are_sorted_and_unique(number: int, seed: int) -> None:
    keys = _pushpull.random_keys(np.random.default_rng(seed), number)
    assert keys.dtype == np.uint64 and len(keys) == number and (keys[1:] > keys[:-1]).all()


def test_keys_that_were_drawn_twice_are_drawn_again() -> None:
    draws = iter([[5, 1, 5, 3], [1], [2]])
    rng: Any = SimpleNamespace(integers=lambda *_, **__: np.array(next(draws), np.uint64))
    assert _pushpull.random_keys(rng, 4).tolist() == [1, 2, 3, 5]


def test_bare_rounds_go_to_servers_that_have_keys() -> None:
    keys, rows, out = np.arange(9, dtype=np.uint64), np.ones(9, np.float32), np.ones(9, np.float32)
    how = ([1, 2, 3], [0, 4, 4, 9], [0, 4, 8])
    assert len(_bare.ask(*how, None, rows, None)) == 2 * 2  # values there, a byte back
    assert len(_bare.ask(*how, keys, rows, None)) == 2 * 3
    assert len(_bare.ask(*how, None, None, out)) == len(_bare.ask(*how, keys, None, out)) == 2 * 2
    assert len(_bare.ask(*how, None, rows, out)) == 2 * 2


def test_bare_rounds_use_the_links_of_the_chains() -> None:
    chains, workers, cuts = [(1, 2), (2, 1), (1, 2)], (3, 4), [[0, 5, 7, 7], [0, 1, 3, 6]]
    single = _pushpull.staged(chains, workers, cuts, summed=False, copied=True)
    links = sorted(
        (source, rank, stage["tag"], stage["keys"])
        for rank, stages in single.items()
        for stage in stages
        for source in stage["sources"]
    )
    # By worker and shard: from the worker to the primary, and from there to the copy; worker 3 has no keys of shard 2.
    third = [(3, 1, 0, 5), (1, 2, 0, 5), (3, 2, 3, 2), (2, 1, 3, 2)]
    fourth = [(4, 1, 9, 1), (1, 2, 9, 1), (4, 2, 12, 2), (2, 1, 12, 2), (4, 1, 15, 3), (1, 2, 15, 3)]
    assert links == sorted([*third, *fourth])
    assert _pushpull.tags_of(3, 1) == [9, 12, 15]
    summed = _pushpull.staged([(1, 2), (2, 1)], workers, [[0, 5, 7]] * 2, summed=True, copied=True)
    assert [stage["sources"] for stage in summed[1]] == [[3, 4], [2]]
    assert [(stage["following"], stage["copies"]) for stage in summed[1]] == [(2, False), (None, True)]
    pulled = _pushpull.staged(chains, workers, cuts, summed=False, copied=False)
    assert all(stage["following"] is None for stages in pulled.values() for stage in stages)


@pytest.mark.parametrize("name", _bare.UPDATES)
def test_the_work_of_an_update_by_numpy_has_its_result(name: str) -> None:
    segment = Segment(VectorSpec("w", "float32", width=3, extent=5, dense=True, update=name))
    work, rng = _bare.UPDATES[name], np.random.default_rng(1)
    values, *state = (np.zeros((5, 3), np.float32) for _ in range(1 + work.arrays))
    for _ in range(3):
        rows = rng.normal(size=(5, 3)).astype(np.float32)
        segment.push(KeyRange(0, 5), rows.copy())
        work.apply(values, state, rows)
    np.testing.assert_allclose(values, segment.values[:5], rtol=1e-4, atol=1e-6)


# --- ps-lite -------------------------------------------------------------------------------------------


def a_program(folder: Path, body: str) -> str:
    path = folder / "benchmark"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_benchmark_with_ps_lite_is_started_by_roles_and_read(tmp_path: Path) -> None:
    body = """
        case "$DMLC_ROLE $DMLC_NUM_SERVER $DMLC_NUM_WORKER $1 $2 $3" in
        "worker 2 3 1000 4 7") echo "push 0.5"; echo "pull 2e-3"; echo "push: 9"; echo "push 0.25" ;;
        "server 2 3 1000 4 7" | "scheduler 2 3 1000 4 7") echo "pull 1.0" ;;
        *) exit 3 ;;
        esac"""
    program = _ps_lite.program(a_program(tmp_path, body))
    found = _ps_lite.measured(program, 2, 3, (1000, 4, 7))
    assert found == {"push": [0.5, 0.25] * 3, "pull": [2e-3] * 3}
    asked = pushpull.parser().parse_args(["--keys", "1000", "--width", "4", "--modes", "cached"])
    limit = a_row(0.5, mode="sparse", keys=1000, op="pull")
    other = a_program(tmp_path, "echo push 1; echo pull 1; test $3 = 40")
    push, pull = pushpull.ps_lite_rows(
        [limit], a_request(quick=True, width=4, keys=[1000]), Size(1, 1), Path(other)
    )
    assert (push["limit_s"], push["ratio"], pull["limit_s"]) == (None, None, limit["limit_s"])
    assert pushpull.text(CONDITIONS, [limit, push, pull], True).count("ps-lite") == 2 and asked.width == 4


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "test $DMLC_ROLE != server || { echo out of ports; exit 4; }; exec sleep 60",
            "a server ended with exit code 4: ",
        ),
        ("echo push 1", "a worker printed no line 'pull SECONDS'"),
    ],
)
def test_a_failing_ps_lite_benchmark_is_reported(
    body: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = Path(a_program(tmp_path, body))
    with pytest.raises(_runs.RunFailed):
        _ps_lite.measured(program, 1, 1, (1, 1, 1))
    assert said in capsys.readouterr().err


# --- overlap -------------------------------------------------------------------------------------------


def an_overlap(**changed: list[float]) -> dict[str, Any]:
    times = {"sync": [1e-3, 1e-3, 5e-3], "alone": [4e-3], "alone_pieces": [4.1e-3], "async": [4.15e-3]}
    return {"mode": "dense", "op": "pull", "keys": 9, **times, "async_pieces": [4.5e-3], **changed}


def test_the_cost_is_what_computing_takes_longer() -> None:
    whole, parts = overlap.table(an_overlap(), 20)
    assert (whole["share"], whole["met"]) == (pytest.approx(0.15), "yes")
    assert (parts["share"], parts["met"], parts["how"]) == (pytest.approx(0.4), "NO", "20 pieces")
    assert whole["cost_s"] == pytest.approx(0.15e-3) and set(_overlap.KINDS) <= an_overlap().keys()


def test_a_drift_of_the_machine_is_no_cost() -> None:
    drifting = {"alone": [4e-3, 8e-3, 16e-3], "async": [4.1e-3, 8.1e-3, 20e-3]}
    assert overlap.table(an_overlap(**drifting), 20)[0]["cost_s"] == pytest.approx(0.1e-3)


def test_the_overlap_report_names_the_worst() -> None:
    report = {"conditions": CONDITIONS, "keys": 9, "repeat": 3, "table": overlap.table(an_overlap(), 20)}
    said = overlap.text(report)
    assert "NO, 1 of 2; maximum 40 % (dense pull, 20 pieces)" in said
    good = report | {"table": overlap.table(an_overlap(async_pieces=[4.0e-3]), 20)}
    assert "yes, 2 of 2; maximum 15 %" in overlap.text(good)


# --- arguments -----------------------------------------------------------------------------------------


def test_options_become_settings() -> None:
    asked = pushpull.parser().parse_args(["--keys", "1,1e5, 1_000,1", "--layouts", "1+1,10+3"])
    assert asked.keys == [1, 10**5, 1000] and asked.layouts == [Size(1, 1), Size(10, 3)]
    settings = pushpull.settings_of(asked, Size(10, 3))
    assert "layout.servers=10" in settings and "_pushpull.keys=[1, 100000, 1000]" in settings
    assert '_pushpull.ops=["push", "pull", "push_pull"]' in settings
    # The default configuration, but for what is asked.
    assert not any(setting.startswith("ring.") for setting in settings)
    copied = pushpull.parser().parse_args(["--replicas", "2", "--update", "ftrl", "--width", "16"])
    settings = pushpull.settings_of(copied, Size(3, 1))
    assert {"ring.replicas=2", '_pushpull.update="ftrl"', "_pushpull.width=16"} <= set(settings)


def a_request(**changed: Any) -> argparse.Namespace:
    asked = pushpull.parser().parse_args(["--keys", "1e7", "--layouts", "2+2"])
    vars(asked).update(changed)
    return asked


def test_layouts_that_do_not_fit_are_refused_before_a_run() -> None:
    pushpull.check_memory(a_request(), None, 2)
    pushpull.check_memory(a_request(), 64 * 10**9, 2)
    pushpull.check_memory(a_request(launcher="srun"), 1, 1)
    with pytest.raises(
        InputError, match=r"--keys 10000000: layout 2\+2 needs about .*B of memory, 1\.00GB are free"
    ):
        pushpull.check_memory(a_request(), 10**9, 2)
    pushpull.check_memory(a_request(quick=True, keys=[1000]), 10**9, 2)
    with pytest.raises(InputError, match=r"--layouts 8\+9: 18 ranks on 2 cores; at most 8 per core"):
        pushpull.check_memory(a_request(layouts=[Size(8, 9)]), None, 2)
    less = pushpull.needed_memory(Size(2, 2), a_request(modes=["dense"], replicas=0))
    for more in ({"modes": ["dense", "sparse"]}, {"replicas": 1}, {"width": 2}, {"update": "ftrl"}):
        assert less < pushpull.needed_memory(
            Size(2, 2), a_request(**{"modes": ["dense"], "replicas": 0} | more)
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["pushpull", "--keys", "0"],
            "--keys: must be whole numbers from 1 to 1e8, as in 1,1000,1e6; got '0'",
        ),
        (["pushpull", "--keys", "1,2e9"], "got '2e9'"),
        (["pushpull", "--keys", "1.5"], "got '1.5'"),
        (["pushpull", "--keys", "many"], "got 'many'"),
        (
            ["pushpull", "--layouts", "0+1"],
            "must be servers+workers, at least one of each, as in 1+1,2+2; got '0+1'",
        ),
        (["pushpull", "--layouts", "2"], "got '2'"),
        (["pushpull", "--layouts", "9000+9000"], "18001 ranks on"),
        (["pushpull", "--modes", "dense,spars"], "'spars' is none of dense, sparse, cached, rounds"),
        (["pushpull", "--ops", "pushpull"], "'pushpull' is none of push, pull, push_pull"),
        (
            ["pushpull", "--modes", "rounds", "--ops", "push"],
            "none of the modes has it; they have rounds: push_pull",
        ),
        (["pushpull", "--width", "257"], "--width: must be a whole number from 1 to 256, got '257'"),
        (["pushpull", "--width", "0"], "got '0'"),
        (["pushpull", "--replicas", "-1"], "--replicas: must be at least 0, got -1"),
        (["pushpull", "--update", "median"], "--update: 'median' is none of add, assign"),
        (["pushpull", "--ps-lite", "no/such"], "--ps-lite no/such: no such executable file"),
        (["pushpull", "--repeat", "0"], "--repeat: must be at least 1, got 0"),
        (["pushpull", "--quick", "--set", "ring.replica=1"], "unknown key 'replica'"),
        (
            ["overlap", "--keys", "0"],
            "--keys: must be whole numbers from 1 to 1e8, as in 1,1000,1e6; got '0'",
        ),
        (["overlap", "--keys", "1000000000"], "from 1 to 1e8, as in 1,1000,1e6; got '1000000000'"),
        (["overlap", "--pieces", "0"], "--pieces: must be at least 1"),
        (["overlap", "--set", "_overlap.piece=1"], "unknown key 'piece'"),
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
