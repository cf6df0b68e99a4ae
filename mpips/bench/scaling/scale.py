"""`mpips bench scale`: each cost of a run as a function of the number of ranks."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from mpips.bench import _runs
from mpips.bench._runs import FinishedRun, at_least, listed, note, one_of
from mpips.bench.failures import _killing
from mpips.bench.scaling import _simulated_ranks
from mpips.bench.scaling._growth import fitted
from mpips.config.job_file import load
from mpips.launch import mpi_launcher
from mpips.report import charts
from mpips.rundir.progress import Column, bytes_si, seconds, significant

DESCRIPTION = """\
The same work by increasing numbers of ranks on this machine, a quarter of them servers, with and without copies of all
keys: messages and bytes of a rank and pass, processor time, memory, seconds to start, to end, and to recover from the
death of a server. On the in-memory twin a pass of many more workers, each of which pushes and pulls keys of few shards.

  mpips bench scale                                  4, 8, 16 and 32 ranks; 64 and 256 workers on the twin
  mpips bench scale --ranks 4,8,16,32,64 --twin 64,256,1024 --plot scale.svg
  mpips bench scale --train a9a.svm --train news20b.svm.xz --programs darlin    each file is a separate data set
  mpips bench scale --ranks 64 --replicas 1 --programs darlin --no-deaths

Programs: darlin and ftrl are sparse_lr in sequential mode; rounds are pushes and pulls of all keys, aggregated over the
workers. Processor time is that of training. PSS is a rank's share of memory: shared memory is divided. No message may
be sent twice in a run without deaths, and the parameters must have the same bits for any number of copies, also after
the death of a server.

Each cost is fitted by a * N^b, N being the number of ranks (least squares in logarithms).
"""

PROGRAMS = ("darlin", "ftrl", "rounds")
EXAMPLES = 4_000
"""Examples of the project's own data, unless --train is given."""
LOOK = 0.05
"""Seconds between two checks whether training has started."""
FAR = (1_000, 3_000)
"""Numbers of ranks for which the fit is evaluated."""
ROLES = ("scheduler", "server", "worker")

COSTS = {
    "start": ("seconds to start", seconds),
    "leave": ("seconds to leave", seconds),
    "pass_seconds": ("seconds a pass", seconds),
    **{f"messages_{role}": (f"messages of a {role}", significant(3)) for role in ROLES},
    **{f"bytes_{role}": (f"bytes of a {role}", bytes_si) for role in ROLES},
    **{f"cpu_{role}": (f"processor time of a {role}", seconds) for role in ROLES},
    "pss": ("PSS of a rank", bytes_si),
    "private": ("private memory of a rank", bytes_si),
    "survived": ("seconds to recover from a server's death", seconds),
}
"""The fitted costs: text and format."""

COLUMNS = (
    Column("program", "program", 7),
    Column("ranks", "ranks", 5),
    Column("replicas", "k", 1),
    Column("start", "start", 6, seconds),
    Column("pass_seconds", "s/pass", 6, seconds),
    Column("leave", "leave", 6, seconds),
    *(Column(f"messages_{role}", f"msgs {role[:5]}", 10, significant(3)) for role in ROLES),
    *(Column(f"bytes_{role}", f"bytes {role[:5]}", 11, bytes_si) for role in ROLES),
    *(Column(f"cpu_{role}", f"cpu {role[:5]}", 9, seconds) for role in ROLES),
    Column("pss", "PSS", 6, bytes_si),
    Column("private", "private", 7, bytes_si),
    Column("noticed", "noticed", 7, seconds),
    Column("survived", "survived", 8, seconds),
    Column("again", "sent again", 10),
    Column("same", "same bits", 9),
)
FITS = (
    Column("program", "program", 7),
    Column("replicas", "k", 1),
    Column("cost", "cost", 36, lambda text: str(text).ljust(36)),
    Column("b", "b", 5, "{:+.2f}".format),
    Column("kind", "grows", 11),
    *(Column(f"at_{ranks}", f"at {ranks:,}", 8) for ranks in FAR),
)

DRAWN = {
    "start": "seconds to start",
    "messages_scheduler": "messages of the scheduler",
    "messages_server": "of a server",
    "messages_worker": "of a worker",
    "cpu_worker": "processor time of a worker",
    "private": "private memory",
}
"""The costs in the plot, relative to those with the fewest ranks."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _runs.job_parser("scale", DESCRIPTION)
    parser.add_argument("--ranks", type=sizes(4), default=[4, 8, 16, 32], metavar="N,...",
                        help="real ranks; default 4,8,16,32; 0: none")  # fmt: skip
    parser.add_argument("--twin", type=sizes(1), default=[64, 256], metavar="W,...",
                        help="workers on the twin; default 64,256; 0: none")  # fmt: skip
    parser.add_argument("--replicas", type=listed(at_least(0)), default=[0, 1], help="default 0,1")
    parser.add_argument("--programs", type=listed(one_of(PROGRAMS)), default=list(PROGRAMS),
                        help=f"default {','.join(PROGRAMS)}")  # fmt: skip
    parser.add_argument("--train", action="append", metavar="FILE", help="a separate data set; repeatable; "
                        f"default: {EXAMPLES:,} of the project's own examples")  # fmt: skip
    parser.add_argument("--passes", type=at_least(1), default=10, help="default 10")
    parser.add_argument("--keys", type=at_least(1), default=50_000, help="keys of a round; default 50,000")
    parser.add_argument("--no-deaths", action="store_true", help="kill no server")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw it")
    return parser


def sizes(least: int) -> Any:
    """Return an argparse type for lists of numbers of at least `least`; 0 is none."""

    def read(text: str) -> list[int]:
        found = listed(at_least(0))(text)
        if any(0 < each < least for each in found):
            raise argparse.ArgumentTypeError(f"must be at least {least} each, or 0 for none; got {text}")
        return sorted(set(found) - {0})

    return read


class Work(NamedTuple):
    """A program to run with increasing numbers of ranks."""

    name: str
    job: Path
    settings: list[str]
    killed: int
    """The first server's change at which it is killed, well before the end."""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 1 if a message was sent twice in a run without deaths, or the bits differ."""
    options = parser().parse_args(arguments)
    _runs.check_plot(options.plot)
    dies = (
        not options.no_deaths and bool(options.ranks) and mpi_launcher.find_starter(options.launcher).mpi.ulfm
    )
    conditions = _runs.conditions()
    rows: list[dict[str, Any]] = []
    with _runs.folders(options.keep) as folder:
        works = list(programs(options, folder)) if options.ranks else []
        for work in works:
            # Wrong options are reported before any run.
            load(work.job, work.settings)
        for ranks in options.ranks:
            for work in works:
                for row in run_sizes(options, work, ranks, folder, dies):
                    rows.append(row)
                    # Large sizes take long: earlier measurements are written even if these fail.
                    _runs.write_report(options.json, {"benchmark": "scale", "rows": rows})
    for workers in options.twin:
        for replicas in options.replicas:
            note(f"on the twin: {workers} workers, k = {replicas}")
            rows.append(_simulated_ranks.measured(workers, replicas))
    report = {
        "benchmark": "scale",
        "conditions": conditions | {"load_after": _runs.conditions()["load"]},
        "passes": options.passes,
        "keys": options.keys,
        "settings": options.set,
        "rows": rows,
        "fits": fits(rows),
        "problems": problems(rows),
    }
    print(text(report))
    _runs.write_report(options.json, report)
    if options.plot is not None:
        Path(options.plot).write_text(draw_plot(rows), encoding="utf-8")
    return 1 if report["problems"] else 0


# --- real ranks ------------------------------------------------------------------------------------------


def programs(options: argparse.Namespace, folder: Path) -> Iterator[Work]:
    """Return the programs, for each data set; `folder` is for files of this benchmark."""
    if options.train:
        sets = {Path(file).name.partition(".")[0]: _runs.absolute([file]) for file in options.train}
        crosses = ["data.crosses=[]"]
    else:
        own = folder / "flights.tsv"
        _killing.first_examples(_runs.job_file(), own, EXAMPLES)
        sets, crosses = {"flights": [str(own)]}, []
    shared = [
        "data.test=[]", *crosses, 'consistency.model="sequential"', "consistency.tau=0",
        f"sparse_lr.passes={options.passes}", "sparse_lr.epsilon=1e-300", "sparse_lr.newton=false",
    ]  # fmt: skip
    for program, job in (("darlin", "job.toml"), ("ftrl", "ftrl.toml")):
        if program in options.programs:
            for name, data in sets.items():
                own_data = [f"data.train={json.dumps(data)}", *shared]
                yield Work(
                    f"{program} {name}", _runs.job_file(job), [*own_data, *options.set], 3 * options.passes
                )
    if "rounds" in options.programs:
        file = folder / "rounds.toml"
        file.write_text('[job]\nprogram = "mpips.bench.scaling._rounds"\n')
        size = [f"_rounds.rounds={options.passes}", f"_rounds.keys={options.keys}", "_rounds.pulled=true"]
        size += [each for each in options.set if not each.startswith("sparse_lr.")]
        yield Work("rounds", file, size, max(1, options.passes // 2))


def run_sizes(
    options: argparse.Namespace, work: Work, ranks: int, folder: Path, dies: bool
) -> Iterator[dict[str, Any]]:
    """Run a program with a number of ranks, for every number of copies; with copies also with a death."""
    servers = max(1, round(ranks / 4))
    for replicas in options.replicas:
        if replicas >= servers:
            note(f"{work.name}: {ranks} ranks have {servers} servers, too few for k = {replicas}")
            continue
        for killed in (False, True) if dies and servers > replicas > 0 else (False,):
            note(f"{work.name}: {ranks} ranks, k = {replicas}{', a server is killed' if killed else ''}")
            layout = [f"layout.servers={servers}", f"layout.workers={ranks - 1 - servers}"]
            settings = [*work.settings, *layout, f"ring.replicas={replicas}"]
            if killed:
                settings.append(f'faults.kill=[{{role = "server", index = 0, at_step = {work.killed}}}]')
            watch = Watch()
            at = folder / f"{work.name.replace(' ', '-')}-{ranks}-{replicas}{'-killed' * killed}"
            run = _runs.run(work.job, at, settings, options.launcher, watch)
            yield measured(work.name, replicas, killed, run, watch)


class Watch:
    """Records when a run was launched, when its training started, and when it had ended (wall, s)."""

    def __init__(self) -> None:
        self.launched = self._looked = time.time()
        self.began: float | None = None

    def __call__(self, folder: Path) -> None:
        """Check whether training has started."""
        now = time.time()
        if self.began is not None or now < self._looked + LOOK:
            return
        self._looked = now
        with suppress(OSError, ValueError):
            for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
                if line.get("event") in ("begun", "pass"):
                    self.began = now - float(line.get("seconds", 0.0))
                    return

    def times(self, folder: Path) -> dict[str, float | None]:
        """Return the seconds to start and to end of a run that has just ended."""
        left = time.time() - (folder / "result.json").stat().st_mtime
        return {"start": None if self.began is None else self.began - self.launched, "leave": left}


def measured(program: str, replicas: int, killed: bool, run: FinishedRun, watch: Watch) -> dict[str, Any]:
    """Return the measurements of a run that has just ended; for a run with a death, only its outcome."""
    result = run.result
    layout, passes = result["layout"], count_passes(result["metrics"])
    row: dict[str, Any] = {
        "program": program,
        "ranks": layout["ranks"],
        "servers": layout["servers"],
        "workers": layout["workers"],
        "replicas": replicas,
        "killed": killed,
        "passes": passes,
        "train": result["seconds"]["train"],
        "parameters_sha256": result["parameters_sha256"],
        "sent_again": result["traffic"]["sent_again"],
        "lost": len(result["recoveries"]),
    }
    if killed:
        first: Mapping[str, Any] = next(iter(result["recoveries"]), {})
        return row | {"noticed": first.get("noticed_after"), "survived": first.get("seconds")}
    return row | watch.times(run.folder) | usage_by_role(result["ranks"], passes) | {
        "pass_seconds": result["seconds"]["train"] / passes,
        "sent": run.sent / passes,
    }  # fmt: skip


def count_passes(metrics: Mapping[str, Any]) -> int:
    """Return the number of passes, or rounds, of a run."""
    return int(metrics.get("passes") or metrics["rounds"])


def usage_by_role(ranks: Sequence[Mapping[str, Any]], passes: int) -> dict[str, float]:
    """Return the means of each role's ranks for a pass, and the mean memory of all ranks."""
    found: dict[str, float] = {}
    for role in ROLES:
        mine = [each for each in ranks if each["role"] == role]
        for name, key in (("messages", "messages"), ("bytes", "sent"), ("cpu", "cpu")):
            found[f"{name}_{role}"] = fmean(each[key] for each in mine) / passes
    for key in ("pss", "private"):
        sizes = [each[key] for each in ranks if each.get(key)]
        if sizes:
            found[key] = fmean(sizes)
    return found


# --- the report -----------------------------------------------------------------------------------------


def problems(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe violations: messages sent twice or ranks lost without a death; other bits; an undetected death."""
    found = []
    bits: dict[tuple[str, int], str] = {}
    for row in rows:
        which = f"{row['program']}, {row['ranks']} ranks, k = {row['replicas']}"
        which += ", a server killed" if row.get("killed") else ""
        if row["sent_again"] and not row.get("killed"):
            found.append(f"{which}: sent again: {row['sent_again']}")
        if row.get("lost") and not row.get("killed"):
            found.append(f"{which}: healthy ranks excluded: {row['lost']}")
        if row.get("killed") and row.get("survived") is None:
            found.append(f"{which}: the death was not detected")
        sha = row.get("parameters_sha256")
        if sha is not None and bits.setdefault((row["program"], row["ranks"]), sha) != sha:
            found.append(f"{which}: other bits than in the first run with the same number of ranks")
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each program, number of ranks and of copies, with the outcome of a death."""
    lines = []
    for row in (each for each in rows if not each.get("killed")):
        of = ("program", "ranks", "replicas")
        twins = [each for each in rows if all(each[key] == row[key] for key in of)]
        killed: Mapping[str, Any] = next((each for each in twins if each.get("killed")), {})
        outcome = {key: killed.get(key) for key in ("noticed", "survived")}
        again = sum(row["sent_again"].values())
        first = next(each for each in rows if all(each[key] == row[key] for key in of[:2]))
        same = {each.get("parameters_sha256") for each in (*twins, first)}
        compared = "-" if None in same else "yes" if len(same) == 1 else "NO"
        lines.append({**row, **outcome, "again": again or "none", "same": compared})
    return lines


def fits(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Fit each cost of each program and number of copies against the number of ranks."""
    lines, found = table(rows), []
    for program, replicas in dict.fromkeys((line["program"], line["replicas"]) for line in lines):
        mine = [line for line in lines if (line["program"], line["replicas"]) == (program, replicas)]
        for cost, (what, show) in COSTS.items():
            points = [(line["ranks"], line[cost]) for line in mine if line.get(cost) is not None]
            law = fitted(points)
            if law is not None:
                at = {f"at_{ranks}": show(law.at(ranks)) for ranks in FAR}
                found.append(
                    {
                        "program": program,
                        "replicas": replicas,
                        "cost": what,
                        "a": law.a,
                        "b": law.b,
                        "kind": law.kind,
                    }
                    | at
                )
    return found


def text(report: Mapping[str, Any]) -> str:
    """Format the report as text."""
    rows = report["rows"]
    lines = [
        _runs.described(report["conditions"]) + f"; {report['conditions']['load_after']:.2f} at the end",
        f"{report['passes']} passes; msgs, bytes and cpu are means of a rank and pass; "
        f"rounds and the twin's passes: see --help",
        "",
        _runs.table(COLUMNS, table(rows)),
    ]
    if report["fits"]:
        lines += ["", "cost = a * N^b, N ranks:", _runs.table(FITS, report["fits"])]
    return "\n".join(
        [*lines, "", *(report["problems"] or ["no message was sent twice; the bits are the same"])]
    )


def draw_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw costs of the first program with most copies, relative to those with the fewest ranks, as SVG."""
    lines = table(rows)
    first = max(lines, key=lambda line: (line["program"] == lines[0]["program"], line["replicas"]))
    mine = [line for line in lines if all(line[key] == first[key] for key in ("program", "replicas"))]
    series = []
    for number, (cost, name) in enumerate(DRAWN.items()):
        points = [(line["ranks"], line[cost]) for line in mine if line.get(cost)]
        if points:
            least = points[0][1]
            series.append(charts.Series(name, [(ranks, value / least) for ranks, value in points], number))
    label = (
        f"{first['program']}, k = {first['replicas']}: costs of a rank, relative to {mine[0]['ranks']} ranks"
    )
    svg = charts.lines(series, label=label, x="ranks", y=label, log=True)
    legend = [(f"k{each.colour}", each.name) for each in series]
    return charts.standalone(svg, legend)
