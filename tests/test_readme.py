"""The README and the other documents: links lead somewhere, and the tutorial's program passes its test."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from mpips.storage import updates

ROOT = Path(__file__).parent.parent
PAGES = sorted({
    *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("jobs/*/*.md"), *ROOT.glob("packaging/*.md"),
    *ROOT.glob("checkpoints/*.md"), *ROOT.glob("slurm/*.md"),
})  # fmt: skip
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*?)\s*$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    plain = (
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", each)).lower() for each in headings
    )
    return {each.strip().replace(" ", "-") for each in plain}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", TEXTS[page], flags=re.S)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            wrong.append(target)
    assert not wrong


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].split()) <= 900


def test_the_program_of_the_tutorial_passes_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What it registers goes with it.
    monkeypatch.setattr("mpips.storage.updates._updates", dict(updates._updates))
    monkeypatch.syspath_prepend(tmp_path)
    program, test = re.findall(r"```python\n(.*?)```", TEXTS["docs/programs.md"], re.S)
    (tmp_path / "mean.py").write_text(program)
    (tmp_path / "its_test.py").write_text(test)
    try:
        importlib.import_module("its_test").test_the_mean_is_that_of_normal_numbers()
    finally:
        for name in ("its_test", "mean"):
            sys.modules.pop(name, None)
