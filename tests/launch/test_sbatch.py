"""Batch scripts: values are quoted or refused, values for Slurm match a pattern, and the rest is constant."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mpips.errors import InputError
from mpips.launch import sbatch
from mpips.launch.sbatch import Batch, grace_before, script, seconds
from mpips.launch.slurm_parts import Component
from mpips.launch.slurm_site import Site

GOLDEN = Path(__file__).parents[1] / "golden"
BODY = Path(__file__).parents[2] / "slurm" / "job.sbatch"

JOB = Batch(
    name="news",
    job="/home/u/news/job.toml",
    directory="/home/u/news",
    python="/home/u/venv/bin/python",
    parts=(Component(2, 4, 7),),
    arguments=("--set", "layout.workers=4"),
    time="02:00:00",
    note="news: written by mpips",
)
SITE = Site(
    partition="main",
    account="p-12",
    qos="long",
    options=("--constraint=ib&rome", "--mail-type=END"),
    modules=("gcc/12.2", "openmpi/5.0.3"),
    module_paths=("/sw/modules",),
    setup="/sw/My Setup.sh",
    environment={"UCX_TLS": "rc,sm", "NUMBA_CACHE_DIR": "/scratch/u/it's $HOME"},
)
KINDS = {
    "mpirun": JOB,
    "srun": replace(JOB, launcher="srun", outlives_nodes=True, site=replace(SITE, pmi="pmix_v4")),
    "requeue": replace(JOB, requeue=True, checkpoints="/scratch/u/my checkpoints"),
    "elastic": replace(JOB, parts=(Component(2, 8, 0, most=6, cpus_per_task=2),), fixed=3, requeue=True),
    "array": replace(
        JOB,
        sweep=(("job.seed=1", "sparse_lr.l1=0.1"), ("job.seed=2", "sparse_lr.l1=0.1")),
        at_once=1,
        run_dir="/scratch/u/sweep",
    ),
    "heterogeneous": replace(
        JOB,
        launcher="srun",
        outlives_nodes=True,
        site=replace(Site(), account="p-12"),
        parts=(Component(1, 3, 3, options=("--mem=0",)), Component(4, 1, 4, options=("--constraint=fast",))),
    ),
    "spares": replace(JOB, arguments=("--set", "layout.spares=2", "--set", "ring.replicas=1"), requeue=True),
    "reproduce": replace(JOB, reproduce=True, arguments=("--set", "record.on=true")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_as_written_down(kind: str) -> None:
    made = script(KINDS[kind], "").rstrip() + "\n"
    path = GOLDEN / f"{kind}.sbatch"
    if os.environ.get("MPIPS_GOLDEN"):  # write them anew, and read the difference before committing it
        path.write_text(made, encoding="utf-8")
    kept = path.read_text(encoding="utf-8")
    difference = difflib.unified_diff(kept.splitlines(), made.splitlines(), str(path), "made", lineterm="")
    assert kept == made, "\n".join(difference)


def test_all_of_it_is_bash_without_a_flaw(tmp_path: Path) -> None:
    values = [tmp_path / f"{kind}.sbatch" for kind in KINDS]
    for path, job in zip(values, KINDS.values(), strict=True):
        path.write_text(script(job, ""), encoding="utf-8")
        text = script(job)
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    beside = Path(sys.executable).parent / "shellcheck"
    checker = str(beside) if beside.exists() else shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    unused = "--exclude=SC2034"  # it is the body that reads them
    for line in ([checker, unused, *values], [checker, BODY]):
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")


def test_the_body_is_the_same_in_every_script_and_reads_what_the_preamble_sets() -> None:
    body = sbatch.body()
    assert body in BODY.read_text(encoding="utf-8")
    assert body.startswith(sbatch.CUT)
    for kind in KINDS.values():
        assert script(kind).endswith(body)
    assigned = set(re.findall(r"MPIPS_[A-Z_]+", "\n".join(sbatch.preamble(JOB))))
    read = set(re.findall(r"MPIPS_[A-Z_]+", body))
    explained = set(re.findall(r"MPIPS_[A-Z_]+", BODY.read_text(encoding="utf-8").removesuffix(body)))
    assert assigned == read == explained


# --- no value can become a command --------------------------------------------------------------------------

NASTY = ["$(touch pwned)", "`touch pwned`", "a b", "'", '"', "\\", ";touch pwned;", "&& touch pwned", "-x", "~", "*",
         "${IFS}", "!!", "#", "|", ">pwned", "é ü", "'; touch pwned; '", "a'\"$(x)\"'b", "=", "--"]  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(NASTY), st.text(max_size=12), st.lists(st.sampled_from(NASTY), min_size=2).map("".join)
)
SHOW = """
printf '%s\\0' "$MPIPS_DIRECTORY" "$MPIPS_PYTHON" "$MPIPS_RUN_DIR" "$MPIPS_CHECKPOINTS" "$MPIPS_RESUME" \
    "$MPIPS_SETUP" "${MPIPS_EXPORTS[@]}" -- "${MPIPS_SWEEP[@]}" -- "$@"
"""


def is_clean(*values: str) -> bool:
    return not any(re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", value) for value in values)


@settings(max_examples=60)
@given(st.lists(TEXT, min_size=6, max_size=6), st.lists(TEXT, max_size=3), st.lists(TEXT, max_size=3))
@example(NASTY[:6], NASTY, NASTY)
def test_every_value_arrives_byte_for_byte_or_is_refused(
    values: list[str], sweep: list[str], arguments: list[str]
) -> None:
    directory, python, run_dir, checkpoints, resume, setup = values
    job = replace(
        JOB, directory=directory, python=python, run_dir=run_dir, checkpoints=checkpoints, resume=resume,
        site=Site(environment={}), exports=(("A", setup),), arguments=tuple(arguments),
        sweep=tuple((each,) for each in sweep),
    )  # fmt: skip
    if not is_clean(*values, *sweep, *arguments):
        with pytest.raises(InputError) as caught:
            script(job)
        assert is_clean(str(caught.value))
        return
    with tempfile.TemporaryDirectory() as folder:
        text = (script(job, "") + SHOW).encode()
        done = subprocess.run(["bash"], input=text, capture_output=True, cwd=folder, check=True)
        assert os.listdir(folder) == []
    expected = [
        directory,
        python,
        run_dir,
        checkpoints,
        resume,
        "",
        f"A={setup}",
        "--",
        *sweep,
        "--",
        JOB.job,
        *arguments,
    ]
    assert done.stdout.decode().split("\0")[:-1] == expected


@given(TEXT, st.sampled_from(["name", "partition", "account", "qos", "option", "time", "pmi", "module"]))
@example("a\n#SBATCH --wrap=x", "name")
@example("a --uid=0", "partition")
def test_values_that_slurm_parses_match_a_pattern_or_are_refused(text: str, where: str) -> None:
    assume(text)
    try:
        site = {
            "option": {"options": (text,)}, "module": {"modules": (text,)},
            "partition": {"partition": text}, "account": {"account": text}, "qos": {"qos": text}, "pmi": {"pmi": text},
        }  # fmt: skip
        job = replace(JOB, site=Site(**site.get(where, {})))  # type: ignore[arg-type]
        job = replace(job, **{where: text}) if where in ("name", "time") else job
        made = script(job, "")
    except ValueError as error:
        assert is_clean(str(error))
        return
    lines = made.splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[2 : 2 + len(directives)] == directives  # below the first two, with nothing between or after
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=[!-~]+)?", line) for line in directives)
    assert not re.search(r"['\"`\\$<>{};]", "".join(directives))


@pytest.mark.parametrize(
    "option", ["--nodes=9", "--wrap=x", "--array=1-9", "--signal=KILL@1", "--job-name=x"]
)
def test_options_that_mpips_sets_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match="is decided by"):
        Site(options=(option,))
    with pytest.raises(InputError, match="is decided by"):
        script(replace(JOB, parts=(Component(1, 1, 1, options=(option,)),)))


# --- time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "whole"),
    [("90", 5400), ("1:30", 90), ("02:00:00", 7200), ("1-12", 129600), ("1-12:30", 131400), ("2-0:0:1", 172801),
     ("", None), ("UNLIMITED", None)],
)  # fmt: skip
def test_time_limits_are_read_as_slurm_does(text: str, whole: int | None) -> None:
    assert seconds(text) == whole


@pytest.mark.parametrize("text", ["0", "00:00:00", "x", "1h", "1:2:3:4", "1-", "-1", "1;2", "1 2", "٣"])
def test_invalid_time_limits_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--time"):
        seconds(text)


def test_a_job_is_asked_to_stop_early_enough_but_not_too_early() -> None:
    assert grace_before("1-00:00:00") == 120
    assert grace_before("4:00") == 60
    assert grace_before("") == 120
    assert grace_before("10:00", 300) == 300
    with pytest.raises(ValueError, match="no time to run"):
        grace_before("2:00", 120)
    with pytest.raises(ValueError, match="from 1 to 65535"):
        grace_before("", 0)
