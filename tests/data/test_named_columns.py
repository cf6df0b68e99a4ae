"""Tables with named columns: CSV and Parquet give the same examples, and those that scikit-learn's encoders give."""

from __future__ import annotations

import csv
import io
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpips.data import DataSpec, Examples, Source, Tally, concatenate, learned, read
from mpips.data.convert import convert
from mpips.data.tables import Encoding, Summary
from mpips.data.tables import summary as summaries
from mpips.errors import DataError, InputError, JobError
from mpips.keys import is_wide
from mpips.scheduler.data_assignment import Cut

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TABLE: dict[str, list[Any]] = {
    "id": [1, 2, 3, 4],
    "age": [20, None, 60, 40],
    "city": ["New, York", "Paris", None, "Paris"],
    "job": ['a "b" c', "x\ny", "z", "x\ny"],
    "y": ["yes", "no", "yes", "no"],
}
SPEC = DataSpec(
    label="y", positive="yes", numeric={"age": "standard"}, ignore=["id"], crosses=[["city", "job"]]
)


def write_csv(path: Path, table: dict[str, list[Any]], separator: str = ",", newline: str = "\n") -> Path:
    text = io.StringIO()
    rows = csv.writer(text, delimiter=separator, lineterminator=newline)
    rows.writerow(table)
    rows.writerows(zip(*table.values(), strict=True))
    path.write_bytes(text.getvalue().encode())
    return path


def write_parquet(path: Path, table: dict[str, list[Any]], **how: Any) -> Path:
    parquet.write_table(pa.table(table), path, **how)
    return path


def load(
    path: Path, spec: DataSpec = SPEC, tally: Tally | None = None, part: int = 0, of: int = 1
) -> Examples:
    return concatenate(read([str(path)], spec, part, of, tally))


def rows_of(found: Examples) -> list[tuple[float, list[tuple[int, float]]]]:
    values = np.ones(len(found.keys)) if found.values is None else found.values
    pairs = list(zip(found.keys.tolist(), values.tolist(), strict=True))
    return [
        (label, pairs[a:b])
        for label, a, b in zip(found.labels.tolist(), found.indptr[:-1], found.indptr[1:], strict=True)
    ]


def test_csv_and_parquet_give_the_same_examples(tmp_path: Path) -> None:
    text = load(write_csv(tmp_path / "a.csv", TABLE))
    assert rows_of(text) == rows_of(load(write_parquet(tmp_path / "a.parquet", TABLE)))
    assert text.labels.tolist() == [1, -1, 1, -1]
    rows = [dict(pairs) for _, pairs in rows_of(text)]
    # constant, age, city, job, cross; the third has no city, and no cross
    assert [len(row) for row in rows] == [5, 5, 3, 4]
    # age 40 is the mean, and a value of 0 is left out; 20 and 60 are 1.22 deviations away
    assert sorted(value for row in rows for value in row.values() if value != 1) == pytest.approx(
        [-(1.5**0.5), 1.5**0.5]
    )
    assert set(rows[1]) - set(rows[3]) and len(set(rows[1]) & set(rows[3])) == 4


def test_order_of_columns_and_other_forms_of_files_do_not_matter(tmp_path: Path) -> None:
    rows = rows_of(load(write_csv(tmp_path / "a.csv", TABLE)))
    backwards = dict(reversed(TABLE.items()))
    assert rows_of(load(write_csv(tmp_path / "b.csv", backwards))) == rows
    assert rows_of(load(write_csv(tmp_path / "c.csv", TABLE, ";", "\r\n"))) == rows
    assert rows_of(load(write_csv(tmp_path / "d.csv", TABLE, "\t"))) == rows
    (tmp_path / "e.csv.xz").write_bytes(lzma.compress(b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes()))
    assert rows_of(load(tmp_path / "e.csv.xz")) == rows
    coded = pa.table(TABLE).set_column(2, "city", pa.array(TABLE["city"]).dictionary_encode())
    parquet.write_table(coded, tmp_path / "f.parquet")
    assert rows_of(load(tmp_path / "f.parquet")) == rows
    train = replace(SPEC, train=str(tmp_path / "a.csv"))
    test = {**{name: column[:1] for name, column in backwards.items()}, "age": [60]}
    (_, pairs), ((_, first), *_) = rows_of(load(write_parquet(tmp_path / "g.parquet", test), train))[0], rows
    # The mean is that of the training data.
    assert {key: abs(value) for key, value in pairs} == {key: abs(value) for key, value in first}


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_parts_have_each_row_once(tmp_path: Path, rows: int) -> None:
    for path in (
        write_csv(tmp_path / "a.csv", TABLE),
        write_parquet(tmp_path / "a.parquet", TABLE, row_group_size=rows),
    ):
        spec = replace(SPEC, train=str(path))
        whole = rows_of(load(path, spec))
        for of in (2, 3, 5):
            pieces = [row for part in range(of) for row in rows_of(load(path, spec, part=part, of=of))]
            assert sorted(pieces) == sorted(whole)


def test_workers_learn_the_same_encoding_together(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    x = np.where(random.random(30_000) < 0.1, np.nan, random.gamma(2.0, 3e4, 30_000))
    table = {"x": x.tolist(), "z": x.tolist(), "y": [0, 1] * 15_000}
    table = {name: [None if value != value else value for value in column] for name, column in table.items()}
    path = write_parquet(tmp_path / "a.parquet", table, row_group_size=7_000)
    spec = DataSpec(train=str(path), label="y", numeric={"x": "log", "z": "quantiles"})
    found = []
    for of in (1, 2, 7):
        found.append(learned([Source(spec).summarise(part, of) for part in range(of)]))
    assert found[0] is not None and found[0] == found[1] == found[2]
    log, bins = found[0]["numeric"]
    there = x[~np.isnan(x)]
    assert log["mean"] == pytest.approx(np.log1p(there).mean(), rel=1e-12)
    assert log["deviation"] == pytest.approx(np.log1p(there).std(), rel=1e-9)
    counts = np.bincount(np.searchsorted(bins["edges"], there, "right"))
    # of a sample of 10,000: the share of a bin has a standard deviation of 0.0017
    assert len(counts) == 32 and np.abs(counts / len(there) - 1 / 32).max() < 0.012
    source = Source(spec)
    source.take(found[0])
    joined = concatenate(source.read("train", 0, 1, Tally()))
    assert rows_of(joined) == rows_of(load(path, spec))
    assert Encoding.of_table(found[0], "here").table() == found[0]


@quick
@given(
    st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=1, max_size=50),
    st.integers(1, 5),
)
def test_summaries_do_not_depend_on_the_partition(numbers: list[float | None], parts: int) -> None:
    x = np.array([[np.nan if each is None else each for each in numbers]])
    hashes = np.random.default_rng(0).random(len(numbers))
    whole, merged = Summary(1, [0]), Summary(1, [0])
    whole.add(x, hashes)
    for part in range(parts):
        piece = Summary(1, [0])
        piece.add(x[:, part::parts], hashes[part::parts])
        merged.merge(Summary.of_array(piece.array(), [0]))
    there = x[~np.isnan(x)]
    assert merged.mean(0) == whole.mean(0) and merged.deviation(0) == whole.deviation(0)
    assert merged.sample(0).tolist() == whole.sample(0).tolist() == sorted(there)
    if len(there):
        assert merged.mean(0) == pytest.approx(there.mean(), abs=1e-6)


def test_samples_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "SAMPLE", 10)
    hashes = np.random.default_rng(1).permutation(100) / 100.0
    summary = Summary(1, [0])
    for begin in range(0, 100, 20):
        summary.add(np.arange(100.0)[None, begin : begin + 20], hashes[begin : begin + 20])
    assert summary.sample(0).tolist() == sorted(np.flatnonzero(hashes < 0.1).tolist())


def test_the_encoding_is_that_of_scikit_learn(tmp_path: Path) -> None:
    from scipy.sparse import csr_array, hstack
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    random = np.random.default_rng(2)
    n = 500
    city, age = random.choice(["a", "b", "c,d"], n), random.normal(40, 9, n).round(2)
    table = {"city": city.tolist(), "age": age.tolist(), "y": random.integers(0, 2, n).tolist()}
    found = load(write_csv(tmp_path / "a.csv", table), DataSpec(label="y", numeric=["age"]))
    keys, columns = np.unique(found.keys, return_inverse=True)
    ours = csr_array((found.values, columns, found.indptr), shape=(n, len(keys))).toarray()
    hot = OneHotEncoder().fit_transform(city[:, None])
    theirs = hstack([hot, StandardScaler().fit_transform(age[:, None]), np.ones((n, 1))]).toarray()
    assert sorted(map(tuple, ours.T.round(4))) == sorted(map(tuple, theirs.astype(np.float32).T.round(4)))


def test_keys_of_128_bits_have_those_of_64_as_upper_halves(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", TABLE)
    narrow, wide = load(path), load(path, replace(SPEC, key_bits=128))
    assert is_wide(wide.keys) and (wide.keys["high"] == narrow.keys).all()
    assert (wide.values == narrow.values).all() and len(np.unique(wide.keys["low"])) == len(
        np.unique(narrow.keys)
    )


@pytest.mark.parametrize(
    ("positive", "labels", "expected"),
    [
        ("", ["1", "0", "-1", "+1", "True", "false"], [1, -1, -1, 1, 1, -1]),
        (1, ["1", "2", "1.0", "2"], [1, -1, 1, -1]),
        ("ja", ["ja", "nein", "ja"], [1, -1, 1]),
        (True, ["true", "False", "True", "1"], [1, -1, 1, 1]),
        (False, ["true", "False", "0"], [-1, 1, 1]),
    ],
)
def test_labels(tmp_path: Path, positive: Any, labels: list[str], expected: list[int]) -> None:
    table = {"x": ["a"] * len(labels), "y": labels}
    spec = DataSpec(label="y", positive=positive)
    assert load(write_csv(tmp_path / "a.csv", table), spec).labels.tolist() == expected
    assert load(write_parquet(tmp_path / "a.parquet", table), spec).labels.tolist() == expected


def test_rows_without_labels_can_be_read(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "a.csv", TABLE)
    source = Source(replace(SPEC, train=str(train)))
    table = learned([source.summarise(0, 1)])
    new = Source(replace(SPEC, label="", ignore=["id", "y"]))
    new.take(table)
    unlabelled = {name: column for name, column in TABLE.items() if name != "y"}
    for path in (train, write_csv(tmp_path / "b.csv", unlabelled)):
        found = concatenate(new.read([str(path)], 0, 1, Tally()))
        assert found.labels.tolist() == [1] * 4 and (found.keys == load(train).keys).all()


CSV_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("a,y\nu,1\nv,2\n", {}, "row 3: label '2' in column 'y' is not one of -1, 0, 1: set [data] positive"),
    ("a,y\nu,1\nv,\n", {}, "row 3: the label, column 'y', is missing"),
    ("a,y\nu,1\nv,1,1\n", {}, "row 3: has 3 columns where the first row has 2: 'v,1,1'"),
    ("a,y\n3,1\nfour,1\n", {"numeric": ["a"]}, "row 3: 'four' in column 'a' is not a number"),
    ("a,y\n3,1\n1e999,1\n", {"numeric": ["a"]}, "row 3: column 'a' has a number that is not finite"),
    (
        "a,y\n3,1\n1e39,1\n",
        {"numeric": {"a": "plain"}},
        "row 3: column 'a' has a number beyond 32-bit floating point; scale it",
    ),
    ("a,a,y\n3,1,1\n", {}, "column 'a' is there twice; rename one"),
    ("a,y\n", {}, "holds no examples"),
    ("a,y", {}, "holds no examples"),
    ("\na,y", {}, "holds no examples"),
    ("a,y\nu,1\nv,NA\n", {"positive": "1"}, "row 3: the label, column 'y', is missing"),
    (
        "a,y\n3,1\n1e200,1\n",
        {"numeric": ["a"]},
        "column 'a' of [data] numeric has numbers beyond 1e154, whose squares are not finite",
    ),
    (
        "a,y\nNA,1\n",
        {"numeric": ["a"]},
        "column 'a' of [data] numeric has no number, such as 1.5, in the training",
    ),
    ('a,y\n"u,1\nv,0\n' + "x" * (3 << 20), {}, "a row is longer than 1 MiB; is a quote missing?"),
]


@pytest.mark.parametrize(("text", "keys", "message"), CSV_ERRORS)
def test_errors_name_file_row_and_column(tmp_path: Path, text: str, keys: Any, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises((DataError, InputError)) as caught:
        load(path, DataSpec(label="y", **keys))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    if "row 3" in message:
        # A blank line is a row only before the names.
        path.write_text("\n \n" + text.replace("\n", "\n\n", 1))
        with pytest.raises(DataError, match=r"row 5: "):
            load(path, DataSpec(label="y", **keys))
        path.write_text(text)
        tally = Tally()
        assert len(load(path, DataSpec(label="y", on_error="skip", **keys), tally)) == 1
        assert tally.skipped == 1 and message in tally.first_error and str(path) in tally.first_error


JOB_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"label": "z"}, "[data] label: {path} has no column 'z'"),
    ({"numeric": ["Age"]}, "[data] numeric: {path} has no column 'Age'; did you mean 'age'?"),
    ({"ignore": ["ids"]}, "[data] ignore: {path} has no column 'ids'; did you mean 'id'?"),
    ({"categorical": ["town"]}, "[data] categorical: {path} has no column 'town'"),
    ({"crosses": [["age", "job"]]}, "[data] crosses: column 'age' must be one of categories"),
    ({"categorical": ["city", "job", "y"]}, "[data] column 'y' can be only one of label, numeric and"),
    ({"categorical": ["city", "job", "age"]}, "[data] column 'age' can be only one of label, numeric and"),
    ({"numeric": ["age", "y"]}, "[data] column 'y' can be only one of label, numeric and categorical"),
    (
        {"numeric": [], "crosses": [], "ignore": ["id", "age", "city", "job"]},
        "[data] {path} has no columns but the label, and those to ignore: id, age, city, job, y",
    ),
    ({"label": ""}, "[data] label: name the column of the labels; {path} has id, age, city, job, y"),
]


@pytest.mark.parametrize(("keys", "message"), JOB_ERRORS)
def test_columns_that_are_not_there(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", TABLE)
    with pytest.raises(JobError) as caught:
        load(path, replace(SPEC, **keys))
    assert message.format(path=path) in str(caught.value)


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    train = replace(SPEC, train=str(write_csv(tmp_path / "a.csv", TABLE)))
    less = write_csv(tmp_path / "b.csv", {name: each for name, each in TABLE.items() if name != "city"})
    with pytest.raises(
        DataError, match=r"b\.csv: has no column 'city', which the training data have; it has id, "
    ):
        load(less, train)
    more = write_parquet(tmp_path / "c.parquet", TABLE | {"new": [1, 2, 3, 4]})
    with pytest.raises(
        DataError, match=r"c\.parquet: has a column 'new', which the first file of the training"
    ):
        load(more, train)
    assert len(load(more, replace(train, categorical=["city", "job"]))) == 4
    other = tmp_path / "d.svm"
    other.write_text("+1 3:1\n")
    with pytest.raises(
        DataError, match=r"d\.svm: is in the format svmlight, and the training data are tables"
    ):
        load(other, replace(train, format="auto"))


def test_parquet_files_that_are_none(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", TABLE | {"city": ["x" * 1000] * 4})
    whole = path.read_bytes()
    for text, message in (
        (b"a,y\n1,1\n", "is not a Parquet file: it does not start with PAR1"),
        (whole[:-40], "is not a sound Parquet file"),
        (b"PAR1" + bytes(100) + b"PAR1", "is not a sound Parquet file"),
        (whole.replace(b"city", b"\xceity"), "is not a sound Parquet file"),
    ):
        path.write_bytes(text)
        with pytest.raises(DataError, match=message):
            load(path)
    text_file = tmp_path / "b.csv"
    text_file.write_bytes(whole)
    assert len(load(text_file)) == 4
    with pytest.raises(DataError, match="is a Parquet file but"):
        load(text_file, replace(SPEC, format="csv"))
    floating = write_parquet(tmp_path / "c.parquet", {"a": [0.5], "y": [1]})
    with pytest.raises(DataError, match="column 'a' has floating-point numbers; name it in"):
        load(floating, DataSpec(label="y"))


@quick
@given(st.binary(max_size=300), st.sampled_from(["csv", "parquet"]))
def test_any_bytes_give_examples_or_one_line(tmp_path: Path, content: bytes, form: Any) -> None:
    path = tmp_path / "fuzzed"
    path.write_bytes((b"PAR1" if form == "parquet" else b"a,y\n") + content)
    try:
        load(path, DataSpec(label="y", format=form))
    except (DataError, JobError) as error:
        assert "\n" not in str(error) and str(path) in str(error)


def test_a_table_is_converted_with_its_encoding(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", TABLE)
    convert(str(path), str(tmp_path / "a.svm"), SPEC)
    text = load(tmp_path / "a.svm", DataSpec())
    found = load(path)
    assert rows_of(text) == rows_of(found)


def fractions(found: Examples) -> NDArray[np.float32]:
    return np.ones(len(found.keys), np.float32) if found.values is None else found.values


@pytest.mark.parametrize("bins", [1, 2, 31])
def test_quantiles_of_few_values(tmp_path: Path, bins: int) -> None:
    table = {"x": [float(at % bins) for at in range(200)], "y": [0, 1] * 100}
    found = load(write_csv(tmp_path / "a.csv", table), DataSpec(label="y", numeric={"x": "quantiles"}))
    # the constant, and one key for each value
    assert len(np.unique(found.keys)) == bins + 1 and (fractions(found) == 1).all()


def test_blank_lines_before_the_names_are_left_out(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", TABLE)
    rows = rows_of(load(path))
    for blank in ("\n", "\r\n \r\n", "\n\n\n"):
        (tmp_path / "b.csv").write_bytes(blank.encode() + path.read_bytes())
        assert rows_of(load(tmp_path / "b.csv")) == rows


def test_broken_rows_are_counted_once_and_other_rows_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,y\nb\nu,1\nb\nb\nv,2\nw,0\nx,3\nb,b,b\n")
    for of in (1, 2, 5):
        found, tally = 0, Tally()
        for part in range(of):
            own = Tally()
            found += len(load(path, DataSpec(label="y", on_error="skip"), own, part, of))
            tally.add(own)
        assert (found, tally.examples, tally.skipped) == (2, 2, 6)
        errors = []
        for text in ("v,2", "x,3"):
            (tmp_path / "b.csv").write_text(path.read_text().replace(text, "v,1"))
            own = Tally()
            load(tmp_path / "b.csv", DataSpec(label="y", on_error="skip"), own, 1 % of, of)
            errors.append(own.first_error)
        assert of != 2 or "row 8: label '3'" in errors[0] + errors[1]


def test_a_broken_row_that_is_not_utf_8_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    """Arrow decodes the row for the handler of broken rows, and printed that it could not."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,y\nu,1\n\xf6,0,1\nv,0\n")
    for on_error in ("stop", "skip"):
        with pytest.raises(DataError, match=r"a.csv: row 3: has 3 columns where the first row has 2"):
            load(path, DataSpec(label="y", on_error=on_error))


@pytest.mark.parametrize(
    ("labels", "how"),
    [
        ([1.0, float("nan"), 0.0], {"positive": 1}),
        ([1.0, float("nan"), 0.0], {"positive": 1, "missing": []}),
        (["1", " NA ", "0"], {"positive": 1}),
    ],
)
def test_a_missing_label_is_no_negative_one(tmp_path: Path, labels: list[Any], how: dict[str, Any]) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"x": ["a"] * 3, "y": pa.array(labels)}), path)
    with pytest.raises(DataError, match="row 2: the label, column 'y', is missing"):
        load(path, DataSpec(label="y", **how))
    assert load(path, DataSpec(label="y", on_error="skip", **how)).labels.tolist() == [1, -1]


@pytest.mark.parametrize("value", [0.1, 0.3, 1.7, -2.675, 1e6 + 0.1])
def test_a_constant_number_has_no_value(tmp_path: Path, value: float) -> None:
    for rows in (3, 6, 13, 109):
        table = {"x": [value] * rows, "y": [1] * rows}
        found = load(write_parquet(tmp_path / "a.parquet", table), DataSpec(label="y", numeric=["x"]))
        # Only the constant.
        assert len(np.unique(found.keys)) == 1 and len(found.keys) == rows


def test_numbers_that_hardly_differ_are_scaled(tmp_path: Path) -> None:
    table = {"x": [1_700_000_000_000_000_000 + 1_000_000_000 * at for at in range(10)], "y": [0, 1] * 5}
    found = load(write_parquet(tmp_path / "a.parquet", table), DataSpec(label="y", numeric=["x"]))
    assert found.values is not None and 0.5 < np.abs(found.values).max() < 3


def test_times_have_one_unit(tmp_path: Path) -> None:
    found = []
    for kind in (pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.date32(), pa.date64()):
        column = pa.array([0, 864_000, None], pa.int64()).cast(pa.timestamp("s")).cast(kind)
        parquet.write_table(pa.table({"x": column, "y": [0, 1, 1]}), tmp_path / "a.parquet")
        found.append(rows_of(load(tmp_path / "a.parquet", DataSpec(label="y", numeric={"x": "plain"}))))
    assert all(each == found[0] for each in found)
    assert max(value for _, value in found[0][1][1]) == pytest.approx(8.64e11, rel=1e-6)
    for kind in (pa.time32("s"), pa.time64("ns"), pa.duration("s"), pa.duration("ns")):
        column = pa.array([3 * 10**9 if "ns" in str(kind) else 3, None], kind)
        parquet.write_table(pa.table({"x": column, "y": [0, 1]}), tmp_path / "a.parquet")
        rows = rows_of(load(tmp_path / "a.parquet", DataSpec(label="y", numeric={"x": "plain"})))
        assert 3e6 in [value for _, value in rows[0][1]] and len(rows[1][1]) == 2


def test_texts_of_all_types_are_the_same(tmp_path: Path) -> None:
    texts, found = ["1", "NA", None, "2.5"], []
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()):
        column = pa.array(texts).cast(kind)
        table = pa.table({"x": column, "z": column, "y": [0, 1, 1, 0]})
        parquet.write_table(table, tmp_path / "a.parquet")
        found.append(rows_of(load(tmp_path / "a.parquet", DataSpec(label="y", numeric=["z"]))))
    assert all(each == found[0] for each in found) and [len(row) for _, row in found[0]] == [3, 2, 2, 3]


@pytest.mark.parametrize("use", ["numeric", "categorical", "label"])
def test_columns_that_arrow_cannot_convert_are_refused_in_one_line(tmp_path: Path, use: str) -> None:
    columns = {
        "list": pa.array([[1], [2]]),
        "struct": pa.array([{"a": 1}, {"a": 2}]),
        "fixed": pa.array([b"\xff\xfe", b"\x80a"], pa.binary(2)),
        "date": pa.array([2**31 - 1, 5], pa.int32()).cast(pa.date32()),
        "nothing": pa.nulls(2),
    }
    for name, column in columns.items():
        table = {"x": column, "a": ["u", "v"], "y": [0, 1]}
        parquet.write_table(pa.table(table), tmp_path / "a.parquet")
        keys: dict[str, Any] = {"label": "x"} if use == "label" else {"label": "y", use: ["x"]}
        try:
            load(tmp_path / "a.parquet", DataSpec(**keys))
        except DataError as error:
            assert "'x'" in str(error) and "\n" not in str(error)
        else:
            assert use == "categorical" and name in ("fixed", "date", "nothing")


@pytest.mark.drawn(1)
@pytest.mark.parametrize("size", [5, 9, 13, 50])
def test_fine_parts_have_the_rows_of_their_coarse_part(tmp_path: Path, size: int) -> None:
    table = {"id": list(range(50)), "y": [0, 1] * 25}
    other = {"id": list(range(50, 80)), "y": [0, 1] * 15}
    paths = [
        write_parquet(tmp_path / "a.parquet", table, row_group_size=size),
        write_parquet(tmp_path / "b.parquet", other, row_group_size=7),
    ]
    for files in ([str(paths[0])], [str(path) for path in paths]):
        source = Source(DataSpec(train=files, label="y"))
        source.take(learned([source.summarise(0, 1)]))

        def rows(cut: Cut, parts: list[int], files: list[str] = files, source: Source = source) -> list[Any]:
            slices = cut.slices(files, parts)
            found = (source.read(some, part, of, Tally(), cut.shares(files)) for some, part, of in slices)
            return sorted(row for batches in found for row in rows_of(concatenate(batches)))

        everything = rows(Cut(1), [0])
        assert len(everything) == (50 if len(files) == 1 else 80)
        for cut in (Cut(1, 4), Cut(2, 4), Cut(3, 4), Cut(7, 2)):
            coarse = [list(range(number, cut.parts, cut.coarse)) for number in range(cut.coarse)]
            assert sorted(row for parts in coarse for row in rows(cut, parts)) == everything
            for parts in coarse:
                for step in (2, cut.fine):
                    pieces = [row for first in range(step) for row in rows(cut, parts[first::step])]
                    assert sorted(pieces) == rows(cut, parts)


def test_a_quote_that_is_not_closed_loses_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text, row in (
        ('y,a\n1,x\n0,"long text\n1,z\n0,t\n', 3),
        ('y,a\r\n1,x\r\n0,"b""\r\n', 3),
        ('y,a\n1,x\n0,"b', 3),
        ('y,a\n1,x\n0,b\n1,"\n', 4),
    ):
        path.write_bytes(text.encode())
        for how in ("stop", "skip"):
            with pytest.raises(DataError, match=f"row {row}: a quote is not closed"):
                load(path, DataSpec(label="y", categorical=["a"], on_error=how))  # type: ignore[arg-type]
    for text in ('y,a\n1,x\n0,"b\n"\n\n', 'y,a\n1,x\n0,"b""\n"', 'y,a\n1,x\n0,5" pipe\n', 'y,a\n1,x\n0,"\n"'):
        path.write_text(text)
        assert len(load(path, DataSpec(label="y"))) == 2


def test_a_small_parquet_file_does_not_fill_the_memory(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.parquet", 1 << 14
    same = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(rows, np.int32)), pa.array([b" " * 10_000 + b"1"])
    )
    for columns, how in (
        ({"x": same, "y": [1] * rows}, {}),
        ({"x": same, "y": [1] * rows}, {"numeric": ["x"]}),
        ({"x": ["a"] * rows, "y": same}, {}),
    ):
        # Without Arrow's own schema, which says that it is a dictionary.
        parquet.write_table(pa.table(columns), path, store_schema=False)
        before = pa.total_allocated_bytes()
        most = 0
        for batch in read([str(path)], DataSpec(label="y", **how)):  # type: ignore[arg-type]
            most = max(most, pa.total_allocated_bytes() - before)
            assert len(batch)
        assert path.stat().st_size < 20_000 and most < 5_000_000


def test_times_as_categories_have_one_unit(tmp_path: Path) -> None:
    found = []
    for unit in ("s", "ms", "us", "ns"):
        column = pa.array([0, 864_000], pa.int64()).cast(pa.timestamp("s")).cast(pa.timestamp(unit))
        parquet.write_table(pa.table({"x": column, "y": [0, 1]}), tmp_path / "a.parquet")
        found.append(rows_of(load(tmp_path / "a.parquet", DataSpec(label="y"))))
    assert all(each == found[0] for each in found)


GOOD = {"name": "x", "kind": "standard", "mean": 1, "deviation": 2, "edges": []}


@pytest.mark.parametrize(
    "numeric",
    [
        [GOOD | {"deviation": 0}],
        [GOOD | {"mean": float("nan")}],
        [GOOD | {"kind": "quantiles", "edges": [2, 1]}],
        [GOOD, GOOD],
        [],
    ],
)
def test_encodings_of_others_are_checked(numeric: list[Any]) -> None:
    table = {"categorical": [], "numeric": numeric, "key_bits": 64}
    with pytest.raises(DataError, match="model: "):
        Encoding.of_table(table, "model")
    later = {"categorical": ["a"], "numeric": [GOOD | {"more": 1}], "key_bits": 64}
    assert Encoding.of_table(later, "model").numeric[0].mean == 1.0


def test_names_have_no_null_characters(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"\0constant": ["u", "v"], "y": [0, 1]})
    with pytest.raises(DataError, match="has a null character"):
        load(path, DataSpec(label="y"))


def test_a_row_without_all_columns_is_named_before_what_follows_from_it(tmp_path: Path) -> None:
    """Without it the column has no number, which is not the user's mistake."""
    path = tmp_path / "a.csv"
    path.write_text("city,age,y\nRome,1\n")
    spec = DataSpec(train=[str(path)], label="y", numeric=["age"])
    with pytest.raises(DataError, match=r"a\.csv: row 2: has 2 columns where the first row has 3"):
        list(read(spec.train, spec))
