"""Jobs that a caller gives as a dict, and overrides as keyword arguments."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.client.given_job import job_file, overrides
from mpips.config.overrides import override_of
from mpips.errors import JobError

WORDS = st.text(st.characters(codec="utf-8"), max_size=8)
PLAIN = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | WORDS
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(WORDS, PLAIN, max_size=2)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,5}\.[a-z_]{1,5}", fullmatch=True), VALUES, max_size=4))
def test_an_override_is_read_as_it_was_given(settings: dict[str, Any]) -> None:
    assert {".".join(path): value for path, value in map(override_of, overrides(settings))} == settings


def test_overrides_may_be_nested() -> None:
    assert overrides({"a": {"b": 1, "c": {"d": "e"}}}) == ["a.b=1", 'a.c={d = "e"}']
    assert overrides({"a.b": np.float32(0.5), "a.c": (Path("/x"), np.int64(2))}) == [
        "a.b=0.5",
        'a.c=["/x", 2]',
    ]
    with pytest.raises(JobError, match=r"set: 'rate' must be a table and its key"):
        overrides({"rate": 1})
    with pytest.raises(JobError, match=r"a\.b is a object, which"):
        overrides({"a": {"b": object()}})


def test_a_dict_is_a_job_file_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = {"job": {"program": "x"}, "x": {"a": [1, 2.5], "b": None, "c": Path("d")}}
    with job_file(job) as path:
        read = tomllib.loads(path.read_text())
    assert read == {"job": {"base": str(tmp_path), "program": "x"}, "x": {"a": [1, 2.5], "c": "d"}}
    assert not path.exists()
    with job_file({"job": {"program": "x", "base": "/y"}}) as path:
        assert tomllib.loads(path.read_text())["job"]["base"] == "/y"
    with job_file("some.toml") as path:
        assert path == Path("some.toml")
    with (
        pytest.raises(JobError, match="'job' must be a table: a dict of its keys, not 'x'"),
        job_file({"job": "x"}),
    ):  # type: ignore[dict-item]
        pass
