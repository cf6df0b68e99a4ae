"""`mpips bench pushpull`: pushes and pulls compared with plain MPI, the upper limit."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from mpips.bench import _runs
from mpips.bench.requests import _pushpull
from mpips.bench.requests._pushpull import MODES, OPS
from mpips.config.job_file import load
from mpips.errors import InputError
from mpips.rundir.progress import Column, bytes_si, si, significant

DESCRIPTION = """\
Push and pull float32 values, one request after the other, and compare with the limit: the same bytes between the same
ranks by mpi4py alone (Isend, Irecv), with a numpy add or copy, alternating in the same run.

  mpips bench pushpull                          1, 10^3, 10^5, 10^6, 10^7 keys; 1 server + 1 worker, and 2 + 2
  mpips bench pushpull --layouts 1+1 --keys 1000,1e6 --modes cached
  mpips bench pushpull --sweep                  many sizes, and a fit of the cost of a request and of a key
  mpips bench pushpull --quick                  a short test

  dense    a range of keys of a dense vector; the limit sends values
  sparse   random 64-bit keys in a list that is new to the servers: a push inserts all its keys; a pull finds keys that
           were pushed in other lists; the limit sends keys and values
  cached   the same list repeatedly; the limit sends values

There is no aggregation and no replication, and every server holds one shard, so that a request is one message per
server. Several workers do the same at the same time, each with its own list. Ratio is limit / median; rate counts the
keys of all workers; bytes are those that the limit sends.
"""

MOST_RANKS = 8
"""Maximum number of ranks per core; with more, times are not meaningful."""
KEYS = (1, 10**3, 10**5, 10**6, 10**7)
QUICK = (1, 10**3, 2 * 10**4)
SWEEP = (*(4**power for power in range(12)), 10**7)
VALUE, KEY = 4, 8
"""Bytes."""


class Target(NamedTuple):
    """A target for some rows: a ratio to the limit."""

    name: str
    least: float
    asked: Callable[[Mapping[str, Any]], bool]


def _many(mode: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: row["mode"] == mode and row["keys"] >= 10**5


TARGETS = (
    Target("dense, from 100,000 keys on: at least 0.8 of the limit", 0.8, _many("dense")),
    Target("cached, from 100,000 keys on: at least 0.6 of the limit", 0.6, _many("cached")),
    Target("sparse, from 100,000 keys on: at least 0.4 of the limit", 0.4, _many("sparse")),
    Target("1 key: at most 2.5 times the plain round trip", 1 / 2.5, lambda row: row["keys"] == 1),
)


def duration(value: float) -> str:
    """Format seconds with three digits: 2.35 us, 12.3 ms."""
    size = abs(value)
    factor, unit = (1e6, "us") if size < 0.9995e-3 else (1e3, "ms") if size < 0.9995 else (1.0, "s")
    return f"{significant(3)(factor * value)} {unit}"


COLUMNS = (
    Column("layout", "layout", 6),
    Column("mode", "mode", 6),
    Column("op", "op", 4),
    Column("keys", "keys", 10, "{:,}".format),
    Column("median_s", "median", 8, duration),
    Column("p99_s", "p99", 8, duration),
    Column("limit_s", "limit", 8, duration),
    Column("ratio", "ratio", 5, "{:.2f}".format),
    Column("rate", "keys/s", 6, si),
    Column("bytes", "bytes/s", 7, bytes_si),
)

FIT_COLUMNS = (
    Column("layout", "layout", 6),
    Column("mode", "mode", 6),
    Column("op", "op", 4),
    Column("fixed", "a request", 9, duration),
    Column("each", "a key", 8, lambda value: f"{value * 1e9:.2f} ns"),
    Column("limit_fixed", "plain: a request", 15, duration),
    Column("limit_each", "a key", 8, lambda value: f"{value * 1e9:.2f} ns"),
)


class Size(NamedTuple):
    """The numbers of servers and workers, written S+W."""

    servers: int
    workers: int

    def __str__(self) -> str:
        return f"{self.servers}+{self.workers}"


# --- Switches ------------------------------------------------------------------------------------------


def layout(text: str) -> Size:
    """Parse a layout, as in 2+2."""
    found = re.fullmatch(r"(\d{1,5})\+(\d{1,5})", text)
    if not found or "0" in (found[1].strip("0") or "0", found[2].strip("0") or "0"):
        raise argparse.ArgumentTypeError(
            f"must be servers+workers, at least one of each, as in 1+1,2+2; got {text!r}"
        )
    return Size(int(found[1]), int(found[2]))


def one_of(known: Sequence[str]) -> Callable[[str], str]:
    """Give an argparse type for one of some words."""

    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(known)}; got {text!r}")
        return text

    return read


def parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = _runs.job_parser("pushpull", DESCRIPTION)
    parser.add_argument(
        "--keys",
        type=_runs.listed(_runs.count),
        metavar="N,...",
        help="keys of a request; default 1,1e3,1e5,1e6,1e7",
    )
    parser.add_argument(
        "--layouts", type=_runs.listed(layout), default=[Size(1, 1), Size(2, 2)], metavar="S+W,...",
        help="servers + workers; default 1+1,2+2",
    )  # fmt: skip
    parser.add_argument(
        "--modes",
        type=_runs.listed(one_of(MODES)),
        default=list(MODES),
        metavar="MODE,...",
        help="default: all",
    )
    parser.add_argument(
        "--ops", type=_runs.listed(one_of(OPS)), default=list(OPS), metavar="OP,...", help="default push,pull"
    )
    parser.add_argument(
        "--arrays",
        action="store_true",
        help="cached: use a plain array of keys, which is checked and hashed every time, not a KeyList",
    )
    parser.add_argument(
        "--scattered", action="store_true",
        help="cached: push the keys in two other lists first, so that their rows are not in order",
    )  # fmt: skip
    parser.add_argument("--sweep", action="store_true", help="sizes by powers of 4, and a fit")
    parser.add_argument("--quick", action="store_true", help="few sizes and repetitions, for a short test")
    parser.add_argument(
        "--repeat", type=_runs.at_least(1), default=1, metavar="N", help="runs of each layout; default 1"
    )
    return parser


def settings_of(asked: argparse.Namespace, each: Size) -> list[str]:
    """Give the settings of a run."""
    cores = len(os.sched_getaffinity(0))
    crowded = asked.launcher != "srun" and sum(each) > cores
    own = {
        "keys": asked.keys,
        "modes": asked.modes,
        "ops": asked.ops,
        "effort": 0.02 if asked.quick else 1.0,
        "arrays": asked.arrays,
        "scattered": asked.scattered,
        "crowded": crowded,
    }
    return [
        f"layout.servers={each.servers}", f"layout.workers={each.workers}",
        "ring.virtual_servers=1", "ring.replicas=0", "heartbeat.patience=30",
        *(f"_pushpull.{name}={json.dumps(value)}" for name, value in own.items()),
        *asked.set,
    ]  # fmt: skip


def check_room(asked: argparse.Namespace, free: int | None, cores: int) -> None:
    """Check that the runs fit this machine: `free` bytes of memory, None if unknown; not for a batch system's nodes.

    Raises:
        InputError: they do not; the text is one line with a solution.
    """
    if asked.launcher == "srun":
        return
    for each in asked.layouts:
        ranks = 1 + sum(each)
        if ranks > MOST_RANKS * cores:
            raise InputError(
                f"--layouts {each}: {ranks} ranks on {cores} cores; at most {MOST_RANKS} per core: use fewer servers "
                "or workers, or --launcher srun in an allocation"
            )
        wanted = room(each, asked.keys, asked.modes, asked.ops, 0.02 if asked.quick else 1.0)
        if free is not None and wanted > free:
            raise InputError(
                f"--keys {max(asked.keys)}: layout {each} needs about {bytes_si(wanted)} of memory, "
                f"{bytes_si(free)} are free: fewer keys, or fewer workers"
            )


def room(each: Size, keys: Iterable[int], modes: Sequence[str], ops: Sequence[str], effort: float) -> float:
    """Estimate the memory of a run on all ranks, in bytes."""
    held = 0.0  # On servers, for each worker: vectors are kept.
    largest = 0
    for number in keys:
        largest = max(largest, number)
        lists = ("sparse" in modes) + ("cached" in modes)
        if "sparse" in modes and "push" in ops:
            lists += _pushpull.repeats("sparse", number, effort) + 1
        held += number * (32 * lists + VALUE * ("dense" in modes))
    blocks = 10 * (KEY + VALUE) * largest  # Of the workers, and of the servers during receives.
    return each.workers * (held + blocks) + 80e6 * (1 + sum(each))


def free_memory() -> int | None:
    """Give the free memory in bytes, None if unknown."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return None


# --- The benchmark -------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    asked = parser().parse_args(arguments)
    asked.keys = asked.keys or list(SWEEP if asked.sweep else QUICK if asked.quick else KEYS)
    check_room(asked, free_memory(), len(os.sched_getaffinity(0)))
    conditions = _runs.conditions()
    rows: list[dict[str, Any]] = []
    with _runs.folders(asked.keep) as folder:
        job = folder / "pushpull.toml"
        job.write_text('[job]\nprogram = "mpips.bench.requests._pushpull"\n')
        for each in asked.layouts:
            load(job, settings_of(asked, each))  # Wrong switches are reported before any run.
        for each in asked.layouts:
            runs = []
            for number in range(asked.repeat):
                _runs.note(f"{each}, run {number + 1} of {asked.repeat}")
                at = folder / f"{each.servers}-{each.workers}-{number}"
                run = _runs.run(job, at, settings_of(asked, each), asked.launcher)
                runs.append(json.loads((run.folder / _pushpull.CELLS).read_text()))
            rows += table(str(each), runs)
    print(text(conditions, rows, asked.sweep))
    _runs.write_report(asked.json, cast(Any, rows))
    return 0


def table(layout: str, runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Summarize the cells of runs of one layout, over the repetitions of all runs and workers."""
    rows = []
    for cells in zip(*runs, strict=True):
        ours, bare = ([time for cell in cells for time in cell[kind]] for kind in ("ours", "bare"))
        median, limit = float(np.median(ours)), float(np.median(bare))
        rows.append(
            {
                "layout": layout,
                **{name: cells[0][name] for name in ("mode", "op", "keys")},
                "median_s": median,
                "p99_s": float(np.quantile(ours, 0.99, method="higher")),
                "limit_s": limit,
                "ratio": limit / median,
            }
        )
    return rows


def rates(row: Mapping[str, Any]) -> dict[str, Any]:
    """Add the throughput to a row: keys and bytes per second of all workers, at the median."""
    workers = int(row["layout"].partition("+")[2])
    rate = workers * row["keys"] / row["median_s"]
    return {**row, "rate": rate, "bytes": rate * (VALUE + KEY * (row["mode"] == "sparse"))}


def fit(sizes: Sequence[int], times: Sequence[float]) -> tuple[float, float]:
    """Fit times (s) by a + b n, a and b not negative, with minimal relative errors; give a and b."""
    n, t = np.array(sizes, np.float64), np.array(times, np.float64)
    terms = np.stack([1 / t, n / t], axis=1)
    both = np.linalg.lstsq(terms, np.ones(len(t)), rcond=None)[0]
    if len(set(sizes)) > 1 and (both >= 0).all():
        return float(both[0]), float(both[1])
    alone = [(float(term @ np.ones(len(t)) / (term @ term)), term) for term in terms.T]
    (a, first), (b, second) = alone
    error = [float(np.sum((value * term - 1) ** 2)) for value, term in ((a, first), (b, second))]
    return (a, 0.0) if error[0] <= error[1] else (0.0, b)


def fits(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give the cost of a request and of a key, by layout, mode and operation."""
    found = []
    names = ("layout", "mode", "op")
    for group in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        mine = [row for row in rows if tuple(row[name] for name in names) == group]
        sizes = [row["keys"] for row in mine]
        ours, bare = (fit(sizes, [row[kind] for row in mine]) for kind in ("median_s", "limit_s"))
        costs = {"fixed": ours[0], "each": ours[1], "limit_fixed": bare[0], "limit_each": bare[1]}
        found.append(dict(zip(names, group, strict=True)) | costs)
    return found


def verdict(target: Target, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Describe in one line whether a target is met, and its smallest ratio; None if it applies to no row."""
    mine = [row for row in rows if target.asked(row)]
    if not mine:
        return None
    least = min(mine, key=lambda row: row["ratio"])
    met = sum(row["ratio"] >= target.least for row in mine)
    held = "yes" if met == len(mine) else "NO"
    where = f"{least['layout']} {least['mode']} {least['op']} {least['keys']:,}"
    return f"{target.name}: {held}, {met} of {len(mine)}; minimum {least['ratio']:.2f} ({where})"


def text(conditions: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], sweep: bool = False) -> str:
    """Format the report as text."""
    lines = [_runs.described(conditions), "", _runs.table(COLUMNS, [rates(row) for row in rows]), ""]
    if sweep:
        lines += ["fit of the cost of a request and of a key:", _runs.table(FIT_COLUMNS, fits(rows)), ""]
    lines += [said for target in TARGETS if (said := verdict(target, rows)) is not None]
    return "\n".join(lines)
