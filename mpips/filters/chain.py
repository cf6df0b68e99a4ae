"""Chains of filters: encode and decode all messages of one direction, and count what that saves (paper, section 3.6).

The encoded content is sent as the values of its message, one run of bytes:

    hash | filters, type, width, rows, keys | note lengths | notes | keys | values

The hash (the function of key signatures) covers all bytes after it, so that damaged content is never decoded. A message
that no filter changes is sent as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.errors import FilterError
from mpips.filters.filter import About, Coder, Content, State
from mpips.keys import KeyArray, dtype_of, is_wide
from mpips.rundir.progress import bytes_si
from mpips.transport.key_cache import sign
from mpips.transport.message import CODES, DTYPES, NO_SIGNATURE, Command, Message

# Hash, number of filters, wire type of the values, whether there are values, bits of a key that exceed 64, width, rows,
# keys (-1: none).
_HEAD = struct.Struct("<16sBBHIqqq")
_HASH = 16
BYTES = 254
"""The type code of values that a filter has encoded as bytes."""
NO_VALUES = np.empty(0, np.uint8)


@dataclass
class FilterCost:
    """The bytes of a filter's input and output, and its seconds."""

    raw: int = 0
    wire: int = 0
    seconds: float = 0.0


class Step(NamedTuple):
    """A filter of a chain: its name in the job file, and its coder."""

    name: str
    coder: Coder


class Chain:
    """The filters of one direction, with their states for each peer and vector."""

    def __init__(
        self, steps: Iterable[Step] = (), seed: int = 0, clock: Callable[[], int] = perf_counter_ns
    ) -> None:
        self.steps, self.seed = tuple(steps), seed
        self.costs = {step.name: FilterCost() for step in self.steps}
        self.states: dict[tuple[int, str], list[State]] = {}
        """By peer and vector: a state per filter."""
        self._clock = clock

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def dropping(self) -> list[str]:
        """The names of the filters that may drop or hold back rows."""
        return [step.name for step in self.steps if step.coder.drops]

    def encode(self, peer: int, message: Message, about: About) -> Message:
        """Encode a message for `peer` in place, and return it.

        If this raises, all states are unchanged; `message.restore` restores them later.

        Raises:
            TypeError: a filter has returned something else than a state and a content.
        """
        values = message.values
        if not self.steps or (values is None and message.keys is None):
            return message
        if values is not None and (values.dtype not in CODES or values.ndim > 2):
            # It cannot be sent: its `encode` raises an error that says why.
            return message
        keys = message.keys if message.keys is not None else message.unsent_keys
        # Keys that need not be sent, as long as no filter changes them.
        known = keys if message.keys is None else None
        about = about._replace(seed=self.seed, keys=keys)
        content = Content(keys, NO_VALUES if values is None else rows_of(values))
        original, key = content.values, (peer, about.vector)
        before = self.states.get(key) or [{} for _ in self.steps]
        states = list(before)
        plain = values is not None and message.command is Command.PUSH
        notes: list[bytes | None] = []
        for position, (name, coder) in enumerate(self.steps):
            if (coder.drops and not plain) or (coder.rounds and about.exact):
                notes.append(None)
                continue
            if not coder.drops and known is not None and content.keys is known:
                content = content._replace(keys=None)
            start, size = self._clock(), _sent_bytes(content, known)
            made: object = coder.encode(states[position], content, about)
            if not isinstance(made, tuple) or len(made) != 2:
                raise TypeError(
                    f"filter {name}: encode has returned {made!r:.80}, and should return (state, Content)"
                )
            state, encoded = made
            _check_content(encoded, f"filter {name}: encode")
            if coder.drops and not about.flush and _sent_bytes(encoded, known) > size:
                # Listing the remaining keys takes more bytes than dropping no row.
                notes.append(None)
            else:
                states[position], content = state, encoded._replace(note=b"")
                notes.append(encoded.note)
                if coder.drops:
                    about = about._replace(keys=content.keys)
            costs = self.costs[name]
            costs.raw += size
            costs.wire += _sent_bytes(content, known)
            costs.seconds += (self._clock() - start) * 1e-9
        self.states[key] = states
        message.restore = partial(self.states.__setitem__, key, before)
        # The list differs from the one that the signature covers.
        if about.keys is not keys:
            message.signature, message.unsent_keys = NO_SIGNATURE, None
        elif content.values is original and not any(notes):
            return message
        elif content.keys is known:
            content = content._replace(keys=None)
        size = content.nbytes
        packed = pack(message, content, notes)
        # The notes and the header before them.
        self.costs[self.steps[-1].name].wire += packed.payload_bytes - size
        return packed

    def decode(self, message: Message) -> Message:
        """Decode a message in place, and return it.

        Raises:
            FilterError: it is damaged, or of another chain; the text names filter, sender and message.
        """
        name = ", ".join(step.name for step in self.steps) or "none here"
        try:
            content, notes, has_values = unpack(message, len(self.steps))
            for step, note in zip(reversed(self.steps), reversed(notes), strict=True):
                if note is not None:
                    name, start = step.name, self._clock()
                    content = step.coder.decode(content._replace(note=note))
                    _check_content(content, "decode")
                    self.costs[name].seconds += (self._clock() - start) * 1e-9
        # A user's filter may raise any exception.
        except Exception as error:
            where = (
                f"{message.command.name} {message.time} of shard {message.shard} from rank {message.sender}"
            )
            kind = "" if isinstance(error, FilterError) else f"{type(error).__name__}: "
            raise FilterError(f"filter {name}: {where}: {kind}{error}") from error
        if content.keys is not None:
            message.keys = content.keys
        message.values = content.values if has_values else None
        message.filtered = False
        return message


def _check_content(content: object, what: str) -> None:
    """Raise TypeError unless a filter has returned a content."""
    if not isinstance(content, Content):
        raise TypeError(f"{what} has returned a {type(content).__name__}, and should return a Content")


def _sent_bytes(content: Content, known: KeyArray | None) -> int:
    """Count the bytes that are sent for a content: its keys are sent unless they are `known`."""
    keys = content.keys
    return content.values.nbytes + (0 if keys is None or keys is known else keys.nbytes)


def rows_of(values: NDArray[Any]) -> NDArray[Any]:
    """View values as rows [n, width]."""
    return values if values.ndim == 2 else values[:, None]


def _padded(size: int) -> int:
    """Round a size up to a multiple of 8 bytes."""
    return -(-size // 8) * 8


def pack(message: Message, content: Content, notes: Sequence[bytes | None]) -> Message:
    """Write an encoded content and its notes into the values of a message."""
    keys = content.keys
    values = content.values
    code = BYTES if values.dtype == np.uint8 else CODES[values.dtype]
    width = values.shape[1] if values.ndim == 2 else 1
    n_keys = -1 if keys is None else len(keys)
    wider = 64 if keys is not None and is_wide(keys) else 0
    head = _HEAD.pack(b"", len(notes), code, message.values is not None, wider, width, len(values), n_keys)
    lengths = struct.pack(f"<{len(notes)}i", *(-1 if note is None else len(note) for note in notes))
    parts = [head, lengths, *(note for note in notes if note)]
    prefix = b"".join(parts)
    # Keeps keys and values aligned.
    prefix = prefix.ljust(_padded(len(prefix)), b"\0")
    size = len(prefix) + (0 if keys is None else keys.nbytes) + values.nbytes
    body = np.empty(_padded(size), np.uint8)
    body[size:] = 0
    body[: len(prefix)] = np.frombuffer(prefix, np.uint8)
    at = len(prefix)
    for array in (keys, values):
        if array is not None and array.size:
            body[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            at += array.nbytes
    body[:_HASH] = np.frombuffer(sign(body[_HASH:].view(np.uint64)), np.uint8)
    message.keys, message.values, message.place, message.filtered = None, body, None, True
    return message


def unpack(message: Message, steps: int) -> tuple[Content, list[bytes | None], bool]:
    """Read what `pack` wrote, for a chain of `steps` filters; also return whether there were values.

    Raises:
        FilterError: it is not what `pack` writes.
    """
    body = message.values
    if body is None or body.nbytes < _HEAD.size + 4 * steps:
        raise FilterError(
            f"{0 if body is None else body.nbytes} bytes are too few for an encoded content: truncated"
        )
    body = body.reshape(-1).view(np.uint8)
    signed, count, code, has_values, wider, width, rows, n_keys = _HEAD.unpack_from(body.data)
    if len(body) % 8 or signed != sign(body[_HASH:].view(np.uint64)):
        raise FilterError("damaged: the hash of the content is wrong")
    if count != steps:
        raise FilterError(f"encoded by {count} filters, the receiver has {steps}")
    lengths = struct.unpack_from(f"<{steps}i", body.data, _HEAD.size)
    at = _HEAD.size + 4 * steps
    notes: list[bytes | None] = []
    for length in lengths:
        notes.append(None if length < 0 else bytes(body[at : at + length]))
        at += max(length, 0)
    at = _padded(at)
    dtype = np.dtype(np.uint8) if code == BYTES else DTYPES[code]
    if wider not in (0, 64):
        raise FilterError(f"keys of {64 + wider} bits")
    of_keys = dtype_of(64 + wider)
    key_bytes = of_keys.itemsize * max(n_keys, 0)
    end = at + key_bytes + rows * width * dtype.itemsize
    if _padded(end) != body.nbytes:
        raise FilterError(f"payload has {body.nbytes} bytes, expected {end}")
    keys = None if n_keys < 0 else body[at : at + key_bytes].view(of_keys)
    values = body[at + key_bytes : end].view(dtype)
    content = Content(keys, values if code == BYTES else values.reshape(rows, width))
    return content, notes, bool(has_values)


def saved_bytes(filters: dict[str, dict[str, dict[str, Any]]], role: str) -> int:
    """Count the bytes that filters have saved in the messages that a role sends."""
    return sum(by[role]["raw"] - by[role]["wire"] for by in filters.values() if role in by)


def traffic_lines(traffic: dict[str, Any]) -> list[str]:
    """Return a line for each role that has filtered bytes, with the bytes before and after filters."""
    lines = []
    for role in ("worker", "server"):
        sent, raw = traffic[f"{role}_sent"], traffic[f"{role}_raw"]
        by = {name: by[role] for name, by in traffic["per_filter"].items() if role in by}
        each = ", ".join(
            f"{name} {bytes_si(one['raw'])} to {bytes_si(one['wire'])}" for name, one in by.items()
        )
        if raw > sent and bytes_si(raw) != bytes_si(sent):
            lines.append(f"{role}s sent {bytes_si(sent)} instead of {bytes_si(raw)}: {each}")
    return lines


def per_filter(
    nodes: Iterable[dict[str, dict[str, dict[str, Any]]]],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Sum the filter statistics of nodes: name -> role -> raw, wire, seconds."""
    totals: dict[str, dict[str, dict[str, Any]]] = {}
    for node in nodes:
        for name, by in node.items():
            for role, each in by.items():
                total = totals.setdefault(name, {}).setdefault(role, asdict(FilterCost()))
                for key, value in each.items():
                    total[key] += value
    return totals
