"""Hostile and damaged files: one clear line, the right exit code, no loss of data, no hang, no traceback.

The cases stand in the TOML files beside this one; `tests/cases.py` says what a case may have.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases import cases, check
from conftest import Finished

# Those that start ranks carry pytest.mark.ranks, which `cases` gives them.


@pytest.mark.parametrize(("beside", "case"), cases(Path(__file__).parent))
def test_each_hostile_case_gives_its_expected_result(
    beside: Path, case: dict[str, Any], tmp_path: Path, run_mpips: Callable[..., Finished]
) -> None:
    check(case, beside, tmp_path, run_mpips)
