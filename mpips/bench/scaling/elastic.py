"""`mpips bench elastic`: latency of requests while a server joins, and while one leaves."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.bench import _runs
from mpips.bench.scaling import _requesting
from mpips.rundir.progress import Column, bytes_si, significant

DESCRIPTION = """\
A server joins a running job, and later another one leaves. Meanwhile the workers push and pull a few random keys at a
time, one request after the other, and record the latencies. At the end every sum on the servers is compared with the
pushes.

  mpips bench elastic                           2 servers and a spare, 2 workers, a million keys
  mpips bench elastic --servers 4 --keys 10000000 --set ring.replicas=1
  mpips bench elastic --set ring.repair_bandwidth=20e6
                                                copy more slowly: longer, with less effect on requests

The number of moved keys is compared with the minimum for a balanced ring of one more server, 1 / (S + 1) of all keys;
for a server that leaves, with what it held. Requests during the move are those in flight between the order and the
time when the last shard arrived.
"""

LATENCY, MOVED, IMBALANCE = 100e-3, 1.10, 1.15
"""Targets: p99 in seconds while a server joins, moved keys relative to the minimum, fullest server to the mean."""

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}

COLUMNS = (
    Column("phase", "requests", 16),
    Column("seconds", "seconds", 7, significant(3)),
    Column("count", "number", 7, "{:,}".format),
    Column("rate", "per s", 7, "{:,.0f}".format),
    Column("p50", "p50 ms", 7, lambda value: f"{1e3 * value:.3f}"),
    Column("p99", "p99 ms", 7, lambda value: f"{1e3 * value:.3f}"),
    Column("max", "max ms", 7, lambda value: f"{1e3 * value:.3f}"),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _runs.job_parser("elastic", DESCRIPTION)
    least = _runs.at_least
    parser.add_argument("--keys", type=least(1), default=1_000_000, metavar="N", help="default 1,000,000")
    parser.add_argument(
        "--servers", type=least(1), default=2, metavar="S", help="servers at the start; default 2"
    )
    parser.add_argument("--workers", type=least(1), default=2, metavar="W", help="default 2")
    parser.add_argument(
        "--batch", type=least(1), default=16, metavar="B", help="keys of a request; default 16"
    )
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64", help="default float64")
    parser.add_argument(
        "--pause",
        type=least(0.01, float),
        default=3.0,
        metavar="SECONDS",
        help="duration of requests before the join, after it, and after the leave; default 3",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 1 if a request failed, an update was lost or applied twice, or too many keys moved."""
    options = parser().parse_args(arguments)
    settings = [
        f"layout.servers={options.servers}", f"layout.workers={options.workers}", "layout.spares=1",
        f"_requesting.keys={options.keys}", f"_requesting.dtype={options.dtype}", f"_requesting.batch={options.batch}",
        f"_requesting.pause={options.pause!r}", *options.set,
    ]  # fmt: skip
    conditions = _runs.conditions()
    with _runs.folders(options.keep) as folder:
        job = folder / "requesting.toml"
        job.write_text('[job]\nprogram = "mpips.bench.scaling._requesting"\n')
        run = _runs.run(job, folder / "run", settings, options.launcher)
        notes = np.load(run.folder / _requesting.NOTES)
    metrics = run.result["metrics"]
    join, departure = metrics["changes"]
    report = {
        "benchmark": "elastic",
        "conditions": conditions,
        "layout": run.result["layout"],
        "keys": options.keys,
        "dtype": options.dtype,
        "batch": options.batch,
        "settings": options.set,
        **{name: metrics[name] for name in ("failed", "stale", "errors", "updates", "lost", "doubled")},
        "issued": len(notes) + metrics["failed"],
        "requests": phases(notes, join, departure, metrics["end"]),
        "join": cost(join, options.keys),
        "departure": cost(departure, options.keys),
        "targets": {"p99_joining": LATENCY, "moved": MOVED, "imbalance": IMBALANCE},
        "traffic": run.result["traffic"],
    }
    print(text(report))
    _runs.write_report(options.json, report)
    return 0 if good(report) else 1


def phases(
    notes: NDArray[np.float64], join: Mapping[str, Any], departure: Mapping[str, Any], end: float
) -> list[dict[str, Any]]:
    """Summarize the requests before, during and after both changes; `notes` as `_requesting.NOTES`."""
    begin = float(notes[:, 2].min()) if len(notes) else join["begin"]
    spans = {
        "before": (begin, join["begin"]),
        "while joining": (join["begin"], join["end"]),
        "with it": (join["end"], departure["begin"]),
        "while leaving": (departure["begin"], departure["end"]),
        "without it": (departure["end"], end),
    }
    return [{"phase": name} | latencies(notes, *span) for name, span in spans.items()]


def latencies(notes: NDArray[np.float64], begin: float, end: float) -> dict[str, Any]:
    """Summarize the requests in flight during [begin, end) (wall, s); None if there are none."""
    issued, took = notes[:, 2], notes[:, 3] * 1e-9
    took = took[(issued < end) & (issued + took >= begin)]
    seconds = end - begin
    found: dict[str, Any] = {"seconds": seconds, "count": len(took), "rate": len(took) / max(seconds, 1e-9)}
    if not len(took):
        return found | dict.fromkeys(QUANTILES)
    values = np.quantile(took, list(QUANTILES.values()), method="higher").tolist()
    return found | dict(zip(QUANTILES, values, strict=True))


def cost(change: Mapping[str, Any], keys: int) -> dict[str, Any]:
    """Return how much a join or leave moved, relative to the minimum, and the balance after it."""
    before, after = change["keys_before"], change["keys_after"]
    gained = {rank: held - before.get(rank, 0) for rank, held in after.items()}
    rank = str(change["rank"])
    least = keys / len(after) if change["joins"] else float(before[rank])
    moved = sum(gain for gain in gained.values() if gain > 0)
    return {
        **change,
        "seconds": change["end"] - change["begin"],
        "keys_moved": moved,
        "keys_least": least,
        "moved": moved / least,
        "moved_by_ring": change["keys_of_shards_moved"] / least,
        "imbalance": max(after.values()) * len(after) / sum(after.values()),
        "bytes": sum(size for each, size in change["received"].items() if gained.get(each, 0) > 0),
    }


def good(report: Mapping[str, Any]) -> bool:
    """Return whether no request failed, was lost, applied twice or stale, and no more keys moved than allowed."""
    wrong = sum(report[name] for name in ("failed", "stale", "lost", "doubled"))
    join = report["join"]
    return bool(wrong == 0 and join["moved"] <= MOVED and join["imbalance"] < IMBALANCE)


def text(report: Mapping[str, Any]) -> str:
    """Format the report as text."""
    layout = report["layout"]
    lines = [
        _runs.described(report["conditions"]),
        f"servers {layout['servers']} and a spare, workers {layout['workers']}; {report['keys']:,} keys of "
        f"{report['dtype']}, {report['batch']} per request",
        "",
        _runs.table(COLUMNS, report["requests"]),
        "",
        f"requests failed: {report['failed']} of {report['issued']:,}; updates: {report['updates']:,}, "
        f"lost {report['lost']}, applied twice {report['doubled']}; stale pulls: "
        f"{report['stale']}",
    ]
    lines += [f"  {error}" for error in report["errors"]]
    for name, what in (("join", "joined"), ("departure", "left")):
        each = report[name]
        lines.append(
            f"rank {each['rank']} {what} in {each['seconds']:.3f} s: {each['keys_moved']:,} keys moved, "
            f"{each['moved']:.3f} times the minimum ({each['keys_least']:,.0f}); "
            f"{len(each['shards_moved'])} of {each['shards']} shards, {bytes_si(each['bytes'])} received; "
            f"fullest server {each['imbalance']:.3f} times the mean"
        )
    joining = next(row for row in report["requests"] if row["phase"] == "while joining")
    join = report["join"]
    checks = {
        "p99 while joining < 100 ms": joining["p99"] is not None and joining["p99"] < LATENCY,
        "moved <= 1.10 times the minimum": join["moved"] <= MOVED,
        "fullest < 1.15 times the mean": join["imbalance"] < IMBALANCE,
    }
    lines.append("; ".join(f"{name}: {'yes' if held else 'NO'}" for name, held in checks.items()))
    return "\n".join(lines)
