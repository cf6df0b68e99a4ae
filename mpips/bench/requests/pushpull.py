"""`mpips bench pushpull`: pushes and pulls compared with plain MPI, the upper limit."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from mpips.bench import _runs
from mpips.bench.requests import _bare, _ps_lite, _pushpull
from mpips.bench.requests._pushpull import MODES, OPS
from mpips.config.job_file import load
from mpips.errors import InputError
from mpips.rundir.progress import Column, bytes_si, si, significant

DESCRIPTION = """\
Push and pull float32 values, one request after the other, and compare with the limit: the same bytes between the same
ranks by mpi4py alone (Isend, Irecv), with numpy's work for the update, alternating in the same run.

  mpips bench pushpull                          1, 10^3, 10^5, 10^6, 10^7 keys; 1 server + 1 worker, and 2 + 2
  mpips bench pushpull --layouts 1+1 --keys 1000,1e6 --modes cached
  mpips bench pushpull --modes rounds --update ftrl --width 16 --replicas 1
  mpips bench pushpull --sweep                  many sizes, and a fit of the cost of a request and of a key
  mpips bench pushpull --quick                  a short test

  dense    a range of keys of a dense vector; the limit sends values
  sparse   random 64-bit keys in a list that is new to the servers: a push inserts all its keys; a pull finds keys that
           were pushed in other lists; the limit sends keys and values
  cached   the same list repeatedly; the limit sends values
  rounds   push_pull of a dense range by all workers: the servers sum their values, update once, and answer with the
           result; the limit sends values

Runs have the default configuration: where there are two servers and MPI survives a death, each key has a copy
(--replicas), which the limit makes too. Several workers do the same at the same time, each with its own list if it has
one. Ratio is limit / median; rate counts the keys of all workers; bytes are those that the limit sends between workers
and servers.

--ps-lite PATH also runs a benchmark that is linked with ps-lite, once for every layout and number of keys. It is
started on this machine as ps-lite's tests/local.sh does: 1 scheduler, S servers and W workers with DMLC_ROLE,
DMLC_NUM_SERVER, DMLC_NUM_WORKER, DMLC_PS_ROOT_URI and DMLC_PS_ROOT_PORT set, and the arguments

  PATH KEYS WIDTH REPEATS

Each worker pushes KEYS keys of WIDTH float32 values REPEATS times, and pulls them as often, each time until the request
is finished, and prints a line for each request after its warm-up:

  push SECONDS
  pull SECONDS

Other lines are ignored. All processes must exit with code 0.
"""

MOST_RANKS = 8
"""Maximum number of ranks per core; with more, times are not meaningful."""
KEYS = (1, 10**3, 10**5, 10**6, 10**7)
QUICK = (1, 10**3, 2 * 10**4)
SWEEP = (*(4**power for power in range(12)), 10**7)
VALUE, KEY = 4, 8
"""Bytes."""
MOST_WIDTH = 256
PS_LITE = "ps-lite"
"""The mode of rows that ps-lite's benchmark measured; it sends keys and values, as `sparse` does."""


class Target(NamedTuple):
    """A target for some rows: a ratio to the limit."""

    name: str
    least: float
    options: Callable[[Mapping[str, Any]], bool]


def _many(mode: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: row["mode"] == mode and row["keys"] >= 10**5


TARGETS = (
    Target("dense, from 100,000 keys on: at least 0.8 of the limit", 0.8, _many("dense")),
    Target("cached, from 100,000 keys on: at least 0.6 of the limit", 0.6, _many("cached")),
    Target("sparse, from 100,000 keys on: at least 0.4 of the limit", 0.4, _many("sparse")),
    Target(
        "1 key: at most 2.5 times the plain round trip",
        1 / 2.5,
        lambda row: row["keys"] == 1 and row["mode"] in MODES,
    ),
)


def duration(value: float) -> str:
    """Format seconds with three digits: 2.35 us, 12.3 ms."""
    size = abs(value)
    factor, unit = (1e6, "us") if size < 0.9995e-3 else (1e3, "ms") if size < 0.9995 else (1.0, "s")
    return f"{significant(3)(factor * value)} {unit}"


COLUMNS = (
    Column("layout", "layout", 6),
    Column("copies", "copies", 6),
    Column("mode", "mode", 6),
    Column("update", "update", 6),
    Column("op", "op", 4),
    Column("width", "width", 5),
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
    Column("copies", "copies", 6),
    Column("mode", "mode", 6),
    Column("update", "update", 6),
    Column("op", "op", 4),
    Column("width", "width", 5),
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


# --- Options ------------------------------------------------------------------------------------------


def layout(text: str) -> Size:
    """Parse a layout, as in 2+2."""
    found = re.fullmatch(r"(\d{1,5})\+(\d{1,5})", text)
    if not found or "0" in (found[1].strip("0") or "0", found[2].strip("0") or "0"):
        raise argparse.ArgumentTypeError(
            f"must be servers+workers, at least one of each, as in 1+1,2+2; got {text!r}"
        )
    return Size(int(found[1]), int(found[2]))


def width(text: str) -> int:
    """Parse a number of values per key."""
    value = int(text) if re.fullmatch(r"\d{1,5}", text) else 0
    if not 1 <= value <= MOST_WIDTH:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MOST_WIDTH}, got {text!r}")
    return value


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
        type=_runs.listed(_runs.one_of(MODES)),
        default=list(MODES),
        metavar="MODE,...",
        help="default: all",
    )
    parser.add_argument(
        "--ops", type=_runs.listed(_runs.one_of(OPS)), default=list(OPS), metavar="OP,...",
        help=f"{', '.join(OPS)}, as far as a mode has them; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--replicas", type=_runs.at_least(0), metavar="N",
        help="copies of each key on other servers; default: as in a job without ring.replicas",
    )  # fmt: skip
    parser.add_argument(
        "--update", type=_runs.one_of(_bare.UPDATES), default="add", metavar="NAME",
        help=f"what a push does: {', '.join(_bare.UPDATES)} (the last two as a program defines them); default add",
    )  # fmt: skip
    parser.add_argument(
        "--width", type=width, default=1, metavar="N", help=f"values per key, 1 to {MOST_WIDTH}; default 1"
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
    parser.add_argument(
        "--ps-lite", metavar="PATH", help="also run this benchmark, which is linked with ps-lite; see above"
    )
    return parser


def effort(options: argparse.Namespace) -> float:
    """Give the repetitions, as a multiple of the usual number."""
    return 0.02 if options.quick else 1.0


def settings_of(options: argparse.Namespace, each: Size) -> list[str]:
    """Give the settings of a run."""
    cores = len(os.sched_getaffinity(0))
    oversubscribed = options.launcher != "srun" and sum(each) > cores
    own = {
        "keys": options.keys,
        "modes": options.modes,
        "ops": options.ops,
        "update": options.update,
        "width": options.width,
        "effort": effort(options),
        "arrays": options.arrays,
        "scattered": options.scattered,
        "oversubscribed": oversubscribed,
    }
    return [
        f"layout.servers={each.servers}", f"layout.workers={each.workers}",
        # The limit keeps servers from their heartbeats.
        "heartbeat.patience=30",
        *([] if options.replicas is None else [f"ring.replicas={options.replicas}"]),
        *(f"_pushpull.{name}={json.dumps(value)}" for name, value in own.items()),
        *options.set,
    ]  # fmt: skip


def check_modes(options: argparse.Namespace) -> None:
    """Check that there is something to measure.

    Raises:
        InputError: no mode has one of the operations.
    """
    if not any(op in MODES[mode] for mode in options.modes for op in options.ops):
        known = "; ".join(f"{mode}: {', '.join(MODES[mode])}" for mode in options.modes)
        raise InputError(f"--ops {','.join(options.ops)}: none of the modes has it; they have {known}")


def check_memory(options: argparse.Namespace, free: int | None, cores: int) -> None:
    """Check that the runs fit this machine: `free` bytes of memory, None if unknown; not for a batch system's nodes.

    Raises:
        InputError: they do not; the text is one line with a solution.
    """
    if options.launcher == "srun":
        return
    for each in options.layouts:
        ranks = 1 + sum(each)
        if ranks > MOST_RANKS * cores:
            raise InputError(
                f"--layouts {each}: {ranks} ranks on {cores} cores; at most {MOST_RANKS} per core: use fewer servers "
                "or workers, or --launcher srun in an allocation"
            )
        wanted = needed_memory(each, options)
        if free is not None and wanted > free:
            raise InputError(
                f"--keys {max(options.keys)}: layout {each} needs about {bytes_si(wanted)} of memory, "
                f"{bytes_si(free)} are free: fewer keys, or fewer workers"
            )


def needed_memory(each: Size, options: argparse.Namespace) -> float:
    """Estimate the memory of a run on all ranks, in bytes."""
    # On servers, for each worker: vectors are kept.
    vectors = 0
    row: int = VALUE * options.width * (1 + _bare.UPDATES[options.update].arrays)
    for number in options.keys:
        lists = ("sparse" in options.modes) + ("cached" in options.modes)
        if "sparse" in options.modes and "push" in options.ops:
            lists += _pushpull.repeats("sparse", number * options.width, effort(options)) + 1
        vectors += number * ((28 + row) * lists + row * len({"dense", "rounds"}.intersection(options.modes)))
    copies = min(1 if options.replicas is None else options.replicas, each.servers - 1)
    # Of the workers, and of the servers during receives.
    blocks: int = 10 * (KEY + VALUE * options.width) * max(options.keys)
    return each.workers * (vectors * (1 + copies) + blocks) + 80e6 * (1 + sum(each))


def free_memory() -> int | None:
    """Give the free memory in bytes, None if unknown."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return None


# --- The benchmark -------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    options = parser().parse_args(arguments)
    options.keys = options.keys or list(SWEEP if options.sweep else QUICK if options.quick else KEYS)
    check_modes(options)
    check_memory(options, free_memory(), len(os.sched_getaffinity(0)))
    ps_lite = None if options.ps_lite is None else _ps_lite.program(options.ps_lite)
    conditions = _runs.conditions()
    rows: list[dict[str, Any]] = []
    with _runs.folders(options.keep) as folder:
        job = folder / "pushpull.toml"
        job.write_text('[job]\nprogram = "mpips.bench.requests._pushpull"\n')
        for each in options.layouts:
            # Wrong options are reported before any run.
            load(job, settings_of(options, each))
        for each in options.layouts:
            runs = []
            for number in range(options.repeat):
                _runs.note(f"{each}, run {number + 1} of {options.repeat}")
                at = folder / f"{each.servers}-{each.workers}-{number}"
                run = _runs.run(job, at, settings_of(options, each), options.launcher)
                runs.append(json.loads((run.folder / _pushpull.CELLS).read_text()))
            mine = table(str(each), runs, options.update, options.width)
            rows += mine
            if ps_lite is not None:
                rows += ps_lite_rows(mine, options, each, ps_lite)
    print(text(conditions, rows, options.sweep))
    _runs.write_report(options.json, cast(Any, rows))
    return 0


def table(
    layout: str, runs: Sequence[Sequence[Mapping[str, Any]]], update: str, width: int
) -> list[dict[str, Any]]:
    """Summarize the cells of runs of one layout, over the repetitions of all runs and workers."""
    rows = []
    for cells in zip(*runs, strict=True):
        ours, bare = ([time for cell in cells for time in cell[kind]] for kind in ("ours", "bare"))
        about = {name: cells[0][name] for name in ("mode", "op", "keys", "copies")}
        about |= {"update": update, "width": width}
        rows.append({"layout": layout, **about, **summary(ours, float(np.median(bare)))})
    return rows


def summary(times: Sequence[float], limit: float | None) -> dict[str, Any]:
    """Summarize the durations of requests, and compare them with the limit if it is known."""
    median = float(np.median(times))
    return {
        "median_s": median,
        "p99_s": float(np.quantile(times, 0.99, method="higher")),
        "limit_s": limit,
        "ratio": None if limit is None else limit / median,
    }


def ps_lite_rows(
    rows: Sequence[Mapping[str, Any]], options: argparse.Namespace, each: Size, program: Path
) -> list[dict[str, Any]]:
    """Measure ps-lite's benchmark; its limit is that of `sparse` in `rows`, if there is one."""
    found = []
    limits = {(row["keys"], row["op"]): row["limit_s"] for row in rows if row["mode"] == "sparse"}
    for keys in options.keys:
        _runs.note(f"{each}, {PS_LITE}, {keys:,} keys")
        times = _pushpull.repeats("cached", keys * options.width, effort(options))
        about = {"layout": str(each), "mode": PS_LITE, "keys": keys, "copies": 0, "width": options.width}
        for op, seconds in _ps_lite.measured(program, *each, (keys, options.width, times)).items():
            found.append({**about, "op": op, **summary(seconds, limits.get((keys, op)))})
    return found


def rates(row: Mapping[str, Any]) -> dict[str, Any]:
    """Add the throughput to a row: keys and bytes per second of all workers, at the median."""
    workers = int(row["layout"].partition("+")[2])
    rate = workers * row["keys"] / row["median_s"]
    values = VALUE * row["width"] * (2 if row["op"] == "push_pull" else 1)
    return {**row, "rate": rate, "bytes": rate * (values + KEY * (row["mode"] in ("sparse", PS_LITE)))}


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
    rows = [row for row in rows if row["mode"] in MODES]
    for group in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        mine = [row for row in rows if tuple(row[name] for name in names) == group]
        sizes = [row["keys"] for row in mine]
        ours, bare = (fit(sizes, [row[kind] for row in mine]) for kind in ("median_s", "limit_s"))
        costs = {"fixed": ours[0], "each": ours[1], "limit_fixed": bare[0], "limit_each": bare[1]}
        found.append(dict(zip(names, group, strict=True)) | costs)
    return found


def check_target(target: Target, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Describe in one line whether a target is met, and its smallest ratio; None if it applies to no row."""
    mine = [row for row in rows if target.options(row)]
    if not mine:
        return None
    least = min(mine, key=lambda row: row["ratio"])
    met = sum(row["ratio"] >= target.least for row in mine)
    vectors = "yes" if met == len(mine) else "NO"
    where = f"{least['layout']} {least['mode']} {least['op']} {least['keys']:,}"
    return f"{target.name}: {vectors}, {met} of {len(mine)}; minimum {least['ratio']:.2f} ({where})"


def text(conditions: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], sweep: bool = False) -> str:
    """Format the report as text."""
    lines = [_runs.described(conditions), "", _runs.table(COLUMNS, [rates(row) for row in rows]), ""]
    if sweep:
        lines += ["fit of the cost of a request and of a key:", _runs.table(FIT_COLUMNS, fits(rows)), ""]
    lines += [line for target in TARGETS if (line := check_target(target, rows)) is not None]
    return "\n".join(lines)
