"""Steps after training: the failure of one affects no other, and printing cannot fail."""

from __future__ import annotations

import errno
import fcntl
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from synthetic import DataSet, Hooks, make, run_twin

from mpips.errors import DataError, InputError, ShardLost, WorkerLost
from mpips.files import hdf5
from mpips.files.safe_open import replacing
from mpips.jobs.lda import corpus, model
from mpips.jobs.sketch import results
from mpips.jobs.sparse_lr import assignment, evaluate
from mpips.scheduler import finishing as finish_module
from mpips.scheduler.finishing import finish
from mpips.scheduler.pending_orders import PendingOrders


def cluster() -> Any:
    said: list[str] = []
    node = SimpleNamespace(policy=SimpleNamespace(is_replay=True), tasks=SimpleNamespace(time=0))
    return SimpleNamespace(
        metrics={}, said=said, say=said.append, node=node, orders=PendingOrders(), decide=lambda make: make()
    )


def failing(error: Exception) -> Any:
    def step() -> None:
        raise error

    return step


def test_every_step_is_tried_and_the_first_error_is_raised() -> None:
    there = cluster()
    with pytest.raises(InputError, match=r"test\.svm:7"):
        finish(
            there, {"objective": 1.0}, lambda: {"model": "m"}, failing(InputError("test.svm:7: wrong")),
            failing(OSError(errno.ENOSPC, "No space left", "top.tsv")), lambda: {"auc": 0.5}, lambda: None,
        )  # fmt: skip
    assert there.metrics == {"objective": 1.0, "model": "m", "auc": 0.5}
    (said,) = there.said
    assert "top.tsv" in said


def test_a_run_that_cannot_continue_ends_at_once() -> None:
    there, done = cluster(), list[int]()
    with pytest.raises(ShardLost):
        finish(there, {}, failing(ShardLost("gone")), lambda: done.append(1))  # type: ignore[func-returns-value]
    assert not done


def test_a_step_is_done_again_when_a_worker_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpips.scheduler import worker_recovery

    monkeypatch.setattr(worker_recovery, "regroup", lambda _: None)
    recovered, left = list[str](), [WorkerLost("one"), WorkerLost("two")]

    def step() -> dict[str, Any]:
        if left:
            raise left.pop()
        return {"auc": 0.5}

    assert finish(cluster(), {}, step, recover=lambda: recovered.append("again")) == {"auc": 0.5}
    assert len(recovered) == 2


# --- What is looked at before training -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make(tmp_path_factory.mktemp("made"), "real")


@pytest.mark.parametrize("algorithm", ["darlin", "ftrl"])
def test_a_test_file_that_begins_badly_ends_the_run_before_training(
    data_set: DataSet, tmp_path: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.svm"
    bad.write_text("+1 1:1\nmaybe 1:1\n")
    monkeypatch.setattr(assignment, "check_shards", lambda *_, **__: pytest.fail("it has begun"))
    with pytest.raises(Exception, match=r"bad\.svm:2: label 'maybe'"):
        run_twin(data_set, 1, 2, test=bad, settings={"algorithm": algorithm})
    train, other = tmp_path / "train.tsv", tmp_path / "other.tsv"
    train.write_text("label\ta\tb\n1\tx\ty\n0\ty\tx\n")
    other.write_text("label\ta\tc\n1\tx\ty\n")
    with pytest.raises(Exception, match=r"other\.tsv:1: column 'c'"):
        run_twin(train, 1, 1, test=other, settings={"algorithm": algorithm})


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ("2\n5\n1\n1 2 1\n", "2\n6\n1\n1 2 1\n", r"test:2: W, the size of the vocabulary, is 6"),
        ("2\n5\n1\n1 2 1\n", "some words of text\n", "has only numbers; train with"),
        ("1 0:1\n", "1 0:x\n", r"test:1: count in '0:x' is not a whole number"),
        ("words of text\n", b"\xff\n", r"test:1: is not UTF-8"),
        ("words of text\n", "other words\n", ""),
        ("1 0:1\n", "1 7:1\n", ""),  # how many words there are is not known yet
    ],
)
def test_documents_to_be_scored_are_checked_before_training(
    tmp_path: Path, train: str, test: str | bytes, said: str
) -> None:
    (tmp_path / "train").write_text(train)
    (tmp_path / "test").write_bytes(test if isinstance(test, bytes) else test.encode())
    if not said:
        corpus.look_at([tmp_path / "test"], None, tmp_path / "train")
        return
    with pytest.raises(DataError, match=said):
        corpus.look_at([tmp_path / "test"], None, tmp_path / "train")


def test_keys_to_be_queried_are_checked_before_counting(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("word\tother\nx\ty\n")
    (tmp_path / "b.tsv").write_text("other\nx\n")
    data, events = {"column": "word", "test": str(tmp_path / "b.tsv")}, list[str]()
    hooks = Hooks(on_event=lambda _, name, __: events.append(name))
    with pytest.raises(Exception, match=r"b\.tsv:1: has no column 'word'"):
        run_twin(tmp_path / "a.tsv", 1, 1, program="sketch", data=data, settings={"width": 100}, hooks=hooks)
    assert "inserts" not in events


# --- Files that cannot be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.npz", "model.txt"])
def test_a_full_disk_is_reported_with_the_file_and_keeps_the_metrics(
    data_set: DataSet, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    replacing, known = evaluate.replacing, dict[str, Any]()

    def full(path: Path, mode: str = "wb") -> Any:
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return replacing(path, mode)

    monkeypatch.setattr(evaluate, "replacing", full)
    monkeypatch.setattr(evaluate, "summary", lambda metrics, _: known.update(metrics) or "")
    with pytest.raises(OSError, match=rf"No space left.*{name}"):
        run_twin(data_set, 1, 2)
    assert known["auc"] > 0.5 and known["objective"] > 0.0 and known["converged"]
    assert ("model" in known) == (name == "model.txt")


@pytest.mark.parametrize(("program", "name"), [("lda", "model.h5"), ("sketch", "sketch.npz")])
def test_training_ends_with_its_metrics_when_the_model_finds_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, name: str
) -> None:
    (tmp_path / "a.txt").write_text("some words here\nother words there\n")
    settings = {"topics": 2, "sweeps": 3} if program == "lda" else {"width": 100}
    known, retry = dict[str, Any](), finish_module.retry_on_loss  # type: ignore[attr-defined]

    def full(path: Path, mode: str = "wb", **how: Any) -> Any:
        if Path(path).name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return replacing(path, mode, **how)

    def watched(*arguments: Any) -> Any:
        found = retry(*arguments)
        known.update(found or {})
        return found

    monkeypatch.setattr(finish_module, "retry_on_loss", watched)
    for module in (hdf5, results):
        monkeypatch.setattr(module, "replacing", full)
    with pytest.raises(OSError, match=rf"No space left.*{name}"):
        run_twin(tmp_path / "a.txt", 1, 2, program=program, settings=settings)
    assert "model" not in known
    assert known["perplexity"] is None if program == "lda" else known["counted"] == 2


def test_lda_says_what_another_sweep_would_bring(tmp_path: Path) -> None:
    lines = ["one two three\n", "four five six\n"] * 30
    (tmp_path / "a.txt").write_text("".join(lines))
    outcome = run_twin(tmp_path / "a.txt", 1, 2, program="lda", settings={"topics": 2, "sweeps": 30})
    each = [event["log_likelihood_per_token"] for event in outcome.log if event["event"] == "sweep"]
    assert outcome.metrics["gain_per_sweep"] == pytest.approx((each[29] - each[26]) / 3)


def test_models_are_written_and_read_without_file_locks(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    pieces = [(np.arange(3), np.array([[1, 0], [0, 2], [3, 0]]))]
    with ExitStack() as held:
        for _ in range(2):  # once more, while somebody holds a lock on the file that is replaced
            model.export_model(path, pieces, np.array([0.1, 0.1]), 0.01, 3, None)
            fcntl.flock(held.enter_context(path.open("rb")), fcntl.LOCK_EX)
            assert model.read_model(path).n_k.tolist() == [4, 2]
