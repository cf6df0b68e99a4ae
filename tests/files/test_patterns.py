"""Patterns of data files: the same paths as `glob` finds, links in a circle, and searches without an end."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

from mpips.data.spec import DataSpec, resolve
from mpips.errors import InputError, JobError
from mpips.files.patterns import matching

PATTERNS = [
    "*", "**", "**/", "**/*", "**/*.svm", "a/**", "a/**/x.svm", "*/*", "*/x.svm", "[ab]/*.svm", ".*", ".h/*", "**/.h/*",
    "a/b/", "*/", "nothing/*", "**/**/x.svm", "a/../a/*", "?.svm", "*/b/**/*", "linked/*", "**/y*", "[", "a//*", "*/.",
    "broken*", "x.svm/*", "**/nothing",
]  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "x.svm",
        "a/x.svm",
        "a/b/x.svm",
        "a/b/y.csv",
        "b/x.svm",
        ".h/x.svm",
        "a/.h/z",
        "a/[",
        "z.svm",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to("a/b")
    (tmp_path / "broken").symlink_to("missing")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_paths_are_those_of_glob(tree: Path, pattern: str) -> None:
    for each in (pattern, f"{tree}/{pattern}"):
        assert matching(each) == sorted(glob.glob(each, recursive=True))


def test_a_link_to_a_folder_above_it_is_not_followed_again(tree: Path) -> None:
    (tree / "a/up").symlink_to("..")
    (tree / "a/b/self").symlink_to(".")
    found = matching("**/x.svm")
    assert found == ["a/b/x.svm", "a/x.svm", "b/x.svm", "linked/x.svm", "x.svm"]


@pytest.mark.parametrize("pattern", ["**/*", "*", "*/*/*"])
def test_a_search_of_too_many_entries_is_given_up_with_a_line(tree: Path, pattern: str) -> None:
    with pytest.raises(InputError) as refused:
        matching(pattern, 3)
    assert str(refused.value) == (
        f"{pattern!r} was given up after 3 entries of folders: name a folder with fewer files"
    )


def test_the_pattern_of_a_job_file_is_bounded(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "__defaults__", (3,))
    with pytest.raises(JobError, match=r"^\[data\] .* given up after 3 entries"):
        resolve(DataSpec(train="/**/*"), str(tree))
