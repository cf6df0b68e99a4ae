"""`mpips.testing.simulate` runs a program with a job of its own."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from mpips import testing
from mpips.errors import JobError, RemoteError
from mpips.testing import simulate

PROGRAM = """
from dataclasses import dataclass
import numpy as np
from mpips import VectorSpec

@dataclass(frozen=True)
class Settings:
    times: int = 2

def schedule(cluster, settings):
    w = cluster.create_vector(VectorSpec("w"))
    cluster.workers.call("add")
    return {"w": w.pull_wait(np.arange(3, dtype=np.uint64)).tolist(), "seed": cluster.job.seed}

class Worker:
    def __init__(self, context):
        self.context = context

    def add(self):
        w, rows = self.context.vectors["w"], np.zeros(1)
        for _ in range(self.context.job.settings.times):
            rows += 1
            w.push(np.array([self.context.index], np.uint64), rows)
            WAIT
"""


def write(folder: Path, wait: str) -> str:
    path = folder / "adder.py"
    path.write_text(PROGRAM.replace("WAIT", wait))
    return str(path)


def test_a_program_runs_with_settings_and_defaults(tmp_path: Path) -> None:
    program = write(tmp_path, "pass")
    with pytest.raises(RemoteError, match=r"adder.py:\d+: push of vector w: its rows were overwritten"):
        simulate(program)
    unchecked = {"adder.times": 1, "debug.check_buffers": False}
    assert simulate(program, set=unchecked, servers=2, workers=2, seed=7) == {"w": [1.0, 1.0, 0.0], "seed": 7}


def test_a_wrong_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"adder\.tmes=1: unknown key"):
        simulate(write(tmp_path, "pass"), set={"adder.tmes": 1})


def test_a_program_that_does_not_load_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("\n1 / 0\n")
    with pytest.raises(JobError, match=rf"^job: program .* by zero, at {tmp_path}/bad\.py:2$"):
        simulate(str(tmp_path / "bad.py"))


def test_settings_are_of_the_class_of_the_program(tmp_path: Path) -> None:
    program = write(tmp_path, "w.flush().result()")
    text = (
        Path(program).read_text().replace('return {"w"', 'return {"own": isinstance(settings, Settings), "w"')
    )
    Path(program).write_text(text)
    assert simulate(program, set={"debug.check_buffers": False})["own"] is True


def test_its_example_is_correct() -> None:
    assert doctest.testmod(testing, optionflags=doctest.ELLIPSIS).failed == 0
