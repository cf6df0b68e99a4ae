"""The parts of the reference that the code says: Markdown of commands, settings, exit codes, files and names.

A page has a marker `<!-- generated: NAME -->` for each, which `docs/conf.py` replaces.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mpips
from mpips import exit_codes
from mpips.cli.main import parser
from mpips.config.job_file import TABLES
from mpips.config.program import load_program
from mpips.launch.slurm_site import Site
from mpips.typed import documented

ROOT = Path(__file__).parent.parent


def _commands_of(root: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, each in action.choices.items():
                yield name, each
                yield from ((f"{name} {below}", of) for below, of in _commands_of(each))


def commands() -> str:
    """Return each command's help, from the parsers."""
    shown = []
    for name, each in _commands_of(parser()):
        each.formatter_class = _wide(each.formatter_class)
        shown.append(f"## mpips {name}\n\n```text\n{each.format_help().rstrip()}\n```\n")
    return "\n".join(shown)


def _wide(formatter: Any) -> Any:
    # The width of a terminal is no property of the commands.
    return lambda prog: formatter(prog, width=100)


def _table(name: str, spec: type) -> str:
    text = spec.__doc__ or ""
    summary = "" if text.startswith(f"{spec.__name__}(") else _markdown(text.strip().split("\n\n")[0])
    rows = [
        f"| `{key.name}` | {_cell(key.type)} | {_default(key.default)} | {_cell(key.doc)} |"
        for key in documented(spec)
    ]
    return "\n".join([
        f"### [{name}]", "", summary, "", "| key | type | default | meaning |", "|---|---|---|---|", *rows, "",
    ])  # fmt: skip


def _default(text: str) -> str:
    return "required" if text == "required" else f"`{text}`" if text else "not set"


def _markdown(text: str) -> str:
    """Return a text of a docstring as Markdown: in code marks nothing changes, elsewhere nothing has a meaning."""
    parts = re.split(r"(`+[^`]*`+)", " ".join(text.split()))
    return "".join(
        part if part.startswith("`") else re.sub(r"([\[\]<>*_|])", r"\\\1", part) for part in parts
    )


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", _markdown(text))


def job_file() -> str:
    """Return the tables that all programs share, from the typed settings."""
    return "\n".join(_table(name, spec) for name, spec in TABLES.items())


def program_tables() -> str:
    """Return the tables of the programs that come with mpips."""
    programs = [load_program(path.parent.name, ROOT) for path in sorted((ROOT / "jobs").glob("*/job.py"))]
    return "\n".join(_table(each.name, each.settings) for each in programs)


def site_file() -> str:
    """Return the keys of a cluster's site file."""
    return _table("the site file", Site).partition("\n")[2]


def codes() -> str:
    """Return the exit codes, with what is said at each."""
    said = {"COMPLETED": "the run is complete, also if ranks died during it; or the command has done what it should",
            "FAILED": "failed",
            "BAD_INPUT": "the input is wrong; one line says what, where, and what would be right"}  # fmt: skip
    (enumeration,) = [
        node for node in ast.parse(inspect.getsource(exit_codes)).body if isinstance(node, ast.ClassDef)
    ]
    for node, after in zip(enumeration.body, [*enumeration.body[1:], None], strict=True):
        if (
            isinstance(node, ast.Assign)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            said[ast.unparse(node.targets[0])] = " ".join(str(after.value.value).split())
    rows = [f"| {code.value} | {code.name} | {_cell(said[code.name])} |" for code in exit_codes.ExitCode]
    return "\n".join(["| code | name | meaning |", "|---|---|---|", *rows, ""])


def batch_variables() -> str:
    """Return the variables of the batch script, from its first lines."""
    lines = (ROOT / "slurm" / "job.sbatch").read_text().splitlines()
    rows = [re.fullmatch(r"#   (MPIPS_\w+) +(.*)", line) for line in lines]
    shown = [f"| `{row[1]}` | {_cell(row[2])} |" for row in rows if row]
    return "\n".join(["| variable | value |", "|---|---|", *shown, ""])


def names() -> str:
    """Return a section for each public name, with its docstring, in the order of docs/api.md."""
    page = (ROOT / "docs" / "api.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.M)
    return "\n".join(
        f"## {name}\n\n```{{eval-rst}}\n{_directive(name, said)}\n```\n" for name, said in listed
    )


def _directive(name: str, said: str) -> str:
    thing: Any = getattr(mpips, name)
    if inspect.isclass(thing):
        return f".. autoclass:: mpips.{name}\n   :members:\n"
    if inspect.ismodule(thing):
        return f".. automodule:: mpips.{name}\n   :members:\n"
    if inspect.isroutine(thing):
        return f".. autofunction:: mpips.{name}\n"
    # A constant has no docstring at run time: what the page says of it.
    return f".. py:currentmodule:: mpips\n\n.. py:data:: {name}\n\n   {said}\n"


def further_names() -> str:
    """Return sections for the packages beside `mpips` itself that programs, tests and notebooks use."""
    whole = ["mpips.data", "mpips.embedding", "mpips.torch", "mpips.jax"]
    shown = {name: f".. automodule:: {name}\n   :members:\n" for name in whole}
    shown["mpips.testing"] = ".. automodule:: mpips.testing\n   :members: simulate\n"
    scores = "fit, predict, predict_proba, decision_function"
    # Without what they inherit from scikit-learn.
    estimators = {
        "SparseLogisticRegression": scores,
        "FactorizationMachine": scores,
        "LatentDirichletAllocation": "fit, transform",
    }
    shown["mpips.estimators"] = "\n".join(
        f".. autoclass:: mpips.estimators.{name}\n   :members: {methods}\n"
        for name, methods in estimators.items()
    )
    return "\n".join(f"## {title}\n\n```{{eval-rst}}\n{text}\n```\n" for title, text in shown.items())


PARTS: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (commands, job_file, program_tables, site_file, codes, batch_variables, names, further_names)
}
