"""`mpips bench filters`: sparse_lr's traffic by filters, and their cost: the paper's figures 11 and 12."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpips.bench import _runs
from mpips.bench._runs import FinishedRun, at_least, note, summarize
from mpips.bench.applications import sparse_lr
from mpips.bench.requests import coding
from mpips.config.job_file import load
from mpips.filters import named
from mpips.provenance import output_file
from mpips.report.charts import Bar, BarPart, Series, bars, lines, tiled
from mpips.report.html import Html
from mpips.rundir.progress import Column, bytes_si, seconds, share, significant

DESCRIPTION = """\
The bytes that workers and servers send until training reaches 0.1 % above the optimum, for several combinations of
filters (the paper's figure 11), and the share of features that the KKT filter leaves out in each pass (figure 12).
Each line of the table is a complete run:

  none             keys and values of all features in each pass
  key caching      repeated lists of keys are replaced by a hash
  KKT              features are left out whose weight is 0 and, by their gradient, will stay 0
  + lz4, + zstd    KKT, key caching, and compression of pushes and answers
  + fixed_point    KKT, key caching, rows of the passes rounded at random to 2 or 1 bytes, and compression

  mpips bench filters                            the project's own data: flights, 205,119 features
  mpips bench filters --quick
  mpips bench filters --train news20.train.svm.xz --optimum 1056.5146 --json filters.json
  mpips bench filters --filter '["zeros", {name = "zstd", level = 3}]' --filter '["lz4"]'
  mpips bench filters --settle                   to the optimum that each combination finds, not to the target

`fewer` is the factor by which filters reduce the bytes; for servers also as the paper counts, where answers without
filters contain keys and values, as pushes do (here they never contain keys). `KKT` is the mean share of features that
it leaves out in a pass. `ms/MB` is the processor time of encoding and decoding per megabyte that the chain after KKT
and key caching saves; 1 Gbit/s transfers a megabyte in 8 ms. Bytes are those of training only, with headers. This job
allows rounding only for the rows of its passes, not for answers, starts and resets.
The figure is written next to the JSON file, or into the folder of --keep, with the table.
"""

COLUMNS = (
    Column("name", "filters", 26, lambda text: str(text).ljust(26)),
    Column("worker", "workers", 8, bytes_si),
    Column("worker_fewer", "fewer", 6, significant(3)),
    Column("server", "servers", 8, bytes_si),
    Column("server_fewer", "fewer", 6, significant(3)),
    Column("server_counted", "(paper)", 7, significant(3)),
    Column("seconds", "to target", 9, seconds),
    Column("passes", "passes", 6, "{:g}".format),
    Column("excess", "F/F* - 1", 9, "{:.1e}".format),
    Column("filtered", "KKT", 6, share),
    Column("cost", "ms/MB", 6, significant(2)),
)


class Combination(NamedTuple):
    """A combination of filters: the job's own KKT filter, the key cache, and a chain for pushes and answers."""

    name: str
    kkt: bool
    caching: bool
    chain: tuple[Any, ...] = ()

    @property
    def settings(self) -> list[str]:
        """Return the settings of this combination."""
        chain = chain_toml(self.chain)
        cache = [] if self.caching else ["ring.key_cache=0"]
        return [
            f"sparse_lr.kkt={'true' if self.kkt else 'false'}",
            f"filters.push={chain}",
            f"filters.pull={chain}",
            *cache,
        ]


NONE = Combination("none", False, False)
WITHOUT_CHAINS = (
    NONE,
    Combination("key caching", False, True),
    Combination("KKT", True, False),
    Combination("KKT, key caching", True, True),
)
QUICK = WITHOUT_CHAINS[0], WITHOUT_CHAINS[1], WITHOUT_CHAINS[3]
CHAINS: tuple[tuple[Any, ...], ...] = (
    ("lz4",),
    ("zstd",),
    ({"name": "fixed_point", "bytes": 2}, "zstd"),
    ({"name": "fixed_point", "bytes": 1}, "zstd"),
)
QUICK_CHAINS = CHAINS[1:2]


def chain_toml(chain: Sequence[Any]) -> str:
    """Format a chain as in a job file."""

    def entry(each: Any) -> str:
        if isinstance(each, str):
            return json.dumps(each)
        return "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in each.items()) + "}"

    return "[" + ", ".join(map(entry, chain)) + "]"


def combinations(chains: Sequence[Sequence[Any]], quick: bool = False) -> list[Combination]:
    """Return the combinations to compare, the one without filters first.

    Raises:
        InputError: a chain needs a library that is not installed.
    """
    # Duplicates are run once.
    more: dict[str, Combination] = {}
    for chain in chains:
        named.check(list(chain))
        more[chain_toml(chain)] = Combination(f"+ {coding.format_chain(chain)}", True, True, tuple(chain))
    return [*(QUICK if quick else WITHOUT_CHAINS), *more.values()]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 1 if a run without rounding did not reach the target."""
    options = parsed(arguments)
    chains = [*(QUICK_CHAINS if options.quick else CHAINS), *map(coding.chain, options.filter)]
    all_combinations = combinations(chains, options.quick)
    figure = figure_path(options)
    common = [f"sparse_lr.l1={options.l1!r}", *_runs.overrides(options)]
    job_file, conditions = _runs.job_file(), _runs.conditions()
    job = load(job_file, common)
    runs: list[dict[str, Any]] = []
    with _runs.folders(options.keep) as folder:
        best, source = sparse_lr.find_optimum(options, job, folder)
        target = options.target * best
        common += stop_settings(options, target)
        for number in range(options.repeat):
            for index, combination in enumerate(all_combinations):
                note(f"round {number + 1} of {options.repeat}: {combination.name}")
                at = folder / f"{index}-{number}"
                run = _runs.run(job_file, at, [*common, *combination.settings], options.launcher)
                runs.append(measured(combination, run, best, target))
                layout = run.result["layout"]
    report = {
        "benchmark": "filters",
        "conditions": conditions,
        "layout": layout,
        "l1": job.settings.l1,
        "optimum": best,
        "optimum_from": source,
        "target": target,
        "settle": options.settle,
        "runs": runs,
        "table": table(runs),
        "filtered": filtered(runs),
    }
    written = text(report)
    print(written)
    _runs.write_report(options.json, report)
    if figure is not None:
        draw(report, figure)
        figure.with_suffix(".txt").write_text(written + "\n")
    exact = [each for each in runs if "fixed_point" not in each["name"]]
    return 0 if all(each["seconds"] is not None for each in exact) else 1


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options."""
    parser = _runs.common_parser("filters", DESCRIPTION, repeat=1)
    parser.add_argument("--l1", type=at_least(1e-12, float), default=1.0, help="default 1")
    parser.add_argument(
        "--target", type=_runs.above_one, default=1.001, help="relative to the optimum; default 1.001"
    )
    parser.add_argument("--optimum", type=at_least(0.0, float), metavar="F", help="the optimum, if known")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="LIST", help="an additional chain; repeatable"
    )
    parser.add_argument("--settle", action="store_true", help="let each run converge")
    parser.add_argument("--quick", action="store_true", help="only none, key caching, KKT with it, and zstd")
    parser.add_argument("--plot", metavar="FILE.svg", help="the file of the plot")
    return parser.parse_args(arguments)


def figure_path(options: argparse.Namespace) -> Path | None:
    """Return the path of the figure: of --plot, else next to the JSON file, else in the kept folder.

    Raises:
        InputError: it was requested, and cannot be drawn there.
    """
    if options.plot is not None:
        _runs.check_plot(options.plot)
    if options.plot is not None or options.json is not None:
        path = Path(options.plot or Path(options.json).with_suffix(".svg"))
        output_file.check(path, own=_runs.PLOT)
        output_file.check(path.with_suffix(".txt"), own=rb"machine: ")
        return path
    return None if options.keep is None else Path(options.keep) / "filters.svg"


def stop_settings(options: argparse.Namespace, target: float) -> list[str]:
    """Return the setting that ends a run: at the target or, with `--settle`, at convergence."""
    epsilon = min(2e-4, (options.target - 1.0) / 5.0)
    return [f"sparse_lr.epsilon={epsilon!r}"] + ([] if options.settle else [f"sparse_lr.target={target!r}"])


def measured(combination: Combination, run: FinishedRun, best: float, target: float) -> dict[str, Any]:
    """Return the measurements of a run; None if it did not reach the target."""
    reached = run.reached(target)
    traffic = training_traffic(run)
    mine = [
        traffic["per_filter"].get(each if isinstance(each, str) else each["name"])
        for each in combination.chain
    ]
    parts = [part for by in mine if by is not None for part in by.values()]
    saved = sum(part["raw"] - part["wire"] for part in parts)
    spent = sum(part["seconds"] for part in parts)
    return {
        "name": combination.name,
        "kkt": combination.kkt,
        "caching": combination.caching,
        "chain": list(combination.chain),
        "seconds": reached["seconds"] if reached else None,
        "passes": run.result["metrics"]["passes"],
        "objective": run.result["metrics"]["objective"],
        "excess": run.result["metrics"]["objective"] / best - 1.0,
        "worker": traffic["worker_sent"],
        "server": traffic["server_sent"],
        "traffic": traffic,
        "filtered": [line["filtered"] for line in run.passes],
        "saved": saved,
        "filter_seconds": spent,
        "cost": 1e9 * spent / saved if saved > 0 else None,
    }


def training_traffic(run: FinishedRun) -> dict[str, Any]:
    """Return the traffic of a run's training, without that of its evaluation."""
    traffic: dict[str, Any] = _runs.events(run.folder, "trained")[0]["traffic"]
    return traffic


def table(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each combination: medians over its runs, and the factor by which bytes are reduced."""
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(each["name"] for each in runs):
        mine = [each for each in runs if each["name"] == name]
        keys = ("worker", "server", "seconds", "passes", "excess", "cost")
        row: dict[str, Any] = {"name": name}
        for key in keys:
            values = [each[key] for each in mine]
            row[key] = None if None in values else summarize(values)["median"]
        if mine[0]["kkt"]:
            row["filtered"] = mean(mine[0]["filtered"])
        row["counted"] = summarize(each["traffic"]["server_raw"] for each in mine)["median"]
        base = (rows or [row])[0]
        if rows:
            row["worker_fewer"] = base["worker"] / row["worker"]
            row["server_fewer"] = base["server"] / row["server"]
            row["server_counted"] = base["counted"] / row["server"]
        rows.append(row)
    return rows


def filtered(runs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the share of features that KKT left out in each pass, by combination; equal shares occur once."""
    found: dict[str, list[float]] = {}
    for each in runs:
        if each["kkt"] and each["filtered"] not in found.values():
            found[each["name"]] = each["filtered"]
    return found


def mean(values: Sequence[float]) -> float:
    """Return the mean of values; 0 if there are none."""
    return sum(values) / max(len(values), 1)


def text(report: dict[str, Any]) -> str:
    """Format the report as text."""
    layout, rows = report["layout"], report["table"]
    base, best, runs = rows[0], report["optimum"], report["runs"]
    end = "the end of each run" if report["settle"] else "the target"
    repeats = len(runs) // len(rows)
    lines = [
        _runs.described(report["conditions"]),
        f"servers {layout['servers']}, workers {layout['workers']}; l1 = {report['l1']:g}; "
        + ("one run each" if repeats == 1 else f"medians of {repeats} runs each"),
        f"optimum {best:.8g} ({report['optimum_from']}); target {report['target']:.8g} = "
        f"{report['target'] / best:.6g} times it; bytes up to {end}",
        "",
        _runs.table(COLUMNS, rows),
        "",
        f"none: servers sent {bytes_si(base['server'])}; as the paper counts, with keys, {bytes_si(base['counted'])}",
    ]
    for name, shares in report["filtered"].items():
        each = [f"{100.0 * value:.1f}" for value in shares]
        shown = each if len(each) <= 12 else [*each[:8], "...", *each[-2:]]
        lines.append(f"filtered by KKT, % of the features in each pass, {name}: {' '.join(shown)}")
    missed = [row["name"] for row in rows if row["seconds"] is None]
    if missed:
        lines.append(f"not every run reached the target: {', '.join(missed)}")
    return "\n".join(lines)


# --- The figure ----------------------------------------------------------------------------------------


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the bytes of each combination (the paper's figure 11), and the features left out by pass (figure 12)."""
    panels = [
        (
            "bytes sent, and how many times fewer: workers, and servers as the paper counts",
            bytes_chart(report["table"]),
        ),
        ("features left out by the KKT filter", left_out_chart(report["filtered"])),
    ]
    path.write_text(tiled([panel for panel in panels if "<svg" in panel[1]], 2), encoding="utf-8")


def bytes_chart(rows: Sequence[Mapping[str, Any]]) -> Html:
    """Draw the bytes of each combination; without filters, servers' answers as the paper counts them."""
    found = []
    for row in rows:
        server = row["counted"] if "server_counted" not in row else row["server"]
        name = row["name"].replace("fixed_point 1", "1 byte").replace("fixed_point 2", "2 bytes")
        for role, label, kind, size, fewer in (
            ("workers", name, "k0", row["worker"], row.get("worker_fewer")),
            ("servers", "", "k1", server, row.get("server_counted")),
        ):
            times = f", {fewer:.3g}x fewer" if fewer is not None else ""
            found.append(Bar(label, [BarPart(size, kind, role)], bytes_si(size) + times))
    return bars(found, label="bytes sent by filters", show=bytes_si)


def left_out_chart(filtered: Mapping[str, Sequence[float]]) -> Html:
    """Draw the share of the features that the KKT filter leaves out, by pass."""
    series = [
        Series(name, [(number + 1.0, 100.0 * value) for number, value in enumerate(shares)], colour)
        for colour, (name, shares) in enumerate(filtered.items())
    ]
    return lines(
        series, label="features left out by pass", x="pass", y="% of features left out", show_y="{:g}".format
    )
