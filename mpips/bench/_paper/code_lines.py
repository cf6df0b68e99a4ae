"""Table 3: how many lines of code an algorithm takes."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mpips.bench import _runs
from mpips.bench._paper.experiment import Claim, Section, Setup, agreement, table

ITEM = "Table 3"
SILENT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip
"""Tokens that do not count as code."""
METHOD = (
    "job.py", "settings.py", "darlin.py", "control.py", "block_worker.py", "blocks.py", "proximal.py", "kernels.py",
    "kkt_filter.py", "overlap.py", "overlapped_darlin.py", "quadratic.py", "newton.py", "restricted_gap.py",
)  # fmt: skip
"""The files of sparse_lr that are the block proximal method itself."""


def measure(setup: Setup) -> dict[str, Any]:
    """Count the lines of the applications, and of the library."""
    jobs = {name: _runs.job_file("job.toml", name).parent for name in ("sparse_lr", "lda", "sketch")}
    own = Path(_runs.__file__).resolve().parent.parent
    carrying = [
        path for path in own.rglob("*.py") if path.relative_to(own).parts[0] not in ("bench", "cli", "jobs")
    ]
    return {
        "listing": lines_of(jobs["sparse_lr"] / name for name in ("job.py", "settings.py")),
        "method": lines_of(jobs["sparse_lr"] / name for name in METHOD),
        **{name: lines_of(folder.glob("*.py")) for name, folder in jobs.items()},
        "lbfgs": lines_of([Path(__file__).with_name("lbfgs.py")]),
        "mpips": lines_of(carrying),
    }


def lines_of(paths: Iterable[Path]) -> int:
    """Count the lines of code of some files."""
    return sum(count(path.read_text(encoding="utf-8")) for path in paths)


def count(source: str) -> int:
    r"""Count the lines of a Python source that hold code, not blank lines, comments and docstrings.

    >>> count('"one"\n\n# two\nx = (1,\n     2)\n')
    2
    """
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            code.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code)


def compare(found: Mapping[str, Any]) -> Section:
    """Compare the counts with the paper's figures."""
    rows = [
        ("system A (L-BFGS)", "10,000", f"{found['lbfgs']:,}, on mpips"),
        ("system B (block proximal gradient)", "30,000", ""),
        (
            "parameter server (block proximal gradient)",
            "300",
            f"{found['listing']:,} (`job.py`, `settings.py`)",
        ),
        ("... with its kernels, step control, active set, start and reset", "", f"{found['method']:,}"),
        ("... and online learners, exact sums, lost workers, evaluation", "", f"{found['sparse_lr']:,}"),
        ("LDA", "", f"{found['lda']:,}"),
        ("sketching", "", f"{found['sketch']:,}"),
        ("the library: `mpips/` without commands and benchmarks", "", f"{found['mpips']:,}"),
    ]
    ours = f"{found['method']:,}, of which `job.py`, `settings.py` {found['listing']:,}"
    claim = Claim("Table 3: lines of sparse LR", "300", ours, agreement(found["method"], (0, 400)))
    facts = {"lbfgs": found["lbfgs"], "times": f"{found['method'] / 300:.1f}"}
    return Section([claim], table(("", "the paper", "here"), rows), facts)
