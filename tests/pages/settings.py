"""Overrides and job files that the documents print, for the real reader of job files."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from pages.blocks import BLOCKS, ROOT

from mpips.config.job_file import TABLES, load
from mpips.storage import updates

RANKS = "[layout]\nservers = 3\nworkers = 3\nspares = 2\n"
"""So many that faults of some are possible."""


def check_overrides(job: str, overrides: Sequence[str], page: str) -> None:
    """Fail unless a job file takes these overrides: one of the tree, one that the page shows, or any."""
    if not overrides:
        return
    shown = {each.file: each.text for each in BLOCKS if each.page == page and each.file}
    if job in shown:
        check(shown[job], page, overrides)
    elif (ROOT / job).is_file():
        load(ROOT / job, overrides)
    else:
        own = [table for each in overrides if (table := each.partition(".")[0]) not in TABLES]
        check(f'[job]\nprogram = "{[*own, "sparse_lr"][0]}"\n{RANKS}', page, overrides)


def check(text: str, page: str, overrides: Sequence[str] = ()) -> None:
    """Fail unless a text is a job file, or tables of one, beside the programs that the page shows."""
    head = "" if "[job]" in text else '[job]\nprogram = "sparse_lr"\n'
    programs = [each for each in BLOCKS if each.page == page and each.file.endswith(".py")]
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(updates._updates),
        patch.object(sys, "path", [*sys.path]),
    ):
        for each in programs:
            Path(folder, each.file).write_text(each.text)
        path = Path(folder, "job.toml")
        path.write_text(head + text)
        load(path, overrides)
    for each in programs:
        sys.modules.pop(each.file.removesuffix(".py"), None)
