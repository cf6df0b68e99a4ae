"""Help on terminals of any width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.cli.main import COMMANDS, parser
from mpips.process.terminal.help_text import fitted

NAMES = ["", *sorted(each.__name__.rpartition(".")[2] for each in COMMANDS)]


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_each_command_fits_the_terminal(
    name: str,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    one_parser: None,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    root = parser()
    if name == "bench":
        from mpips.cli import main

        main(["bench"])
    else:
        with pytest.raises(SystemExit):
            root.parse_args([*name.split(), "--help"])
    # A command is not broken: it is copied.
    said = capsys.readouterr().out
    wide = [
        line for line in said.splitlines() if len(line) > width and not line.startswith(("  mpips", "  srun"))
    ]
    assert said.startswith(("usage: mpips", "Run a benchmark")) and wide == []


@given(st.text(alphabet="ab \n", max_size=200), st.integers(30, 120))
def test_nothing_is_lost_and_nothing_is_too_wide(text: str, width: int) -> None:
    lines = fitted(text, width)
    assert " ".join(lines).split() == text.split()
    longest = max(map(len, text.split()), default=0)
    heads = {line for line in text.splitlines() if line[:1].isspace()}
    assert all(len(line) <= max(width, longest) or any(line in head for head in heads) for line in lines)


def test_what_fits_stays_as_it_is() -> None:
    text = "A paragraph\nof two lines.\n\n  mpips run JOB    starts\n                   ranks"
    assert fitted(text, 80) == text.splitlines()


def test_meanings_keep_their_column_or_stand_below() -> None:
    text = (
        "  mpips a            means something that is long\n"
        "                     and goes on\n"
        "  mpips b --long-one-yes\n"
        "                     another"
    )
    assert fitted(text, 46) == [
        "  mpips a            means something that is",
        "                     long and goes on",
        "  mpips b --long-one-yes",
        "                     another",
    ]
    assert fitted(text, 40)[:3] == [
        "  mpips a",
        "      means something that is long and",
        "      goes on",
    ]
