"""Complete sketch jobs: counts are exact whatever dies, and results equal those of plain Python."""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Finished
from simulated import simulate
from synthetic import job_of

from mpips.checkpoint.checkpoint import begin, commit
from mpips.checkpoint.manifest import complete, read_manifest
from mpips.checkpoint.writing import write_shard
from mpips.cli.main import main
from mpips.config.program import load_program
from mpips.errors import InputError, JobError, RemoteError
from mpips.filters.named import chain_of
from mpips.jobs.sketch import results
from mpips.jobs.sketch.job import unfit
from mpips.jobs.sketch.model import SketchModel
from mpips.rundir.folder import RunFolder
from mpips.scheduler.scheduler import Cluster
from mpips.storage.segment import Segment
from mpips.storage.updates import VectorSpec
from mpips.transport.network_faults import Fault, no_delay, random_delays

ROOT = Path(__file__).parent.parent.parent
SKETCH = {"depth": 4, "width": 200, "exact": 1, "top": 10}
EVERY = 16
"""Entries of the scheduler's journal that a snapshot replaces: those of few steps."""
ZIPF = {**SKETCH, "zipf": 1.2, "items": 3001, "keys": 400, "batch": 150}


@dataclass
class Run:
    """The outcome of a job on the twin."""

    metrics: dict[str, Any] = field(default_factory=dict)
    table: np.ndarray = field(default_factory=lambda: np.empty(0))
    top: list[tuple[str, int]] = field(default_factory=list)
    exact: dict[int, int] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    posted: int = 0
    stopped: bool = False


def run(
    train: Sequence[Path] = (),
    *,
    layout: dict[str, Any] | None = None,
    faults: Sequence[Fault] = (),
    delays: Any = no_delay,
    seed: int = 0,
    replicas: int = 0,
    resume: Path | None = None,
    checkpoints: Path | None = None,
    stop_within: int = 0,
    keep: Path | None = None,
    **tables: dict[str, Any],
) -> Run:
    """Run a job in this process, in simulated time; `layout` and keyword arguments are tables of the job file."""
    out, observed = Run(), dict[str, Any]()
    layout = {"servers": 2, "workers": 2, **(layout or {})}
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        data = {"train": [str(path) for path in train], **tables.pop("data", {})}
        job = job_of(folder / "job", {"job": {"program": "sketch"}, "layout": layout, "data": data, **tables})
        loaded = load_program(job.program, job.base)

        def schedule(cluster: Cluster) -> None:
            cluster.checkpoints, cluster.resume = checkpoints or folder / "checkpoints", resume
            start, calls = cluster.event, 0

            def heard(name: str, **facts: Any) -> None:
                nonlocal calls
                start(name, **facts)
                calls += name == "inserts"
                if stop_within and calls == stop_within:
                    cluster.orders.stop = "SIGUSR1"

            cluster.event = heard  # type: ignore[method-assign]
            out.metrics = loaded.schedule(cluster, job.settings)
            cluster.coordinator.settle()
            out.stopped = cluster.stopped_early
            exact = list(cluster.export(cluster.vectors["exact"]))
            out.exact = {
                key: row[0]
                for keys, rows in exact
                for key, row in zip(keys.tolist(), rows.tolist(), strict=True)
            }
            lines = RunFolder(folder / "run").metrics.read_text().splitlines()
            out.log = [json.loads(line) for line in lines]
            out.table = results.load(folder / "run").table
            listed = (folder / "run" / "top.tsv").read_text().splitlines()
            out.top = [(name, int(count)) for name, _, count in (line.rpartition("\t") for line in listed)]

        (folder / "run").mkdir()
        counts = {name: layout[name] for name in ("spares", "schedulers") if name in layout}
        simulate(
            schedule, loaded.worker, servers=layout["servers"], workers=layout["workers"], **counts, job=job,
            folder=folder / "run", faults=faults, delays=delays, seed=seed, replicas=replicas, observed=observed,
            compacted_every=EVERY, filters=lambda: (chain_of(job.filters.push), chain_of(job.filters.pull)),
        )  # fmt: skip
    out.posted = observed["network"].posted
    return out


def is_the_same(outcome: Run, plain: Run) -> None:
    """Every item was counted exactly once: row sums are the number of items, and no cell differs."""
    assert outcome.metrics["inserts"] == outcome.metrics["counted"] == plain.metrics["inserts"]
    rows = outcome.table.reshape(-1, SKETCH["width"]).sum(1)
    assert (rows == outcome.metrics["weight"]).all()
    assert np.array_equal(outcome.table, plain.table)
    assert outcome.exact == plain.exact
    for name in ("distinct", "max_overestimate", "underestimates", "checked", "top"):
        assert outcome.metrics[name] == plain.metrics[name]
    assert outcome.top == plain.top


@pytest.fixture(scope="module")
def plain() -> Run:
    return run(sketch=ZIPF)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Counter[str]]:
    """A stream in three files, one of them compressed, and its exact counts."""
    rng, folder = random.Random(5), tmp_path_factory.mktemp("words")
    stream = [f"word {int(rng.paretovariate(0.9))}" for _ in range(5000)]
    files = []
    for number in range(3):
        lines = "".join(word + "\n" for word in stream[number::3])
        files.append(folder / f"{number}.txt{'.gz' if number else ''}")
        files[-1].write_bytes(gzip.compress(lines.encode()) if number else lines.encode())
    return files, Counter(stream)


def test_a_generated_stream_is_counted(plain: Run) -> None:
    metrics = plain.metrics
    assert metrics["inserts"] == metrics["weight"] == metrics["counted"] == 3001
    assert sum(plain.exact.values()) == 3001 and metrics["checked"] == len(plain.exact)
    assert metrics["underestimates"] == 0 and metrics["max_overestimate"] > 0
    assert metrics["beyond_bound"] <= metrics["delta"]
    assert metrics["distinct"] == pytest.approx(len(plain.exact), rel=0.03)
    best = sorted(plain.exact.items(), key=lambda item: -item[1])[:3]
    assert [int(key) for key, _ in plain.top[:3]] == [key for key, _ in best]
    assert len(plain.top) == 10 and metrics["top"][0] == plain.top[0]
    assert [each["inserts"] for each in plain.log if each["event"] == "inserts"][-1] == 3001


@pytest.mark.parametrize("servers", [1, 3, 5])
def test_the_same_table_for_any_number_of_servers(plain: Run, servers: int) -> None:
    delays = random_delays(servers, delay=0.01, drop=0.05, duplicate=0.05)
    is_the_same(run(layout={"servers": servers}, delays=delays, seed=servers, sketch=ZIPF), plain)


def test_any_number_of_workers_may_read_the_same_parts(plain: Run) -> None:
    is_the_same(run(layout={"workers": 1}, data={"parts": 2}, sketch=ZIPF), plain)
    is_the_same(run(layout={"workers": 3}, data={"parts": 2}, sketch={**ZIPF, "hold": True}), plain)


@pytest.mark.parametrize("case", range(4))
def test_every_item_counts_once_whichever_rank_dies(plain: Run, case: int) -> None:
    """Ranks: 2 schedulers, 3 servers, 2 workers, 2 spares."""
    rng = random.Random(case)
    layout = {"schedulers": 2, "servers": 3, "workers": 2, "spares": 2}
    victims = [[5], [6], [2], [0], [5, 3], [5, 6], [0, 6], [4, 0]][case % 8]
    faults = [Fault("kill", victim, after_messages=rng.randrange(40, 4000)) for victim in victims]
    outcome = run(
        layout=layout,
        faults=faults,
        replicas=1,
        seed=case,
        delays=random_delays(case, delay=0.004),
        sketch=ZIPF,
    )
    is_the_same(outcome, plain)


@pytest.mark.parametrize("at", [150, 300, 420])
def test_without_a_spare_another_worker_continues(plain: Run, at: int) -> None:
    outcome = run(faults=[Fault("kill", 4, after_messages=at)], seed=at, sketch=ZIPF)
    is_the_same(outcome, plain)
    assert [each["gone"] for each in outcome.log if each["event"] == "workers"] == [[4]]


@pytest.mark.parametrize("case", range(4))
def test_a_worker_that_wakes_up_after_it_was_given_up_counts_nothing_twice(plain: Run, case: int) -> None:
    fault = Fault("stop", 3 + case % 2, after_messages=150 + 80 * case, lasting=3.0)
    is_the_same(run(faults=[fault], layout={"spares": 1}, seed=case, sketch=ZIPF), plain)


def test_repeated_pushes_are_ignored(plain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker dies after its pushes, before the scheduler knows of them: its successor pushes the same again."""
    from mpips.jobs.sketch.worker import Worker

    pushed = Counter[tuple[int, int]]()
    push = Worker._push

    def counted(self: Any, batch: Any, names: Any, part: int, number: int) -> None:
        pushed[part, number] += 1
        push(self, batch, names, part, number)

    monkeypatch.setattr(Worker, "_push", counted)
    again = 0
    for at in (200, 300, 400):
        pushed.clear()
        is_the_same(run(faults=[Fault("kill", 4, after_messages=at)], sketch=ZIPF), plain)
        again += sum(count > 1 for count in pushed.values())
        assert len(pushed) == 21
    assert again


@pytest.mark.parametrize(("servers", "workers"), [(2, 2), (1, 3), (4, 1)])
def test_a_run_that_was_stopped_continues(plain: Run, tmp_path: Path, servers: int, workers: int) -> None:
    stopped = run(checkpoints=tmp_path, stop_within=2, sketch=ZIPF)
    assert stopped.stopped and 0 < stopped.metrics["inserts"] < 3001
    assert stopped.metrics["counted"] == stopped.metrics["inserts"]
    layout = {"servers": servers, "workers": workers}
    resumed = run(checkpoints=tmp_path, resume=complete(tmp_path)[-1], layout=layout, sketch=ZIPF)
    assert not resumed.stopped
    is_the_same(resumed, plain)
    with pytest.raises(InputError, match="was written with width = 200, not 100"):
        run(checkpoints=tmp_path, resume=complete(tmp_path)[-1], sketch={**ZIPF, "width": 100})


def test_a_worker_may_die_after_a_resume(plain: Run, tmp_path: Path) -> None:
    run(checkpoints=tmp_path, stop_within=3, sketch=ZIPF)
    faults = [Fault("kill", 3, after_messages=120)]
    outcome = run(resume=complete(tmp_path)[-1], faults=faults, layout={"spares": 1}, sketch=ZIPF)
    is_the_same(outcome, plain)
    assert any(each["event"] == "workers" for each in outcome.log)


@pytest.mark.parametrize("victim", [None, 3, 4, 5])
def test_one_group_asks_while_the_other_inserts(plain: Run, victim: int | None, monkeypatch: Any) -> None:
    from mpips.jobs.sketch import worker

    monkeypatch.setattr(worker, "ASKED", 64)
    monkeypatch.setattr(worker, "SAMPLE", 300)
    seen, asked = list[int](), worker.Answers.ask

    def watched(self: Any, time: int) -> Any:
        found = asked(self, time)
        seen.append(int(found.sum()))
        return found

    monkeypatch.setattr(worker.Answers, "ask", watched)
    faults = [] if victim is None else [Fault("kill", victim, after_messages=250)]
    outcome = run(layout={"workers": {"insert": 2, "query": 1}}, faults=faults, sketch=ZIPF)
    is_the_same(outcome, plain)
    assert len(seen) > 5 and outcome.metrics["queries_per_second"] > 0
    assert seen[0] < max(seen) or victim is not None  # counts grow while it asks


def test_files_of_keys_are_counted(words: tuple[list[Path], Counter[str]]) -> None:
    files, counts = words
    for workers in (1, 2, 5):
        sketch = {**SKETCH, "width": 1 << 14, "batch": 300}
        outcome = run(files, layout={"workers": workers}, sketch=sketch)
        assert outcome.metrics["inserts"] == outcome.metrics["counted"] == 5000
        assert sorted(outcome.exact.values()) == sorted(counts.values())
        assert dict(outcome.top[:5]) == dict(counts.most_common(5))
        assert outcome.metrics["distinct"] == pytest.approx(len(counts), rel=0.03)


def test_files_are_read_once_whichever_rank_dies(words: tuple[list[Path], Counter[str]]) -> None:
    sketch = {**SKETCH, "batch": 200}
    undisturbed = run(words[0][:1] * 3, sketch=sketch)
    for at in (150, 250):
        faults = [Fault("kill", 3 + at % 2, after_messages=at)]
        is_the_same(run(words[0][:1] * 3, faults=faults, layout={"spares": 1}, sketch=sketch), undisturbed)


def test_weights_and_columns(tmp_path: Path) -> None:
    rng, counts = random.Random(3), Counter[str]()
    lines = ["id;word;count"]
    for line in range(900):
        word, weight = f"w{int(rng.paretovariate(1.0))}", rng.randrange(10**12)
        counts[word] += weight
        lines.append(f"{line};{word};{weight}")
    (tmp_path / "a.csv").write_text("\n".join(lines))
    data = {"column": "word", "weight": "count", "separator": ";"}
    plain, conservative = (
        run([tmp_path / "a.csv"], data=data, sketch={**SKETCH, "width": 64, "conservative": each}).metrics
        for each in (False, True)
    )
    for metrics in (plain, conservative):
        assert metrics["inserts"] == 900 and metrics["weight"] == sum(counts.values())
        assert metrics["underestimates"] == 0 and metrics["checked"] == sum(map(bool, counts.values()))
    assert plain["counted"] == sum(counts.values()) > conservative["counted"]
    assert conservative["max_overestimate"] < plain["max_overestimate"]


def test_the_query_command(
    words: tuple[list[Path], Counter[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: Any,
) -> None:
    files, counts = words
    sketch = {**SKETCH, "width": 1 << 16}
    run(files, sketch=sketch, checkpoint={"every": 1}, checkpoints=tmp_path / "saved", keep=tmp_path / "kept")
    keys = [word for word, _ in counts.most_common(3)] + ["never seen"]
    expected = "".join(f"{key}\t{counts[key]}\n" for key in keys)
    checkpoint = complete(tmp_path / "saved")[-1]
    assert main(["query", str(checkpoint), *keys]) == 0
    assert capsys.readouterr().out == expected
    folder = tmp_path / "kept" / "run"
    job = (tmp_path / "kept" / "job" / "job.toml").read_text()
    (folder / "job.toml").write_text(job.replace("[job]", f'[job]\nbase = "{tmp_path}"'))
    (folder / "result.json").write_text('{"status": "completed"}')
    monkeypatch.setattr(sys, "stdin", iter(["\ufeff" * (key == keys[0]) + key + "\r\n" for key in keys]))
    assert main(["query", str(folder)]) == 0
    assert capsys.readouterr().out == expected
    (folder / "result.json").write_text('{"status": "stopped"}')
    (folder / "run.json").write_text(json.dumps({"id": read_manifest(checkpoint)["run"]}))
    (folder / "sketch.npz").unlink()
    job = (folder / "job.toml").read_text()
    (folder / "job.toml").write_text(
        job.replace("every = 1", f'every = 1\ndirectory = "{tmp_path / "saved"}"')
    )
    assert main(["query", str(folder), *keys]) == 0
    assert capsys.readouterr().out == expected
    assert main(["query", str(tmp_path / "nothing"), "a"]) == 2
    assert "nothing: no such run or model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changed",
    [{"depth": 5}, {"width": 2**40}, {"width": -64, "depth": -4}, {"table": np.zeros(256, np.int32)}, {"depth": 4.0},
     {"table": np.zeros((4, 64), np.int64)}, {"seed": -1}, {"text": None}],
)  # fmt: skip
def test_a_table_whose_size_does_not_match_its_shape_is_refused(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    whole: dict[str, Any] = {
        "table": np.ones(256, np.int64),
        "depth": 4,
        "width": 64,
        "seed": 1,
        "text": False,
    }
    np.savez(tmp_path / results.FILE, **whole)
    assert SketchModel(results.load(tmp_path)).query(["7"]) == [1]
    np.savez(
        tmp_path / results.FILE,
        **{name: value for name, value in (whole | changed).items() if value is not None},
    )
    with pytest.raises(InputError, match=r"cannot read .*sketch\.npz"):
        results.load(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / results.FILE).rename(tmp_path / "elsewhere" / "x")
    (tmp_path / results.FILE).symlink_to(tmp_path / "elsewhere" / "x")
    with pytest.raises(InputError, match="is a symbolic link"):
        results.load(tmp_path)


def test_a_run_does_not_continue_with_other_files() -> None:
    about: dict[str, Any] = {"state": {"rounds": 1, "parts": [[1, False]], "totals": [[9, 9]]}}
    assert not unfit(about) and not unfit(about | {"other files": []})
    assert "give the same files" in unfit(
        about | {"other files": ["[data] train: b of 2 bytes, was a of 2 bytes"]}
    )


def test_a_run_does_not_continue_with_other_keys_of_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("".join(f"{key},1\t2\n" for key in range(99)))
    sketch, checkpoints = {**SKETCH, "batch": 9}, tmp_path / "checkpoints"
    data: dict[str, Any] = {"column": 0}
    assert run([tmp_path / "a"], data=data, sketch=sketch, checkpoints=checkpoints, stop_within=1).stopped
    resume = complete(checkpoints)[-1]
    with pytest.raises(
        InputError, match=r"\[data\] separator = \",\", was .*: set it as it was, or start a new run"
    ):
        run([tmp_path / "a"], data=data | {"separator": ","}, sketch=sketch, resume=resume)
    assert (
        run([tmp_path / "a"], data=data | {"on_error": "skip"}, sketch=sketch, resume=resume).metrics[
            "inserts"
        ]
        == 99
    )


def test_a_checkpoint_that_lacks_a_fact_is_refused(tmp_path: Path) -> None:
    folder = begin(tmp_path, 1)
    shard = write_shard(folder, 0, {"table": Segment(VectorSpec("table", "int64", 2, 4, dense=True))})
    commit(folder, [shard], {"facts": {"depth": 2, "width": 4, "seed": 1}})
    with pytest.raises(InputError, match=r"cannot read .*keys"):
        results.load(folder)


def test_a_column_may_be_the_weight_of_its_own_keys(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,count\n3,7\n5,1\n3,2\n")
    data = {"column": "id", "weight": "id", "format": "csv"}
    assert run([tmp_path / "a.csv"], data=data).top == [("3", 6), ("5", 5)]


def test_tables_and_text_together_are_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "b.parquet"):
        (tmp_path / name).write_text("x\n")
    named = [str(tmp_path / "a.txt"), str(tmp_path / "b.parquet")]
    for train in (named, [str(tmp_path / "*.[tp]*")], str(tmp_path / "*.[tp]*")):
        with pytest.raises(
            JobError, match=r"b\.parquet is a Parquet file and .*a\.txt is text: count them in two"
        ):
            run(data={"train": train})


@pytest.mark.parametrize("conservative", [False, True])
def test_weights_are_exact_up_to_what_a_cell_can_hold_and_refused_beyond(
    tmp_path: Path, conservative: bool
) -> None:
    """The reader refuses too much in one piece of a file; these are several, of which 64 bits would lose the sum."""
    data, most = {"column": 0, "weight": 1}, 10**18 - 1
    for name, lines in (("one", 1), ("three", 3), ("four", 4)):
        (tmp_path / name).write_text(f"a\t{most}\n" * lines + "b\t5\n")
    sketch = {**SKETCH, "conservative": conservative}
    layout = {"workers": 1}
    files = [tmp_path / "one", tmp_path / "three"]
    metrics = run(files, layout=layout, data=data, sketch=sketch).metrics
    assert metrics["top"] == [("a", 4 * most)] and metrics["weight"] == 4 * most + 10
    assert metrics["max_overestimate"] == metrics["underestimates"] == 0
    for names in (["one", "four"], ["four"] * 5):
        with pytest.raises(InputError, match=r"all weights add up to 2\*\*62 or more"):
            run([tmp_path / name for name in names], layout=layout, data=data, sketch=sketch)


def test_a_program_without_queries_reports_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.toml").write_text('[job]\nprogram = "lda"\n')
    (tmp_path / "result.json").write_text('{"status": "completed"}')
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs.update({"beta": 0.1, "vocabulary": 1})
        for name, values in {"alpha": [1.0], "n_k": [0], "indptr": [0, 0]}.items():
            file[name] = values
        file["topics"] = file["counts"] = np.zeros(0, np.int32)
    assert main(["query", str(tmp_path), "1"]) == 2
    assert (
        "TopicModel has no `query`; it has: predict, transform, score_lines, score_files, show"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "data", "message"),
    [
        ("a\t1\nb\tmany\n", {"column": 0, "weight": 1}, r"0.tsv:2: weight 'many' is not a whole number"),
        ("a\t1\nb\n", {"column": 1}, r"0.tsv:2: found 1 column where column 1 was expected"),
        ("a\tb\n1\t2\n", {"column": "c"}, r"0.tsv:1: has no column 'c'; its columns are a, b"),
        ("\n\n", {}, r"\[data\] train holds no keys"),
        ("", {}, r"0.tsv: is empty"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, data: dict[str, Any], message: str) -> None:
    (tmp_path / "0.tsv").write_text(text)
    with pytest.raises((InputError, RemoteError), match=message) as raised:
        run([tmp_path / "0.tsv"], layout={"workers": 1}, data=data, sketch=SKETCH)
    assert getattr(raised.value, "is_input", True)


def test_bad_lines_are_left_out_if_the_job_allows_it(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a\t1\nb\tx\nc\t5\n")
    data = {"column": 0, "weight": 1, "on_error": "skip"}
    outcome = run([tmp_path / "a.tsv"], layout={"workers": 1}, data=data, sketch=SKETCH)
    assert (outcome.metrics["inserts"], outcome.metrics["weight"]) == (2, 6)
    assert [each["lines"] for each in outcome.log if each["event"] == "skipped"] == [1]


def test_a_run_that_stops_has_what_a_lost_worker_has_pushed_and_counts_it_once(tmp_path: Path) -> None:
    """Of a batch whose end was not reported: it is pushed again, and ignored."""
    common: dict[str, Any] = {"sketch": ZIPF, "data": {"parts": 6}, "checkpoints": tmp_path}
    faults = [Fault("kill", 4, after_messages=150)]
    stopped = run(stop_within=1, layout={"workers": 3}, faults=faults, **common)
    assert stopped.stopped and stopped.metrics["counted"] > stopped.metrics["weight"]
    resumed = run(resume=complete(tmp_path)[-1], **common)
    assert resumed.metrics["counted"] == resumed.metrics["weight"] == ZIPF["items"]


@pytest.mark.parametrize(("vectors", "good"), [([], False), (["heavy", "other"], False), (["other"], True)])
def test_a_filter_that_drops_counts_is_refused(tmp_path: Path, vectors: list[str], good: bool) -> None:
    filters = {"push": ["lz4", {"name": "fixed_point"}]}
    assert run(sketch=ZIPF, filters=filters).metrics["counted"] == ZIPF["items"]
    filters["push"].insert(0, {"name": "tail", "at_least": 3, "vectors": vectors})
    if good:
        run(sketch=ZIPF, filters=filters)
    else:
        with pytest.raises(JobError, match=r"\[filters\] push: tail drops the first pushes of each key"):
            run(sketch=ZIPF, filters=filters)


def test_a_job_needs_a_stream() -> None:
    with pytest.raises(InputError, match="train names no files, and \\[sketch\\] zipf asks for no"):
        run(sketch=SKETCH)


@pytest.mark.ranks
@pytest.mark.once
def test_the_job_that_comes_with_it(run_mpips: Callable[..., Finished], tmp_path: Path) -> None:
    done = run_mpips("run", ROOT / "jobs" / "sketch" / "job.toml", "--run-dir", tmp_path / "run")
    assert done.code == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics["inserts"] == metrics["counted"] == 30_969
    assert metrics["checked"] == 2_088 and metrics["underestimates"] == 0
    assert metrics["beyond_bound"] <= metrics["delta"] and metrics["queries_per_second"] > 0
    assert metrics["distinct"] == pytest.approx(2_088, rel=0.025)
    asked = run_mpips("query", tmp_path / "run", "/images/NASA-logosmall.gif", "/no such page")
    answers = re.fullmatch(r"/images/NASA-logosmall.gif\t(\d+)\n/no such page\t(\d+)\n", asked.stdout)
    assert answers is not None and 2140 <= int(answers[1]) <= 2140 + metrics["bound"]
    assert int(answers[2]) <= metrics["bound"]
