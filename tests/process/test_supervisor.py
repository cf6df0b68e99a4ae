"""The process that supervises a run, as its ranks are told of it."""

from __future__ import annotations

import os

import pytest

from mpips.process.supervisor import OPTION, Supervisor, given


def test_a_command_line_names_the_supervisor() -> None:
    here = Supervisor.here("openmpi")
    assert here.pid == os.getpid() and here.is_here
    assert given(["job.toml", OPTION, str(here), "--set", "a.b=1"]) == here
    assert not here._replace(machine="0").is_here


@pytest.mark.parametrize("line", [[], [OPTION], [OPTION, ""], [OPTION, "a:b"], [OPTION, "a:b:c"]])
def test_others_name_none(line: list[str]) -> None:
    assert given(line) is None
