"""`mpips trace`: show the time breakdown of a traced run."""

from __future__ import annotations

import argparse
import re
from typing import Any

from mpips.process.argument_parser import add_command
from mpips.provenance import output_file

DESCRIPTION = """\
Show the time breakdown of a traced run: each rank's shares of computing, waiting and the rest, and what it waited for.
Write all spans and messages as Chrome trace events, for https://ui.perfetto.dev.

  mpips run JOB.toml --set trace.on=true        trace a run
  mpips trace RUN                               table, and RUN/trace/trace.json.gz
  mpips trace latest --phase train              the table of a phase: load, train, checkpoint
  mpips trace RUN -o part.json --ranks 0,3,7    events of some ranks
  mpips trace RUN --between 2.5 4               events of an interval (s since the start)
"""

EPILOG = """\
RUN is a run folder, or `latest`: the one under runs/ that was started last.
compute: inside `context.working()`; program: the rest of the program's code; wait: for answers of servers, for calls,
for others; apply: execution of requests, also by compiled code; copies: changes from the chain; other: transport of
messages. The trace of a run that has not ended, or was killed, can be read too."""

SHOWN = 40
"""Maximum number of ranks in the table without --all."""
LONGEST = 10


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "trace", "show the time breakdown of a traced run", DESCRIPTION, command, EPILOG
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder, or latest")
    parser.add_argument("-o", "--out", metavar="FILE", help="the file of the events; .gz: compressed")
    output_file.add_force(parser)
    parser.add_argument("--no-events", action="store_true", help="show the table only")
    parser.add_argument("--phase", default="", metavar="NAME", help="the table of this phase only")
    parser.add_argument("--ranks", metavar="R,R", help="events of these ranks only")
    parser.add_argument(
        "--between", nargs=2, type=float, metavar=("FROM", "TO"), help="events of these seconds only"
    )
    parser.add_argument(
        "--all", action="store_true", help=f"one row per rank, also for more than {SHOWN} ranks"
    )


def command(arguments: argparse.Namespace) -> int:
    """Show the table, and write the events."""
    from pathlib import Path

    from mpips.errors import InputError
    from mpips.process.terminal.width import width
    from mpips.rundir.folder import RunFolder
    from mpips.rundir.order_files import named_run
    from mpips.rundir.progress import si
    from mpips.tracing import chrome
    from mpips.tracing.analysis import summed
    from mpips.tracing.one_clock import read

    run = named_run(arguments.run)
    try:
        ranks = None if arguments.ranks is None else [int(part) for part in arguments.ranks.split(",")]
    except ValueError:
        raise InputError(
            f"--ranks {arguments.ranks}: must be ranks separated by commas, as in 0,3,7"
        ) from None
    traces = read(run)
    unknown = set(ranks or ()) - {trace.rank for trace in traces}
    if unknown:
        raise InputError(f"--ranks: there is no trace of rank {min(unknown)} in {run}")
    found = summed(traces, arguments.phase)
    print(text(found, everyone=arguments.all, width=width()))
    if arguments.no_events:
        return 0
    within = None
    if arguments.between is not None:
        begin, end = arguments.between
        if not begin < end:
            raise InputError(f"--between {begin:g} {end:g}: FROM must be before TO")
        start = min(trace.begin for trace in traces)
        within = (start + begin, start + end)
    path = RunFolder(run).trace / "trace.json.gz" if arguments.out is None else Path(arguments.out)
    output_file.check(path, force=arguments.force, own=re.escape(chrome.HEAD.encode()))
    written = chrome.write(traces, path, ranks, within)
    unmatched = f" ({written.unmatched} more begin or end outside of all spans)" if written.unmatched else ""
    print(
        f"\n{path}: {si(written.spans)} spans, {si(written.flows)} messages between them{unmatched}; open it in"
    )
    print("https://ui.perfetto.dev")
    return 0


def text(found: dict[str, Any], everyone: bool = True, width: int = 1000) -> str:
    """Format a summary (`mpips.tracing.analysis.summed`) as text; a table that is wider than `width` is split."""
    from mpips.process.printable import printable
    from mpips.rundir.progress import Column, header, row, seconds, share, split

    ranks = found["ranks"]
    columns = [
        Column("who", "rank", max(6, *(len(_rank_name(rank)) for rank in ranks))),
        Column("seconds", "time", 7, seconds),
        *(Column(key, title, max(7, len(title)), share) for key, title in _COLUMNS),
    ]
    shown = ranks if everyone or len(ranks) <= SHOWN else []
    rows = [_row(_rank_name(rank), [rank]) for rank in shown]
    for role in ("scheduler", "server", "worker", "spare"):
        alike = [rank for rank in ranks if rank["role"] == role]
        if len(alike) > 1:
            rows.append(_row(f"{len(alike)} {role}s", alike))
    what = f"in the phase {found['phase']}" if found["phase"] else "in the whole run"
    lines = [f"time breakdown {what}, {seconds(found['seconds'])}:"]
    # What no rank has spent time on is left out, where there are ranks.
    used = [column for column in columns if not rows or any(column.key in each for each in rows)]
    for number, part in enumerate(split(used, width)):
        lines += [*([""] if number else []), header(part, 1000)]
        lines += [printable(row(part, each, 1000), keep="") for each in rows]
    waits = [wait for wait in found["waits"] if wait["seconds"] > 0][:LONGEST]
    if waits:
        lines += ["", "longest waits:"]
        names = {rank["rank"]: f"{rank['role']} {rank['index']}" for rank in ranks}
        lines += [printable(_wait_line(wait, names, found["seconds"]), keep="") for wait in waits]
    unseen = sum(rank["unseen"] for rank in ranks)
    if unseen > 0:
        lines.append(
            f"\n{seconds(unseen)} of all ranks' time was in spans so short and frequent that only sums were kept"
        )
    if found["dropped"]:
        lines.append(f"\n{found['dropped']:,} records exceeded [trace] limit: they are in the sums only")
    return "\n".join(lines)


_COLUMNS = (
    ("compute", "compute"), ("program", "program"), ("wait_answers", "wait: answers"), ("wait_calls", "wait: calls"),
    ("wait_others", "wait: others"), ("encode", "encode"), ("apply", "apply"), ("copies", "copies"),
    ("checkpoint", "checkpoint"), ("idle", "idle"), ("start", "start"), ("other", "other"),
)  # fmt: skip


def _rank_name(rank: dict[str, Any]) -> str:
    return f"{rank['rank']} {rank['role']} {rank['index']}"


def _row(who: str, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shares of some ranks' time."""
    total = sum(rank["seconds"] for rank in ranks) or 1e-9
    uses = {use: sum(rank["uses"][use] for rank in ranks) for use in ranks[0]["uses"]}
    uses["apply"] += uses.pop("serve")
    waits = {"wait_answers": 0.0, "wait_calls": 0.0, "wait_others": 0.0}
    for wait in (wait for rank in ranks for wait in rank["waits"]):
        waits[f"wait_{wait['kind']}"] += wait["seconds"]
    cells = {key: value / total for key, value in {**uses, **waits}.items() if value > 0}
    return {"who": who, "seconds": total / len(ranks), **cells}


def _wait_line(wait: dict[str, Any], names: dict[int, str], total: float) -> str:
    from mpips.rundir.progress import seconds, share

    last = "" if wait["from"] is None else f", last answer from {names.get(wait['from'], wait['from'])}"
    often = f", {wait['count']:,} times" if wait["count"] else ""
    part = share(wait["seconds"] / max(total, 1e-9))
    return f"  {names[wait['rank']]} for {wait['for']}{last}: {seconds(wait['seconds'])} ({part}{often})"
