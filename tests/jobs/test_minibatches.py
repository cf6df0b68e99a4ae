"""Mini-batches that are kept between passes: the same results as if they were read again, and no more memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from synthetic import DataSet, make, run_twin

from mpips.config.job_file import RingSpec
from mpips.data import DataSpec, Source, Tally, minibatches, resolve
from mpips.jobs.sparse_lr.minibatches import Minibatch, Minibatches
from mpips.transport.network_faults import Fault

FM = {"factors": 4, "batch": 7, "passes": 3, "admit": 20}
JOBS: dict[str, dict[str, Any]] = {
    "fm": {"program": "fm", "settings": FM},
    "fm with a limit": {"program": "fm", "settings": FM | {"max_rows": 25}},
    "ftrl": {"settings": {"algorithm": "ftrl", "batch": 7, "passes": 3}},
}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make(tmp_path_factory.mktemp("made"), "real")


@pytest.mark.drawn(2)
@pytest.mark.parametrize("name", JOBS)
def test_the_same_bits_as_read_again(
    data_set: DataSet, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reads, read = 0, Source.read

    def counting(source: Source, files: Any, *args: Any, **more: Any) -> Any:
        nonlocal reads
        reads += files == "train"
        return read(source, files, *args, **more)

    monkeypatch.setattr(Source, "read", counting)
    found, counts = [], []
    for gb, servers in ((0.0, 1), (1e-5, 1), (1.0, 1), (1.0, 3)):
        reads = 0
        how = JOBS[name] | {"data": {"keep_minibatches": gb}}
        found.append(run_twin(data_set, servers, 2, **how))
        counts.append(reads)
    # One pass less for each later one of both workers; two workers do not keep 10 kB.
    assert counts[0] == counts[1] == counts[2] + 4 and counts[2] == counts[3]
    lost = {"replicas": 1, "faults": [Fault("kill", 2, after_messages=200)]}
    found.append(run_twin(data_set, 3, 2, **JOBS[name], network=lost))
    assert caplog.messages.pop() == "lost"
    assert len({each.sha for each in found}) == 1
    assert len({tuple(each.passes("mean loss")) for each in found}) == 1


def test_a_part_is_kept_whole_or_not_at_all(data_set: DataSet) -> None:
    job = SimpleNamespace(data=DataSpec(), ring=RingSpec())
    context: Any = SimpleNamespace(polling=lambda items: items, count=1, job=job)
    source = Source(resolve(DataSpec(train=str(data_set.train)), ""))
    expected = [Minibatch(each) for each in minibatches(source.read("train", 0, 1, Tally()), 7)]
    made = Minibatches(context, source, 7)
    broken = made.stream(0, 1, 0, again=True)
    assert broken.take() is not None
    for done in (0, 0, 3):
        stream, found = made.stream(0, 1, done, again=True), []
        while (batch := stream.take()) is not None:
            found.append(batch)
        assert stream.is_at(0, 1, len(expected)) and len(found) == len(expected) - done
        for one, other in zip(found, expected[done:], strict=True):
            assert np.array_equal(one.keys, other.keys) and np.array_equal(one.positions, other.positions)
            assert one.listed
    # Not read again: the file need not be there.
    assert made.stream(0, 1, 0, again=True).take() is made.stream(0, 1, 0, again=False).take()
    # After the loss of a worker the data are cut into other parts, which get the memory.
    of_two = made.stream(0, 2, 0, again=True)
    while of_two.take() is not None:
        pass
    assert set(made._kept) == {(0, 2)} and made._nbytes == sum(each.nbytes for each in made._kept[0, 2])
