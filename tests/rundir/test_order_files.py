"""Orders: the leader gets each once, they survive a change of leader, and no file is left."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.cli import main
from mpips.errors import InputError
from mpips.rundir import order_files
from mpips.rundir.order_files import Order, Orders, ask, newest


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time

    def pass_by(self) -> None:
        self.time += 1.0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text("{}")
    return tmp_path


@pytest.fixture
def clock() -> Clock:
    return Clock()


def give(run: Path, name: str, verb: str = "checkpoint", start: str = "now", **arguments: Any) -> None:
    (run / "orders").mkdir(exist_ok=True)
    order_files.create(
        run / "orders" / f"{name}.json", {"verb": verb, "arguments": arguments, "start": start}
    )


def answer_of(run: Path, name: str) -> tuple[bool, str] | None:
    return order_files.read_answer(run / "orders" / f"{name}.answer.json")


def fresh(orders: Orders, clock: Clock) -> list[Order]:
    clock.pass_by()
    return orders.poll()


@contextmanager
def leading(run: Path, ok: bool = True) -> Iterator[list[Order]]:
    """A leader that answers every order with its arguments."""
    done, heard = threading.Event(), []

    def lead() -> None:
        orders = Orders(run, time.monotonic, 0.01)
        while not done.is_set():
            for order in orders.poll():
                heard.append(order)
                orders.answer(order, ok, f"{order.verb} {dict(order.arguments)}")
            time.sleep(0.002)

    thread = threading.Thread(target=lead)
    thread.start()
    try:
        yield heard
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("checkpoint", {}),
        ("stop", {}),
        ("status", {}),
        ("join", {"role": "server"}),
        ("join", {"role": "worker"}),
        ("leave", {"rank": 3}),
        ("tau", {"tau": 0}),
    ],
)
def test_an_order_is_received_and_answered_and_its_files_are_removed(
    run: Path, verb: str, arguments: dict[str, Any]
) -> None:
    with leading(run) as heard:
        assert ask(run, verb, arguments) == (True, f"{verb} {arguments}")
    assert [(order.verb, order.arguments) for order in heard] == [(verb, arguments)]
    assert os.listdir(run / "orders") == []


def test_a_refused_order_is_answered_with_the_reason(run: Path) -> None:
    with leading(run, ok=False):
        assert ask(run, "leave", {"rank": 1}) == (False, "leave {'rank': 1}")


def test_an_order_is_for_the_start_that_runs_whatever_the_time_on_the_two_hosts(
    run: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "run.json").write_text(json.dumps({"id": "first"}))
    orders = Orders(run, clock, start="first")
    heard: list[str] = []

    def lead() -> None:
        while not heard:
            for order in fresh(orders, clock):
                heard.append(order.verb)
                orders.answer(order, True, "done")
            time.sleep(0.002)

    thread = threading.Thread(target=lead)
    thread.start()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 0.0)
        assert ask(run, "stop") == (True, "done")
    thread.join()
    # The sender was killed, and the run resumed.
    give(run, "1", "stop", start="first")
    assert fresh(Orders(run, clock, start="second"), clock) == []
    assert answer_of(run, "1") == (False, "the order was for an earlier start of the run, which has ended")


def test_orders_come_oldest_first_and_once(run: Path, clock: Clock) -> None:
    orders = Orders(run, clock)
    for name in ("2", "1", "3"):
        give(run, name)
    assert [order.name for order in fresh(orders, clock)] == ["1", "2", "3"]
    assert fresh(orders, clock) == []


def test_the_folder_is_polled_once_a_period(run: Path, clock: Clock) -> None:
    orders = Orders(run, clock, period=0.2)
    assert orders.poll() == []
    give(run, "1")
    clock.time = 0.19
    assert orders.poll() == []
    clock.time = 0.2
    assert [order.name for order in orders.poll()] == ["1"]


def test_a_new_leader_finds_open_orders(run: Path, clock: Clock) -> None:
    first = Orders(run, clock)
    give(run, "1", "tau", tau=2)
    give(run, "2", "stop")
    answered, _ = fresh(first, clock)
    first.answer(answered, True, "tau is 2")
    second = Orders(run, clock)
    assert fresh(second, clock) == [Order("2", "stop", {})]
    assert answer_of(run, "1") == (True, "tau is 2")


@given(st.lists(st.sampled_from(["give", "poll", "answer", "withdraw", "succeed"]), max_size=25))
def test_each_leader_gets_exactly_the_open_orders(events: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        run, clock = Path(name), Clock()
        orders, count = Orders(run, clock), 0
        unseen: list[str] = []  # what the model of the leader has not been given
        seen: list[Order] = []  # what it has and has not answered
        for event in events:
            if event == "give":
                count += 1
                give(run, f"{count:03d}")
                unseen.append(f"{count:03d}")
            elif event == "poll":
                new = fresh(orders, clock)
                assert [order.name for order in new] == unseen
                seen, unseen = seen + new, []
            elif event == "answer" and seen:
                orders.answer(seen.pop(), True, "")
            elif event == "withdraw" and unseen:
                (run / "orders" / f"{unseen.pop()}.json").unlink()
            elif event == "succeed":
                orders = Orders(run, clock)
                seen, unseen = [], sorted([order.name for order in seen] + unseen)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not an order: JSONDecodeError"),
        (b'{"verb": "stop", "arg', "not an order: JSONDecodeError"),
        (b"\xff{}", "not an order: UnicodeDecodeError"),
        (b"[1, 2]", "not an order: TypeError"),
        (b'{"verb": "stop"}', "not an order: KeyError: 'arguments'"),
        (b'{"verb": 3, "arguments": {}, "start": "now"}', "not an order: TypeError: its verb"),
        (b'{"verb": "stop", "arguments": [], "start": "now"}', "not an order: TypeError: its verb"),
        (b'{"verb": "dance", "arguments": {}, "start": "now"}', "no order is called 'dance'; valid: checkpoint"),
        (b'{"verb": "leave", "arguments": {}, "start": "now"}', "leave takes one argument, its rank"),
        (b'{"verb": "leave", "arguments": {"rank": true}, "start": "now"}', "leave True: rank must be"),
        (b'{"verb": "join", "arguments": {"role": "king"}, "start": "now"}', "join 'king': a spare joins as"),
        (b'{"verb": "stop", "arguments": {"now": 1}, "start": "now"}', "stop takes no argument"),
        (b'{"verb": "stop", "arguments": {}, "start": 1}', "not an order: TypeError: its verb or start"),
        (b'{"verb": "stop", "arguments": {}, "start": ""}', "the order was for an earlier start"),
        (b'{"verb": "stop", "arguments": {}, "start": "then"}', "the order was for an earlier start"),
        (b"[" * 50_000, "not an order: RecursionError"),
        (b" " * (order_files.LONGEST + 1), "not an order: holds more than the allowed 65,536 bytes"),
    ],
    ids=lambda value: value[:20].decode(errors="replace") if isinstance(value, bytes) else "",
)  # fmt: skip
def test_invalid_order_files_are_answered_with_an_error(
    run: Path, clock: Clock, text: bytes, said: str
) -> None:
    orders = Orders(run, clock, start="now")
    (run / "orders" / "1.json").write_bytes(text)
    assert fresh(orders, clock) == []
    answer = answer_of(run, "1")
    assert answer is not None
    assert answer[0] is False
    assert answer[1].startswith(said)


@pytest.mark.parametrize("kind", ["pipe", "link", "unreadable"])
def test_an_order_that_is_no_file_is_answered_and_not_waited_for(run: Path, clock: Clock, kind: str) -> None:
    if kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads anything")
    orders = Orders(run, clock)
    path = run / "orders" / "1.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        path.touch(0o200)
    assert fresh(orders, clock) == []
    answer = answer_of(run, "1")
    assert answer is not None and answer[1].startswith(
        ("not an order: is a", "not an order: Permission denied")
    )


def test_orders_are_not_read_through_a_symbolic_link(run: Path, clock: Clock, tmp_path: Path) -> None:
    orders = Orders(run, clock)
    (run / "orders").rename(tmp_path / "elsewhere")
    (run / "orders").symlink_to(tmp_path / "elsewhere")
    give(run, "1")
    before = sorted((tmp_path / "elsewhere").iterdir())
    assert fresh(orders, clock) == []
    with pytest.raises(InputError, match="is a symbolic link"):
        order_files.ask(run, "stop", patience=0.1)
    assert sorted((tmp_path / "elsewhere").iterdir()) == before


def test_a_folder_full_of_files_takes_little_of_the_leaders_time(run: Path) -> None:
    class Slow(Clock):
        """Every look at it takes a second."""

        def __call__(self) -> float:
            self.time += 1.0
            return self.time

    clock = Slow()
    orders = Orders(run, clock, period=0.2)
    for number in range(2 * order_files.MOST):
        give(run, f"{number:06d}")
    assert len(orders.poll()) == order_files.MOST
    began = clock.time
    while not (more := orders.poll()):
        pass
    assert (len(more), clock.time - began >= 1.0 / order_files.SHARE) == (order_files.MOST, True)


def test_an_answer_that_is_no_file_is_none(run: Path) -> None:
    os.mkfifo(run / "pipe.answer.json")
    (run / "link.answer.json").symlink_to("/dev/zero")
    (run / "deep.answer.json").write_text("[" * 50_000)
    for name in ("pipe", "link", "deep"):
        assert order_files.read_answer(run / f"{name}.answer.json") is None


def test_files_that_are_none_of_its_business_are_left_alone(run: Path, clock: Clock) -> None:
    orders = Orders(run, clock)
    names = {".1.json.abc", "1.answer.json", "notes.txt", "a b.json"}
    for name in names:
        (run / "orders" / name).write_text("?")
    (run / "orders" / "folder.json").mkdir()
    assert fresh(orders, clock) == []
    assert set(os.listdir(run / "orders")) == names | {"folder.json"}


def test_a_removed_folder_of_orders_raises_no_error(run: Path, clock: Clock) -> None:
    orders = Orders(run, clock)
    give(run, "1")
    (order,) = fresh(orders, clock)
    shutil.rmtree(run)
    orders.answer(order, True, "done")
    assert fresh(orders, clock) == []
    run.mkdir()
    give(run, "2")
    assert [order.name for order in fresh(orders, clock)] == ["2"]


def test_an_answer_waits_for_room_on_the_disk(
    run: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    orders = Orders(run, clock)
    give(run, "1")
    (order,) = fresh(orders, clock)
    with monkeypatch.context() as patch:
        patch.setattr(order_files, "create", full)
        orders.answer(order, True, "done")
        assert fresh(orders, clock) == []
    assert answer_of(run, "1") is None
    assert fresh(orders, clock) == []
    assert answer_of(run, "1") == (True, "done")


def test_a_withdrawn_order_is_not_answered(run: Path, clock: Clock) -> None:
    orders = Orders(run, clock)
    give(run, "1")
    (order,) = fresh(orders, clock)
    (run / "orders" / "1.json").unlink()
    orders.answer(order, True, "done")
    assert os.listdir(run / "orders") == []


def test_an_order_without_an_answer_is_withdrawn(run: Path) -> None:
    ok, text = ask(run, "checkpoint", patience=0.05)
    assert not ok
    assert text.startswith("no answer within 0.05 s, and the order was withdrawn")
    assert os.listdir(run / "orders") == []


def test_a_run_that_is_over_takes_no_orders(run: Path) -> None:
    (run / "result.json").write_text(json.dumps({"status": "completed"}))
    assert ask(run, "stop") == (False, f"the run is over (completed): {run}")
    assert not (run / "orders").exists()


def test_a_stopping_run_takes_orders_until_it_has_ended(run: Path) -> None:
    (run / "result.json").write_text(json.dumps({"status": "failed", "provisional": True}))
    assert ask(run, "stop", patience=0.05)[1].startswith("no answer within")


def test_a_run_that_ends_meanwhile_is_not_waited_for(run: Path) -> None:
    def end() -> None:
        while not list((run / "orders").glob("*.json")):
            time.sleep(0.002)
        order_files.create(run / "result.json", {"status": "failed"})

    thread = threading.Thread(target=end)
    (run / "orders").mkdir()
    thread.start()
    assert ask(run, "stop", patience=60.0) == (False, f"the run is over (failed): {run}")
    thread.join()
    assert os.listdir(run / "orders") == []


def test_a_folder_without_a_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a run folder \(there is no run\.json in it\)"):
        ask(tmp_path, "stop")


def test_an_order_that_cannot_be_written_is_an_input_error(run: Path) -> None:
    (run / "orders").write_text("a file")
    with pytest.raises(InputError, match="orders: the order cannot be written: "):
        ask(run, "stop")


@pytest.mark.parametrize(
    "started",
    [
        ("2026-01-02T03:04:05+00:00", "2026-01-02T03:04:04+00:00", "2026-01-02T03:04:05+00:00"),
        ("2026-01-02T03:04:05+00:00", "2026-01-02T05:04:05+02:00", "2026-01-02T03:04:05.5+00:00"),
        (None, "", "yesterday"),  # of an earlier version, or no time at all: the file's own counts
        (None, "0001-01-01T00:00:00+23:00", None),
    ],
)
def test_the_newest_run_is_the_one_started_last(tmp_path: Path, started: tuple[str | None, ...]) -> None:
    for at, (name, when) in enumerate(zip(("zebra", "ant", "bee"), started, strict=True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}" if when is None else json.dumps({"started": when}))
        os.utime(tmp_path / name / "run.json", (at, at))
    (tmp_path / "none").mkdir()
    assert newest(tmp_path) == tmp_path / "bee"
    with pytest.raises(InputError, match="there is no run under"):
        newest(tmp_path / "none")


def test_a_run_on_the_twin_has_no_provenance_and_counts_too(tmp_path: Path) -> None:
    for name, file in (("started", "run.json"), ("twin", "job.toml"), ("no run", "job.toml")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}" if file == "run.json" else "")
    (tmp_path / "twin" / "result.json").write_text("{}")
    os.utime(tmp_path / "started" / "run.json", (1, 1))
    assert newest(tmp_path) == tmp_path / "twin"


def test_a_run_that_was_copied_is_no_newer_for_it(tmp_path: Path) -> None:
    for day, name in ((2, "new"), (1, "copied")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(f'{{"started": "2026-01-0{day}T00:00:00+00:00"}}')
    assert newest(tmp_path) == tmp_path / "new"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dance"], "no order is called 'dance'; valid: checkpoint, stop, join, leave, tau, status, stacks"),
        (["stop", "now"], "stop takes no argument"),
        (["join"], "join takes one argument, its role"),
        (["join", "king"], "join 'king': a spare joins as server or worker"),
        (["leave", "server"], "leave 'server': rank must be an integer, at least 0"),
        (["leave", "1", "2"], "leave takes one argument, its rank"),
        (["tau", "-1"], "tau -1: tau must be an integer, at least 0"),
        (["tau", "2147483648"], "tau 2147483648: tau must be at most 2,147,483,647"),
        (["stop", "--patience", "0"], "--patience 0: must be seconds, above 0"),
    ],
)
def test_ctl_refuses_what_makes_no_sense_in_one_line(
    run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ctl", str(run), *words]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"mpips: error: {said}\n"
    assert captured.out == ""


def test_ctl_prints_the_answer(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with leading(run) as heard:
        assert main(["ctl", str(run), "tau", "4"]) == 0
        assert main(["ctl", str(run), "join", "server"]) == 0
    assert capsys.readouterr().out == "tau {'tau': 4}\njoin {'role': 'server'}\n"
    assert [order.verb for order in heard] == ["tau", "join"]


def test_ctl_tells_a_refusal_by_its_exit_code(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with leading(run, ok=False):
        assert main(["ctl", str(run), "leave", "0"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "mpips: leave {'rank': 0}\n")


def test_ctl_finds_the_latest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ctl", "latest", "status"]) == 2
    assert "there is no run under runs" in capsys.readouterr().err
    run = tmp_path / "runs" / "a-20260101T000000Z"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    with leading(run):
        assert main(["ctl", "latest", "status"]) == 0
    assert capsys.readouterr().out == "status {}\n"
