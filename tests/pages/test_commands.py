"""The command lines that the documents print: real parsers take them, and what they name is there.

Each `console` block has commands only, whose output is a `text` block. `sh` blocks are run by `tests/tutorials`.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pages.blocks import BLOCKS, ROOT, TEXTS, TUTORIALS, blocks, commands, inline
from pages.settings import check_overrides

from mpips.cli import bench
from mpips.cli.main import parser
from mpips.rank import prepare

LANGUAGES = {"python", "toml", "console", "text", "{toctree}"}
NAMES = {"mpips", "make", "mpirun", "srun", "sbatch", "salloc", "pip", "python"}
OTHERS = {"export", "tail"}
"""Commands of the shell that are not checked."""
PLACEHOLDERS = {"...": "", "N": "1", "F": "1", "H": "1", "NAME": "add", "SHELL": "bash", "COMMAND": "run"}
"""What stands in text for a number, or for one of some words."""
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
VARIABLES = set(re.findall(r"^(\w+) \?= ", (ROOT / "Makefile").read_text(), re.M)) | {"PYTEST_ARGS"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
FOLDERS = "docs|jobs|tests|mpips|slurm|examples|packaging"


class Parsed(Exception):
    """Ends a benchmark when its options are parsed."""


@cache
def command_line() -> argparse.ArgumentParser:
    return parser()


def check(words: list[str], page: str) -> None:
    """Fail unless a command could be typed so; launchers and Slurm have options of their own."""
    name, *rest = words
    if name == "mpips":
        check_mpips(rest, page)
    elif name == "make":
        assert {each.partition("=")[0] for each in rest} <= TARGETS | VARIABLES, "there is no such target"
    elif "-m" in rest:
        at = rest.index("-m")
        check_module(rest[at + 1], rest[at + 2 :], page)
    elif "slurm/job.sbatch" in rest:
        check_mpips(["run", *rest[rest.index("slurm/job.sbatch") + 1 :]], page)
    elif name == "salloc":
        at = next(at for at, each in enumerate(rest) if Path(each).name == "mpips")
        check_mpips(rest[at + 1 :], page)
    elif name == "pip" or name.endswith("/pip"):
        extras = re.findall(r"\[([\w,]+)\]", " ".join(rest))
        assert set(",".join(extras).split(",")) <= {*EXTRAS, ""}, "there is no such extra"
    else:
        assert name in NAMES | OTHERS, "it is no command that is known here"


def check_module(name: str, rest: list[str], page: str) -> None:
    assert importlib.util.find_spec(name) is not None, f"there is no module {name}"
    if name == "mpips":
        options = prepare.parser().parse_args(rest)
        check_overrides(options.job, options.overrides, page)


def check_mpips(words: list[str], page: str) -> None:
    given = [PLACEHOLDERS.get(each, each) for each in words]
    options, rest = command_line().parse_known_args([each for each in given if each])
    if getattr(options, "passes_on", False):
        check_benchmark(options.name, rest)
        return
    assert not rest, f"unrecognized arguments: {rest}"
    job = next((each for each in words if each.endswith(".toml")), "")
    check_overrides(job, getattr(options, "set", None) or [], page)


def check_benchmark(name: str | None, rest: list[str]) -> None:
    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *given: Any) -> None:
        raise Parsed(real(self, *given))

    if name is not None:
        with patch.object(argparse.ArgumentParser, "parse_args", parse), pytest.raises(Parsed):
            importlib.import_module(bench.modules()[name]).main(rest)


def check_all(page: str, lines: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    """Check commands of a page; help is an answer, too."""
    for words in lines:
        try:
            check(words, page)
        except SystemExit as ended:
            assert not ended.code, f"{page}: {shlex.join(words)}: {capsys.readouterr().err}"
        except Exception as error:
            raise AssertionError(f"{page}: {shlex.join(words)}: {error}") from error


def test_commands_of_blocks_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks("console"):
        check_all(block.page, list(commands(block.text)), capsys)


def test_commands_in_the_text_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    for page in TEXTS:
        found = [shlex.split(code) for code in inline(page) if code.split(" ")[0] in NAMES]
        known = {("python", "-m"), *(("mpips", name) for name in command_line_names())}
        # A command's name alone is no command line.
        check_all(page, [words for words in found if len(words) > 1 and tuple(words) not in known], capsys)


def command_line_names() -> set[str]:
    (names,) = [each.choices for each in command_line()._actions if isinstance(each.choices, dict)]
    return set(names)


def test_files_that_the_text_names_are_there() -> None:
    for page in TEXTS:
        named = {each.split(":")[0] for code in inline(page) for each in code.split()}
        paths = [each for each in named if re.fullmatch(rf"({FOLDERS})/[\w./*-]*([.*][\w*]+|/)", each)]
        assert not [each for each in paths if not list(ROOT.glob(each))], page


def test_each_block_says_what_it_is() -> None:
    others = [each for each in BLOCKS if not each.page.startswith(TUTORIALS)]
    assert not [each.title for each in others if each.language not in LANGUAGES]
    # A command in a block of output would not be checked.
    shown = re.compile(rf"^({'|'.join(NAMES)}) ", re.M)
    assert not [each.title for each in blocks("text") if shown.search(each.text)]
