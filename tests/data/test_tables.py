"""Columns of delimited files by name, and all readers on random bytes."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mpips.data import DataSpec, Examples, Tally, concatenate, read
from mpips.data.convert import convert
from mpips.data.text import seems_label
from mpips.errors import DataError, InputError
from mpips.jobs.lda.corpus import open_corpus
from mpips.jobs.lda.readers import read_vocabulary
from mpips.jobs.sketch import source

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def load(files: list[Path], tally: Tally | None = None, **keys: object) -> Examples:
    return concatenate(read([str(file) for file in files], DataSpec(**keys), tally=tally))  # type: ignore[arg-type]


def written(folder: Path, **texts: str) -> list[Path]:
    for name, text in texts.items():
        (folder / f"{name}.tsv").write_text(text)
    return [folder / f"{name}.tsv" for name in texts]


def keys_of(found: Examples) -> list[list[int]]:
    return [found.keys[a:b].tolist() for a, b in zip(found.indptr[:-1], found.indptr[1:], strict=True)]


def test_names_decide_which_column_is_which(tmp_path: Path) -> None:
    first, other = written(
        tmp_path,
        first="label\ta\tb\tn\n1\tu\tv\t9\n0\t\tv\t\n",
        other="label\tn\tb\ta\n1\t9\tv\tu\n0\t\tv\t\n",
    )
    crosses: list[list[str | int]] = [["a", "b"], [0, 2]]
    how = {"crosses": crosses, "log_buckets": ["n"]}
    rows = keys_of(load([first], **how))
    assert len(rows[0]) == 5 and len(rows[1]) == 1
    assert keys_of(load([first, other], **how)) == rows + rows
    assert (
        keys_of(load([other], train=[str(first)], **how)) == rows
    )  # a test file is numbered as the training data
    assert keys_of(load([other], log_buckets=["n"])) != keys_of(load([first], log_buckets=["n"]))
    for part in range(3):
        assert keys_of(concatenate(read([str(first), str(other)], DataSpec(**how), part, 3)))  # type: ignore[arg-type]


def test_what_was_taken_for_names_is_noted(tmp_path: Path) -> None:
    files = written(tmp_path, a="label\tx\n1\tu\n", b="label\tx\n0\tu\n")
    tally = Tally()
    assert len(load(files, tally)) == 2
    ((line, event, facts),) = tally.remarks()
    assert event == "header" and facts == {"names": f"label, x ({files[0]})"}
    assert line.startswith(f"the first line of each file was taken for column names: label, x ({files[0]})")
    tally = Tally()
    assert len(load(written(tmp_path, c="1\tu\n"), tally)) == 1 and not list(tally.remarks())


@pytest.mark.parametrize(
    "label", ["", "?", "NA", "n/a", '"NA"', "NaN", "null", " ", "None", "0", "+1", "1e0"]
)
def test_a_missing_label_makes_no_header(tmp_path: Path, label: str) -> None:
    assert seems_label(label)
    tally = Tally()
    found = load(written(tmp_path, a=f"{label}\tx\n1\ty\n"), tally, on_error="skip")
    assert len(found) + tally.skipped == 2 and not tally.header


@pytest.mark.parametrize("label", ["label", "click", "y", "#y", "target(0/1)", "n"])
def test_other_words_make_one(label: str) -> None:
    assert not seems_label(label)


def test_files_without_rows_are_left_out_of_a_set(tmp_path: Path) -> None:
    files = written(tmp_path, a="\n\r\n", b="label\tx\n1\tu\n", c="label\tx\n", d="\n")
    tally = Tally()
    assert len(load(files, tally, train=[str(file) for file in files])) == 1
    assert [Path(file).stem for file in tally.empty] == ["a", "c", "d"]
    with pytest.raises(DataError, match="holds no examples"):
        load(files[2:3])


def test_columns_that_do_not_fit_are_reported(tmp_path: Path) -> None:
    first, fewer, lacking = written(tmp_path, a="label\tx\ty\n1\tu\tv\n", b="label\tx\n1\tu\n", c="1\tu\tv\n")
    with pytest.raises(DataError, match=r"b\.tsv:1: column 'y' of .*a\.tsv is not in .*b\.tsv"):
        load([first, fewer])
    for files in ([first, lacking], [lacking, first]):
        with pytest.raises(
            DataError, match=r"that of .*c\.tsv for a row; give names to all files or to none"
        ):
            load(files)
    assert len(load([lacking, lacking], header=False)) == 2
    with pytest.raises(DataError, match=r"a\.tsv:1: column 'label' of .*a\.tsv is not in .*c\.tsv"):
        load([lacking, first], header=True)


# --- anything ---------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [b"1", b"0", b"-1", b"+1", b" ", b"\t", b"\n", b"\r\n", b":", b"1:1", b"3 0:1 1:2 2:1\n", b"2\n3\n1\n1 1 1\n", b"#",
     b"\xff", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"label", b"NA", b"\xe0\xa4\x95", b"e9", b"18446744073709551616",
     b"\x1f\x8b", b"2000000000", b"\x28\xb5\x2f\xfd", b"\x89HDF\r\n\x1a\n", b"."]
)  # fmt: skip
ANYTHING = st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=25).map(b"".join))


@quick
@given(ANYTHING, st.sampled_from(["a", "a.svm", "a.tsv", "a.h5", "a.gz"]), st.sampled_from(["stop", "skip"]))
@example(b"label\t\xff\n", "a.tsv", "stop")
@example(b"\n\n\t", "a.tsv", "stop")
def test_examples_of_anything_are_read_or_refused(
    tmp_path: Path, content: bytes, name: str, how: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    try:
        found = load([path], on_error=how)
    except InputError as error:
        assert str(error).startswith((f"{path}:", "[data]")) and "\n" not in str(error)
        return
    assert len(found.indptr) == len(found) + 1 and found.indptr[-1] == len(found.keys)
    assert set(found.labels.tolist()) <= {-1.0, 1.0}


@quick
@given(ANYTHING, st.sampled_from(["a", "a.ldac", "docword.a", "a.txt", "a.txt.gz"]))
@example(b"\n", "a")
def test_documents_of_anything_are_read_or_refused(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for act in (
        lambda: open_corpus([path], None, 0, 1, tmp_path / "scratch").close(),
        lambda: open_corpus([path], 3, 1, 2, tmp_path / "scratch").close(),
        lambda: read_vocabulary(str(path)),
    ):
        try:
            act()
        except DataError as error:
            assert "\n" not in str(error)


@quick
@given(
    ANYTHING,
    st.sampled_from(["", 0, 1, "label"]),
    st.sampled_from(["", 1]),
    st.sampled_from(["stop", "skip"]),
)
def test_keys_of_anything_are_read_or_refused(
    tmp_path: Path, content: bytes, column: str | int, weight: str | int, how: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    spec = DataSpec(train=[str(path)], column=column, weight=weight if column != "" else "", on_error=how)  # type: ignore[arg-type]
    skipped: list[str] = []
    try:
        size = source.block_size(spec.train, 1)
        found = [source.parsed(block, spec, skipped) for block in source.blocks(spec, 0, 1, size)]
    except InputError as error:
        assert str(error).startswith(f"{path}:") and "\n" not in str(error)
        return
    assert all(len(chunk.keys) <= content.count(b"\n") + 1 for chunk in found)


# --- convert ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.svm", "out.svm.gz", "out.svm.xz", "out.h5"])
def test_a_full_disk_leaves_no_file_and_is_reported(tmp_path: Path, name: str) -> None:
    source_, target = tmp_path / "a.svm", tmp_path / name
    keys = np.random.default_rng(1).integers(0, 2**60, 40_000)
    source_.write_text("".join(f"1 {key}:0.{key % 1000}\n" for key in keys))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match=f"cannot be written: File too large.*{name}"):
            convert(str(source_), str(target))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [source_]
    assert convert(str(source_), str(target)).examples == 40_000
