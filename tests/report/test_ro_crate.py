"""Crates: the requirements of the profile, no personal data, and the same bytes as the run's files."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mpips.cli import main
from mpips.errors import InputError
from mpips.provenance import run_json
from mpips.report import crate_files, ro_crate
from mpips.rundir.folder import RunFolder, write_json, write_text

rocrate = pytest.importorskip("rocrate")

Graph = dict[str, dict[str, Any]]
WFRUN = {"sha256", "environment", "resourceUsage"}
"""Terms of the workflow-run context; all others are RO-Crate's."""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "toy-run")
    facts = {
        "id": "0123",
        "started": "2026-01-02T03:04:05+00:00",
        "folder": "/home/lovelace/runs/toy-run",
        "argv": ["/home/lovelace/mpips", "job.toml"],
        "mpi": "Open MPI v5.0.1, package: x",
        "python": "3.12.1",
        "hdf5": "1.14.2",
        "packages": {"mpips": "0.1.0", "numpy": "2.1.0"},
        "cpu": "Some CPU",
        "environment": {
            "OMP_NUM_THREADS": "1",
            "SLURM_JOB_USER": "lovelace",
            "SLURM_JOB_UID": "4711",
            "SLURM_SUBMIT_DIR": "/scratch/lovelace/x",
            "OMPI_FILE_LOCATION": "/tmp/ompi.1",
        },
        "modules": [{"name": "gcc/13"}],
        "source": {
            "commit": "ab" * 20,
            "dirty": True,
            "diff_sha256": "dd",
            "remote": "https://example.org/mpips.git",
        },
        "program": {"name": "toy", "file": "/x/job.py", "sha256": "ee"},
        "ranks": [
            {"rank": 0, "role": "scheduler", "index": 0, "host": "n1"},
            {"rank": 1, "role": "server", "index": 0, "host": "n1", "ranges": ["0:18446744073709551616"]},
        ],
        "inputs": [
            {"role": "train", "path": "/home/lovelace/a.svm.xz", "bytes": 9, "sha256": "aa" * 32},
            {
                "role": "test",
                "path": "/d/b.svm",
                "bytes": 10**10,
                "sample_sha256": "bb" * 32,
                "changed": True,
            },
        ],
    }
    write_json(folder.run, facts)
    write_text(folder.job, 'base = "/home/lovelace/x"\n')
    write_text(folder.metrics, '{"event": "pass"}\n')
    (folder.path / "model.npz").write_bytes(b"m" * 100)
    (folder.path / "big.h5").write_bytes(b"b" * 1000)
    metrics, seconds = {"objective": 1.5}, {"train": 2.0}
    finish(folder, {"status": "completed", "metrics": metrics, "seconds": seconds, "parameters_sha256": "cc"})
    return folder


def finish(folder: RunFolder, result: dict[str, Any]) -> None:
    facts = run_json.read_run(folder)
    assert facts is not None
    facts.pop("exit", None)
    write_json(folder.run, facts)
    run_json.conclude(folder, result)
    write_json(folder.result, result)


def graph_of(path: Path) -> Graph:
    text = (path / "ro-crate-metadata.json").read_text()
    return {each["@id"]: each for each in json.loads(text)["@graph"]}


def listed(value: Any) -> list[str]:
    """Return the ids that a property refers to."""
    return [each["@id"] for each in (value if isinstance(value, list) else [value])]


def action_of(graph: Graph) -> dict[str, Any]:
    (action,) = [each for each in graph.values() if each["@type"] == "CreateAction"]
    return action


@pytest.fixture
def graph(run: RunFolder, tmp_path: Path) -> Graph:
    ro_crate.export(run.path, tmp_path / "out", limit=500)
    return graph_of(tmp_path / "out")


def test_it_is_a_process_run_crate(graph: Graph) -> None:
    descriptor, root, action = graph["ro-crate-metadata.json"], graph["./"], action_of(graph)
    assert descriptor["about"] == {"@id": "./"}
    assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    assert root["conformsTo"] == {"@id": ro_crate.PROFILE}
    assert graph[ro_crate.PROFILE]["version"] == "0.5"
    for key in ("name", "description", "datePublished", "license"):
        assert root[key]
    assert root["mentions"] == {"@id": action["@id"]}
    software = graph[action["instrument"]["@id"]]
    assert software["@type"] == "SoftwareApplication"
    assert software["@id"] == f"swh:1:rev:{'ab' * 20}"
    assert software["url"] == "https://example.org/mpips.git"
    assert ("softwareVersion" in software, "version" in software) == (True, False)
    assert action["startTime"] == "2026-01-02T03:04:05+00:00"
    assert action["endTime"].endswith("+00:00")
    assert action["actionStatus"] == "http://schema.org/CompletedActionStatus"
    assert "error" not in action
    for name in listed(action["object"]) + listed(action["result"]):
        kinds = graph[name]["@type"]
        assert {kinds} & {"File", "Dataset", "CreativeWork", "PropertyValue"}
    assert {graph[name]["@type"] for name in listed(action["environment"])} == {"PropertyValue"}
    assert sorted(graph[name]["name"] for name in listed(action["environment"])) == [
        "LOADEDMODULES",
        "OMP_NUM_THREADS",
    ]


def test_every_reference_leads_somewhere_and_every_term_is_known(graph: Graph) -> None:
    library = Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld"
    terms = set(json.loads(library.read_text())["@context"]) | WFRUN if library.exists() else None
    for entity in graph.values():
        for key, value in entity.items():
            if terms is not None:
                assert key in terms or key in ("@id", "@type")
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    assert part["@id"] in graph or key == "conformsTo"
    parts = listed(graph["./"]["hasPart"])
    assert all(graph[name]["@type"] == "File" for name in parts)


def test_files_are_those_of_the_run(run: RunFolder, graph: Graph, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sorted(each.name for each in out.iterdir()) == [
        "job.toml", "metrics.jsonl", "model.npz", "result.json", "ro-crate-metadata.json", "run.json",
    ]  # fmt: skip
    assert (out / "model.npz").read_bytes() == (run.path / "model.npz").read_bytes()
    for name in ("job.toml", "run.json", "model.npz", "result.json", "metrics.jsonl"):
        raw = (out / name).read_bytes()
        assert graph[name]["sha256"] == hashlib.sha256(raw).hexdigest()
        assert graph[name]["contentSize"] == str(len(raw))
    big = hashlib.sha256(b"b" * 1000).digest()
    named = "ni:///sha-256;" + base64.urlsafe_b64encode(big).decode().rstrip("=")
    assert named in listed(action_of(graph)["result"])
    assert graph[named]["name"] == "big.h5"
    assert graph["#result-parameters_sha256"]["value"] == "cc"


def test_inputs_are_named_by_what_is_known_of_them(graph: Graph) -> None:
    train, test = (each for each in graph.values() if str(each.get("description", "")).startswith("input:"))
    assert train["@id"] == ro_crate.reference({"sha256": "aa" * 32})
    assert (train["name"], train["sha256"], train["encodingFormat"]) == (
        "a.svm.xz",
        "aa" * 32,
        "application/x-xz",
    )
    assert test["@id"].startswith("urn:uuid:")
    assert "sample_sha256 " + "bb" * 32 in test["description"]
    assert "was changed while the run" in test["description"]
    assert "sha256" not in test


def test_a_crate_has_no_personal_data(graph: Graph, tmp_path: Path) -> None:
    text = "".join(each.read_text(errors="replace") for each in (tmp_path / "out").iterdir())
    assert "lovelace" not in text
    assert "4711" not in text
    assert "agent" not in action_of(graph)
    shown = json.loads((tmp_path / "out" / "run.json").read_text())
    assert shown["folder"] == "~/runs/toy-run"
    assert shown["environment"]["SLURM_SUBMIT_DIR"] == "/scratch/user/x"
    assert "SLURM_JOB_USER" not in shown["environment"]


def test_the_agent_is_named_on_request(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["crate", str(run.path), "-o", str(out), "--agent", "Ada L", "--orcid", "0000-0002-1825-0097"]
    assert main([*command, "--affiliation", "U", "--license", "CC-BY-4.0", "--title", "T", "--personal"]) == 0
    assert "an RO-Crate, files 6" in capsys.readouterr().out
    graph = graph_of(out)
    person = graph["https://orcid.org/0000-0002-1825-0097"]
    assert action_of(graph)["agent"] == graph["./"]["author"] == {"@id": person["@id"]}
    assert (person["name"], graph[person["affiliation"]["@id"]]["name"]) == ("Ada L", "U")
    assert graph["./"]["license"] == {"@id": "https://spdx.org/licenses/CC-BY-4.0"}
    assert graph["./"]["name"] == "T"
    assert (out / "run.json").read_bytes() == run.run.read_bytes()


def test_an_archive_holds_the_same(run: RunFolder, tmp_path: Path) -> None:
    ro_crate.export(run.path, tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert "ro-crate-metadata.json" in archive.namelist()
        assert archive.read("big.h5") == b"b" * 1000
        assert archive.testzip() is None
    assert sorted(each.name for each in tmp_path.iterdir()) == ["toy-run", "x.zip"]  # nothing is left behind


def test_a_failed_run_reports_what_failed(run: RunFolder, tmp_path: Path) -> None:
    finish(run, {"status": "failed", "exit_code": 1, "error": "rank 2: no"})
    ro_crate.export(run.path, tmp_path / "out")
    action = action_of(graph_of(tmp_path / "out"))
    assert action["actionStatus"] == "http://schema.org/FailedActionStatus"
    assert action["error"] == "rank 2: no"


def test_a_program_of_ones_own_goes_with_it_if_it_is_named_and_is_the_one_that_ran(
    run: RunFolder, tmp_path: Path
) -> None:
    program = tmp_path / "mean.py"
    program.write_text("x = 1\n")
    facts = run_json.read_run(run)
    assert facts is not None
    sha = hashlib.sha256(program.read_bytes()).hexdigest()
    run_json.amend(run, program={"name": "mean.py", "file": str(program), "sha256": sha})
    assert main(["crate", str(run.path), "-o", str(tmp_path / "one"), "--program", str(program)]) == 0
    assert graph_of(tmp_path / "one")["mean.py"]["@type"] == ["File", "SoftwareSourceCode"]
    assert (tmp_path / "one" / "mean.py").read_text() == "x = 1\n"
    ro_crate.export(run.path, tmp_path / "two")
    program.write_text("x = 2\n")
    with pytest.raises(InputError, match="is not the program that ran"):
        ro_crate.export(run.path, tmp_path / "three", program=program)
    assert ro_crate.reference({"sha256": sha}) in listed(action_of(graph_of(tmp_path / "two"))["object"])
    assert not (tmp_path / "two" / "mean.py").exists()


def test_nothing_outside_of_the_run_is_packed(run: RunFolder, tmp_path: Path) -> None:
    secret = tmp_path / "secret.py"
    secret.write_text("do not tell")
    sha = hashlib.sha256(secret.read_bytes()).hexdigest()
    (run.path / "link").symlink_to(secret)
    (run.path / "folder").mkdir()
    (run.path / "real").write_text("r" * 1000)
    (run.path / "ro-crate-metadata.json").write_text("not ours")
    os.mkfifo(run.path / "pipe")
    names = [
        "link", "../secret.py", str(secret), "/etc/passwd", "folder", "folder/../../secret.py", "pipe", ".", "", "real",
        "real", "ro-crate-metadata.json", "gone", "a\0b",
    ]  # fmt: skip
    run_json.amend(
        run,
        program={"name": "secret.py", "file": str(secret), "sha256": sha},
        outputs={"files": [{"name": name, "bytes": 1} for name in names], "checkpoints": []},
        inputs=[{"role": "train", "path": str(secret), "bytes": 11}],
    )
    ro_crate.export(run.path, tmp_path / "out", limit=500)
    ro_crate.export(run.path, tmp_path / "large")
    own = {"job.toml", "metrics.jsonl", "result.json", "run.json", "ro-crate-metadata.json"}
    assert {each.name for each in (tmp_path / "out").iterdir()} == own, (
        "real has more bytes than run.json says"
    )
    assert {each.name for each in (tmp_path / "large").iterdir()} == own | {"real"}
    assert "do not tell" not in "".join(path.read_text() for path in (tmp_path / "large").iterdir())


@pytest.mark.parametrize("name", crate_files.COPIED)
def test_a_link_in_place_of_a_runs_own_file_is_refused(run: RunFolder, tmp_path: Path, name: str) -> None:
    if name in ("run.json", "result.json"):
        (run.path / name).rename(tmp_path / name)
    else:
        (tmp_path / name).write_text("do not tell")
        (run.path / name).unlink()
    (run.path / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError, match=name):
        ro_crate.export(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "facts",
    [{"ranks": 3}, {"outputs": []}, {"outputs": {"files": [7]}}, {"inputs": [{}]}, {"environment": [1]},
     {"program": "x"}, {"packages": 5}, {"mpi": 5}, {"inputs": [{"role": "x", "sha256": "no hash"}]}],
)  # fmt: skip
def test_an_invalid_run_json_is_reported(run: RunFolder, tmp_path: Path, facts: dict[str, Any]) -> None:
    run_json.amend(run, **facts)
    with pytest.raises(InputError, match=r"run\.json: is not what a run writes"):
        ro_crate.export(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ada/x", "~/x"),
        ("/users/ada", "~"),
        ('"/scratch/p1/ada"', '"/scratch/p1/user"'),
        ("/data/adana/x ada", "/data/adana/x ada"),
        ("/data/ada.x", "/data/ada.x"),
    ],
)
def test_user_names_are_removed_from_paths_only(text: str, expected: str) -> None:
    assert crate_files.impersonal(text, {"ada"}) == expected


def test_bad_input_is_one_line(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    for arguments, text in (
        ([str(tmp_path)], "not a run's folder"),
        ([str(run.path), "-o", str(tmp_path / "there")], "there: exists; name another"),
        ([str(run.path), "-o", str(tmp_path / "no" / "x.zip")], "there is no folder"),
        ([str(run.path), "--orcid", "1", "--agent", "A"], "write it as"),
        ([str(run.path), "--affiliation", "U"], "need --agent"),
    ):
        assert main(["crate", *arguments]) == 2
        assert text in capsys.readouterr().err
    run.result.unlink()
    with pytest.raises(InputError, match="has not ended"):
        ro_crate.export(run.path, tmp_path / "out")
