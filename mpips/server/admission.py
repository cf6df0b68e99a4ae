"""Admission of requests to a server's shards: which one is executed now, which waits, and which is not needed.

A request waits for a shard whose chain is closing, for the keys of its signature, or for the requests that it depends
on (`mpips.tasks.request_dedup`). A duplicate is answered with the kept reply.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from mpips.cluster.node import Node
from mpips.server.acknowledgements import Acknowledgements
from mpips.server.chains import Chains
from mpips.server.executor import Executor
from mpips.server.fast_path import FastPath
from mpips.server.replication import Link
from mpips.transport.key_cache import KeyCache
from mpips.transport.message import NO_ROUND, NO_SIGNATURE, Kind, Message, missing_of, reply_to


class Admission:
    """Admits requests to the shards of which a node is the primary; see the module."""

    def __init__(
        self,
        node: Node,
        lists: KeyCache,
        chains: Chains,
        fast_path: FastPath,
        executor: Executor,
        acknowledgements: Acknowledgements,
    ) -> None:
        self._node, self._lists, self._chains, self._fast_path = node, lists, chains, fast_path
        self._executor, self._acknowledgements = executor, acknowledgements
        # Requests to shards whose chain is closing.
        self._held: dict[int, list[Message]] = {}
        # Requests that wait for the keys of their signature.
        self._keyless: list[Message] = []

    def admit(self, link: Link, message: Message) -> None:
        """Take a request to a shard; execute it, and those that waited for it, if it may start."""
        if link.chain.closing:
            self._held.setdefault(message.shard, []).append(message)
            return
        assert link.shard is not None
        if message.round != NO_ROUND and message.epoch < self._node.view.workers_since:
            # Its sender has dropped it: the set of workers has changed.
            return
        inbox = link.shard.inbox
        self._fast_path.catch_up(link)
        # A duplicate is not decoded again.
        if not inbox.knows(message):
            if message.filtered and not self._node.decoded(message):
                return
            if not self.find_keys(message):
                return
        ready = inbox.admit(message)
        self._fast_path.admitted(link.number, message.origin, inbox)
        self._executor.execute(link, ready)
        if self._keyless and message.keys is not None:
            self.admit_keyless()

    def admit_keyless(self) -> None:
        """Admit requests whose keys may have arrived meanwhile."""
        held, self._keyless = self._keyless, []
        self._admit_all(held)

    def _admit_all(self, requests: Iterable[Message]) -> None:
        for message in requests:
            link = self._chains.links.get(message.shard)
            if link is not None and link.primary and link.shard is not None:
                self.admit(link, message)

    def find_keys(self, request: Message) -> bool:
        """Look up the keys of a request's signature; if they are unknown, ask the caller for them, or wait."""
        if request.signature == NO_SIGNATURE or request.error is not None or request.keys is not None:
            return True
        known = self._lists.find(request.shard, request.namespace, request.signature)
        if known is None and self._node.van.arriving(request.sender):
            # It has overtaken the rest of a longer message, which may have the keys.
            self._keyless.append(request)
            return False
        if known is None:
            reply = reply_to(request)
            reply.kind = Kind.SEND_KEYS
            self._node.answer(request.origin, reply)
            return False
        if known.keys is None:
            request.slots = known.slots
        else:
            request.keys = known.keys
        return True

    def probed(self, link: Link, probe: Message) -> None:
        """Answer a probe: name the requests that have not arrived, and send again the answers to those that have."""
        if link.shard is None or link.chain.closing:
            # Held requests are not in the deduplication table yet.
            return
        self._fast_path.catch_up(link)
        self._executor.take_parts(link)
        origin, number = probe.origin, link.number
        missing = []
        for time, ahead in probe.after:
            if ahead and link.shard.inbox.has_finished(origin, time):
                link.after_all(partial(self._acknowledgements.repeat, origin, (number, time)))
            elif not link.shard.inbox.repeat(origin, time):
                missing.append((time, time + 1))
        self._node.answer(origin, missing_of(probe, missing))

    def reopen(self) -> None:
        """In a new view, admit the requests whose chain is not closing; drop those to shards not held here."""
        for number, held in list(self._held.items()):
            link = self._chains.links.get(number)
            if link is None or not link.chain.closing:
                del self._held[number]
                self._admit_all(held)
