"""The job file: types, errors that name the place and a correct value, and the same job after it is written."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from math import inf, nan
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips import typed
from mpips.cluster.faults import Chance, InjectedSignal, Slow
from mpips.config.job_file import TABLES, load
from mpips.config.overrides import override_value
from mpips.config.program import built_in, load_program
from mpips.config.toml_text import line_of, write_toml
from mpips.errors import JobError
from mpips.filters.named import BUILT_IN, find
from mpips.launch.slurm_site import Site
from mpips.typed import InvalidValue


@dataclass(frozen=True)
class Settings:
    """A program's table."""

    algorithm: Literal["darlin", "ftrl"] = "darlin"
    """Which one."""
    l1: float = field(default=1.0, metadata={"at_least": 0})
    """The weight of the 1-norm."""
    steps: list[float] = field(default_factory=list)
    """Several numbers."""
    files: str | list[str] = ""
    """One file or many."""
    limit: int | None = None
    """A bound, if any."""
    verbose: bool = False
    """Say more."""


@dataclass(frozen=True)
class Program:
    """What `load` needs of a program."""

    name: str = "toy"
    settings: type = Settings


def programs(name: str, base: Path) -> Program:
    if name != "toy":
        raise JobError(f"there is no program {name!r}; built in: toy")
    return Program()


JOB = """\
# a comment
[job]
program = "toy"
seed = 3

[layout]
servers = 2
workers = 4

[consistency]
model = "bounded"
tau = 4

[data]
train = ["a.svm",
         "b.svm"]

[[faults.kill]]
role = "server"
index = 1
at_step = 10

[toy]
l1 = 2
limit = 9
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str = JOB) -> Path:
        path = tmp_path / "job.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        load(path, overrides, programs)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(path), "FILE")


def test_values_arrive_typed(job_file: Callable[..., Path]) -> None:
    path = job_file()
    job = load(path, (), programs)
    assert (job.program, job.name, job.seed, job.table) == ("toy", "toy", 3, "toy")
    assert (job.layout.servers, job.layout.workers, job.layout.schedulers) == (2, 4, 1)
    assert job.consistency.tau == 4
    assert job.data.train == ["a.svm", "b.svm"]
    assert job.faults.kill == (InjectedSignal("server", 1, 10),)
    assert job.settings == Settings(l1=2.0, limit=9)
    assert isinstance(job.settings.l1, float)
    assert job.base == path.parent
    assert job.resolve("x/y.svm") == path.parent / "x/y.svm"
    assert job.resolve("/x/y.svm") == Path("/x/y.svm")


def test_a_job_of_one_line_is_all_defaults(job_file: Callable[..., Path]) -> None:
    job = load(job_file('[job]\nprogram = "toy"\n'), (), programs)
    assert job.settings == Settings()
    assert (job.layout.size(), job.checkpoint.every, job.checkpoint.keep) == (3, 0, 2)


def test_tables_of_fault_tolerance_have_defaults(job_file: Callable[..., Path]) -> None:
    job = load(job_file(), (), programs)
    assert (job.ring.replicas, job.ring.repair_bandwidth) == (1, 200e6)
    assert job.ring.key_cache == 256e6
    assert (job.heartbeat.period, job.heartbeat.patience) == (0.1, 1.0)
    assert (job.checkpoint.every_seconds, job.layout.hand_over) == (0.0, False)


def test_tables_of_fault_tolerance_can_be_set(job_file: Callable[..., Path]) -> None:
    settings = [
        "ring.replicas=9",
        "ring.repair_bandwidth=0",
        "heartbeat.period=0.1",
        "heartbeat.patience=0.3",
    ]
    settings += ["checkpoint.every=2", "checkpoint.every_seconds=600", "layout.hand_over=true"]
    job = load(job_file(), settings, programs)
    assert (job.layout.servers, job.ring.replicas) == (2, 9)  # chains are as long as there are servers
    assert (job.ring.repair_bandwidth, job.heartbeat.patience) == (0, 0.3)
    assert (job.checkpoint.every, job.checkpoint.every_seconds, job.layout.hand_over) == (2, 600.0, True)


def test_overrides_win_in_order(job_file: Callable[..., Path]) -> None:
    overrides = [
        "layout.servers=3",
        "toy.l1=0.5",
        "toy.l1=0.25",
        "data.train=/some/file.svm.xz",
        "job.name=a-b",
    ]
    job = load(job_file(), [*overrides, 'toy.files=["x", "y"]', "checkpoint.every=2"], programs)
    assert (job.layout.servers, job.settings.l1, job.data.train) == (3, 0.25, "/some/file.svm.xz")
    assert (job.name, job.settings.files, job.checkpoint.every) == ("a-b", ["x", "y"], 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ("{a = 1}", {"a": 1}),
        ("/some/file", "/some/file"),
        ("a = b", "a = b"),
        ("1\nother = 2", "1\nother = 2"),
        ("", ""),
    ],
)
def test_an_override_is_toml_or_a_string(text: str, value: object) -> None:
    assert override_value(text) == value


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("servers = 2", "server = 2", "FILE:7: unknown key 'server' in [layout]; did you mean 'servers'?"),
        ("servers = 2", 'servers = "two"', "FILE:7: servers must be an integer, got 'two'"),
        ("servers = 2", "servers = true", "FILE:7: servers must be an integer, got true"),
        ("servers = 2", "servers = 0", "FILE:7: servers is 0; a job needs at least 1"),
        ("tau = 4", "tau = -1", "FILE:12: tau must be at least 0, got -1"),
        ("tau = 4", "tau = 1.5", "FILE:12: tau must be an integer, got 1.5"),
        ('"bounded"', '"bonded"', 'FILE:11: model must be one of "sequential", "bounded", "eventual", got'),
        ("[consistency]", "[consistncy]", "FILE:10: unknown table [consistncy]; did you mean 'consistency'?"),
        ('program = "toy"', "", "FILE:2: key 'program' is missing in [job]: a string"),
        ('program = "toy"', 'program = "try"', "FILE:3: there is no program 'try'"),
        ("seed = 3", 'name = "../up"', "FILE:4: name must be letters, digits and ._+-"),
        ("seed = 3", "seed = -1", "FILE:4: seed must be at least 0"),
        ('"b.svm"]', "7]", "FILE:15: train[1] must be a string, got 7"),
        ('role = "server"', 'role = "sever"', "FILE:19: role must be one of"),
        ("at_step = 10", "", "FILE:18: either at_step or at_seconds must be given"),
        ("l1 = 2", "l1 = -0.5", "FILE:24: l1 must be at least 0, got -0.5"),
        ("l1 = 2", "l1 = nan", "FILE:24: l1 must be at least 0, got nan"),
        ("l1 = 2", 'steps = [1, "x"]', "FILE:24: steps[1] must be a number, got 'x'"),
        ("l1 = 2", 'filters = "x"', "FILE:24: unknown key 'filters' in [toy]; did you mean 'files'?"),
        ("[toy]", '[filters]\npush = ["no_such_filter"]\n[toy]', "FILE:24: push: there is no filter"),
        ("[toy]", '[ring]\nreplicas = -1\n[toy]', "FILE:24: replicas must be at least 0"),
        ("[toy]", '[checkpoint]\nkeep = 0\n[toy]', "FILE:24: keep must be at least 1"),
        ("[toy]", '[checkpoint]\nevery_seconds = -1\n[toy]', "FILE:24: every_seconds must be 0, or at least"),
        ("[toy]", '[ring]\nrepair_bandwidth = -1\n[toy]', "FILE:24: repair_bandwidth must be 0, or at least"),
        ("[toy]", '[heartbeat]\nperiod = 0\n[toy]', "FILE:24: period must be at least 0.001, got 0"),
        ("[toy]", '[heartbeat]\npatience = nan\n[toy]', "FILE:24: patience must be at least 0.003, got nan"),
        ("[toy]", '[heartbeat]\npatience = 0.29\n[toy]', "FILE:24: patience must be at least 3 periods (0.3 s), got"),
        ("[toy]", '[heartbeat]\nperiod = 1\n[toy]', "FILE:23: patience must be at least 3 periods (3 s), got 1"),
        ("workers = 4", "workers = 4\nhand_over = 1", "FILE:9: hand_over must be true or false, got 1"),
        ("seed = 3", "seed 3", "FILE:4: not TOML: "),
        ("seed = 3", "seed = 3\nseed = 4", "FILE:5: not TOML: "),
    ],
)  # fmt: skip
def test_a_wrong_key_is_named_with_its_line(
    job_file: Callable[..., Path], old: str, new: str, said: str
) -> None:
    assert JOB.count(old) == 1
    assert refusal(job_file(JOB.replace(old, new))).startswith(said)


@pytest.mark.parametrize("kind", ["kill", "stop", "slow"])
@pytest.mark.parametrize(
    ("role", "index", "count"), [("server", 2, 2), ("worker", 4, 4), ("spare", 0, 0), ("scheduler", 9, 1)]
)
def test_a_fault_of_a_rank_that_the_layout_lacks_is_refused(
    job_file: Callable[..., Path], kind: str, role: str, index: int, count: int
) -> None:
    when = "" if kind == "slow" else "at_step = 10\n"
    fault = f'[[faults.{kind}]]\nrole = "{role}"\nindex = {index}\n{when}'
    path = job_file(JOB.replace('[[faults.kill]]\nrole = "server"\nindex = 1\nat_step = 10\n', fault))
    said = f"FILE:20: {kind}[0]: there is no {role} {index}: this job has {count} of them, numbered from 0"
    assert refusal(path) == said
    assert load(path, [f"faults.{kind}=[]"], programs).faults.slow == ()


def test_a_fault_may_be_of_any_rank_of_the_layout(job_file: Callable[..., Path]) -> None:
    groups, last = "layout.workers={a=1,b=2}", 'faults.slow=[{role="worker",index=2}]'
    assert len(load(job_file(), [groups, last], programs).faults.slow) == 1
    wrong = refusal(job_file(), groups, last.replace("2", "3"))
    assert wrong.startswith("--set faults.slow=") and wrong.endswith(
        "this job has 3 of them, numbered from 0"
    )


def test_a_split_of_a_rank_that_the_layout_lacks_is_refused(job_file: Callable[..., Path]) -> None:
    said = refusal(job_file(), "faults.split=[{ranks=[0, 77]}]")
    assert "split[0]: there is no rank 77" in said
    assert load(
        job_file(), ["faults.split=[{ranks=[0]}, {host=1, way='to', times=3}]"], programs
    ).faults.split


def specs() -> Iterator[tuple[str, type]]:
    """List the dataclasses of all tables of a job file, a program's among them, and of a site file."""
    yield from TABLES.items()
    yield from {"faults.kill": InjectedSignal, "faults.slow": Slow, "faults.delay": Chance}.items()
    yield from ((name, load_program(name, Path()).settings) for name in built_in())
    yield from ((f"filter {name}", find(name).settings) for name in BUILT_IN)
    yield "site", Site


CHECKED_OTHERWISE = {
    ("data", "column"),
    ("data", "weight"),
    ("data", "key_bits"),
    ("layout", "servers"),
    ("layout", "workers"),
    ("layout", "spares"),
    ("layout", "schedulers"),
    ("faults", "seed"),
}


@pytest.mark.parametrize(("table", "spec"), list(specs()))
def test_every_number_has_a_range(table: str, spec: type) -> None:
    """Neither nan nor inf, nor a time that is positive and absurd, passes the reading of the file."""
    hints, docs = get_type_hints(spec), {key.name: key.doc for key in typed.documented(spec)}
    required = {
        key: value
        for key, value in {"role": "server", "program": "toy", "at_least": 2}.items()
        if key in hints
    }
    for each in fields(spec):
        kinds = {int, float} & {hints[each.name], *get_args(hints[each.name])}
        if not kinds or (table, each.name) in CHECKED_OTHERWISE:
            continue
        assert {"at_least", "above"} & each.metadata.keys() and "at_most" in each.metadata, each.name
        wrong = [nan, inf, -inf, 1.7e308, 10**400]
        if float in kinds and re.search(r"second|byte", docs[each.name], re.I):
            wrong += [5e-324, 1e-300]
        for value in wrong:
            with pytest.raises(InvalidValue, match=f"^{each.name} must be "):
                typed.build(spec, required | {each.name: value})


def test_ranges_are_documented() -> None:
    kinds = {key.name: key.type for name in ("heartbeat", "trace") for key in typed.documented(TABLES[name])}
    assert kinds["period"] == "a number, at least 0.001, at most 3,600"
    assert kinds["give_up"] == "a number, 0 or at least 0.001, at most 1e+09"
    assert kinds["detail"] == "an integer, at least 0, at most 1,000,000"


def test_valid_keys_are_listed(job_file: Callable[..., Path]) -> None:
    text = refusal(job_file(JOB.replace("l1 = 2", "zzz = 2")))
    assert text == "FILE:24: unknown key 'zzz' in [toy]; valid: algorithm, files, l1, limit, steps, verbose"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("layout.servers=x", "--set layout.servers=x: servers must be an integer, got 'x'"),
        ("layout.servers=0", "--set layout.servers=0: servers is 0"),
        (
            "layout.sservers=1",
            "--set layout.sservers=1: unknown key 'sservers' in [layout]; did you mean 'servers'?",
        ),
        ("layuot.servers=1", "--set layuot.servers=1: unknown table [layuot]; did you mean 'layout'?"),
        ("servers=1", "--set servers=1: write --set table.key=value"),
        ("layout.servers", "--set layout.servers: write --set table.key=value"),
        ("layout.servers.x=1", "--set layout.servers.x=1: servers is a value, not a table"),
        (
            "heartbeat.period=2",
            "--set heartbeat.period=2: patience must be at least 3 periods (6 s), got 1",
        ),
        ("toy.algorithm=ftlr", "--set toy.algorithm=ftlr: algorithm must be one of"),
    ],
)
def test_a_wrong_override_is_named_itself(job_file: Callable[..., Path], override: str, said: str) -> None:
    assert refusal(job_file(), override).startswith(said)


def test_unreadable_job_files_are_refused_in_one_line(tmp_path: Path, job_file: Callable[..., Path]) -> None:
    assert refusal(tmp_path / "none.toml") == "FILE: no such job file"
    assert "cannot be read" in refusal(tmp_path)
    path = job_file()
    path.write_bytes(b'[job]\nprogram = "\xff"\n')
    assert "not UTF-8 text (byte 17)" in refusal(path)
    assert "job must be a table, written [job]; got 3" in refusal(job_file("job = 3"))


def test_a_program_cannot_take_a_shared_tables_name(job_file: Callable[..., Path]) -> None:
    with pytest.raises(JobError, match="the table \\[data\\] is taken"):
        load(job_file(), (), lambda name, base: Program("data"))


def test_written_back_it_is_the_same_job_from_anywhere(job_file: Callable[..., Path], tmp_path: Path) -> None:
    job = load(
        job_file(),
        ['data.train=it\'s "quoted"\tand \\ Grüße', "toy.l1=1e-5", "layout.workers={a=1, b=2}"],
        programs,
    )
    other = tmp_path / "runs" / "x" / "job.toml"
    other.parent.mkdir(parents=True)
    other.write_text(job.to_toml(), encoding="utf-8")
    again = load(other, (), programs)
    assert again.tables() == job.tables()
    assert again.base == job.base
    assert again.digest() == job.digest()


def test_the_digest_is_of_the_contents(job_file: Callable[..., Path], tmp_path: Path) -> None:
    job = load(job_file(), (), programs)
    moved = tmp_path / "elsewhere.toml"
    moved.write_text("# other words\n" + JOB, encoding="utf-8")
    assert load(moved, ["job.base=/elsewhere"], programs).digest() == job.digest()
    assert load(moved, ["job.seed=4"], programs).digest() != job.digest()


PLAIN = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc.é \"'\n", max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.text("ab_-", min_size=1), st.dictionaries(st.text("ab.é"), PLAIN, max_size=3), max_size=3
    )
)
def test_any_plain_values_survive_writing(tables: dict[str, dict[str, Any]]) -> None:
    assert tomllib.loads(write_toml(tables)) == tables


def test_lines_are_found_past_strings_and_arrays() -> None:
    text = '[a]\nx = """\n[b]\ny = 1\n"""\n"q r" = 2\n[[c.d]]\nz = 1\n[[c.d]]\nz = 2\n[e]\nf.g = 1\n'
    assert line_of(text, ("a", "x")) == 2
    assert line_of(text, ("a", "q r")) == 6
    assert line_of(text, ("b",)) is None
    assert line_of(text, ("c", "d", 0, "z")) == 8
    assert line_of(text, ("c", "d", 1, "z")) == 10
    assert line_of(text, ("e", "f", "g")) == 12
    assert line_of(text, ("e", "missing")) == 11


def test_every_shared_key_is_documented() -> None:
    for name, spec in TABLES.items():
        for key in typed.documented(spec):
            assert key.doc, f"[{name}] {key.name} has no text under it"


def test_documented_reads_types_defaults_and_texts() -> None:
    keys = {key.name: key for key in typed.documented(Settings)}
    assert keys["algorithm"] == ("algorithm", 'one of "darlin", "ftrl"', '"darlin"', "Which one.")
    assert (keys["limit"].type, keys["limit"].default) == ("an integer", "")
    assert keys["steps"].type == "a list (each a number)"
