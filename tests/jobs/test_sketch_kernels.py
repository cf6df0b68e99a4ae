"""The sketch's kernels, sources and estimates, compared with plain Python."""

from __future__ import annotations

import gzip
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.data import DataSpec, write
from mpips.errors import DataError, InputError, JobError
from mpips.jobs.sketch import kernels, results, scan, servers, source
from mpips.jobs.sketch.deltas import SHARE, Deltas
from mpips.jobs.sketch.source import Block, Zipf
from mpips.ranges import KeyRange
from mpips.storage.segment import Segment
from mpips.storage.updates import VectorSpec

SEED = 12345
WORD = 2**64


def mixed(key: int) -> int:
    """The finaliser of splitmix64, in Python's own integers."""
    z = (key + 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def cells(key: int, depth: int, width: int, seed: int = SEED) -> list[int]:
    """The cells of a key, as the design says."""
    found = []
    for row in range(depth):
        bits = mixed(key ^ ((seed + (row // 2) * 0xD6E8FEB86659FD93) % WORD))
        half = bits & 0xFFFFFFFF if row % 2 else bits >> 32
        found.append(row * width + (half * width >> 32))
    return found


def plain(counts: dict[int, int], depth: int, width: int) -> np.ndarray:
    """A CountMin table, the plain way."""
    table = np.zeros(depth * width, np.int64)
    for key, count in counts.items():
        table[cells(key, depth, width)] += count
    return table


def drawn(n: int, keys: int, seed: int) -> np.ndarray:
    """Keys of very unequal frequency."""
    random = np.random.default_rng(seed)
    names = random.integers(0, 2**64, keys, np.uint64)
    return names[np.minimum(random.zipf(1.3, n), keys) - 1]


def counted(deltas: Deltas, keys: np.ndarray, weights: np.ndarray | None = None, piece: int = 700) -> Any:
    """Count keys piece by piece, as one batch."""
    for begin in range(0, len(keys), piece):
        cut = slice(begin, begin + piece)
        deltas.add(np.ascontiguousarray(keys[cut]), None if weights is None else weights[cut].copy())
    return deltas.finish(3, 7)


def table_of(batch: Any, shape: servers.Shape) -> np.ndarray:
    """The table that a batch's rows stand for."""
    blocks = np.zeros((shape.blocks, 1 << shape.shift), np.int64)
    blocks[batch.blocks.astype(int)] = batch.rows[:, :-2]
    return blocks.reshape(-1)[: shape.depth * shape.width]


@pytest.mark.parametrize(("depth", "width", "parts"), [(4, 64, 1), (1, 7, 3), (3, 1000, 20), (5, 1, 8)])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_is_the_table_of_its_counts(depth: int, width: int, parts: int, weighted: bool) -> None:
    shape = servers.shape_for(depth, width, SEED, parts)
    deltas = Deltas(shape, weighted, 1, False)
    for batch_seed in (1, 2):  # nothing is left over from the one before
        keys = drawn(30_000, 40_000, batch_seed)
        weights = np.random.default_rng(9).integers(0, 2**40, len(keys)) if weighted else None
        truth: Counter[int] = Counter()
        for key, weight in zip(
            keys.tolist(), [1] * len(keys) if weights is None else weights.tolist(), strict=True
        ):
            truth[key] += weight
        batch = counted(deltas, keys, weights)
        assert np.array_equal(table_of(batch, shape), plain(truth, depth, width))
        assert (batch.rows[:, -2:] == [3, 7]).all() and batch.weight == sum(truth.values())
        assert (np.diff(batch.blocks.astype(np.int64)) > 0).all()
        truth = Counter({key: count for key, count in truth.items() if count})
        assert dict(zip(batch.sampled.tolist(), batch.counts.tolist(), strict=True)) == truth
        heavy = {key for key, count in truth.items() if count * SHARE >= batch.weight}
        assert heavy and heavy <= set(batch.heavy.tolist())


def test_only_blocks_with_counts_are_pushed() -> None:
    shape = servers.shape_for(4, 1 << 16, SEED, 1)
    batch = counted(Deltas(shape, False, 0, False), np.array([5, 5, 9], np.uint64))
    expected = sorted({cell >> shape.shift for key in (5, 9) for cell in cells(key, 4, 1 << 16)})
    assert batch.blocks.tolist() == expected and len(batch.sampled) == 0
    assert np.array_equal(table_of(batch, shape), plain({5: 2, 9: 1}, 4, 1 << 16))


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 80))
def test_conservative_estimates_lie_between_the_truth_and_the_plain_ones(
    seed: int, depth: int, width: int
) -> None:
    keys = drawn(400, 300, seed)
    shape, truth = servers.shape_for(depth, width, SEED, 1), Counter(keys.tolist())
    raised = counted(Deltas(shape, False, 0, True), keys)
    named = np.array(list(truth), np.uint64)
    sketches = [
        results.Sketch(table, depth, width, SEED, False)
        for table in (table_of(raised, shape), plain(truth, depth, width))
    ]
    low, high = (sketch.estimate(named) for sketch in sketches)
    true = np.array(list(truth.values()))
    assert (true <= low).all() and (low <= high).all()


def test_estimates_from_a_table_and_from_pulled_blocks_agree() -> None:
    depth, width = 4, 300
    shape, truth = servers.shape_for(depth, width, SEED, 1), Counter(drawn(5000, 900, 4).tolist())
    table = np.zeros(shape.blocks << shape.shift, np.int64)
    table[: depth * width] = plain(truth, depth, width)
    keys = np.array([*truth, 1, 2, 3], np.uint64)
    expected = [min(int(table[cell]) for cell in cells(key, depth, width)) for key in keys.tolist()]
    sketch = results.Sketch(table, depth, width, SEED, False)
    assert sketch.estimate(keys).tolist() == expected
    marks, blocks = np.zeros(shape.blocks, np.int32), np.empty(shape.blocks, np.uint64)
    at, out = np.empty(len(keys) * depth, np.int64), np.empty(len(keys), np.int64)
    n = kernels.asked(keys, shape.shift, depth, width, np.uint64(SEED), marks, at, blocks)
    rows = table.reshape(shape.blocks, -1)[blocks[:n].astype(int)].copy()
    kernels.answered(rows, blocks[:n], shape.shift, depth, marks, at, out)
    assert out.tolist() == expected and not marks.any()


def test_the_bound_holds() -> None:
    width, depth, keys = 512, 4, drawn(200_000, 50_000, 6)
    truth = Counter(keys.tolist())
    sketch = results.Sketch(plain(truth, depth, width), depth, width, SEED, False)
    about = results.errors(
        sketch, np.array(list(truth), np.uint64), np.array(list(truth.values())), len(keys)
    )
    assert about["underestimates"] == 0 and about["bound"] == math.e / 512 * len(keys)
    assert about["max_overestimate"] > 0 and about["beyond_bound"] <= about["delta"]
    assert about["checked"] == len(truth) and about["delta"] == math.exp(-4)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_block_takes_each_batch_once(dtype: Any) -> None:
    """Batches of a part come in order, but any of them may come again, to some blocks only."""
    random = np.random.default_rng(5)
    shape = servers.shape_for(2, 40, SEED, 3)
    spec = servers.specs(shape, dtype is np.int64, False)[0]
    segment, blocks = Segment(spec), shape.blocks
    deltas = random.integers(0, 1000, (3, 6, blocks, spec.width))
    reached = np.zeros((3, blocks), int)
    while (reached < 6).any():
        part = int(random.integers(3))
        first = int(
            random.integers(min(reached[part].min(), 5) + 1)
        )  # any batch up to the first that a block lacks
        chosen = np.flatnonzero(random.random(blocks) < 0.7)
        number = np.full((len(chosen), 1), first + 1)
        rows = np.hstack([deltas[part, first, chosen], np.full((len(chosen), 1), part), number]).astype(dtype)
        segment.push(chosen.astype(np.uint64), rows)
        reached[part, chosen] = np.maximum(reached[part, chosen], first + 1)
    everything = np.hstack([deltas[0, 3], np.full((blocks, 1), 0), np.full((blocks, 1), 4)]).astype(dtype)
    segment.push(KeyRange(0, blocks), everything)  # as a range, and stale
    assert np.array_equal(segment.values[:blocks], deltas.sum((0, 1)))


def test_registers_keep_the_larger() -> None:
    spec = next(
        spec for spec in servers.specs(servers.shape_for(1, 8, 0, 1), False, True) if spec.name == "registers"
    )
    segment = Segment(spec)
    segment.push(np.array([1, 5], np.uint64), np.array([[3], [2]], np.int32))
    segment.push(np.array([1, 4], np.uint64), np.array([[1], [7]], np.int32))
    assert segment.values[:6, 0].tolist() == [0, 3, 0, 0, 7, 2]


@pytest.mark.parametrize("n", [0, 1, 100, 5_000, 40_000, 1_000_000])
def test_distinct_keys(n: int) -> None:
    keys = np.arange(n, dtype=np.uint64)
    scan.scramble(keys)
    deltas = Deltas(servers.shape_for(1, 16, 3, 1), False, 0, False)
    deltas.add(keys, None)
    deltas.add(keys[::2].copy(), None)
    assert results.distinct(deltas.finish(0, 1).registers) == pytest.approx(n, rel=0.025, abs=0.5)


# --- Sources


@pytest.mark.parametrize(("exponent", "keys"), [(1.1, 1000), (1.0, 50), (0.5, 300), (2.5, 10**6)])
def test_zipf_draws_what_it_says(exponent: float, keys: int) -> None:
    n, out = 200_000, np.empty(200_000, np.uint64)
    scan.zipf(out, np.uint64(9), exponent, keys)
    assert out.min() >= 1 and out.max() <= keys
    share = np.arange(1, keys + 1, dtype=float) ** -exponent
    expected = n * share / share.sum()
    found = np.bincount(out.astype(np.int64), minlength=keys + 1)[1:]
    big = expected >= 25
    chi = ((found[big] - expected[big]) ** 2 / expected[big]).sum()
    assert big.sum() >= 5 and abs(chi - big.sum()) < 6 * math.sqrt(2 * big.sum())


def test_a_generated_part_is_the_same_from_anywhere() -> None:
    zipf = Zipf(1.2, 10_001, 500, 3, 700)
    whole = []
    for part in range(3):
        batches = [np.concatenate([chunk.keys for chunk in batch]) for batch in zipf.batches(part, 3, 0)]
        again = [np.concatenate([chunk.keys for chunk in batch]) for batch in zipf.batches(part, 3, 2)]
        assert all(np.array_equal(a, b) for a, b in zip(batches[2:], again, strict=True))
        assert {len(each) for each in batches[:-1]} == {700} and len(batches[-1]) <= 700
        whole += batches
    assert sum(map(len, whole)) == 10_001
    assert len({each[:20].tobytes() for each in whole}) == len(whole)  # no batch repeats another


LINE = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=30)


def hash_of(text: str) -> int:
    return int(source.hashes([text], True)[0])


def parsed(text: str, spec: DataSpec, columns: tuple[int, int], skipped: list[str] | None = None) -> Any:
    return source.parsed(
        Block("f", 10, bytearray(text.encode()), columns), spec, [] if skipped is None else skipped
    )


@given(st.lists(LINE, max_size=20), st.sampled_from(["\n", "\r\n"]))
def test_each_line_is_a_key(lines: list[str], ending: str) -> None:
    chunk = parsed("".join(line + ending for line in lines), DataSpec(), (-1, -1))
    keys = [line for line in lines if line.strip(" \t")]  # blank lines are no keys
    assert chunk.keys.tolist() == [hash_of(line) for line in keys] and chunk.weights is None
    assert [chunk.name(at).decode() for at in range(len(keys))] == keys


@given(
    st.lists(st.tuples(LINE, LINE, st.integers(0, 10**18 - 1)), min_size=1, max_size=12),
    st.sampled_from(["\n", "\r\n"]),
)
def test_columns_of_tables(rows: list[tuple[str, str, int]], ending: str) -> None:
    rows = [(a.replace("\t", ""), b.replace("\t", ""), n) for a, b, n in rows]
    text = "".join(f"{a}\t{b}\t{n}{ending}" for a, b, n in rows)
    chunk = parsed(text, DataSpec(), (1, 2))
    kept = [(b, n) for _, b, n in rows if b]
    assert chunk.keys.tolist() == [hash_of(b) for b, _ in kept]
    assert chunk.weights.tolist() == [n for _, n in kept]
    last = parsed("".join(f"{n}\t{b}{ending}" for _, b, n in rows), DataSpec(), (1, 0))
    assert last.keys.tolist() == chunk.keys.tolist() and last.weights.tolist() == chunk.weights.tolist()


def test_hashes_of_different_texts_differ() -> None:
    texts = ["", "a", "a\0", "\0a", "\0", "\0\0", "abcdefgh", "abcdefgh\0", "abcdefghi", "habcdefg"]
    texts += [f"key{number}" for number in range(20_000)] + ["x" * n for n in range(3, 60)]
    assert len({hash_of(text) for text in texts}) == len(texts)
    ones = np.unpackbits(source.hashes(texts, True).view(np.uint8).reshape(-1, 8), axis=1).mean(0)
    assert abs(ones - 0.5).max() < 0.02


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("a\t1\nb\tx2\n", (0, 1), "f:12: weight 'x2' is not a whole number from 0 to 10\\*\\*18 - 1"),
        ("a\t1\nb\t-2\nc\t1\n", (0, 1), "f:12: weight '-2' is not"),
        ("a\t1\n\nb\t\n", (0, 1), "f:13: weight '' is not"),
        ("a\t1000000000000000000\n", (0, 1), "f:11: weight '1000000000000000000' is not"),
        ("a\t1\nb\n", (1, -1), "f:12: found 1 column where column 1 was expected"),
        ("a\tb\n", (0, 5), "f:11: found 2 columns where column 5 was expected"),
        ("a\t999999999999999999\n" * 5, (0, 1), "f:11: from here on the weights add up to more than"),
    ],
)
def test_bad_lines_are_named(text: str, columns: tuple[int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parsed(text, DataSpec(), columns)


def test_bad_lines_are_skipped_if_the_job_allows_it() -> None:
    skipped: list[str] = []
    chunk = parsed("a\t1\nb\tx\nc\t3\nd\n", DataSpec(on_error="skip"), (0, 1), skipped)
    assert chunk.keys.tolist() == [hash_of("a"), hash_of("c")] and chunk.weights.tolist() == [1, 3]
    assert [each.partition(": ")[0] for each in skipped] == ["f:12", "f:14"]


@pytest.mark.parametrize("files", [1, 2, 5])
@pytest.mark.parametrize("parts", [1, 3])
def test_parts_hold_every_line_once(tmp_path: Path, files: int, parts: int) -> None:
    names = []
    for number in range(files):
        path = tmp_path / f"{number}.tsv.gz"
        lines = [f"{number}-{line}\t{line}" for line in range(400)]
        path.write_bytes(gzip.compress("\n".join(["name\tweight", *lines]).encode()))
        names.append(str(path))
    spec = DataSpec(train=names, column="name", weight="weight")
    seen = Counter[str]()
    for part in range(parts):
        for block in source.blocks(spec, part, parts, 512):
            chunk = source.parsed(block, spec, [])
            seen.update(chunk.name(at).decode() for at in range(len(chunk.keys)))
            number = int(chunk.name(0).decode().partition("-")[2])
            assert block.before == number + 1  # the header is a line too
    assert seen == Counter(f"{number}-{line}" for number in range(files) for line in range(400))


@pytest.mark.parametrize("name", ["a.csv.gz", "a.parquet"])
@pytest.mark.parametrize("parts", [1, 3])
def test_keys_in_a_column_of_a_table(tmp_path: Path, name: str, parts: int) -> None:
    pytest.importorskip("pyarrow")
    keys = [["two words", "a, b", 'with "quotes"', "NA", None][at % 5] for at in range(100)]
    path = tmp_path / name
    plain = path.with_suffix("") if name.endswith(".gz") else path
    write(plain, {"n": list(range(100)), "key": keys})
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))
    form = "csv" if "csv" in name else "auto"
    spec = DataSpec(train=[str(path)], column="key", weight="n", missing=["NA", ""], format=form)
    assert source.header(spec) == source.first_row(spec) == ""
    seen, weights = Counter[str](), Counter[str]()
    for part in range(parts):
        text = source.Text(spec, 20, [], source.blocks(spec, part, parts, 4096))
        for chunk in (chunk for batch in text.batches(0) for chunk in batch):
            names = [chunk.name(at).decode() for at in range(len(chunk.keys))]
            assert chunk.keys.tolist() == [hash_of(each) for each in names] and chunk.weights is not None
            seen.update(names)
            for each, weight in zip(names, chunk.weights.tolist(), strict=True):
                weights[each] += weight
    assert seen == dict.fromkeys(["two words", "a, b", 'with "quotes"'], 20)
    assert weights["a, b"] == sum(range(1, 100, 5))


def test_a_wrong_column_or_weight_of_a_table_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.csv"
    path.write_text('key,n\n"a\nb",1\nc,-2\n')
    spec = DataSpec(train=[str(path)], format="csv", column="key", weight="n")
    with pytest.raises(DataError, match=r"a\.csv: row 3: the weight, column 'n', is not a whole number"):
        list(source.blocks(spec, 0, 1, 4096))
    (block,) = source.blocks(replace(spec, on_error="skip"), 0, 1, 4096)
    skipped: list[str] = []
    assert len(source.parsed(block, spec, skipped).keys) == len(skipped) == 1
    with pytest.raises(DataError, match="has no column 'k'; its columns are key, n"):
        list(source.blocks(replace(spec, column="k"), 0, 1, 4096))
    with pytest.raises(JobError, match="column: name the column of the keys"):
        list(source.blocks(replace(spec, column="", weight=""), 0, 1, 4096))


def test_texts_of_a_parquet_file_are_read_once_each_and_weights_have_any_type(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, rows = tmp_path / "a.parquet", 1 << 14
    same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([b"x" * 10_000]))
    parquet.write_table(pa.table({"key": same, "n": ["2"] * rows}), path, store_schema=False)
    spec = DataSpec(train=[str(path)], column="key", weight="n")
    blocks = list(source.blocks(spec, 0, 1, 4096))
    assert sum(len(block.text) for block in blocks) < 50_000
    assert sum(len(block.keys) for block in blocks) == rows  # type: ignore[union-attr]
    assert {weight for block in blocks for weight in block.weights.tolist()} == {2}  # type: ignore[union-attr]
    for wrong in (
        ["1", "abc"],
        [1.0, float("inf")],
        [1, None],
        [[1], [2]],
        [True, False],
        pa.array([1, 2**62], pa.duration("s")),
    ):
        parquet.write_table(pa.table({"key": ["a", "b"], "n": wrong}), path)
        with pytest.raises(DataError, match="the weight, column 'n', is not a whole number"):
            list(source.blocks(spec, 0, 1, 4096))


def test_text_is_cut_into_the_same_batches(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("".join(f"key{number}\n" for number in range(5000)))
    spec = DataSpec(train=[str(path)])

    def batches(done: int) -> list[list[int]]:
        text = source.Text(spec, 900, [], source.blocks(spec, 0, 1, 4096))
        return [[key for chunk in batch for key in chunk.keys.tolist()] for batch in text.batches(done)]

    whole = batches(0)
    assert len(whole) >= 4 and batches(2) == whole[2:]
    assert [key for batch in whole for key in batch] == [hash_of(f"key{number}") for number in range(5000)]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"column": "gone"}, DataError, "a.tsv:1: has no column 'gone'; its columns are x, y"),
        ({"column": "x", "header": False}, JobError, "columns are named by their places from 0"),
        ({"column": -1}, JobError, "column = -1"),
        ({"weight": 1}, JobError, "weight needs column"),
    ],
)
def test_columns_that_cannot_be_are_refused(tmp_path: Path, spec: Any, error: Any, message: str) -> None:
    (tmp_path / "a.tsv").write_text("x\ty\n1\t2\n")
    made = DataSpec(train=[str(tmp_path / "a.tsv")], **spec)
    with pytest.raises(error, match=message):
        source.check(made)
        list(source.blocks(made, 0, 1, 4096))


@pytest.mark.parametrize(
    ("spec", "texts", "keys"),
    [
        ({}, ["a b\n\n  \n \t\r\nc\n"], ["a b", "c"]),
        ({"column": 0, "weight": 1}, ["a\t1\n \t \n\t\nb\t2\n"], ["a", "b"]),
        ({"column": 0, "weight": 1}, ["key\tn\na\t1\n", "key\tn\nb\t2\n", "c\t3\n"], ["a", "b", "c"]),
        ({"column": 0}, ["key\na\n"], ["key", "a"]),
        ({"column": 0, "header": True}, ["key\na\n"], ["a"]),
    ],
)
def test_invalid_keys(tmp_path: Path, spec: Any, texts: list[str], keys: list[str]) -> None:
    names = [str(tmp_path / f"{at}.tsv") for at in range(len(texts))]
    for name, text in zip(names, texts, strict=True):
        Path(name).write_bytes(text.encode())
    made = DataSpec(train=names, **spec)
    chunks = [source.parsed(block, made, []) for block in source.blocks(made, 0, 1, 4096)]
    assert [each.name(at).decode() for each in chunks for at in range(len(each.keys))] == keys
    assert bool(source.first_row(made)) is (keys[0] == "key")
    assert bool(source.header(made)) is (spec != {} and keys[0] == "a" and not texts[0].startswith("a"))


def test_a_bad_weight_in_the_first_line_of_a_later_file_is_no_name(tmp_path: Path) -> None:
    for name, text in (("a", "x\t1\n"), ("b", "y\tmany\n")):
        (tmp_path / name).write_text(text)
    made = DataSpec(train=[str(tmp_path / "a"), str(tmp_path / "b")], column=0, weight=1)
    with pytest.raises(DataError, match="b:1: weight 'many' is not a whole number"):
        [source.parsed(block, made, []) for block in source.blocks(made, 0, 1, 4096)]


@given(st.lists(st.integers(0, 50), max_size=60), st.lists(st.integers(0, 80), max_size=40, unique=True))
def test_locate_finds_the_first(keys: list[int], wanted: list[int]) -> None:
    found = np.empty(len(wanted), np.int64)
    scan.locate(np.array(keys, np.uint64), np.array(wanted, np.uint64), found)
    assert found.tolist() == [keys.index(each) if each in keys else -1 for each in wanted]


def test_names_are_kept_up_to_their_length() -> None:
    names = [b"", b"a", "häufig".encode(), b"x" * 300]
    sketch = results.Sketch(plain({1: 4, 2: 3, 3: 2, 4: 1}, 4, 64), 4, 64, SEED, True)
    listed = results.top(sketch, np.arange(1, 5, dtype=np.uint64), results.packed(names, servers.WORDS), 3)
    assert [name for name, _ in listed] == ["", "a", "häufig"]
    assert (
        results.top(sketch, np.arange(1, 5, dtype=np.uint64), results.packed(names, 2), 4)[3][0] == "x" * 16
    )


def test_keys_that_are_numbers() -> None:
    assert source.hashes(["0", "18446744073709551615"], False).tolist() == [0, 2**64 - 1]
    for word in ("x", "-1", str(2**64), "1.0", ""):
        with pytest.raises(InputError, match="is not a key of this sketch"):
            source.hashes([word], False)


def test_the_sum_of_all_cells_may_exceed_64_bits() -> None:
    blocks = 2 * servers.SUMMED + 1
    table = Segment(VectorSpec("table", "int64", 2, blocks, dense=True))
    table.values[:blocks] = [2**62 - 1, 5]
    assert servers.total(table, {}) == {"total": blocks * (2**62 + 4)}
