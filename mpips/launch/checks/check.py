"""One check of a machine or a cluster: what was measured, what it is compared with, the verdict, and what mends it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """The outcome of a check."""

    OK = "ok"
    WARN = "warn"
    """Runs work, but slower or with less than they could have."""
    FAIL = "fail"
    SKIP = "skip"
    """Not checked, since something else has failed, or is not known here."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str
    verdict: Verdict
    value: str
    """What was measured, as text."""
    against: str = ""
    """What it is compared with."""
    mend: str = ""
    """What mends it; empty if nothing needs to be mended."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The measured numbers, in SI units."""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {"check": self.name, "verdict": str(self.verdict), "value": self.value,
                "against": self.against, "mend": self.mend, "facts": dict(self.facts)}  # fmt: skip


NAME = 14
"""Characters of the longest usual name of a check."""
INDENT = NAME + 8


def lines(check: Check, width: int) -> list[str]:
    r"""Return the lines of a check, none longer than `width` if that is possible.

    >>> print(*lines(Check("fsync", Verdict.WARN, "2.1 s", "at most 0.5 s", "put runs elsewhere"), 60), sep="\n")
    warn  fsync           2.1 s; compared with: at most 0.5 s
                          mend: put runs elsewhere
    """
    text = check.value + (f"; compared with: {check.against}" if check.against else "")
    said = _wrapped(text, f"{check.verdict:<4}  {check.name:<{NAME}}  ", width)
    return said + (_wrapped(f"mend: {check.mend}", " " * INDENT, width) if check.mend else [])


def _wrapped(text: str, start: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, max(width, INDENT + 20), initial_indent=start, subsequent_indent=" " * INDENT,
        break_long_words=False, break_on_hyphens=False,
    ) or [start.rstrip()]  # fmt: skip


def summary(checks: Sequence[Check], seconds: float) -> str:
    """Return the last line: how many checks have which verdict.

    >>> summary([Check("a", Verdict.OK, ""), Check("b", Verdict.FAIL, "")], 12.34)
    'not accepted: 2 checks in 12.3 s: 1 ok, 1 fail'
    """
    counts = [(verdict, sum(each.verdict is verdict for each in checks)) for verdict in Verdict]
    said = ", ".join(f"{number} {verdict}" for verdict, number in counts if number)
    verdict = "accepted" if accepted(checks) else "not accepted"
    return f"{verdict}: {len(checks)} checks in {seconds:.1f} s: {said}"


def accepted(checks: Sequence[Check]) -> bool:
    """Return whether no check has failed."""
    return not any(each.verdict is Verdict.FAIL for each in checks)
