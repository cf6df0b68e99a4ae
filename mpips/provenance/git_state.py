"""The state of a source tree: its commit, and its difference from it.

git runs in child processes while the caller does other work (`start_queries`, then `GitQueries.result`). They have
ended when the result is returned: before MPI starts. A tree that is too large for the timeout has no result.

A clean tree is identified by its commit. For a modified one, `diff_sha256` identifies the difference: the SHA-256 of
`git diff HEAD` under fixed options, and of name and contents of each untracked, not ignored `.py` file below the folder
(of names alone where there are more than 500, as in an installed environment).

A tree may be untrusted, and its settings may name programs that git would run: filters, hooks, diff drivers, monitors,
remotes for missing objects. None of them is run; settings of the user for all trees apply. Submodules are compared by
commit only: they have settings of their own.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from mpips.files.safe_open import read_bytes

TIMEOUT = 2.0
"""Seconds that git may take, from the call of `GitQueries.result`."""

MANY = 500
"""Number of untracked files above which their contents are not hashed."""

LARGEST = 1 << 24
"""Size in bytes of an untracked file above which its contents are not hashed."""

SAFE = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.quotePath=true")
NO_NETWORK = {
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}
"""Environment of a git that contacts no other repository, whatever this one's settings are."""
FILTERS = ("config", "-z", "--show-scope", "--get-regexp", r"^filter\..*\.(clean|process|required)$")
USERS = ("system", "global", "command")
"""Scopes of settings that the tree does not control."""
DIFF = (
    "diff", "HEAD", "--binary", "--full-index", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames",
    "--diff-algorithm=myers", "--unified=3", "--inter-hunk-context=0", "--no-indent-heuristic", "--submodule=short",
    "--ignore-submodules=dirty",
    "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip
QUERIES = {
    "commit": ("rev-parse", "--verify", "HEAD"),
    "diff": DIFF,
    "untracked": ("ls-files", "-z", "--others", "--exclude-standard", "--", "*.py"),
    "remote": ("config", "--get", "remote.origin.url"),
}


class _Child(NamedTuple):
    process: subprocess.Popen[bytes]
    output: IO[bytes]


class GitQueries:
    """Running git queries about one folder of a tree."""

    def __init__(self, root: Path, folder: Path, children: dict[str, _Child]) -> None:
        self.root, self.folder, self._children = root, folder, children
        self._filtered = "diff" not in children

    def result(self, timeout: float = TIMEOUT) -> dict[str, Any] | None:
        """Wait for the answers; processes that take longer than `timeout` seconds are killed. Call it once.

        Returns:
            `path` (the tree's root), `commit`, `remote` (without user and password, or None), `dirty` and `diff_sha256`
            (None if clean); both are None, with a `problem`, if git did not answer in time. None where git has no
            commit, or refuses.
        """
        deadline = time.monotonic() + timeout
        children, self._children = self._children, {}
        outputs = {name: self._output(child, deadline) for name, child in children.items()}
        if self._filtered:
            outputs["diff"] = None
        commit = _text(outputs["commit"])
        if not commit:
            return None
        state = {
            "path": str(self.root),
            "commit": commit,
            "remote": _without_credentials(_text(outputs["remote"])),
        }
        if outputs["diff"] is None or outputs["untracked"] is None:
            problem = f"git did not report the changes within {timeout:g} s"
            if self._filtered:
                problem = "the tree's settings name filters that git cannot disable"
            return state | {"dirty": None, "diff_sha256": None, "problem": problem}
        untracked = [os.fsdecode(name) for name in outputs["untracked"].split(b"\0") if name]
        dirty = bool(outputs["diff"] or untracked)
        return state | {
            "dirty": dirty,
            "diff_sha256": self._hash(outputs["diff"], untracked) if dirty else None,
        }

    def close(self) -> None:
        """End the queries that were not answered; idempotent."""
        children, self._children = self._children, {}
        for child in children.values():
            self._output(child, 0.0)

    def _output(self, child: _Child, deadline: float) -> bytes | None:
        with child.output:
            try:
                code = child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
                return None
            child.output.seek(0)
            return child.output.read() if code == 0 else None

    def _hash(self, diff: bytes, untracked: Sequence[str]) -> str:
        sha = hashlib.sha256(diff)
        for name in sorted(untracked):
            sha.update(f"\0{name}\0".encode(errors="surrogateescape"))
            if len(untracked) > MANY:
                continue
            with suppress(OSError):
                sha.update(hashlib.sha256(_contents(self.folder / name)).digest())
        return sha.hexdigest()


def start_queries(folder: Path, root: Path | None = None, trusted: bool = False) -> GitQueries | None:
    """Start to query git about the tree that a folder is in; None where there is no tree, or no git.

    Args:
        folder: untracked files below it count.
        root: the tree's root; default: found from `folder` upwards.
        trusted: query even if the tree is owned by another user (a container's mount): its git settings may name
            programs to run. Right for a tree whose own code is run anyway.
    """
    folder = folder.absolute()
    root = root or root_of(folder)
    if root is None:
        return None
    safe = [*SAFE, *(("-c", f"safe.directory={root}") if trusted else ())]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_DIR")}
    for name in ("GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_EXTERNAL_DIFF", "GIT_DIFF_OPTS"):
        environ.pop(name, None)
    environ |= NO_NETWORK
    git = ["git", "--no-optional-locks", *safe, "-C", str(folder)]
    unfiltered = _unfiltered(git, environ)
    children: dict[str, _Child] = {}
    for name, query in QUERIES.items():
        if name == "diff" and unfiltered is None:
            continue
        try:
            output = tempfile.TemporaryFile()  # noqa: SIM115 (a pipe would make git wait for its reader)
        except OSError:
            GitQueries(root, folder, children).close()
            return None
        try:
            child = subprocess.Popen(
                [*git, *(unfiltered or ()), *query],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                env=environ,
            )
        except OSError:
            output.close()
            return None
        children[name] = _Child(child, output)
    return GitQueries(root, folder, children)


def _unfiltered(git: Sequence[str], environ: Mapping[str, str]) -> list[str] | None:
    """Return the git options that disable the filters that the tree has set; None if that is impossible."""
    try:
        done = subprocess.run(
            [*git, *FILTERS],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # 1: no such setting.
    if done.returncode not in (0, 1):
        return None
    tree_keys, user_values = set(), {}
    words = os.fsdecode(done.stdout).split("\0")
    for scope, entry in zip(words[0::2], words[1::2], strict=False):
        key, given, value = entry.partition("\n")
        if scope in USERS:
            user_values[key] = value if given else "true"
        else:
            tree_keys.add(key)
    if any("=" in key for key in tree_keys) or len(tree_keys) > MANY:
        return None
    options = []
    for key in sorted(tree_keys):
        none = "false" if key.endswith(".required") else ""
        options += ["-c", f"{key}={user_values.get(key, none)}"]
    return options


def _contents(path: Path) -> bytes:
    """Return the bytes of a file, or the target of a link, as git has it. OSError if it is not a file, or too large."""
    return (
        os.fsencode(os.readlink(path)) if path.is_symlink() else read_bytes(path, follow=False, most=LARGEST)
    )


def state_of(folder: Path, root: Path | None = None, trusted: bool = False) -> dict[str, Any] | None:
    """Query git, and wait for the answer; see `start_queries` and `GitQueries.result`."""
    queries = start_queries(folder, root, trusted)
    return None if queries is None else queries.result()


def root_of(folder: Path) -> Path | None:
    """Return the root of the git tree that a folder is in; None if it is in none."""
    return next((each for each in (folder, *folder.parents) if os.path.exists(each / ".git")), None)


def _text(output: bytes | None) -> str:
    return "" if output is None else output.decode(errors="replace").strip()


def _without_credentials(remote: str) -> str | None:
    """Return a remote's address without user and password."""
    return re.sub(r"(?<=://)[^/@]*@", "", remote) or None
