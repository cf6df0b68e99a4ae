"""The state of source trees, from git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mpips.provenance import git_state


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


def test_a_folder_outside_of_a_tree_has_no_state(tmp_path: Path) -> None:
    assert git_state.root_of(tmp_path / ("x" * 300)) is None, "a folder that cannot be looked into"
    assert git_state.state_of(tmp_path) is None


def test_a_tree_without_commit_has_no_state(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert git_state.state_of(tmp_path) is None


def test_a_clean_tree_is_its_commit(tree: Path) -> None:
    (tree / "ignored.py").write_text("pass")
    (tree / "data.bin").write_text("what git does not know counts only if it is code")
    assert git_state.state_of(tree / "inner") == {
        "path": str(tree), "commit": git(tree, "rev-parse", "HEAD").strip(), "remote": None, "dirty": False,
        "diff_sha256": None,
    }  # fmt: skip


def test_a_difference_is_identified_by_its_hash(tree: Path) -> None:
    hashes = set()
    for text in ("2\n", "3\n", "2\n"):
        (tree / "x").write_text(text)
        state = git_state.state_of(tree)
        assert state is not None
        assert state["dirty"] is True
        hashes.add(state["diff_sha256"])
    git(tree, "add", "x")  # staged or not is all the same
    staged = git_state.state_of(tree / "inner")
    assert staged is not None
    assert staged["diff_sha256"] in hashes
    assert len(hashes) == 2


def test_new_code_is_a_change(tree: Path) -> None:
    hashes = set()
    for text in ("a = 1", "a = 2"):
        (tree / "inner" / "new.py").write_text(text)
        state = git_state.state_of(tree)
        assert state is not None
        hashes.add(state["diff_sha256"])
    assert len(hashes) == 2
    assert None not in hashes


def test_the_users_git_settings_do_not_change_the_hash(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "x").write_text("2\n")
    before = git_state.state_of(tree)
    settings = {"diff.noprefix": "true", "diff.context": "9", "color.ui": "always", "diff.external": "false"}
    for key, value in settings.items():
        git(tree, "config", key, value)
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    monkeypatch.setenv("GIT_DIR", str(tree / "nowhere"))
    assert git_state.state_of(tree) == before


def test_the_address_of_a_remote_has_no_password(tree: Path) -> None:
    git(tree, "remote", "add", "origin", "https://me:secret@example.org/x.git")
    state = git_state.state_of(tree)
    assert state is not None
    assert state["remote"] == "https://example.org/x.git"


def test_git_queries_that_exceed_the_timeout_are_killed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "slow").mkdir()
    script = tree / "slow" / "git"
    real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    script.write_text(f'#!/bin/sh\ncase "$*" in *diff*) exec sleep 600;; esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tree / 'slow'}:{os.environ['PATH']}")
    asked = git_state.start_queries(tree)
    assert asked is not None
    pids = [child.process for child in asked._children.values()]
    state = asked.result(1.0)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is None
    assert "did not report" in state["problem"]
    assert all(process.returncode is not None for process in pids)  # none is left when MPI starts


def test_without_git_nothing_is_known(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tree))
    assert git_state.state_of(tree) is None


# --- a tree of a stranger's ---------------------------------------------------------------------------


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """Return the file that a trap creates."""
    return tmp_path / "sprung"


@pytest.fixture
def trap(tmp_path: Path, sprung: Path) -> Path:
    """Return a program that must not be run."""
    made = tmp_path / "trap"
    made.write_text(f"#!/bin/sh\necho \"$0 $*\" >>'{sprung}'\ncat 2>/dev/null\n")
    made.chmod(0o755)
    return made


TRAPS = {
    "clean": {"filter.x.clean": "TRAP"},
    "process": {"filter.x.process": "TRAP"},
    "required": {"filter.x.clean": "TRAP", "filter.x.required": "true"},
    "smudge": {"filter.x.smudge": "TRAP", "filter.x.clean": "TRAP"},
    "odd name": {"filter.a=b.clean": "TRAP", "filter.x.y.clean": "TRAP", "filter.x.clean": "TRAP"},
    "textconv": {"diff.x.textconv": "TRAP", "diff.x.binary": "true"},
    "driver": {"diff.x.command": "TRAP"},
    "external": {"diff.external": "TRAP"},
    "fsmonitor": {"core.fsmonitor": "TRAP"},
    "pager": {"core.pager": "TRAP", "pager.diff": "true"},
    "editor": {"core.editor": "TRAP", "sequence.editor": "TRAP"},
}


@pytest.mark.parametrize("kind", TRAPS)
def test_commands_in_untrusted_git_settings_are_not_run(
    kind: str, tree: Path, trap: Path, sprung: Path
) -> None:
    settings = TRAPS[kind]
    names = {key.split(".", 1)[1].rsplit(".", 1)[0] for key in settings if key.startswith("filter.")} or {"x"}
    (tree / ".gitattributes").write_text("".join(f"* filter={name} diff={name}\n" for name in names))
    git(tree, "add", ".gitattributes")
    git(tree, "commit", "-qm", "attributes")
    for key, value in settings.items():
        git(tree, "config", key, value.replace("TRAP", str(trap)))
    (tree / "x").write_text("2\n")
    facts = git_state.state_of(tree / "inner")
    assert not sprung.exists(), sprung.read_text()
    assert facts is not None and facts["dirty"] is not False
    assert (facts["diff_sha256"] is None) == ("=" in "".join(settings)), "git cannot be told of such a name"
    git(tree, "diff", "HEAD")
    git(tree, "status")
    assert sprung.exists() or kind in ("pager", "editor"), "the trap is none"


def test_a_filter_of_an_included_file_or_a_worktree_is_not_run(tree: Path, trap: Path, sprung: Path) -> None:
    (tree / ".gitattributes").write_text("* filter=x\nx filter=y\n")
    (tree / "more").write_text(f'[filter "x"]\n\tclean = {trap}\n')
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "attributes")
    git(tree, "config", "include.path", "../more")
    git(tree, "config", "extensions.worktreeConfig", "true")
    git(tree, "config", "--worktree", "filter.y.clean", str(trap))
    (tree / "x").write_text("2\n")
    (tree / ".gitignore").write_text("2\n")
    facts = git_state.state_of(tree)
    assert not sprung.exists(), sprung.read_text()
    assert facts is not None and facts["diff_sha256"]


def test_the_users_own_filters_count(
    tree: Path, tmp_path: Path, trap: Path, sprung: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings").write_text('[filter "own"]\n\tclean = sed s/2/1/\n\trequired\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "settings"))
    (tree / ".gitattributes").write_text("* filter=own\n")
    git(tree, "add", ".gitattributes")
    git(tree, "commit", "-qm", "attributes")
    git(tree, "config", "filter.own.clean", str(trap))
    git(tree, "config", "filter.own.process", str(trap))
    (tree / "x").write_text("2\n")
    facts = git_state.state_of(tree)
    assert not sprung.exists(), sprung.read_text()
    git(tree, "config", "--unset", "filter.own.process")
    git(tree, "config", "--unset", "filter.own.clean")
    facts = git_state.state_of(tree)
    assert facts is not None and facts["dirty"] is False


def test_hooks_are_not_run(tree: Path, trap: Path, sprung: Path) -> None:
    for name in ("post-index-change", "fsmonitor-watchman", "pre-commit", "post-checkout"):
        (tree / ".git/hooks").mkdir(exist_ok=True)
        (tree / ".git/hooks" / name).symlink_to(trap)
    (tree / "x").write_text("2\n")
    assert git_state.state_of(tree)
    assert not sprung.exists(), sprung.read_text()


def test_a_submodules_settings_are_not_looked_at(
    tree: Path, tmp_path: Path, trap: Path, sprung: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    (other / "y").write_text("1\n")
    git(other, "add", "y")
    git(other, "commit", "-qm", "y")
    git(tree, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "sub")
    git(tree, "commit", "-qm", "sub")
    git(tree / "sub", "config", "core.fsmonitor", str(trap))
    git(tree / "sub", "config", "filter.x.clean", str(trap))
    (tree / "sub/.gitattributes").write_text("* filter=x\n")
    (tree / "sub/y").write_text("2\n")
    assert git_state.state_of(tree)
    assert not sprung.exists(), sprung.read_text()


def test_what_is_missing_is_not_fetched(tree: Path, tmp_path: Path, trap: Path, sprung: Path) -> None:
    (tmp_path / "remote").mkdir()
    git(tmp_path / "remote", "init", "-q", "--bare")
    for key, value in {
        "core.repositoryFormatVersion": "1", "extensions.partialClone": "origin", "remote.origin.promisor": "true",
        "remote.origin.url": str(tmp_path / "remote"), "remote.origin.uploadpack": str(trap),
        "protocol.allow": "always", "protocol.file.allow": "always", "core.sshCommand": str(trap),
    }.items():  # fmt: skip
        git(tree, "config", key, value)
    blob = git(tree, "rev-parse", "HEAD:x").strip()
    (tree / ".git/objects" / blob[:2] / blob[2:]).unlink()
    (tree / "x").write_text("2\n")
    facts = git_state.state_of(tree)
    assert not sprung.exists(), sprung.read_text()
    assert facts is None or facts["diff_sha256"] is None


def test_new_code_that_is_no_file_is_not_waited_for(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    (tree / "pipe.py").symlink_to("pipe")
    (tree / "endless.py").symlink_to("/dev/zero")
    with (tree / "sparse.py").open("wb") as file:
        file.truncate(1 << 40)
    first = git_state.state_of(tree)
    assert first is not None and first["diff_sha256"]
    (tree / "pipe.py").unlink()
    (tree / "pipe.py").symlink_to("elsewhere")
    second = git_state.state_of(tree)
    assert second is not None and second["diff_sha256"] != first["diff_sha256"]
