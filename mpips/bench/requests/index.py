"""`mpips bench index`: speed and size of a server's key index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.bench import _runs
from mpips.bench._runs import note
from mpips.errors import InputError
from mpips.process.argument_parser import program_parser
from mpips.rundir.progress import Column, seconds, si, significant
from mpips.storage.key_index import MAX_KEYS, KeyIndex

DESCRIPTION = """\
The index from keys to slots of one server, on one core, in this process: random 64-bit keys in sorted lists without
duplicates, as in requests.

  grow      new keys, into an initially empty index
  insert    new keys, into an index with space for all of them
  find      known keys, in random lists other than the inserted ones
  again     the inserted lists once more

For comparison: a copy of the same keys (memcpy), and np.searchsorted of the same lists in all sorted keys, which finds
keys but cannot insert. Rates are million keys per second.

  mpips bench index                             100,000, 1 and 10 million keys
  mpips bench index --keys 30000000 --json index.json
"""

Keys = NDArray[np.uint64]
LISTS = (1_000, 100_000, 1_000_000)
LOOKUPS = 3_000_000
"""Maximum number of keys that are looked up in a large index in small lists."""
PAUSE_LIST = 1_000
"""Keys of the lists whose longest insertion is `pause`."""

COLUMNS = (
    Column("keys", "keys", 6, si),
    Column("list", "a list", 6, si),
    Column("grow", "grow", 6, significant(3)),
    Column("insert", "insert", 6, significant(3)),
    Column("find", "find", 6, significant(3)),
    Column("again", "again", 6, significant(3)),
    Column("memcpy", "memcpy", 6, significant(3)),
    Column("searchsorted", "searchsorted", 6, significant(3)),
    Column("ratio", "find/searchsorted", 6, significant(3)),
    Column("bytes", "bytes/key", 6, significant(3)),
    Column("pause", "pause", 6, seconds),
)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = program_parser("mpips bench index", DESCRIPTION)
    parser.add_argument(
        "--keys",
        action="append",
        type=_runs.at_least(1, parse_integer),
        metavar="N",
        help="keys of the index; repeatable",
    )
    parser.add_argument("--seed", type=_runs.at_least(0), default=1, metavar="N", help="default 1")
    _runs.add_json(parser)
    options = parser.parse_args(arguments)
    sizes = options.keys or [100_000, 1_000_000, 10_000_000]
    if max(sizes) > MAX_KEYS:
        raise InputError(f"--keys {max(sizes)}: one index holds at most {MAX_KEYS:,} keys")
    conditions, rows = _runs.conditions(), []
    for size in sizes:
        keys = draw_keys(size, np.random.default_rng(options.seed))
        note(f"{len(keys):,} keys")
        longest = pause(keys)
        for length in sorted({min(length, size) for length in (*LISTS, size)}):
            rows.append(measured(keys, length, options.seed) | {"pause": longest})
    report = {"benchmark": "index", "conditions": conditions, "seed": options.seed, "rows": rows}
    print(text(report))
    _runs.write_report(options.json, report)
    return 0


def parse_integer(text: str) -> int:
    """Parse an integer, as in 1000 or 1e7."""
    value = float(text.replace("_", ""))
    if value != value // 1:
        raise ValueError
    return int(value)


def draw_keys(count: int, rng: np.random.Generator) -> Keys:
    """Draw different keys, in random order."""
    keys: Keys = np.unique(rng.integers(0, 2**64, count, dtype=np.uint64))
    while len(keys) < count:
        keys = np.unique(np.append(keys, rng.integers(0, 2**64, count - len(keys), dtype=np.uint64)))
    return rng.permutation(keys)


def lists(keys: Keys, length: int) -> list[Keys]:
    """Cut keys into sorted lists, as in requests."""
    return [np.sort(keys[at : at + length]) for at in range(0, len(keys), length)]


def measured(keys: Keys, length: int, seed: int) -> dict[str, Any]:
    """Measure an index of these keys in lists of a given length."""
    inserted = lists(keys, length)
    shuffled = np.random.default_rng(seed + 1).permutation(keys)
    looked_up = inserted if length == len(keys) else lists(shuffled[:LOOKUPS], length)
    growing = KeyIndex()
    row = {"keys": len(keys), "list": length, "grow": rate(growing.insert, inserted)}
    size = growing.nbytes / len(keys) + np.dtype(np.float32).itemsize
    del growing
    index = KeyIndex(len(keys))
    row["insert"] = rate(index.insert, inserted)
    row["find"] = best(index.find, looked_up)
    row["again"] = best(index.find, inserted)
    row["memcpy"] = best(np.copy, looked_up)
    ordered = np.sort(keys)
    row["searchsorted"] = best(ordered.searchsorted, looked_up)
    return row | {"ratio": row["find"] / row["searchsorted"], "bytes": size}


def rate(function: Callable[[Keys], Any], inserted: Sequence[Keys]) -> float:
    """Return million keys a second of a function of lists."""
    begin = perf_counter()
    for each in inserted:
        function(each)
    return sum(len(each) for each in inserted) / (perf_counter() - begin) / 1e6


def best(function: Callable[[Keys], Any], inserted: Sequence[Keys]) -> float:
    """Return the best rate of three."""
    return max(rate(function, inserted) for _ in range(3))


def pause(keys: Keys) -> float:
    """Return the seconds of the longest single insertion while an index grows by short lists."""
    index, longest = KeyIndex(), 0.0
    for each in lists(keys, PAUSE_LIST):
        begin = perf_counter()
        index.insert(each)
        longest = max(longest, perf_counter() - begin)
    return longest


def text(report: dict[str, Any]) -> str:
    """Format the report as text."""
    return "\n".join(
        [
            _runs.described(report["conditions"]),
            "million keys per second; bytes with a float32 value; "
            f"pause: the longest insertion of {PAUSE_LIST:,} new keys while the index grows",
            "",
            _runs.table(COLUMNS, report["rows"]),
        ]
    )
