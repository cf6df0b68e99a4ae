"""`mpips bench coding`: its measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpips.bench.requests import coding
from mpips.errors import InputError


def test_every_chain_is_measured_and_lossless_ones_save_what_they_must(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "coding.json"
    assert coding.main(["--rows", "3000", "--repeat", "1", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["message"], row["chain"]) for row in rows] == [
        (name, coding.format_chain(chain)) for name, chain in coding.CHAINS
    ]
    size = {(row["message"], row["chain"]): row["size"] for row in rows}
    assert 0.3 + 1 / 32 < size["steps", "zeros"] < 0.36, "30 % of float32, and a bit for each"
    assert 8 / 12 < size["gradients", "fixed_point 1"] < 9.5 / 12, "keys of 8 bytes, and one byte of four"
    assert size["gradients", "fixed_point 1 feedback"] == size["gradients", "fixed_point 1"]
    assert 0.25 < size["gradients", "significant 1.0"] < 0.4, "a third of a normal variable is beyond 1"
    assert "pays below" in capsys.readouterr().out


def test_a_chain_of_the_command_line_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "coding.json"
    chain = '["zeros", {name = "zstd", level = 3}]'
    assert coding.main(["--rows", "1e3,2e3", "--repeat", "1", "--filter", chain, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert {(row["message"], row["rows"]) for row in rows} == {
        (name, count) for name in coding.MESSAGES for count in (1000, 2000)
    }
    assert {row["chain"] for row in rows} == {"zeros, zstd 3"}


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="--filter zsdt: there is no filter 'zsdt'; did you mean 'zstd'"):
        coding.main(["--filter", "zsdt"])
    with pytest.raises(SystemExit):
        coding.main(["--rows", "0"])
