"""`mpips bench coding`: processor time and savings of each filter, on one core in this process."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from mpips.bench import _runs
from mpips.bench._runs import note
from mpips.bench.requests.pushpull import duration
from mpips.config.overrides import override_value
from mpips.errors import InputError
from mpips.filters import named
from mpips.filters.chain import Chain
from mpips.filters.filter import About
from mpips.process.argument_parser import program_parser
from mpips.ranges import ALL
from mpips.rundir.progress import Column, si, significant
from mpips.transport.message import Command, Kind, Message, from_bytes, to_bytes

DESCRIPTION = """\
A chain of filters encodes and decodes one message repeatedly, in this process. The messages:

  gradients   float32, normal, with random 64-bit keys
  steps       float32, 70 % of them zero, for a cached list of keys
  columns     two columns of float32, of different magnitudes, for a cached list of keys
  counts      int64, most of them small, with dense keys

`size` is the remaining share of the bytes, `ms/MB` the processor time of encoding and decoding per saved megabyte, and
`pays below` the network speed below which the filter saves time. 1 Gbit/s is 8 ms/MB.

  mpips bench coding                            every filter, at 1,000,000 rows
  mpips bench coding --rows 1000,100000
  mpips bench coding --filter '["zeros", {name = "fixed_point", bytes = 2}, "zstd"]'
"""
COLUMNS = (
    Column("message", "message", 9),
    Column("rows", "rows", 6, si),
    Column("chain", "filters", 34),
    Column("size", "size", 6, significant(2)),
    Column("encode", "encode", 7, duration),
    Column("decode", "decode", 7, duration),
    Column("cost", "ms/MB", 6, significant(2)),
    Column("pays", "pays below Gbit/s", 6, significant(2)),
)
CHAINS: tuple[tuple[str, list[Any]], ...] = (
    ("gradients", [{"name": "zstd", "least": 0}]),
    ("gradients", [{"name": "lz4", "least": 0}]),
    ("gradients", [{"name": "fixed_point", "bytes": 2, "least": 0}]),
    ("gradients", [{"name": "fixed_point", "bytes": 1, "least": 0}]),
    ("gradients", [{"name": "fixed_point", "bytes": 1, "feedback": True, "least": 0}]),
    ("gradients", [{"name": "fixed_point", "bytes": 1, "least": 0}, {"name": "zstd", "least": 0}]),
    ("gradients", [{"name": "significant", "threshold": 1.0}]),
    ("gradients", [{"name": "random_skip", "keep": 0.1}]),
    ("gradients", [{"name": "tail", "at_least": 2}]),
    ("steps", [{"name": "zeros", "least": 0}]),
    ("steps", [{"name": "zstd", "least": 0}]),
    ("steps", [{"name": "zeros", "least": 0}, {"name": "zstd", "least": 0}]),
    ("columns", [{"name": "zstd", "least": 0}]),
    ("columns", [{"name": "fixed_point", "bytes": 2, "least": 0}]),
    ("counts", [{"name": "zeros", "least": 0}]),
    ("counts", [{"name": "zstd", "least": 0}]),
    ("counts", [{"name": "lz4", "least": 0}]),
)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = program_parser("mpips bench coding", DESCRIPTION)
    numbers = _runs.listed(_runs.count)
    parser.add_argument("--rows", type=numbers, default=(1_000_000,), metavar="N,...", help="default 1e6")
    parser.add_argument("--filter", metavar="LIST", help="only this chain, in the format of the job file")
    parser.add_argument(
        "--repeat", type=_runs.at_least(1), default=9, metavar="N", help="rounds of each; default 9"
    )
    _runs.add_json(parser)
    options = parser.parse_args(arguments)
    chains = CHAINS
    if options.filter is not None:
        chains = tuple((name, chain(options.filter)) for name in MESSAGES)
    conditions, found = _runs.conditions(), []
    for count in options.rows:
        for name, entries in chains:
            note(f"{name}, {count:,} rows: {format_chain(entries)}")
            found.append(measured(name, count, entries, options.repeat))
    report = {"benchmark": "coding", "conditions": conditions, "rows": found}
    print(_runs.described(conditions), "", _runs.table(COLUMNS, found), sep="\n")
    _runs.write_report(options.json, report)
    return 0


def chain(text: str) -> list[Any]:
    """Parse a chain in the format of the job file."""
    found = override_value(text)
    try:
        named.chain_of(found if isinstance(found, list) else [found])
    except ValueError as error:
        raise InputError(f"--filter {text}: {error}") from error
    return found if isinstance(found, list) else [found]


def format_chain(entries: Sequence[Any]) -> str:
    """Format a chain briefly."""
    names = []
    for entry in entries:
        table = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = table.pop("name")
        table.pop("least", None)
        more = " ".join(str(value) if not isinstance(value, bool) else key for key, value in table.items())
        names.append(f"{name} {more}".strip())
    return ", ".join(names)


def gradients(rng: np.random.Generator, rows: int) -> Message:
    """Make a push of a new list of keys."""
    keys = np.unique(rng.integers(0, 2**64, rows, np.uint64))
    return _push(keys, rng.normal(size=(len(keys), 1)).astype(np.float32), listed=True)


def steps(rng: np.random.Generator, rows: int) -> Message:
    """Make a push most of whose rows are zero."""
    values = np.where(rng.random((rows, 1)) < 0.3, rng.normal(size=(rows, 1)), 0).astype(np.float32)
    return _push(np.arange(rows, dtype=np.uint64), values, listed=False)


def columns(rng: np.random.Generator, rows: int) -> Message:
    """Make a push of gradients and curvatures."""
    values = np.stack([rng.laplace(size=rows), 1e3 * rng.random(rows)], axis=1).astype(np.float32)
    return _push(np.arange(rows, dtype=np.uint64), values, listed=False)


def counts(rng: np.random.Generator, rows: int) -> Message:
    """Make a push of small whole numbers."""
    keys = np.cumsum(rng.integers(1, 5, rows)).astype(np.uint64)
    return _push(keys, rng.geometric(0.3, (rows, 1)).astype(np.int64) - 1, listed=True)


MESSAGES = {"gradients": gradients, "steps": steps, "columns": columns, "counts": counts}


def _push(keys: np.ndarray[Any, np.dtype[np.uint64]], values: Any, listed: bool) -> Message:
    message = Message(Kind.REQUEST, Command.PUSH, sender=1, origin=1, shard=0, values=values)
    if listed:
        message.keys = keys
    else:
        message.unsent_keys = keys
    return message


def measured(name: str, rows: int, entries: Sequence[Any], repeat: int) -> dict[str, Any]:
    """Encode and decode a message repeatedly, each time with a new state of the chain."""
    whole = MESSAGES[name](np.random.default_rng(1), rows)
    keys = whole.keys if whole.keys is not None else whole.unsent_keys
    raw, wire = whole.payload_bytes, 0
    times: list[tuple[float, float]] = []
    for time in range(repeat + 1):
        sender, receiver = (named.chain_of(entries) for _ in range(2))
        about = About("w", Command.PUSH, ALL, True, 1, 1, 0, time, keys=keys)
        encode, decode, wire = _round_trip(sender, receiver, whole, about)
        times.append((encode, decode))
    encode, decode = (median(each) for each in zip(*times[1:], strict=True))
    saved = (raw - wire) / 1e6
    cost = (encode + decode) * 1e3 / saved if saved > 0 else float("inf")
    return {
        "message": name,
        "rows": rows,
        "chain": format_chain(entries),
        "size": wire / raw,
        "encode": encode,
        "decode": decode,
        "cost": cost,
        "pays": 8.0 / cost,
    }


def _round_trip(sender: Chain, receiver: Chain, whole: Message, about: About) -> tuple[float, float, int]:
    """Return the seconds to encode and to decode a message, and the bytes that are sent."""
    message = Message(whole.kind, whole.command, 1, 1, 0, keys=whole.keys, values=whole.values)
    message.unsent_keys = whole.unsent_keys
    begin = perf_counter()
    sender.encode(~0, message, about)
    encoded = perf_counter() - begin
    wire = message.payload_bytes
    arrived = from_bytes(bytearray(to_bytes(message)))
    begin = perf_counter()
    if arrived.filtered:
        receiver.decode(arrived)
    return encoded, perf_counter() - begin, wire
