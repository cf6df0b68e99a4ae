"""`mpips bench lda`: what it reads from a run, for the comparison with tomotopy."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mpips.bench.applications import lda
from mpips.bench.applications.lda import TomotopyResult, compare_with_tomotopy, rate
from mpips.errors import InputError


def sweeps(count: int) -> list[dict[str, Any]]:
    """Sweeps of half a second, of 1,000 tokens, each 10 better than the one before."""
    return [
        {
            "sweep": n,
            "seconds": 0.5 * n,
            "log_likelihood": -1000.0 + 10 * n,
            "log_likelihood_per_token": -1.0 + 0.01 * n,
            "tokens": 1000,
        }
        for n in range(1, count + 1)
    ]


def test_the_first_sweep_that_is_as_good_counts() -> None:
    found = compare_with_tomotopy(sweeps(20), TomotopyResult(4.0, -905.0, 1000), 8)
    assert (found["sweeps"], found["ours"], found["ratio"]) == (10, 5.0, 1.25)
    assert (found["theirs"], found["their_rate"], found["our_rate"]) == (4.0, 2000.0, 2000.0)
    assert found["per_token"] == pytest.approx(-0.905)
    never = compare_with_tomotopy(sweeps(5), TomotopyResult(4.0, -905.0, 1000), 8)
    assert never["sweeps"] is None and math.isnan(never["ratio"])


def test_rates_are_those_after_the_first_sweeps() -> None:
    lines = sweeps(lda.LAST)
    for line in lines[: lda.FIRST]:
        line["seconds"] -= 0.25
    found = rate(lines)
    assert found["our_rate"] == pytest.approx(
        (lda.LAST - lda.FIRST) * 1000 / (0.5 * (lda.LAST - lda.FIRST) + 0.25)
    )


def test_bad_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such data file: no-such"):
        lda.main(["--train", "no-such", "--rates", "10"])
    with pytest.raises(SystemExit):
        lda.main(["--topics", "0"])
    monkeypatch.setattr(lda, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install tomotopy"):
        lda.main([])
