"""The file of a rank's last snapshot, written in the background; requests for it are answered when it is on disk.

A rank of any role has one, since a rank may change its role before the scheduler requests the file.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from mpips.checkpoint.background_writer import CheckpointWriter, SynchronousWriter
from mpips.checkpoint.manifest import Entry
from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.transport.message import Message


class SnapshotFile:
    """The file of this rank's last snapshot, and the requests that wait until it is written."""

    def __init__(self, node: Node, writer: CheckpointWriter | None = None) -> None:
        self._node, self._writer = node, writer or SynchronousWriter()
        self._file: Future[Entry] | None = None
        self._awaiting: list[Message] = []
        node.register(Registration(ticks=(self._answer,)))

    def start(self, write: Callable[..., Entry], *args: object) -> None:
        """Start to write the file by `write(*args)`."""
        observers = self._node.observers
        self._file = self._writer.start(observers.wrapped(observers.writing, write), *args)

    def skip(self) -> None:
        """Write no file: this rank has nothing to save."""
        self._file = Future()
        self._file.set_result({})

    def await_written(self, request: Message) -> None:
        """Answer a request with the file's entry in the manifest, once it is written, or with its error."""
        self._awaiting.append(request)

    def _answer(self) -> None:
        if not self._awaiting or self._file is None or not self._file.done():
            return
        for request in self._awaiting:
            try:
                self._node.callee.reply(request, meta=self._file.result())
            except Exception as error:
                self._node.callee.fail(request, error)
        self._awaiting.clear()
