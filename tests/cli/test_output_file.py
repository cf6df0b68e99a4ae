"""Output files of commands: files that are read, or belong to a run or checkpoint, are not replaced."""

from __future__ import annotations

import errno
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mpips.cli.main import main
from mpips.errors import InputError, exit_code
from mpips.provenance import output_file

OF_A_RUN = (
    "run.json", "result.json", "result.previous.json", "job.toml", "metrics.jsonl", "model.h5", "logs/rank-0000.jsonl",
    "record/shard-0000.rank-0001.bin", "replay/leader.json", "trace/rank-0000.bin",
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name in (*OF_A_RUN, "report.html", "mine.tsv", "trace/trace.json.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    facts = {"id": "0", "outputs": {"files": [{"name": "model.h5", "bytes": 8, "sha256": "0"}]}}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "step-000001").mkdir()
    (folder / "step-000001" / "manifest.json").touch()
    return folder


@pytest.mark.parametrize("name", [*OF_A_RUN, "step-000001/manifest.json"])
def test_a_file_of_a_run_or_checkpoint_is_not_replaced(
    run: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whose = "the checkpoint" if "step" in name else f"the run {run}"
    with pytest.raises(InputError, match=rf"{name}: is a file of {whose}.*; name another one to write"):
        output_file.check(run / name)
    monkeypatch.chdir((run / name).parent)
    with pytest.raises(InputError, match=f"is a file of {whose}"):
        output_file.check(Path(name).name)


@pytest.mark.parametrize(
    "name", ["report.html", "mine.tsv", "trace/trace.json.gz", "new.tsv", "logs/new.txt", "none/x"]
)
def test_other_files_may_be_replaced_by_force(run: Path, name: str) -> None:
    output_file.check(run / name, [run, run / "model.h5", run / "missing"], force=True)


@pytest.mark.parametrize("own", [None, rb"mine, [0-9]"])
def test_a_file_with_content_is_replaced_only_if_the_command_has_written_it(
    tmp_path: Path, own: bytes | None
) -> None:
    other, empty, earlier, packed = (tmp_path / name for name in ("a.tsv", "b.tsv", "c.tsv", "d.gz"))
    other.write_text("my notes: mine, 1\n")
    empty.touch()
    earlier.write_text("mine, 1\n")
    packed.write_bytes(gzip.compress(b"mine, 2\n"))
    output_file.check(empty, own=own)
    output_file.check(tmp_path / "none", own=own)
    for path in (earlier, packed):
        if own is not None:
            output_file.check(path, own=own)
    for path in (other, earlier, packed)[: 1 if own else 3]:
        with pytest.raises(
            InputError, match=rf"{path.name}: exists.*; remove it, or give --force to replace it"
        ):
            output_file.check(path, own=own, force=False)
        output_file.check(path, own=own, force=True)
    for damaged in (b"mine, 2\n", gzip.compress(b"mine, 2\n")[:-9], gzip.compress(b"other")):
        packed.write_bytes(damaged)
        with pytest.raises(InputError, match="name another one to write"):
            output_file.check(packed, own=own)


def test_a_batch_script_is_written_again_and_no_other_script_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, script = tmp_path / "job.toml", tmp_path / "job.sbatch"
    job.write_text('[job]\nprogram = "sketch"\n')
    command = ["render", str(job), "--nodes", "1", "-o", str(script)]
    script.write_text(mine := "#!/bin/bash\necho mine\n")
    assert main(command) == 2 and script.read_text() == mine
    assert "job.sbatch: exists, and is no earlier output of this command" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0 and "written by mpips" in script.read_text()
    assert main([*command, "--time", "10"]) == 0 and "--time=10" in script.read_text()


def test_converted_data_replace_no_file_of_a_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.svm").write_text("+1 3:1\n")
    assert main(["convert", str(tmp_path / "a.svm"), str(run / "model.h5"), "--force"]) == 2
    assert "model.h5: is a file of the run" in capsys.readouterr().err
    assert (run / "model.h5").read_text() == "model.h5"


def test_a_file_that_the_command_reads_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[job]\nprogram = "sketch"\n')
    (tmp_path / "link.toml").hardlink_to(job)
    before = job.read_text()
    site = tmp_path / "site.toml"
    site.write_text('partition = "long"\n')
    assert main(["render", str(job), "--nodes", "1", "--site", str(site), "-o", str(site)]) == 2
    assert "is one of the files to read" in capsys.readouterr().err and "long" in site.read_text()
    assert main(["render", str(job), "--nodes", "1", "-o", str(tmp_path / "link.toml")]) == 2
    assert capsys.readouterr().err.endswith(
        "link.toml: is one of the files to read; name another one to write\n"
    )
    assert main(["infer", str(run), str(job), "--out", str(job)]) == 2
    assert capsys.readouterr().err.endswith(
        "job.toml: is one of the files to read; name another one to write\n"
    )
    assert main(["infer", str(run), "--program", str(job), "--out", str(job)]) == 2
    assert capsys.readouterr().err.endswith(
        "job.toml: is one of the files to read; name another one to write\n"
    )
    assert job.read_text() == before


def test_an_output_that_cannot_be_written_is_named_and_a_full_disk_is_another_exit_code(
    tmp_path: Path,
) -> None:
    target = tmp_path / "t.tsv"
    for filename in (None, str(target)):
        denied = pytest.raises(InputError, match=r"t\.tsv: cannot be written: Permission denied")
        with denied, output_file.naming_errors(target):
            raise OSError(errno.EACCES, "Permission denied", filename)
        no_room = pytest.raises(OSError, match="cannot be written: No space left")
        with no_room as full, output_file.naming_errors(target):
            raise OSError(errno.ENOSPC, "No space left on device", filename)
        assert full.value.filename == str(target) and exit_code(full.value) == 74
    for other in (
        FileNotFoundError(errno.ENOENT, "No such file", "a.svm"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
    ):
        with pytest.raises(type(other)) as raised, output_file.naming_errors(target):
            raise other
        assert raised.value is other


def test_a_full_disk_is_no_wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[job]\nprogram = "sketch"\n')

    def full(*_: object, **how: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "job.sbatch"))

    monkeypatch.setattr("mpips.files.safe_open.replacing", full)
    assert main(["render", str(job), "--nodes", "1", "-o", str(tmp_path / "job.sbatch")]) == 74


@pytest.mark.parametrize(("option", "name"), [("--json", "x.json"), ("--plot", "x.svg")])
def test_a_benchmark_replaces_only_its_own_measurements_and_says_so_before_it_runs(
    option: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    run = run_main("bench", "scale", option)
    file.write_text(mine := '{"name": "package"}')
    assert run(file) == 2 and file.read_text() == mine
    said = capsys.readouterr().err
    assert f"{name}: exists, and is no earlier output of this command; remove it, or name another one" in said
    assert run(tmp_path / "none" / name) == 2
    assert "folder" in capsys.readouterr().err


def run_main(*command: str) -> Callable[[Path], int]:
    """Return a function that runs a command with a path, and returns its exit code."""

    def run(path: Path) -> int:
        try:
            return main([*command, str(path)])
        except SystemExit as ended:
            return int(ended.code or 0)

    return run
