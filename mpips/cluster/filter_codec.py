"""The filter codec of a node: encodes messages to and from shards, and decodes received ones (paper, section 3.6)."""

from __future__ import annotations

from copy import copy

from mpips.cluster.observer import Observers
from mpips.filters.chain import Chain
from mpips.filters.filter import About
from mpips.storage.updates import VectorSpec, update_named
from mpips.transport.message import Kind, Message
from mpips.transport.van import Van


class FilterCodec:
    """Passes workers' requests through `pushes`, and rows that shards answer through `pulls`."""

    def __init__(self, pushes: Chain, pulls: Chain, van: Van, observers: Observers) -> None:
        self.pushes, self.pulls = pushes, pulls
        self._van, self._observers = van, observers

    def request(self, address: int, receiver: int, message: Message, spec: VectorSpec) -> Message:
        """Encode a request to the shard of an address, which goes to the rank `receiver`."""
        begin = self._van.now()
        about = _about(spec, message, update_named(spec.update).sums, message.exact)
        message = self.pushes.encode(address, message, about)
        for encoded in self._observers.encoded:
            encoded(begin, receiver, message)
        return message

    def reply(self, origin: int, receiver: int, message: Message, spec: VectorSpec) -> Message:
        """Encode a reply to a caller, which goes to the rank `receiver`; `message` itself, which may be kept, stays."""
        begin = self._van.now()
        about = _about(spec, message, False, update_named(spec.update).exact_replies)
        message = self.pulls.encode(origin, copy(message), about)
        for encoded in self._observers.encoded:
            encoded(begin, receiver, message)
        return message

    def decode(self, message: Message) -> None:
        """Decode a filtered message in place.

        Raises:
            FilterError: they cannot read it.
        """
        begin = self._van.now()
        (self.pushes if message.kind is Kind.REQUEST else self.pulls).decode(message)
        for decoded in self._observers.decoded:
            decoded(begin, message)


def _about(spec: VectorSpec, message: Message, sums: bool, exact: bool) -> About:
    keys = message.keys if message.keys is not None else message.unsent_keys
    return About(
        spec.name, message.command, message.range, sums, 0, message.origin, message.shard, message.time,
        message.flush, keys, exact,
    )  # fmt: skip
