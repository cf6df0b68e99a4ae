"""The state of source trees, as git says it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mpips import source


def git(tree: Path, *arguments: str) -> str:
    environ = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-C", str(tree), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, env=environ, capture_output=True, text=True).stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    (made / "inner").mkdir(parents=True)
    (made / "x").write_text("1\n")
    (made / ".gitignore").write_text("ignored.py\n")
    git(made, "init", "-q")
    git(made, "add", "x", ".gitignore")
    git(made, "commit", "-qm", "x")
    return made


def test_no_tree_has_no_state(tmp_path: Path) -> None:
    assert source.state_of(tmp_path) is None


def test_a_tree_without_commit_has_no_state(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert source.state_of(tmp_path) is None


def test_a_clean_tree_is_its_commit(tree: Path) -> None:
    (tree / "ignored.py").write_text("pass")
    (tree / "data.bin").write_text("what git does not know counts only if it is code")
    assert source.state_of(tree / "inner") == {
        "path": str(tree), "commit": git(tree, "rev-parse", "HEAD").strip(), "remote": None, "dirty": False,
        "diff_sha256": None,
    }  # fmt: skip


def test_what_was_changed_has_a_name(tree: Path) -> None:
    hashes = set()
    for text in ("2\n", "3\n", "2\n"):
        (tree / "x").write_text(text)
        state = source.state_of(tree)
        assert state is not None
        assert state["dirty"] is True
        hashes.add(state["diff_sha256"])
    git(tree, "add", "x")  # staged or not is all the same
    staged = source.state_of(tree / "inner")
    assert staged is not None
    assert staged["diff_sha256"] in hashes
    assert len(hashes) == 2


def test_new_code_is_a_change(tree: Path) -> None:
    hashes = set()
    for text in ("a = 1", "a = 2"):
        (tree / "inner" / "new.py").write_text(text)
        state = source.state_of(tree)
        assert state is not None
        hashes.add(state["diff_sha256"])
    assert len(hashes) == 2
    assert None not in hashes


def test_the_users_git_settings_do_not_change_the_hash(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "x").write_text("2\n")
    before = source.state_of(tree)
    settings = {"diff.noprefix": "true", "diff.context": "9", "color.ui": "always", "diff.external": "false"}
    for key, value in settings.items():
        git(tree, "config", key, value)
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    monkeypatch.setenv("GIT_DIR", str(tree / "nowhere"))
    assert source.state_of(tree) == before


def test_a_remote_gives_no_password_away(tree: Path) -> None:
    git(tree, "remote", "add", "origin", "https://me:secret@example.org/x.git")
    state = source.state_of(tree)
    assert state is not None
    assert state["remote"] == "https://example.org/x.git"


def test_who_does_not_answer_in_time_is_left(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "slow").mkdir()
    script = tree / "slow" / "git"
    real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    script.write_text(f'#!/bin/sh\ncase "$*" in *diff*) exec sleep 600;; esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tree / 'slow'}:{os.environ['PATH']}")
    asked = source.ask(tree)
    assert asked is not None
    pids = [child.process for child in asked._children.values()]
    state = asked.answer(1.0)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is None
    assert "did not say" in state["problem"]
    assert all(process.returncode is not None for process in pids)  # none is left when MPI starts


def test_without_git_nothing_is_known(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tree))
    assert source.state_of(tree) is None
