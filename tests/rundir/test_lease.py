"""Leases: of all ranks that try to take a lease, one has it."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from mpips.rundir import lease
from mpips.rundir.lease import Leases, LeasesInTime


@pytest.fixture(params=["links", "no links"])
def folder(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def refuse(*_: object) -> None:
        raise PermissionError("this file system has no hard links")

    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)
    return tmp_path


def test_one_of_all_that_try_has_it(folder: Path) -> None:
    tries = [Leases(folder, "1") for _ in range(16)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda each: each[1].take(1, f"view {each[0]}"), enumerate(tries)))
    holder = tries[0].holder(1)
    assert holder in {f"view {number}" for number in range(16)}
    assert {each.take(1, "late") for each in tries} == {each.holder(1) for each in tries} == {holder}
    assert os.listdir(folder) == [".lease-1-1"], "no draft is left"
    assert tries[0].holder(2) == "" and tries[0].take(2, "next") == "next"


def test_another_start_has_leases_of_its_own(folder: Path) -> None:
    assert Leases(folder, "1").take(1, "a") == "a" and Leases(folder, "2").take(1, "b") == "b"
    lease.remove(folder)
    assert os.listdir(folder) == []


def test_a_lease_whose_answer_was_lost_is_found_to_be_this_rank_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert Leases(tmp_path, "1").take(1, "a") == "a"


def test_a_folder_that_cannot_be_reached_decides_nothing(tmp_path: Path) -> None:
    gone = Leases(tmp_path / "gone", "1")
    assert gone.take(1, "a") is None and gone.holder(1) is None


def test_a_folder_that_does_not_answer_counts_as_one_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, link = Event(), os.link

    def hang(source: Path, target: Path) -> None:
        answers.wait()
        link(source, target)

    monkeypatch.setattr(os, "link", hang)
    leases = LeasesInTime(Leases(tmp_path, "1"), seconds=0.02)
    assert leases.take(1, "a") is None and leases.taking
    assert leases.holder(1) is None and leases.take(2, "b") is None
    answers.set()
    while leases.taking:
        time.sleep(0.001)
    assert Leases(tmp_path, "1").holder(1) == "a", "it was taken late"
    while (holder := leases.take(1, "b")) is None:
        time.sleep(0.001)
    assert holder == "a"


def test_a_request_without_a_thread_counts_as_one_that_is_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Thread, "start", refuse)
    leases = LeasesInTime(Leases(tmp_path, "1"))
    assert leases.take(1, "a") is None and not leases.taking
    monkeypatch.undo()
    assert leases.take(1, "b") == "b"
