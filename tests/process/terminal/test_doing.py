"""A command says what it does if that takes long, and nothing otherwise."""

from __future__ import annotations

import time

import pytest

from mpips.process.terminal.doing import doing


def test_only_what_takes_long_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with doing("being quick", after=60.0):
        pass
    said = ""
    with doing("reading", after=0.0):
        while not said:
            time.sleep(0.001)
            said = capsys.readouterr().err
    assert said == "mpips: reading\n"
