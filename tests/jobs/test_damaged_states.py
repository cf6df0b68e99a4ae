"""Checkpoints whose manifest has a correct hash but an invalid state: one line names the problem."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint.test_damaged_checkpoints import rewrite
from synthetic import Hooks, make, run_twin

from mpips.checkpoint.manifest import complete, read_manifest
from mpips.errors import CheckpointError

Resume = Callable[[Path | None, Path], Any]
MISSING = object()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Resume]]:
    """A checkpoint of each job, and how a run continues from one, or begins."""
    place = tmp_path_factory.mktemp("sound")
    data_set = make(place / "made", "real")
    documents = place / "train.ldac"
    rng = np.random.default_rng(1)
    documents.write_text("".join(f"2 {rng.integers(0, 9)}:1 {rng.integers(9, 20)}:2\n" for _ in range(40)))
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "darlin": (data_set.train, {}),
        "ftrl": (data_set.train, {"settings": {"algorithm": "ftrl", "batch": 16, "passes": 3}}),
        "lda": (documents, {"program": "lda", "settings": {"topics": 3, "sweeps": 2}}),
        "sketch": (
            [],
            {"program": "sketch", "settings": {"zipf": 1.1, "items": 4000, "keys": 100, "batch": 500}},
        ),
    }
    found = {}
    for name, (train, tables) in ways.items():

        def run(
            resume: Path | None, folder: Path, train: Any = train, tables: dict[str, Any] = tables
        ) -> Any:
            hooks = Hooks(resume=resume, checkpoints=folder)
            return run_twin(train, 1, 2, hooks=hooks, checkpoint={"every": 1}, **tables)

        run(None, place / name)
        found[name] = complete(place / name)[0], run
    return found


@pytest.mark.parametrize(
    ("job", "at", "new", "said"),
    [
        ("ftrl", ("parts",), 5, "about.state.parts is an integer, and should be a list"),
        ("ftrl", ("parts",), [], "about.state.parts is empty"),
        ("ftrl", ("parts", 0), [0, 1], r"about.state.parts\[0\] is a list of another form"),
        ("ftrl", ("number",), MISSING, "about.state.number is missing"),
        ("ftrl", ("rounds",), -1, "about.state.rounds is an integer out of bounds"),
        ("ftrl", ("rounds",), 1 << 64, "about.state.rounds is an integer out of bounds"),
        ("darlin", ("control",), [], "about.state.control is a list, and should be a table"),
        ("darlin", ("control", "objectives"), [], "about.state.control.objectives is empty"),
        ("darlin", ("random", "bit_generator"), "x", "about.state.random.bit_generator is not PCG64"),
        ("darlin", ("random", "state", "inc"), "x", "about.state.random.state.inc is a string"),
        ("darlin", ("blocks", "begins"), [7, 3], "about.state.blocks.begins does not rise from 0"),
        ("darlin", ("spread",), 7, "about.state.spread is an integer, and should be a table"),
        (
            "darlin",
            ("spread", "cut"),
            [1 << 40, 1],
            r"about.state.spread.cut\[0\] is an integer out of bounds",
        ),
        ("darlin", ("spread", "reads"), [[[0]]], "about.state.spread.reads is of 1 workers"),
        ("darlin", ("spread", "reads", 0), [[9999]], "about.state.spread.reads has part 9999"),
        ("lda", ("alpha",), "x", "about.state.alpha is a string, and should be a list"),
        ("lda", ("alpha",), [1.0], "about.state.alpha is of 1 topics, and there are 3"),
        ("lda", ("beta",), -1.0, "about.state: alpha and beta are finite, and above 0"),
        ("sketch", ("parts",), "xx", "about.state.parts is a string, and should be a list"),
        ("sketch", ("totals",), [], "about.state.totals is of 0 parts"),
        ("sketch", ("totals", 0), [1], r"about.state.totals\[0\] is a list of another form"),
    ],
)
def test_a_state_of_another_form(
    sound: dict[str, tuple[Path, Resume]], tmp_path: Path, job: str, at: tuple[Any, ...], new: Any, said: str
) -> None:
    path, run = sound[job]
    bad = shutil.copytree(path, tmp_path / path.name)
    manifest = read_manifest(bad)
    part = manifest["about"]["state"]
    for key in at[:-1]:
        part = part[key]
    if new is MISSING:
        del part[at[-1]]
    else:
        part[at[-1]] = new
    rewrite(bad, manifest)
    with pytest.raises(CheckpointError, match=f"{bad} cannot be resumed: {said}") as caught:
        run(bad, tmp_path / "more")
    assert "\n" not in str(caught.value)
