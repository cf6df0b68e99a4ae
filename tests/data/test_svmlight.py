"""The svmlight reader: exact values of all valid text, and a clear error for any other."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpips.data import DataSpec, Examples, Tally, concatenate, load_columns, minibatches, read, text
from mpips.data.compression import MAGIC
from mpips.data.stream import UNSUPPORTED
from mpips.errors import DataError

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SKIP = DataSpec(on_error="skip")


def load(path: Path, spec: DataSpec | None = None, part: int = 0, parts: int = 1) -> Examples:
    return concatenate(read([str(path)], spec or DataSpec(), part, parts))


def loads(path: Path, content: str | bytes, spec: DataSpec | None = None) -> Examples:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load(path, spec)


def values_of(examples: Examples) -> np.ndarray:
    return np.ones(len(examples.keys), np.float32) if examples.values is None else examples.values


def same(a: Examples, b: Examples) -> bool:
    """Compare bit by bit: values too, so that -0.0 and 0.0 differ."""
    return (
        np.array_equal(a.labels, b.labels)
        and np.array_equal(a.indptr, b.indptr)
        and np.array_equal(a.keys, b.keys)
        and np.array_equal(values_of(a).view(np.uint32), values_of(b).view(np.uint32))
    )


@pytest.fixture
def svm(tmp_path: Path) -> Path:
    return tmp_path / "data.svm"


# -- what is legal -----------------------------------------------------------------------------------------

spaces = st.text(" \t\r\v\f", min_size=1, max_size=3)
keys = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 30), st.sampled_from([0, 2**63, 2**64 - 1]))
numbers = st.one_of(
    st.just("1"),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(lambda x: repr(float(x))),
    st.floats(-3e38, 3e38).map(repr),
    st.decimals(-1000, 1000, allow_nan=False, allow_infinity=False).map(str),
    st.from_regex(r"\A[+-]?([0-9]{1,25}\.?[0-9]{0,25}|\.[0-9]{1,25})([eE][+-]?[0-9]{1,2})?\Z").filter(
        lambda word: abs(float(word)) < 3e38
    ),
)
rows = st.tuples(
    st.sampled_from(["-1", "0", "1", "+1", "1.0", "-1.000", "0.0", "1e0", "+0"]),
    st.dictionaries(keys, numbers, max_size=6),
)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, list[tuple[str, dict[int, str]]]]:
    """A legal file, oddly spaced, with comments and blank lines, and the rows that it holds."""
    examples = draw(st.lists(rows, min_size=1, max_size=8))
    lines = []
    for label, features in examples:
        if draw(st.booleans()):
            lines.append(draw(st.sampled_from(["", "  ", "# only words: 1:2", " \t# 1:1", "\r"])))
        words = [label] + [
            f"{draw(st.sampled_from(['', '0', '00']))}{key}:{features[key]}" for key in sorted(features)
        ]
        tail = draw(st.sampled_from(["", " ", "\t", " # nan:nan", "#x", "\r"]))
        lines.append(draw(st.sampled_from(["", " "])) + draw(spaces).join(words) + tail)
    content = "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n", "\r\n"]))
    # A file whose only line ends are CR is refused; see `test_garbage_parses_as_python_would_or_is_skipped`.
    if "\n" not in content and "\r" in content.rstrip():
        content += "\n"
    return content, examples


@quick
@given(files(), st.integers(1, 4), st.integers(1, 40))
def test_legal_text_reads_back_exactly_in_any_parts_and_blocks(
    svm: Path, file: tuple[str, list[tuple[str, dict[int, str]]]], parts: int, size: int
) -> None:
    content, wanted = file
    svm.write_bytes(content.encode())
    whole = load(svm)
    assert whole.labels.tolist() == [1.0 if float(label) == 1 else -1.0 for label, _ in wanted]
    assert whole.indptr.tolist() == np.cumsum([0] + [len(features) for _, features in wanted]).tolist()
    assert whole.keys.tolist() == [key for _, features in wanted for key in sorted(features)]
    exact = [float(features[key]) for _, features in wanted for key in sorted(features)]
    assert np.array_equal(
        values_of(whole).view(np.uint32), np.array(exact).astype(np.float32).view(np.uint32)
    )
    for part in range(parts):
        mine = concatenate(text.read_svmlight(str(svm), DataSpec(), 0, part, parts, Tally(), size))
        expected = [whole.rows(i, i + 1) for i in range(part, len(whole), parts)]
        assert same(mine, concatenate(expected))


@pytest.mark.parametrize(
    "word",
    [
        "1.000000059604644775390625",  # half way between two float32
        "1.00000005960464477539062500000000000000001",
        "1.0000000596046447753906249999999999999999",
        "0.000000000000000000000000000000000000000000000700649232162408535461864791644958065640130970938257885",
        "1e-400",
        "-1e-46",
        "0e999999999999999999999",
        "3.4028234663852886e38",
        "0." + "0" * 320 + "1e321",
        "1" + "0" * 320 + "e-320",
        "16777217",
        "9007199254740993",
        "18446744073709551617",
    ],
)
def test_hard_numbers_round_as_python_does(svm: Path, word: str) -> None:
    read_back = values_of(loads(svm, f"1 5:{word}\n"))
    assert read_back.view(np.uint32)[0] == np.float32(float(word)).view(np.uint32)


def test_numbers_at_the_border_between_two_float32(svm: Path) -> None:
    low = (
        np.random.default_rng(2).integers(1, 0x7F000000, 2000, np.uint32).view(np.float32).astype(np.float64)
    )
    border = (low + np.nextafter(low.astype(np.float32), np.float32(np.inf))) / 2
    numbers = np.concatenate([np.nextafter(border, 0), border, np.nextafter(border, np.inf)])
    found = loads(svm, "1 " + " ".join(f"{i}:{number!r}" for i, number in enumerate(numbers.tolist())) + "\n")
    assert np.array_equal(values_of(found), numbers.astype(np.float32))


def test_many_hard_numbers_in_one_line_make_room(svm: Path) -> None:
    word = "1.000000059604644775390625"
    examples = loads(svm, "1 " + " ".join(f"{i}:{word}" for i in range(5000)) + "\n-1 3:2\n")
    assert len(examples.keys) == 5001
    assert set(values_of(examples)[:5000].tolist()) == {float(np.float32(float(word)))}


def test_a_line_longer_than_a_batch_and_a_block(svm: Path) -> None:
    n = text.BATCH_NONZEROS * 2 + 7
    line = "1 " + " ".join(f"{i}:1" for i in range(n)) + "\n"
    examples = loads(svm, "-1 1:1\n" + line + "-1 2:1\n")
    assert examples.indptr.tolist() == [0, 1, n + 1, n + 2]
    assert examples.values is None
    assert np.array_equal(examples.keys[1 : n + 1], np.arange(n))


def test_more_short_lines_than_a_batch_holds(svm: Path) -> None:
    n = text.BATCH_EXAMPLES + 5
    svm.write_bytes(b"1\n" * n)
    batches = list(read([str(svm)], DataSpec()))
    assert [len(batch) for batch in batches] == [text.BATCH_EXAMPLES, 5]


def test_byte_order_mark_and_windows_line_ends(svm: Path) -> None:
    assert loads(svm, b"\xef\xbb\xbf1 3:1\r\n-1 4:1\r\n").keys.tolist() == [3, 4]


@pytest.mark.parametrize(
    "ending, pack", [("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress)]
)
def test_compressed_files(tmp_path: Path, ending: str, pack) -> None:  # type: ignore[no-untyped-def]
    content = b"".join(b"%d %d:0.5 %d:2\n" % (i % 2, i, i + 7) for i in range(5000))
    plain = loads(tmp_path / "a.svm", content)
    assert same(loads(tmp_path / f"b.svm.{ending}", pack(content)), plain)
    assert same(loads(tmp_path / "named_otherwise", pack(content)), plain)


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    packed = gzip.compress(b"1 1:1\n-1 ") + gzip.compress(b"2:1\n")
    assert loads(tmp_path / "a.svm.gz", packed).keys.tolist() == [1, 2]


def test_zstandard_reads_or_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.svm.zst"
    # one frame with one raw block that is the last: "1 3:1\n"
    frame = b"\x28\xb5\x2f\xfd\x20\x06\x31\x00\x00" + b"1 3:1\n"
    for name in ("compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match="pip install zstandard"):
        loads(path, frame)
    monkeypatch.undo()
    if sys.version_info < (3, 14):
        pytest.importorskip("zstandard", reason="the optional zstandard package is not installed")
    assert load(path).keys.tolist() == [3]
    assert loads(path, frame * 3).keys.tolist() == [3, 3, 3]
    with pytest.raises(DataError, match="is truncated"):
        loads(path, frame * 2 + frame[:-2])
    with pytest.raises(DataError, match=r"a\.svm\.zst"):
        loads(path, frame + b"garbage")


# -- what is not -------------------------------------------------------------------------------------------

BAD_LINES = {
    "2 1:1": "label '2' is not one of -1, 0, +1",
    "x 1:1": "label 'x'",
    "nan 1:1": "label 'nan'",
    "1,2 1:1": "label '1,2'",
    "1:1 2:1": "label '1:1'",
    "1 5": "'5' is not of the form id:value",
    "1 a:1": "'a:1' is not of the form id:value",
    "1 -3:1": "'-3:1' is not of the form id:value",
    "1 3 :1": "'3' is not of the form id:value",
    "1 :1": "':1' is not of the form id:value",
    "1 qid:7 1:1": "'qid:7': ranking data (qid) is not supported",
    "1 3:": "value in '3:' is not a number",
    "1 3: 1": "value in '3:' is not a number",
    "1 3:x": "value in '3:x' is not a number",
    "1 3:1e": "value in '3:1e' is not a number",
    "1 3:0x10": "value in '3:0x10' is not a number",
    "1 3:1_0": "value in '3:1_0' is not a number",
    "1 3:1:2": "value in '3:1:2' is not a number",
    "1 3:--1": "value in '3:--1' is not a number",
    "1 3:nan": "value in '3:nan' is not finite",
    "1 3:-NaN": "value in '3:-NaN' is not finite",
    "1 3:inf": "value in '3:inf' is not finite",
    "1 3:-Infinity": "value in '3:-Infinity' is not finite",
    "1 3:1e39": "value in '3:1e39' is not finite",
    "1 3:-1e400": "value in '3:-1e400' is not finite",
    "1 4:1 3:1": "id in '3:1' is not above the one before it",
    "1 4:1 4:1": "id in '4:1' is not above the one before it",
    "1 18446744073709551616:1": "id in '18446744073709551616:1' is too large",
    "1 99999999999999999999999:1": "is too large",
    "1 3:1 \x00": "'?' is not of the form id:value",
    "1 3:1 \x1b[31m:2": "'?[31m:2' is not of the form",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_line_is_named_or_skipped(svm: Path, line: str) -> None:
    content = f"1 1:1\n\n# comment\n{line}\n-1 2:0.5\n"
    with pytest.raises(DataError) as caught:
        loads(svm, content)
    message = str(caught.value)
    assert message.startswith(f"{svm}:4: ") and BAD_LINES[line] in message and "\n" not in message
    tally = Tally()
    kept = concatenate(read([str(svm)], SKIP, tally=tally))
    assert (tally.examples, tally.skipped, tally.first_error) == (2, 1, message)
    assert kept.keys.tolist() == [1, 2] and values_of(kept).tolist() == [1, 0.5]


def test_each_bad_line_belongs_to_one_part(svm: Path) -> None:
    svm.write_text("".join(f"{'x' if i % 3 == 0 else 1} {i}:1\n" for i in range(20)))
    found, skipped = [], 0
    for part in range(4):
        tally = Tally()
        for batch in read([str(svm)], SKIP, part, 4, tally):
            found += [int(key) for key in batch.keys if key % 4 == part]
        skipped += tally.skipped
    assert sorted(found) == [i for i in range(20) if i % 3] and skipped == 7


@pytest.mark.parametrize(
    "content, wanted", [(b"", "is empty"), (b"\n\n", "holds no examples"), (b"# x\n", "holds no examples")]
)
def test_nothing_to_read(svm: Path, content: bytes, wanted: str) -> None:
    with pytest.raises(DataError, match=wanted):
        loads(svm, content)


def test_missing_file_folder_and_wrong_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.svm: cannot be read: No such file"):
        load(tmp_path / "gone.svm")
    with pytest.raises(DataError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"is named \.gz but is not compressed"):
        loads(tmp_path / "a.svm.gz", "1 1:1\n")


@pytest.mark.parametrize(
    "ending, pack", [("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress)]
)
def test_truncated_or_damaged_archive_names_the_file(tmp_path: Path, ending: str, pack) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    content = b"".join(b"1 %d:1\n" % key for key in rng.integers(0, 2**40, 3000))
    packed = pack(content)
    path = tmp_path / f"a.svm.{ending}"
    for cut in (11, len(packed) // 2, len(packed) - 1):
        with pytest.raises(DataError, match=f"a.svm.{ending}: is truncated"):
            loads(path, packed[:cut])
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0x55
    with pytest.raises(DataError, match=f"a.svm.{ending}"):
        loads(path, bytes(damaged))


def test_a_reader_can_be_closed_before_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.svm.gz"
    path.write_bytes(gzip.compress(b"1 1:1 2:1 3:1\n" * 400_000))
    stream = read([str(path)], DataSpec())
    assert len(next(stream)) > 0
    stream.close()  # type: ignore[attr-defined]
    path.unlink()


# -- garbage: an error or an exact parse, never a crash ----------------------------------------------------


def plain_parse(content: bytes) -> tuple[list[tuple[float, list[int], list[float]]], int]:
    """Parse svmlight by Python's own means, skipping bad lines: (rows, skipped)."""
    good, bad = [], 0
    for line in content.split(b"\n"):
        words = line.partition(b"#")[0].split()
        if not words:
            continue
        try:
            label = plain_number(words[0])
            if label not in (-1, 0, 1):
                raise ValueError
            pairs = [word.split(b":") for word in words[1:]]
            if any(len(pair) != 2 or not pair[0].isdigit() or int(pair[0]) >= 2**64 for pair in pairs):
                raise ValueError
            ids = [int(pair[0]) for pair in pairs]
            values = [plain_number(pair[1]) for pair in pairs]
            if any(b <= a for a, b in pairwise(ids)):
                raise ValueError
            good.append((1.0 if label == 1 else -1.0, ids, values))
        except ValueError:
            bad += 1
    return good, bad


def plain_number(word: bytes) -> float:
    with np.errstate(over="ignore"):
        value = float(np.float32(float(word)))
    if b"_" in word or not np.isfinite(value):
        raise ValueError
    return value


words = st.sampled_from(
    (b"1|-1|0|+|-|.|e|E5|:|#| |\t|\n|"
     b"\r|qid|q|nan|inf|9|18446744073709551615|1 2:3|1 1:1 2:1\n|\x00|\xff|_|1e39|5:0.25 ").split(b"|")
)  # fmt: skip
garbage = st.one_of(
    st.binary(max_size=60),
    st.lists(words, max_size=25).map(b"".join),
    st.tuples(files(), st.integers(0, 200)).map(lambda pair: pair[0][0].encode()[: pair[1]]),
)


@settings(quick, max_examples=150)
@given(garbage, st.integers(3, 50))
def test_garbage_parses_as_python_would_or_is_skipped(svm: Path, content: bytes, size: int) -> None:
    svm.write_bytes(content)
    good, bad = plain_parse(content.removeprefix(b"\xef\xbb\xbf"))
    tally = Tally()
    skippable = tuple(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))
    if not content.removeprefix(b"\xef\xbb\xbf") or content.startswith(
        (*MAGIC.values(), *UNSUPPORTED, *skippable)
    ):
        return
    if b"\n" not in content and b"\r" in content.rstrip():  # lines end in CR alone
        return
    found = concatenate(text.read_svmlight(str(svm), SKIP, 0, 0, 1, tally, size))
    assert (len(found), tally.skipped) == (len(good), bad)
    assert found.labels.tolist() == [label for label, _, _ in good]
    assert found.keys.tolist() == [key for _, ids, _ in good for key in ids]
    assert values_of(found).tolist() == [value for _, _, values in good for value in values]


# -- outside judges ----------------------------------------------------------------------------------------


def real(name: str) -> str:
    folder = os.environ.get("MPIPS_TEST_DATA", "")
    path = os.path.join(folder, name)
    if not folder or not os.path.exists(path):
        pytest.skip(f"{name}: set MPIPS_TEST_DATA to the folder that holds it")
    return path


@pytest.mark.parametrize(
    "name, n, nnz", [("a9a.train.svm.gz", 32561, 451592), ("a9a.test.svm.gz", 16281, 225731)]
)
def test_a9a_equals_scikit_learns_reader(name: str, n: int, nnz: int) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    path = real(name)
    matrix, labels = datasets.load_svmlight_file(path, zero_based=True, dtype=np.float32)
    mine = concatenate(read([path], DataSpec()))
    assert (len(mine), len(mine.keys)) == (n, nnz) and mine.values is None
    assert np.array_equal(mine.labels, labels) and np.array_equal(mine.indptr, matrix.indptr)
    assert np.array_equal(mine.keys, matrix.indices)


def test_random_matrix_equals_scikit_learns_reader(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.random_array((300, 1000), density=0.05, format="csr", rng=np.random.default_rng(1))
    path = tmp_path / "r.svm"
    datasets.dump_svmlight_file(matrix, np.arange(300) % 2, str(path), zero_based=True)
    judge, labels = datasets.load_svmlight_file(str(path), zero_based=True, n_features=1000)
    mine = load(path)
    assert np.array_equal(mine.labels, 2 * labels - 1) and np.array_equal(mine.keys, judge.indices)
    assert np.array_equal(values_of(mine), judge.data.astype(np.float32))
    columns, csc = load_columns(minibatches(read([str(path)], DataSpec()), 7)), judge.tocsc()
    csc.sort_indices()
    present = np.diff(csc.indptr) > 0
    assert np.array_equal(columns.keys, np.flatnonzero(present))
    assert np.array_equal(columns.rows, csc.indices)
    assert columns.values is not None and np.array_equal(columns.values, csc.data.astype(np.float32))
    assert np.array_equal(np.diff(columns.colptr), np.diff(csc.indptr)[present])


def test_news20_counts() -> None:
    examples, nonzeros, positive = 0, 0, 0
    for batch in read([real("news20b.train.svm.xz")], DataSpec()):
        examples, nonzeros = examples + len(batch), nonzeros + len(batch.keys)
        positive += int((batch.labels > 0).sum())
        assert batch.values is None and batch.keys.max() <= 1234342 and batch.keys.min() >= 1
    assert (examples, nonzeros, positive) == (11293, 5475317, 5875)
