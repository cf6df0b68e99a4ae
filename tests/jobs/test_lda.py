"""Complete runs of lda on the in-memory twin: the same bits on every layout, exact counts if ranks are lost."""

from __future__ import annotations

import gzip
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import gammaln
from simulated import simulate
from synthetic import job_of

from mpips.checkpoint.manifest import complete, read_manifest
from mpips.config.program import load_program
from mpips.errors import InputError, MpipsError
from mpips.filters.named import chain_of
from mpips.jobs.lda import sweeps, training
from mpips.rundir.folder import RunFolder
from mpips.scheduler.scheduler import Cluster
from mpips.transport.network_faults import Fault, no_delay, random_delays

TOPICS, WORDS, DOCUMENTS, LENGTH = 6, 60, 400, 25
EVERY = 16
"""Entries of the scheduler's journal that a snapshot replaces: those of few sweeps."""


@dataclass
class Run:
    """The outcome of a job: its counts, and the topics of the workers' tokens."""

    metrics: dict[str, Any] = field(default_factory=dict)
    sha: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)
    words: Any = None
    posted: int = 0
    files: set[str] = field(default_factory=set)
    stopped: bool = False

    def of(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.log if each["event"] == event]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of one or two topics, which have ten words each of their own."""
    rng = np.random.default_rng(7)
    lines = []
    for _ in range(DOCUMENTS):
        of_topic = rng.choice(TOPICS, 2, replace=False)
        words = rng.choice(of_topic, LENGTH, p=[0.8, 0.2]) * 10 + rng.integers(0, 10, LENGTH)
        ids, times = np.unique(words, return_counts=True)
        pairs = " ".join(f"{word}:{n}" for word, n in zip(ids, times, strict=True))
        lines.append(f"{len(ids)} {pairs}\n")
    path = tmp_path_factory.mktemp("documents") / "train.ldac.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(lines)
    return path


def run(
    train: Path,
    servers: int = 1,
    workers: int = 2,
    *,
    on_event: Callable[[Cluster, str, dict[str, Any]], None] = lambda *_: None,
    checkpoints: Path | None = None,
    resume: Path | None = None,
    faults: Sequence[Fault] = (),
    delays: Any = no_delay,
    spares: int = 0,
    replicas: int = 0,
    settings: dict[str, Any] | None = None,
    **tables: dict[str, Any],
) -> Run:
    out, observed = Run(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        own = {"topics": TOPICS, "sweeps": 12, **(settings or {})}
        data = {"train": str(train), **tables.pop("data", {})}
        head = {"program": "lda", **tables.pop("job", {})}
        job = job_of(folder / "job", {"job": head, "data": data, "lda": own, **tables})
        loaded = load_program(job.program, job.base)

        def schedule(cluster: Cluster) -> None:
            cluster.checkpoints, cluster.resume = checkpoints or folder / "checkpoints", resume
            event = cluster.event

            def heard(name: str, **facts: Any) -> None:
                event(name, **facts)
                on_event(cluster, name, facts)

            cluster.event = heard  # type: ignore[method-assign]
            out.metrics = loaded.schedule(cluster, job.settings)
            out.stopped = cluster.stopped_early
            cluster.coordinator.settle()
            out.words = np.zeros((WORDS, own["topics"]), np.int64)
            for keys, rows in cluster.export(cluster.vectors["words"]):
                out.words.reshape(-1)[keys.astype(np.int64)] = rows[:, 0]
            out.sha = cluster.digest(cluster.vectors["words"]) + cluster.digest(cluster.vectors["topics"])
            out.log = [
                json.loads(line) for line in RunFolder(folder / "run").metrics.read_text().splitlines()
            ]
            out.files = {path.name for path in (folder / "run").iterdir()}

        (folder / "run").mkdir()
        simulate(
            schedule, loaded.worker, servers=servers, workers=workers, spares=spares, replicas=replicas, job=job,
            folder=folder / "run", faults=faults, delays=delays, observed=observed, compacted_every=EVERY,
            filters=lambda: (chain_of(job.filters.push), chain_of(job.filters.pull)),
        )  # fmt: skip
    out.posted = observed["network"].posted
    return out


def check(outcome: Run) -> None:
    """No token is lost; topics are far better than one for all tokens, which has log(1/60) = -4.09 a token."""
    tokens = DOCUMENTS * LENGTH
    assert outcome.metrics["tokens"] == tokens and outcome.words.sum() == tokens and outcome.words.min() >= 0
    assert outcome.metrics["log_likelihood_per_token"] > -3.8


@pytest.mark.drawn(1)
@pytest.mark.parametrize("sampler", ["gibbs", "mh"])
def test_the_same_bits_for_any_number_of_servers(train: Path, sampler: str) -> None:
    how = {"settings": {"sampler": sampler}}
    first = run(train, **how)
    check(first)
    for servers, delays in (
        (2, no_delay),
        (3, random_delays(3, delay=0.01)),
        (1, random_delays(4, delay=0.02, drop=0.05)),
    ):
        again = run(train, servers, delays=delays, **how)
        assert again.sha == first.sha
        assert again.metrics["log_likelihood"] == first.metrics["log_likelihood"]
    assert run(train, job={"seed": 5}, **how).sha != first.sha


def test_the_likelihood_is_that_of_the_paper(train: Path) -> None:
    """From the counts alone but for the documents' part; with one worker its sampler is there to be asked."""
    samplers: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        end = sweeps.Sweeper._end

        def noted(self: Any) -> None:
            samplers[:] = self._samplers.values()
            end(self)

        patch.setattr(sweeps.Sweeper, "_end", noted)
        outcome = run(train, workers=1, settings={"alpha": 0.3, "beta": 0.05})
    (sampler,) = samplers
    n_wk, n_k, z = outcome.words, outcome.words.sum(axis=0), sampler.topics()
    n_dk = np.array([np.bincount(each, minlength=TOPICS) for each in z.reshape(DOCUMENTS, LENGTH)])
    words = (gammaln(n_wk + 0.05) - gammaln(0.05)).sum() + (gammaln(3.0) - gammaln(n_k + 3.0)).sum()
    documents = (gammaln(n_dk + 0.3) - gammaln(0.3)).sum() + DOCUMENTS * (
        gammaln(1.8) - gammaln(LENGTH + 1.8)
    )
    assert outcome.metrics["log_likelihood"] == pytest.approx(words + documents, rel=1e-10)
    assert outcome.metrics["log_likelihood_per_token"] == pytest.approx(
        (words + documents) / z.size, rel=1e-10
    )


def test_a_run_writes_metrics_model_and_topics(train: Path, tmp_path: Path) -> None:
    vocab = tmp_path / "vocab"
    vocab.write_text("".join(f"word{w}\n" for w in range(WORDS)))
    outcome = run(train, 2, data={"test": str(train), "vocab": str(vocab)}, settings={"sweeps": 6})
    lines = outcome.of("sweep")
    assert [line["sweep"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["seconds"] >= 0 and line["log_likelihood"] < 0 for line in lines)
    assert lines[-1]["log_likelihood"] > lines[0]["log_likelihood"]
    assert 10 < outcome.metrics["perplexity"] < WORDS
    assert outcome.metrics["coherence"] < 0 and outcome.metrics["tokens_per_second"] > 0
    assert {"model.h5", "topics.txt", "topics.svg"} <= outcome.files


@pytest.mark.drawn(1)
@pytest.mark.parametrize("model", [{"model": "bounded", "tau": 2}, {"model": "eventual"}])
def test_delay_loses_no_count(train: Path, model: dict[str, Any]) -> None:
    delays = random_delays(1, delay=0.05)
    check(run(train, 2, 3, consistency=model, delays=delays, settings={"sweeps": 25}))


def test_blocks_and_ranges_of_any_size(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of a few documents, put back on disk after each visit, and ranges of few words."""
    monkeypatch.setattr(sweeps, "PIECE", 40)
    settings = {"block_tokens": 1500, "held_tokens": 0, "sweeps": 20}
    check(run(train, 2, 3, settings=settings, data={"parts": 5}))


def test_priors_are_learned(train: Path) -> None:
    plain = run(train, settings={"sweeps": 40})
    learned = [
        run(train, servers, settings={"sweeps": 40, "learn_alpha": how, "learn_beta": True})
        for how, servers in (("symmetric", 2), ("asymmetric", 1), ("asymmetric", 2))
    ]  # fmt: skip
    assert learned[1].sha == learned[2].sha
    for each in learned:
        check(each)
        assert each.metrics["log_likelihood"] > plain.metrics["log_likelihood"]
        last = each.of("sweep")[-1]
        assert 0.02 < last["alpha"] < 0.5 and last["beta"] > 0.02


@pytest.mark.drawn(1)
@pytest.mark.parametrize("replicas", [pytest.param(0, marks=pytest.mark.long), 1])
@pytest.mark.parametrize("share", [2, 5, 8])
def test_a_lost_worker_loses_no_count(train: Path, share: int, replicas: int) -> None:
    plain = run(train, 2, 3, replicas=replicas)
    for rank, spares in ((3, 0), (4, 1)):
        faults = [Fault("kill", rank, after_messages=plain.posted * share // 10)]
        outcome = run(train, 2, 3, faults=faults, spares=spares, replicas=replicas)
        check(outcome)
        assert len(outcome.of("workers")) == 1
        assert outcome.metrics["sweeps"] == 12


def test_a_lost_server_or_scheduler_changes_nothing(train: Path) -> None:
    settings = {"learn_alpha": "symmetric", "learn_beta": True, "sweeps": 15}
    plain = run(train, 2, 2, replicas=1, settings=settings)
    for rank, share in ((2, 3), (0, 8)):
        faults = [Fault("kill", rank, after_messages=plain.posted * share // 10)]
        outcome = run(train, 2, 2, replicas=1, faults=faults, settings=settings)
        assert (outcome.sha, outcome.metrics["log_likelihood"]) == (
            plain.sha,
            plain.metrics["log_likelihood"],
        )


def test_workers_join_and_leave_with_their_topics(train: Path) -> None:
    """Who stays keeps the topics of its documents; the likelihood hardly falls."""

    def change(cluster: Cluster, name: str, facts: dict[str, Any]) -> None:
        if name == "sweep" and facts["sweep"] == 10:
            cluster.orders.joining = 1
        if name == "sweep" and facts["sweep"] == 16:
            cluster.orders.leaving = {cluster.workers.addresses[0]}

    outcome = run(train, 2, 2, spares=1, on_event=change, settings={"sweeps": 22})
    check(outcome)
    likelihood = [line["log_likelihood"] for line in outcome.of("sweep")]
    assert [event["workers"] for event in outcome.of("workers")] == [3, 2]
    for sweep in (10, 16):
        assert likelihood[sweep] > 1.05 * likelihood[sweep - 1]
    assert likelihood[-1] > likelihood[9] * 1.02


def test_checkpoints_change_no_bit_and_can_be_resumed(train: Path, tmp_path: Path) -> None:
    plain = run(train, 2)
    written = run(train, 1, checkpoints=tmp_path, checkpoint={"every": 4, "keep": 9})
    assert written.sha == plain.sha
    first, second = sorted(complete(tmp_path))[:2]
    for path, servers in ((first, 3), (second, 1)):
        again = run(train, servers, resume=path)
        assert again.sha == plain.sha
        assert again.metrics["log_likelihood"] == plain.metrics["log_likelihood"]


def test_a_run_does_not_continue_with_the_same_number_of_other_documents(train: Path, tmp_path: Path) -> None:
    """Their tokens would have the topics of other words, and the counts would be wrong for good."""
    settings = {"sampler": "mh"}
    run(train, checkpoints=tmp_path, checkpoint={"every": 6}, settings=settings)
    lines = gzip.decompress(train.read_bytes()).splitlines(keepends=True)
    other = tmp_path / train.name
    other.write_bytes(gzip.compress(b"".join(reversed(lines))))
    with pytest.raises(MpipsError, match="the checkpoint was written with other documents"):
        run(other, resume=complete(tmp_path)[0], settings=settings)


def test_a_run_that_has_lost_a_worker_is_continued_by_the_others(train: Path, tmp_path: Path) -> None:
    """As many workers hold other parts of the documents than after the loss."""
    faults = [Fault("kill", 3, after_messages=150)]
    run(train, 1, 3, faults=faults, checkpoints=tmp_path, checkpoint={"every": 6, "keep": 9})
    folder = complete(tmp_path)[-2]
    assert read_manifest(folder)["about"]["workers"] == 2
    check(run(train, 1, 2, resume=folder))


def test_another_number_of_workers_continues(train: Path, tmp_path: Path) -> None:
    """Topics are drawn by the counts that the checkpoint has: as good as those that were, not as at the start."""
    written = run(train, 1, checkpoints=tmp_path, checkpoint={"every": 12})
    (path,) = complete(tmp_path)
    again = run(train, 2, 3, resume=path, settings={"sweeps": 13})
    check(again)
    assert again.metrics["log_likelihood"] > 1.05 * written.metrics["log_likelihood"]
    assert [line["sweep"] for line in again.of("sweep")] == [13]


def test_a_count_that_is_wrong_ends_the_run(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push = sweeps.Totals.push

    def careless(self: Any, time: int, change: Any, round: int) -> None:
        change[0] += round == 11
        push(self, time, change, round)

    monkeypatch.setattr(sweeps.Totals, "push", careless)
    with pytest.raises(
        MpipsError, match="add up to 10000, those of topics to 10002, and there are 10000 tokens"
    ):
        run(train)


@pytest.mark.parametrize(
    "dropper", [{"name": "tail", "at_least": 2}, {"name": "significant", "threshold": 2.0}]
)
def test_a_filter_that_drops_counts_is_named(train: Path, dropper: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=rf"^\[filters\] push: {dropper['name']} drops counts, which must all arrive"
    ):
        run(train, filters={"push": [dropper, "lz4"]})


def test_bad_settings_are_one_line(train: Path, tmp_path: Path) -> None:
    with pytest.raises(MpipsError, match=r"\[data\] parts = 1 are too few for 2 workers"):
        run(train, data={"parts": 1})
    with pytest.raises(MpipsError, match=r"topics = 70000.*at most 65535"):
        run(train, settings={"topics": 70_000, "sampler": "mh"})
    bad = tmp_path / "bad.ldac"
    bad.write_text("1 0:1\n2 3:x 4:1\n")
    with pytest.raises(MpipsError, match=r"bad\.ldac.*2"):
        run(bad)


def test_ranges_cover_the_words() -> None:
    rng = np.random.default_rng(0)
    for vocabulary, topics, workers in (
        (1, 1, 1),
        (3, 10, 2),
        (100, 7, 8),
        (17_658, 1000, 2),
        (5000, 10_000, 3),
    ):
        frequencies = rng.zipf(1.3, vocabulary).clip(max=10_000)
        cuts = sweeps.word_cuts(frequencies, topics, workers)
        assert cuts[0] == 0 and cuts[-1] == vocabulary and cuts == sorted(set(cuts))
        if vocabulary > 1000:
            assert len(cuts) - 1 >= max(4, 2 * workers)
            cost = [
                frequencies[a:b].sum() / workers + (b - a) * topics / 100 for a, b in itertools.pairwise(cuts)
            ]
            assert max(cost) < 1.2 * np.mean(cost) + 20_000
    assert sweeps.word_cuts(np.zeros(5, np.int64), 3, 1)[-1] == 5


@pytest.mark.ranks
@pytest.mark.once
def test_a_whole_run(train: Path, tmp_path: Path, run_mpips: Callable[..., Any]) -> None:
    path = Path(training.__file__).with_name("job.toml")
    done = run_mpips(
        "run", str(path), "--set", "lda.sweeps=30", "--set", "layout.servers=2", "--run-dir", str(tmp_path / "run"),
        timeout=90.0,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"]["tokens"] == 84_010
    assert -8.7 < result["metrics"]["log_likelihood_per_token"] < -8.0
