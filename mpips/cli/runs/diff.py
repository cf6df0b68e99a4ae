"""`mpips diff`: show the differences between two runs or two checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mpips.process.argument_parser import add_command
from mpips.process.printable import Control, json_text, one_line, printable

if TYPE_CHECKING:
    from mpips.report.diff import Comparison, CurveDifference, Figure, Parameters, Side
    from mpips.report.table_diff import Difference

DESCRIPTION = """\
Show the differences between two runs or two checkpoints: their provenance (job, sources, versions, inputs, machine,
layout, environment), their metrics, and their parameters, bit by bit.

  mpips diff runs/sparse_lr-20260102T030405Z latest
  mpips diff checkpoints/sparse_lr/step-000010 checkpoints/sparse_lr/step-000020
  mpips diff A B --json | jq .parameters

Parameters are compared by their hash, and value by value if both sides have a model file of the same name or
checkpoints of the same step. A key that is missing on one side has its initial value, usually 0.
"""

EPILOG = """\
A and B are run folders or checkpoints; `latest` is the run under runs/ that was started last.
exit codes: 0 the parameters have the same bits; 1 they differ, or this is not known; 2 the input is wrong."""

LIMIT = 12
"""Maximum number of lines of a group."""
CELL = 48
"""Maximum number of characters of a value."""

BOLD, RED, GREEN, DIM = "1", "31", "32", "2"


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "diff", "show differences between two runs or checkpoints", DESCRIPTION, command, EPILOG
    )
    parser.add_argument("a", metavar="A", help="a run's or a checkpoint's folder, or latest")
    parser.add_argument("b", metavar="B", help="the other folder")
    parser.add_argument("--all", action="store_true", help="show all differences, and complete values")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def command(arguments: argparse.Namespace) -> int:
    """Compare; return 0 if the parameters have the same bits, else 1."""
    import os
    import shutil
    import sys

    from mpips.report import diff
    from mpips.rundir.order_files import named_run

    found = diff.compare(diff.side(named_run(arguments.a)), diff.side(named_run(arguments.b)))
    for each in filter(None, (found.a.warning, found.b.warning)):
        print(f"mpips: {one_line(each)}", file=sys.stderr)
    if arguments.json:
        print(json_text(as_json(found)))
    else:
        paint = Paint(sys.stdout.isatty() and "NO_COLOR" not in os.environ)
        fitting = (shutil.get_terminal_size((132, 24)).columns - 36) // 2
        limits = (10**9, 10**9) if arguments.all else (LIMIT, min(CELL, max(16, fitting)))
        for line in report(found, paint, *limits):
            print(line)
    return 0 if found.parameters.same else 1


class Paint:
    """Colours text on a terminal."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def __call__(self, text: str, *codes: str) -> str:
        """Colour a text."""
        if not self.enabled or not codes:
            return text
        return Control(f"\033[{';'.join(codes)}m{printable(text)}\033[0m")

    def join(self, *parts: str) -> str:
        """Join texts, some of which may be coloured."""
        shown = (part if isinstance(part, Control) else printable(part) for part in parts)
        return Control("".join(shown)) if self.enabled else "".join(parts)


# --- JSON ---------------------------------------------------------------------------------------------


def as_json(found: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON data."""

    def figures(some: Iterable[Figure]) -> list[dict[str, Any]]:
        return [each._asdict() | {"difference": each.difference, "relative": each.relative} for each in some]

    tables = [each._asdict() | {"same": each.same} for each in found.parameters.tables]
    sides = {
        name: {
            "path": str(each.path),
            "kind": each.kind,
            "status": each.status,
            "started": each.facts.get("started"),
        }
        for name, each in (("a", found.a), ("b", found.b))
    }
    return {
        "same": found.parameters.same,
        **sides,
        "provenance": {
            group: [each._asdict() for each in pairs] for group, pairs in found.provenance.items()
        },
        "metrics": figures(found.metrics),
        "costs": figures(found.costs),
        "curves": [each._asdict() for each in found.curves],
        "parameters": found.parameters._asdict() | {"tables": tables},
    }


# --- text ---------------------------------------------------------------------------------------------


def report(found: Comparison, paint: Paint, limit: int = LIMIT, cell: int = CELL) -> list[str]:
    """Return the lines of the comparison."""
    lines = [
        paint.join(paint(name, BOLD), f"  {each.path}  {each.status}, {_when(each)}")
        for name, each in (("A", found.a), ("B", found.b))
    ]
    lines += ["", paint("provenance", BOLD), *_provenance(found, paint, limit, cell)]
    if found.metrics:
        lines += ["", paint("metrics", BOLD), *_figures(found.metrics, paint)]
    if found.curves:
        lines += ["", paint("per pass", BOLD), *_curves(found.curves, paint)]
    if found.costs:
        lines += [
            "",
            paint("costs, which vary between runs", BOLD),
            *_figures(found.costs, Paint(False), brief=True),
        ]
    parameters = found.parameters
    verdict = {True: ("the same bits", GREEN), False: ("DIFFERENT", RED), None: ("unknown", RED)}
    text, colour = verdict[parameters.same]
    by = f" by {parameters.compared}" if parameters.compared != "nothing" else ""
    lines += ["", paint.join(paint("parameters", BOLD), ": ", paint(text, colour), by)]
    lines += _parameters(parameters, paint)
    return lines


def _when(side: Side) -> str:
    step = f"step {side.step}, " if side.step is not None else ""
    started = side.facts.get("started")
    hosts = len({rank["host"] for rank in side.facts.get("ranks", [])})
    ranks = len(side.facts.get("ranks", []))
    where = f", {ranks} ranks on {hosts} host{'s' if hosts != 1 else ''}" if ranks else ""
    return f"{step}run started {started}{where}" if started else f"{step}no provenance"


def _provenance(found: Comparison, paint: Paint, limit: int, cell: int) -> list[str]:
    groups = found.provenance
    rows = [(group, each) for group, pairs in groups.items() for each in pairs[:limit]]
    shown = [(group, each.key, _cell(each.a, cell), _cell(each.b, cell)) for group, each in rows]
    lines, before = [], ""
    for row in _aligned([("", "", "A", "B"), *shown] if shown else []):
        group = row.split(" ", 1)[0]
        lines.append("  " + (row if group != before else " " * len(group) + row[len(group) :]))
        before = group
    lines = [paint(line, DIM) if not at else line for at, line in enumerate(lines)]
    for group, pairs in groups.items():
        if len(pairs) > limit:
            lines.append(f"  {group}: {len(pairs) - limit} more; --all shows them")
    if same := [group for group, pairs in groups.items() if not pairs]:
        lines.append(paint(f"  same: {', '.join(same)}", GREEN))
    for name, each in (("A", found.a), ("B", found.b)):
        if not each.facts:
            lines.append(
                f"  {name} has no provenance (written by an earlier version): only the job is compared"
            )
    return lines


def _figures(figures: Sequence[Figure], paint: Paint, brief: bool = False) -> list[str]:
    number = _brief if brief else _number
    rows = [("", "A", "B", "B - A", "relative")]
    for each in figures:
        gap, share = each.difference, each.relative
        if gap == 0:
            rows.append((each.name, number(each.a), "same", "", ""))
        else:
            shown = ("" if gap is None else f"{gap:+.3g}", "" if share is None else f"{share:.1e}")
            rows.append((each.name, number(each.a), number(each.b), *shown))
    lines = _aligned(rows, right=True)
    colours = [DIM, *(GREEN if each.difference == 0 else RED for each in figures)]
    return [paint("  " + line, colour) for line, colour in zip(lines, colours, strict=True)]


def _curves(curves: Sequence[CurveDifference], paint: Paint) -> list[str]:
    lines = []
    for event in dict.fromkeys(each.event for each in curves):
        mine = [each for each in curves if each.event == event]
        left, right = mine[0].passes
        count = f"{left}" if left == right else f"{left} and {right}"
        same = [each.name for each in mine if each.first is None]
        lines.append(f"  {event}: {count}" + (f"; the same in all: {', '.join(same)}" if same else ""))
        rows = [
            (each.name, f"from {event} {each.first} on", _number(each.a), _number(each.b))
            for each in mine
            if each.first is not None
        ]
        lines += [paint("    " + line, RED) for line in _aligned(rows)]
    return lines


def _parameters(parameters: Parameters, paint: Paint) -> list[str]:
    lines = [f"  {name}: sha256 {sha}" for name, sha in zip("AB", parameters.sha256, strict=True) if sha]
    if parameters.sha256[0] and parameters.sha256[0] == parameters.sha256[1]:
        lines = [f"  sha256 {parameters.sha256[0]}"]
    for each in parameters.tables:
        counts = (
            f"{each.keys[0]:,}" if each.keys[0] == each.keys[1] else f"{each.keys[0]:,} and {each.keys[1]:,}"
        )
        if each.same:
            lines.append(paint(f"  {each.name}: {counts} keys, the same", GREEN))
        else:
            lines += [paint(f"  {line}", RED) for line in _difference(each, counts)]
    return [*lines, *([f"  {parameters.note}"] if parameters.note else [])]


def _difference(each: Difference, counts: str) -> list[str]:
    lines = [
        f"{each.name}: {counts} keys, {each.differing:,} of which differ"
        + (f"; {each.note}" if each.note else "")
    ]
    if each.first is not None:
        values = " and ".join(", ".join(_number(value) for value in row) for row in each.first)
        lines.append(f"  first: key {each.first_key}: {values}")
        lines.append(f"  |A - B| of differing keys: max {each.maximum:.6g}, mean {each.mean:.6g}")
    return lines


def _cell(value: Any, limit: int) -> str:
    text = "-" if value is None else value if isinstance(value, str) else str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return (
        f"{value:,}"
        if isinstance(value, int)
        else repr(value)
        if 1e-4 <= abs(value) < 1e12
        else f"{value:.6g}"
    )


def _brief(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _aligned(rows: Sequence[Sequence[str]], right: bool = False) -> list[str]:
    """Align columns to the left, or all but the first to the right."""
    rows = [[printable(text, keep="") for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if right and at else text.ljust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
