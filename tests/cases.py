"""Test cases in TOML: files, a command on them, and the expected result. `tests/hostile` and `tests/unusual` have them.

    [[case]]
    name = "a label that is not a number"
    write = { "a.svm" = "yes 1:1\n" }       # text files
    hex = { "b.svm" = "ff00" }              # files of bytes
    copy = ["bomb.zst"]                     # files in the folder of the TOML file
    fifo = ["pipe.svm"]                     # named pipes
    link = { "c.svm" = "/dev/zero" }        # symbolic links
    sparse = { "d.svm" = 1_000_000 }        # sparse files of so many zero bytes
    shell = "gzip a.svm"                    # makes the other files
    environ = { LC_ALL = "C" }
    command = ["convert", "a.svm", "a.h5"]  # mpips' arguments; `run` starts ranks
    code = 2                                # the exit code
    says = ["a.svm:1", "yes"]               # parts of the last line of stderr
    prints = ["3 examples"]                 # parts of stdout
    absent = ["a.h5"]                       # files that must not exist afterwards
    makes = ["a.h5"]                        # files that must exist afterwards
    keeps = { "a.svm" = "yes 1:1\n" }       # files that must be unchanged afterwards
    result = { "metrics.auc" = 0.5 }        # values in the run's result.json (--run-dir run), to 6 digits
    seconds = 20.0                          # the time limit

Checked for every case: no traceback, no control character in the output, and everything that was started has ended.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished

KEYS = {
    "name", "write", "hex", "copy", "fifo", "link", "sparse", "shell", "environ", "command", "code", "says", "prints",
    "absent", "makes", "keeps", "result", "seconds",
}  # fmt: skip


def cases(folder: Path) -> list[Any]:
    """List the cases of all TOML files in a folder, as parameters of a test."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        for case in tomllib.loads(path.read_text(encoding="utf-8"))["case"]:
            unknown = case.keys() - KEYS
            assert not unknown, f"{path}: {case['name']}: unknown {sorted(unknown)}"
            ranks = case["command"][0] in ("run", "reproduce") and "--dry-run" not in case["command"]
            marks = [pytest.mark.ranks, pytest.mark.once] if ranks else []
            found.append(pytest.param(path.parent, case, marks=marks, id=f"{path.stem}: {case['name']}"))
    return found


def lay(folder: Path, case: dict[str, Any], beside: Path) -> None:
    """Make the files of a case in a folder."""
    for name, text in case.get("write", {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    for name, digits in case.get("hex", {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes.fromhex(digits))
    for name in case.get("copy", ()):
        shutil.copy(beside / name, folder / name)
    for name in case.get("fifo", ()):
        os.mkfifo(folder / name)
    for name, target in case.get("link", {}).items():
        (folder / name).symlink_to(target)
    for name, size in case.get("sparse", {}).items():
        with (folder / name).open("wb") as file:
            file.truncate(size)
    if "shell" in case:
        subprocess.run(["bash", "-ec", case["shell"]], cwd=folder, check=True, timeout=30)


def check(case: dict[str, Any], beside: Path, folder: Path, run_mpips: Callable[..., Finished]) -> None:
    """Run a case in an empty folder, and compare."""
    lay(folder, case, beside)
    how = {"environ": case["environ"]} if "environ" in case else {}
    done = run_mpips(*case["command"], cwd=folder, timeout=float(case.get("seconds", 20.0)), **how)
    reported = f"exit code {done.code}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
    assert done.code == case["code"], reported
    assert "Traceback" not in done.stdout + done.stderr, reported
    raw = {each for each in done.stdout + done.stderr if ord(each) < 32 and each not in "\n\t\r"}
    assert not raw, f"control characters {sorted(raw)}\n{reported!r}"
    for said in case.get("says", ()):
        assert said in done.last_line, f"{said!r} is not in the last line\n{reported}"
    for said in case.get("prints", ()):
        assert said in done.stdout, f"{said!r} is not in stdout\n{reported}"
    for name in case.get("absent", ()):
        assert not os.path.lexists(folder / name), f"{name} is there\n{reported}"
    for name in case.get("makes", ()):
        assert (folder / name).is_file(), f"{name} is not there\n{reported}"
    for name, text in case.get("keeps", {}).items():
        assert (folder / name).read_bytes() == text.encode(), f"{name} has changed\n{reported}"
    if "result" in case:
        result = json.loads((folder / "run" / "result.json").read_text())
        for path, wanted in case["result"].items():
            found: Any = result
            for part in path.split("."):
                found = found[part]
            assert found == (pytest.approx(wanted, rel=1e-6) if isinstance(wanted, float) else wanted), path
