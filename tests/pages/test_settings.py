"""The settings that the documents print are those that there are."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from pages.blocks import ROOT, TEXTS, blocks, inline
from pages.settings import check, check_overrides

from mpips.config.job_file import TABLES
from mpips.config.program import load_program
from mpips.launch import slurm_site

NAMES = sorted(path.parent.name for path in (ROOT / "jobs").glob("*/job.py"))
KNOWN = TABLES | {name: load_program(name, ROOT).settings for name in NAMES if name != "ctr"}
FILES = "toml|py|md|json|jsonl|sbatch|npz|h5|gz|svm"
"""What ends a name of two parts that is a file's."""


def test_toml_is_of_a_job_file_or_of_a_site_file(tmp_path: Path) -> None:
    for block in blocks("toml"):
        if re.search(rf"^\[({'|'.join(KNOWN)})\]", block.text, re.M):
            check(block.text, block.page)
        else:
            path = tmp_path / "site.toml"
            path.write_text(block.text)
            slurm_site.load(path)


def test_keys_in_the_text_are_there() -> None:
    for page in TEXTS:
        for code in inline(page):
            found = re.match(r"\[(\w+)\] ([a-z_, ]+)(?: = |$)", code) or re.fullmatch(r"(\w+)\.(\w+)", code)
            if found and found[1] in KNOWN and not re.fullmatch(FILES, found[2]):
                names = {each.name for each in fields(KNOWN[found[1]])}
                assert set(re.split(r",? ", found[2])) <= names, f"{page}: {code}"


def test_overrides_in_the_text_are_valid() -> None:
    for page in TEXTS:
        for code in inline(page):
            found = re.fullmatch(r"(?:--set )?'?(\w+\.\w+=[^']+)'?", code)
            if found and found[1].partition(".")[0] in KNOWN:
                # A letter stands for a number.
                check_overrides("", [re.sub(r"=[A-Z]$", "=1", found[1])], page)
