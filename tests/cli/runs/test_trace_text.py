"""The time breakdown of `mpips trace` on narrow and wide terminals."""

from __future__ import annotations

from typing import Any

import pytest

from mpips.cli.runs.trace import text

USES = ("compute", "program", "encode", "apply", "serve", "copies", "checkpoint", "idle", "start", "other")


def rank(number: int, role: str, **uses: float) -> dict[str, Any]:
    waits = [{"kind": "calls", "seconds": 1.0, "rank": number, "from": None, "for": "load", "count": 2}]
    return {"rank": number, "role": role, "index": 0, "seconds": 10.0, "unseen": 0.0, "waits": waits,
            "uses": {**dict.fromkeys(USES, 0.0), **uses}}  # fmt: skip


FOUND = {
    "phase": "", "seconds": 10.0, "waits": [], "dropped": 0,
    "ranks": [rank(0, "scheduler", program=2.0, start=1.0, copies=1.0, idle=1.0, other=1.0, compute=1.0, serve=1.0),
              rank(1, "worker", compute=8.0)],
}  # fmt: skip


@pytest.mark.parametrize(("width", "tables"), [(40, 4), (60, 2), (80, 2), (200, 1), (1000, 1)])
def test_the_table_fits_and_has_no_empty_columns(width: int, tables: int) -> None:
    said = text(FOUND, width=width)
    lines = said.splitlines()
    assert max(map(len, lines)) <= width
    assert len([line for line in lines if line.strip().startswith("rank ")]) == tables
    assert "checkpoint" not in said and "encode" not in said, "nobody has spent time on it"
    assert sum(line.count("80 %") for line in lines) == 1, "each value is shown once"
