"""A recorder of all that a program does to a folder's files, with faults, and the disks that a crash may leave.

`Recorded` replaces the functions by which Python changes files: those of `os`, and `open` for writing. mpips writes
through them only, HDF5 files too (`mpips.files.error_latching_file`). It numbers the calls that change something below
a folder, and lets one of them fail, or all from one on, as for a process that is killed there.

From the log, `disks` makes the contents that a folder may have after a crash of the machine. The model is as in
Pillai et al., "All file systems are not created equal" (OSDI 2014), with weak guarantees:

    data      of a file is on the disk once it is synced; before, each write may be there or not, in part, or be zeros
    names     of a folder (created, renamed, linked, removed) are on the disk once that folder is synced; before, each
              change may be there or not. Syncing a file does not keep its name. A rename is atomic.
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Op(NamedTuple):
    """One call that changed something: what it did, to which file or folder, and how."""

    what: str
    """write, truncate, sync, name, unname or move."""
    node: int
    """The file or folder that is changed, by its number."""
    detail: tuple[Any, ...] = ()


@dataclass
class Fault:
    """What befalls the call number `at`."""

    at: int
    error: int = 0
    torn: bool = False
    """Half of the bytes are written first; without an error, that is all that befalls it."""
    lasts: bool = False
    """All later calls fail, too."""


@dataclass
class Log:
    """The calls that changed something below a folder."""

    ops: list[Op] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    """The name of each call that a fault may befall."""
    marks: dict[str, int] = field(default_factory=dict)
    """Numbers of operations, by a name that the test has given."""

    def mark(self, name: str) -> None:
        """Note what has been done."""
        self.marks[name] = len(self.ops)


NEVER = Fault(-1)


class Recorded:
    """Records what is done below `root`; see the module. `fault` may be set at any time."""

    def __init__(self, root: Path, fault: Fault = NEVER) -> None:
        self.root, self.fault = os.path.realpath(root), fault
        self.log = Log()
        self._real: dict[str, Callable[..., Any]] = {}

    # --- the replaced functions -------------------------------------------------------------------

    @contextmanager
    def __call__(self) -> Iterator[Log]:
        """Record inside of the block."""
        with pytest.MonkeyPatch.context() as patch:
            for name in (
                "open", "write", "pwrite", "ftruncate", "fsync", "fdatasync", "replace", "rename", "link", "unlink",
                "remove", "mkdir", "rmdir", "posix_fallocate",
            ):  # fmt: skip
                self._real[name] = getattr(os, name)
                patch.setattr(os, name, getattr(self, f"_{name}"))
            self._real["builtin open"], self._real["fdopen"] = builtins.open, os.fdopen
            patch.setattr(builtins, "open", self._open_file)
            patch.setattr(io, "open", self._open_file)
            patch.setattr(os, "fdopen", self._open_file)
            yield self.log

    def _path(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Return the path without links, of a name below the root; None for others."""
        text = os.fsdecode(path)
        if dir_fd is not None:
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        folder, name = os.path.split(os.path.abspath(text))
        found = os.path.join(os.path.realpath(folder), name)
        return found if found.startswith(self.root + os.sep) else None

    def _of(self, handle: int) -> str | None:
        """Return the path of an open file below the root."""
        try:
            path = os.readlink(f"/proc/self/fd/{handle}")
        except OSError:
            return None
        below = path == self.root or path.startswith(self.root + os.sep)
        return path if below else None

    def _befall(self, call: str, path: str | None = None) -> None:
        """Count a call, and do what befalls it; `path`: what was named to it, which its error names then."""
        number, fault = len(self.log.calls), self.fault
        self.log.calls.append(call)
        if fault.error and (number == fault.at or (number > fault.at >= 0 and fault.lasts)):
            raise OSError(fault.error, os.strerror(fault.error), path)

    def _node(self, path: str) -> int:
        return os.lstat(path).st_ino

    def _note(self, what: str, node: int, *detail: Any) -> None:
        self.log.ops.append(Op(what, node, detail))

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        named = self._path(path, dir_fd)
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        real = self._real["open"]
        if named is None or not writes:
            return int(real(path, flags, mode, dir_fd=dir_fd))
        self._befall(f"open {os.path.basename(named)}", named)
        existed = os.path.lexists(named)
        handle = int(real(path, flags, mode, dir_fd=dir_fd))
        node = os.fstat(handle).st_ino
        if not existed:
            self._note("name", self._node(os.path.dirname(named)), os.path.basename(named), node, False)
        elif flags & os.O_TRUNC:
            self._note("truncate", node, 0)
        return handle

    def _open_file(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        """Open a file to write by Python's own buffers over `_write`; others as usual."""
        if isinstance(file, int):
            watched = self._of(file)
        else:
            watched = self._path(file) if isinstance(file, (str, bytes, os.PathLike)) else None
        if watched is None or not set(mode) & set("wax+"):
            return self._real["builtin open"](file, mode, *args, **options)
        binary = "b" in mode
        raw = _Raw(self, file, mode.replace("b", "").replace("t", ""))
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if binary:
            return buffered
        names = ("buffering", "encoding", "errors", "newline")
        options = dict(zip(names, args, strict=False)) | options
        return io.TextIOWrapper(
            buffered, options.get("encoding"), options.get("errors"), options.get("newline")
        )

    def _write(self, handle: int, data: Any) -> int:
        path = self._of(handle)
        if path is None:
            return int(self._real["write"](handle, data))
        at = os.lseek(handle, 0, os.SEEK_CUR)
        if self._appends(handle):
            at = os.fstat(handle).st_size
        return self._put(handle, data, at, path, lambda part: self._real["write"](handle, part))

    def _pwrite(self, handle: int, data: Any, at: int) -> int:
        path = self._of(handle)
        if path is None:
            return int(self._real["pwrite"](handle, data, at))
        return self._put(handle, data, at, path, lambda part: self._real["pwrite"](handle, part, at))

    @staticmethod
    def _appends(handle: int) -> bool:
        import fcntl

        return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_APPEND)

    def _put(self, handle: int, data: Any, at: int, path: str, write: Callable[[Any], int]) -> int:
        view, number, fault = memoryview(data).cast("B"), len(self.log.calls), self.fault
        node = os.fstat(handle).st_ino
        if number == fault.at and fault.torn and len(view) > 1:
            half = view[: len(view) // 2]
            write(half)
            self._note("write", node, at, bytes(half))
            if not fault.error:
                # A short write is no error.
                self.log.calls.append(f"write {os.path.basename(path)}")
                return len(half)
        self._befall(f"write {os.path.basename(path)}")
        done = int(write(view))
        self._note("write", node, at, bytes(view[:done]))
        return done

    def _ftruncate(self, handle: int, size: int) -> None:
        path = self._of(handle)
        if path is not None:
            self._befall(f"truncate {os.path.basename(path)}")
            self._note("truncate", os.fstat(handle).st_ino, size)
        self._real["ftruncate"](handle, size)

    def _posix_fallocate(self, handle: int, at: int, size: int) -> None:
        path = self._of(handle)
        if path is not None:
            self._befall(f"allocate {os.path.basename(path)}")
            self._note("truncate", os.fstat(handle).st_ino, max(at + size, os.fstat(handle).st_size))
        self._real["posix_fallocate"](handle, at, size)

    def _fsync(self, handle: int) -> None:
        path = self._of(handle)
        if path is not None:
            self._befall(f"sync {os.path.basename(path)}")
            self._note("sync", os.fstat(handle).st_ino)
        # The disk itself is not part of the test.

    _fdatasync = _fsync

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        one, other = self._path(source), self._path(target)
        if one is None or other is None:
            return self._real["rename"](source, target, **options)
        self._befall(f"rename {os.path.basename(one)}", one)
        node, folder = self._node(one), os.path.dirname(one)
        assert folder == os.path.dirname(other), "a move to another folder is not atomic"
        self._real["rename"](source, target, **options)
        self._note("move", self._node(folder), os.path.basename(one), os.path.basename(other), node)
        return None

    _replace = _rename

    def _link(self, source: Any, target: Any, **options: Any) -> None:
        named = self._path(target)
        if named is not None:
            self._befall(f"link {os.path.basename(named)}", named)
        self._real["link"](source, target, **options)
        if named is not None:
            self._note(
                "name", self._node(os.path.dirname(named)), os.path.basename(named), self._node(named), False
            )

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._unname("unlink", path, dir_fd)

    _remove = _unlink

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._unname("rmdir", path, dir_fd)

    def _unname(self, call: str, path: Any, dir_fd: int | None) -> None:
        named = self._path(path, dir_fd)
        if named is not None:
            self._befall(f"{call} {os.path.basename(named)}", named)
        self._real[call](path, dir_fd=dir_fd)
        if named is not None:
            self._note("unname", self._node(os.path.dirname(named)), os.path.basename(named))

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        named = self._path(path, dir_fd)
        if named is not None:
            self._befall(f"mkdir {os.path.basename(named)}", named)
        self._real["mkdir"](path, mode, dir_fd=dir_fd)
        if named is not None:
            self._note(
                "name", self._node(os.path.dirname(named)), os.path.basename(named), self._node(named), True
            )


class _Raw(io.FileIO):
    """A file that writes by `Recorded`."""

    def __init__(self, recorded: Recorded, file: Any, mode: str) -> None:
        self._recorded = recorded
        super().__init__(
            file, mode, opener=lambda name, flags: recorded._open(name, flags | os.O_CLOEXEC, 0o666)
        )

    def write(self, data: Any) -> int:
        return self._recorded._write(self.fileno(), data)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        self._recorded._ftruncate(self.fileno(), size)
        return size


# --- the disks that a crash may leave ------------------------------------------------------------------------------


Tree = dict[str, Any]
"""A folder's content by name: bytes of a file, or the tree of a folder."""


@dataclass
class _Node:
    """A file or a folder: what is on the disk, and what has been done since it was last synced."""

    is_folder: bool
    data: bytes = b""
    names: dict[str, int] = field(default_factory=dict)
    pending: list[Op] = field(default_factory=list)


class Disk:
    """The state after some operations; `before` is the content of the root when the log begins, all on the disk."""

    def __init__(self, root: Path) -> None:
        self.nodes: dict[int, _Node] = {}
        self.root = self._read(root)

    def _read(self, path: Path) -> int:
        number = path.lstat().st_ino
        if path.is_dir():
            node = _Node(True, names={each.name: self._read(each) for each in path.iterdir()})
        else:
            node = _Node(False, path.read_bytes())
        self.nodes[number] = node
        return number

    def take(self, op: Op, lied: Callable[[int], bool] = lambda node: False) -> None:
        """Do an operation; `lied`: whether a sync of a file or folder has no effect."""
        if op.what == "name":
            _, number, is_folder = op.detail
            # A number is used again once the file is gone.
            if number not in self.nodes or not self._is_named(number):
                self.nodes[number] = _Node(is_folder)
        node = self.nodes.setdefault(op.node, _Node(False))
        if op.what == "sync":
            if not lied(op.node):
                node.data, node.names = _written(node.data, node.pending), _named(node.names, node.pending)
                node.pending = []
        else:
            node.pending.append(op)

    def _is_named(self, number: int) -> bool:
        return any(
            number in _named(node.names, node.pending).values() or number in node.names.values()
            for node in self.nodes.values()
            if node.is_folder
        )

    def tree(self, lost: Callable[[int, int], str]) -> Tree:
        """Return what is found after a crash; `lost(node, number)` of a pending operation: "", lost, torn or zeros."""
        return self._tree(self.root, lost)

    def _tree(self, number: int, lost: Callable[[int, int], str]) -> Tree:
        node, found = self.nodes[number], Tree()
        kept = [op for at, op in enumerate(node.pending) if not lost(number, at)]
        for name, each in _named(node.names, kept).items():
            child = self.nodes[each]
            if child.is_folder:
                found[name] = self._tree(each, lost)
            else:
                ways = [lost(each, at) for at in range(len(child.pending))]
                found[name] = _written(child.data, child.pending, ways)
        return found

    def pending(self) -> Iterator[tuple[int, int]]:
        """Yield (node, number) of each operation that may be lost, of files and folders that can be reached."""
        for number, node in self.nodes.items():
            for at in range(len(node.pending)):
                yield number, at


def _named(names: dict[str, int], ops: list[Op]) -> dict[str, int]:
    names = dict(names)
    for op in ops:
        if op.what == "name":
            names[op.detail[0]] = op.detail[1]
        elif op.what == "unname":
            names.pop(op.detail[0], None)
        elif op.what == "move":
            names.pop(op.detail[0], None)
            names[op.detail[1]] = op.detail[2]
    return names


def _written(data: bytes, ops: list[Op], ways: list[str] | None = None) -> bytes:
    found = bytearray(data)
    for at, op in enumerate(ops):
        way = ways[at] if ways else ""
        if way == "lost":
            continue
        if op.what == "truncate":
            size = op.detail[0]
            del found[size:]
            found.extend(bytes(size - len(found)))
        elif op.what == "write":
            begin, piece = op.detail
            if way == "torn":
                piece = piece[: len(piece) // 2]
            if way == "zeros":
                piece = bytes(len(piece))
            found.extend(bytes(max(0, begin + len(piece) - len(found))))
            found[begin : begin + len(piece)] = piece
    return bytes(found)


def disks(
    before: Disk, ops: list[Op], lied: Callable[[int], bool] = lambda node: False, first: int = 0
) -> Iterator[tuple[int, str, Tree]]:
    """Yield (number of operations, how, content) for each crash after `first` of the operations or more.

    `before` changes.
    """
    disk = before
    for count in range(len(ops) + 1):
        if count:
            disk.take(ops[count - 1], lied)
        if count >= first:
            for how, lost in _ways(disk):
                yield count, how, disk.tree(lost)


def _ways(disk: Disk) -> Iterator[tuple[str, Callable[[int, int], str]]]:
    """Yield what a crash may lose now, and how that is named."""
    folders = {number for number, node in disk.nodes.items() if node.is_folder}
    yield "killed", lambda node, at: ""
    yield "nothing", lambda node, at: "lost"
    yield "names only", lambda node, at: "" if node in folders else "lost"
    yield "zeros", lambda node, at: "" if node in folders else "zeros"
    yield "data only", lambda node, at: "lost" if node in folders else ""
    for one in disk.pending():
        last = one[1] == len(disk.nodes[one[0]].pending) - 1
        yield "without one", lambda node, at, one=one: "lost" if (node, at) == one else ""
        if one[0] in folders:
            yield (
                "one name only",
                lambda node, at, one=one: "lost" if node in folders and (node, at) != one else "",
            )
        elif last:
            yield "torn", lambda node, at, one=one: "torn" if (node, at) == one else ""


def lay(tree: Tree, folder: Path) -> None:
    """Write a tree to a folder that does not exist."""
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, dict):
            lay(content, folder / name)
        else:
            (folder / name).write_bytes(content)


def fingerprint(tree: Tree) -> int:
    """Identify a tree."""
    parts = (
        (name, fingerprint(each) if isinstance(each, dict) else hash(each)) for name, each in tree.items()
    )
    return hash(tuple(sorted(parts)))
