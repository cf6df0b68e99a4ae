"""Invalid numbers in the jobs' tables are refused when the job file is read, with their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpips.config.job_file import load
from mpips.config.program import load_program
from mpips.errors import JobError

BAD = {
    "sparse_lr": {
        "l1": ["-1.0", "nan", "inf", "1e31", "1" + "0" * 400], "epsilon": ["0.0", "-1.0", "nan", "1.5"],
        "target": ["-1.0", "nan", "inf"], "passes": ["-1", "1e300", "1" + "0" * 30], "optimum": ["inf", "nan"],
        "blocks": ["-1", "2000000"], "batch": ["0", "-5", "99999999999"], "alpha": ["0.0", "nan", "inf", "1e300"],
        "beta": ["-0.1", "nan", "inf"], "l2": ["-0.1", "nan", "inf"], "gap": ["-0.1", "nan", "1.5"],
    },
    "lda": {
        "topics": ["0", "-1", "1.5", "99999999999"], "alpha": ["0.0", "nan", "inf", "-1.0", "1e-300"],
        "beta": ["0.0", "nan", "inf", "1e300"], "sweeps": ["0", "1e300", "1" + "0" * 30], "mh_steps": ["0", "5000"],
        "block_tokens": ["0", "1" + "0" * 20], "held_tokens": ["-1", "1" + "0" * 30], "evaluate_every": ["0"],
    },
    "sketch": {
        "depth": ["0", "1000"], "width": ["0", "-1", "nan", "2000000000"], "top": ["-1", "1" + "0" * 20],
        "exact": ["-1", "1" + "0" * 30], "batch": ["0", "99999999999"], "zipf": ["-1.0", "nan", "inf", "21.0"],
        "items": ["0", "1" + "0" * 30], "keys": ["0", "1" + "0" * 30],
    },
}  # fmt: skip
CASES = [(job, key, value) for job, keys in BAD.items() for key, values in keys.items() for value in values]


@pytest.mark.parametrize(("program", "key", "value"), CASES)
def test_invalid_numbers_in_settings_are_refused(tmp_path: Path, program: str, key: str, value: str) -> None:
    job = tmp_path / "job.toml"
    job.write_text(f'[job]\nprogram = "{program}"\n[{program}]\n{key} = {value}\n')
    with pytest.raises(JobError, match=rf"job\.toml:4: {key}"):
        load(job)


@pytest.mark.parametrize("program", BAD)
def test_every_number_of_the_settings_has_invalid_examples(program: str) -> None:
    fields = load_program(program, Path()).settings.__dataclass_fields__.values()  # type: ignore[attr-defined]
    numbers = {each.name for each in fields if each.type in ("int", "float")}
    assert numbers == BAD[program].keys()
