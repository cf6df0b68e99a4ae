"""Messages: a fixed header, followed by metadata, keys and values as raw buffers.

A message is [range, keys, values] with a header that names sender, receiver and command (paper, section 4.2).
Nothing is pickled and no code is sent: the header is a packed struct, metadata is JSON, dependencies are int64 pairs,
keys are uint64 or pairs of these (`mpips.keys`), values have one of four number types. A message of up to `INLINE`
payload bytes is sent as one frame; the buffers of a larger one follow the frame as messages of their own and are never
copied.

`encode` and `decode` are pure functions and do not depend on MPI. The module is long because both read and write every
field of one format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, unique
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.errors import ProtocolError
from mpips.files.json_values import json_data, keep
from mpips.keys import KEY64, KEY128, KeyArray, is_wide
from mpips.ranges import ALL, KeyRange
from mpips.transport.header import (
    DETACHED,
    FILTERED,
    HEADER,
    HEADER_BYTES,
    LISTED,
    MAGIC,
    NO_VALUES,
    PACKING,
    WIDE_KEYS,
)


@unique
class Kind(IntEnum):
    """The kind of a message: its part in the protocol of a task."""

    # A part of a task, sent to the node that executes it.
    REQUEST = 1
    # The part is finished.
    REPLY = 2
    # The part raised an error; the metadata says which and where.
    FAILURE = 3
    # Outside of tasks: stop, failed, a view; never dropped by fault injection.
    CONTROL = 4
    # A change of a shard, sent down its replication chain, or the acknowledgement of changes.
    CHAIN = 5
    # The key signature of the part is not cached: send the part again with its keys.
    SEND_KEYS = 6
    # Asks which of the parts (time, whether it was answered ahead) in `after` have arrived.
    PROBE = 7
    # The parts in `after` (perhaps none) have not arrived: send them again.
    MISSING = 8


@unique
class Command(IntEnum):
    """The command of a message.

    >>> Command.PUSH_PULL.name
    'PUSH_PULL'
    """

    PUSH = 1
    PULL = 2
    # A push whose reply carries what the update returns.
    PUSH_PULL = 3
    # A user function, issued by the scheduler.
    CALL = 4
    # Control: leave with the exit code in the metadata.
    STOP = 5
    # Control: the sender failed and asks the scheduler to end the run.
    FAILED = 6
    # Control: the sender has nothing left to do.
    BARRIER = 7
    # Control: the leader's view, to be adopted.
    VIEW = 8
    # Control: the epoch of the view that the sender has adopted.
    VIEW_SEEN = 9
    # Control: a rank that may succeed the leader asks for VIEWS.
    ASK_VIEW = 10
    # Chain: the rest of the chain has applied all changes up to `time`.
    APPLIED = 11
    # Control: a chunk of a copy of a shard, for a new member of its chain.
    COPY_CHUNK = 12
    # Control: that chunk has arrived.
    COPY_RECEIVED = 13
    # Control: the sender's copy of a shard is complete.
    COPY_COMPLETE = 14
    # Control: the sender accepts no more requests to its shard, which moves to another primary.
    DRAINED = 15
    # Control: an entry of the leader's journal.
    LOG = 16
    # Control: how many entries have arrived.
    LOGGED = 17
    # The rows of a range in key order, piece by piece.
    EXPORT = 18
    # Control: all members of the chains have the pushes (shard, time) in `after`, which were answered ahead.
    ACKNOWLEDGED = 20
    # Control: the origin waits only for ACKNOWLEDGED messages, up to the pushes in `after`.
    ASK_ACKNOWLEDGED = 21
    # Control: a call of a worker's function that runs at once and has no reply.
    NOTIFY = 19
    # Control: the leader of a replay asks what the receiver waits for.
    ASK_STATE = 22
    # Control: the answer, with the numbers of messages that the sender has sent and received.
    STATE = 23
    # Chain: asks which changes have arrived.
    ASK_RECEIVED = 24
    # Chain: all changes up to `time`, and the runs of changes in `after`.
    RECEIVED = 25
    # Control: no rank has anything left to do, and all leave.
    GONE = 26
    # Control: what the sender has waited for, and how long.
    WAITS = 27
    # Control: how many messages the sender has sent again, by cause.
    SENT_AGAIN = 28
    # Several messages of this kind; `values` are their frames.
    BUNDLE = 29
    # Control: the leader asks a server for ROUNDS.
    ASK_ROUNDS = 30
    # Control: the rounds that the sender has applied, by vector.
    ROUNDS = 31
    # Chain: the list of keys that change `time` names is unknown: send the change again with its keys.
    ASK_KEYS = 32
    # Control: the orders that the leader has received and the program has not carried out, for its successors.
    ORDERS = 33
    # Control: the sender has these.
    ORDERS_KEPT = 34
    # Control: the sender was asked to stop, and the leader perhaps was not
    ASKED_TO_STOP = 35
    # Control: the views that the sender knows of, and whether it hears its leader.
    VIEWS = 36
    # Control: a view that takes effect if a majority accepts it.
    PROPOSE = 37
    # Control: the sender has accepted that view.
    ACCEPTED = 38
    # Control: these ranks have ended, as the sender's MPI or operating system reports.
    DIED = 39
    # Control: the leader asks for STACKS.
    ASK_STACKS = 40
    # Control: where ranks are in the program, and what they wait for, by rank.
    STACKS = 41
    # Control: the sender will soon use these keys of a shard.
    ANNOUNCE = 42
    # Control: how much of its rows on disk the sender has in memory, and what it has read and written since.
    STORE = 43


READS = frozenset((Command.PULL, Command.EXPORT))
"""Requests that change nothing: a repeated one is executed again."""

NO_ROUND = -1
INLINE = 32 * 1024
DTYPES = (np.dtype("<f4"), np.dtype("<f8"), np.dtype("<i4"), np.dtype("<i8"))
TYPES = ", ".join(map(str, DTYPES))
_KINDS = {int(kind): kind for kind in Kind}
_COMMANDS = {int(command): command for command in Command}
CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
"""Wire types: the codes of the types of values."""
_BYTES = np.dtype("u1")
_ON_WIRE = (*DTYPES, _BYTES)
_CODES = {dtype: code for code, dtype in enumerate(_ON_WIRE)}
NO_SIGNATURE = bytes(16)
_COMPACT = json.JSONEncoder(separators=(",", ":"))


class _NoMeta(dict[str, Any]):
    """The metadata of all messages that are made without: shared, so they cannot be changed."""

    def __setitem__(self, key: str, value: Any) -> None:
        """Raise TypeError."""
        raise TypeError(f"{key}: a message gets its metadata when it is made")


_NO_META = _NoMeta()


@dataclass(slots=True)
class Message:
    """One message.

    A request is identified by `(origin, time)`, the caller of its task and the task's time there, and by its address:
    `shard`, or (-1) the receiving rank. `acked` is the time below which the caller has all replies. `after` are
    half-open runs of the caller's times that must be finished before this one starts; in a reply, parts (shard, time)
    that were answered ahead and that all members of their chains have now. `epoch` is that of the sender's view. In a
    chain, `time` numbers the changes of a shard. `round` is the aggregation of a push (-1: none), `range` its half-open
    key range, also where no key is listed. `keys` are u64[n] or KEY128[n], sorted and unique, or None if the message is
    about every key of `range`; `values` are rows `[n, width]`. `signature` identifies the keys, sent or not
    (`mpips.transport.key_cache`). The values of a `filtered` message are u1[bytes], the encoded keys and values.

    Fields that are not sent: `unsent_keys`, the keys that a request was sent without; `slots`, the slots of the keys at
    the server; `place`, the array that receives the answer's values; `flush` and `exact`, which make filters hold
    back nothing and round nothing; `restore`, which resets the filters' states if this message is not sent; `error`,
    why a received request cannot be read.
    """

    kind: Kind
    command: Command
    sender: int = -1
    origin: int = -1
    shard: int = -1
    epoch: int = 0
    namespace: int = 0
    acked: int = 0
    time: int = 0
    round: int = NO_ROUND
    range: KeyRange = ALL
    keys: KeyArray | None = None
    values: NDArray[Any] | None = None
    meta: dict[str, Any] = field(default_factory=lambda: _NO_META)
    after: tuple[tuple[int, int], ...] = ()
    signature: bytes = NO_SIGNATURE
    unsent_keys: KeyArray | None = None
    slots: NDArray[np.int32] | slice | None = None
    place: NDArray[Any] | None = None
    filtered: bool = False
    flush: bool = False
    exact: bool = False
    restore: Callable[[], None] | None = None
    error: Exception | None = None

    @property
    def payload_bytes(self) -> int:
        """Bytes of keys and values."""
        return (0 if self.keys is None else self.keys.nbytes) + (
            0 if self.values is None else self.values.nbytes
        )


ANSWER = Message(Kind.REPLY, Command.PUSH)
"""Returned by a van for an answer whose values are in place already; see `Van.ask`."""


def reply_to(
    request: Message,
    values: NDArray[Any] | None = None,
    meta: dict[str, Any] | None = None,
    keys: KeyArray | None = None,
) -> Message:
    """Return the reply to a request, with values, metadata, keys, or none of these."""
    reply = Message(Kind.REPLY, request.command, keys=keys, values=values)
    reply.origin, reply.shard, reply.time = request.origin, request.shard, request.time
    reply.namespace = request.namespace
    if meta is not None:
        reply.meta = meta
    return reply


def missing_of(probe: Message, missing: Sequence[tuple[int, int]]) -> Message:
    """Return the answer to a probe: the parts that it names and that have not arrived."""
    answer = Message(Kind.MISSING, probe.command, origin=probe.origin, shard=probe.shard)
    answer.after = tuple(missing)
    return answer


def _head(
    message: Message, n_keys: int, rows: int, code: int, width: int, n_meta: int, detached: bool
) -> bytes:
    begin, end = message.range
    flags = DETACHED if detached else 0
    if message.keys is not None:
        flags |= LISTED | WIDE_KEYS if is_wide(message.keys) else LISTED
    flags |= FILTERED if message.filtered else 0
    return PACKING.pack(
        MAGIC, message.kind, message.command, flags, message.sender, message.origin, message.shard, message.epoch,
        message.namespace, n_meta, message.acked, message.time, message.round, begin, end - 1, n_keys, rows, code,
        width, len(message.after), message.signature,
    )  # fmt: skip


def encode(message: Message) -> tuple[bytearray, tuple[memoryview, ...]]:
    """Return the frame, and the buffers that must follow it (none if they are in the frame)."""
    keys, values = message.keys, message.values
    n_keys = 0 if keys is None else len(keys)
    if keys is not None and (keys.dtype not in (KEY64, KEY128) or keys.ndim != 1):
        raise ProtocolError(
            f"keys of type {keys.dtype}, {keys.ndim}-d, cannot be sent; use uint64 or KEY128, 1-d"
        )
    code, width, rows = NO_VALUES, 0, 0
    if values is not None:
        code = _CODES.get(values.dtype, NO_VALUES)
        if code == NO_VALUES or (values.dtype == _BYTES and not message.filtered):
            raise ProtocolError(f"values of type {values.dtype} cannot be sent; use {TYPES}")
        if values.ndim not in (1, 2):
            raise ProtocolError(f"values of {values.ndim} dimensions cannot be sent; use rows [n, width]")
        rows = values.shape[0]
        width = values.shape[1] if values.ndim == 2 else 1
    meta = b"" if isinstance(message.meta, dict) and not message.meta else _encode_meta(message.meta)
    # Keeps keys and values aligned.
    meta = meta.ljust(-(-len(meta) // 8) * 8)
    arrays: tuple[NDArray[Any] | None, ...] = (keys, values)
    buffers = [_raw(buffer) for buffer in arrays if buffer is not None and buffer.size]
    payload = sum(map(len, buffers))
    detached = payload > INLINE
    after = message.after
    frame = bytearray(_head(message, n_keys, rows, code, width, len(meta), detached))
    if after:
        for pair in after:
            frame += struct.pack("<qq", *pair)
    if meta:
        frame += meta
    if detached:
        return frame, tuple(buffers)
    for buffer in buffers:
        frame += buffer
    return frame, ()


def _encode_meta(meta: Any) -> bytes:
    """Encode metadata as JSON; UsageError names the key of a value that JSON cannot represent."""
    try:
        return _COMPACT.encode(meta).encode()
    except (TypeError, ValueError, RecursionError):
        return _COMPACT.encode(json_data(meta, keep)).encode()


def _new(nbytes: int) -> NDArray[np.uint8]:
    return np.empty(nbytes, np.uint8)


def decode(
    frame: bytearray | memoryview, room: Callable[[int], NDArray[np.uint8]] = _new
) -> tuple[Message, int, int]:
    """Decode a frame; return the message and the bytes of keys and of values that follow the frame (0: they are in it).

    The buffers that follow are received into memory from `room(bytes)`. Keys and values of an inline message are views
    of `frame`, which must not be written again.

    Raises:
        ProtocolError: the frame is not one that `encode` writes.
    """
    size = len(frame)
    if size < HEADER_BYTES:
        raise ProtocolError(f"a frame of {size} bytes is shorter than the header ({HEADER_BYTES})")
    (
        magic, kind, command, flags, sender, origin, shard, epoch, namespace, n_meta, acked, time, round_, first, last,
        n_keys, rows, code, width, n_after, signature,
    ) = PACKING.unpack_from(frame)  # fmt: skip
    if magic != MAGIC:
        raise ProtocolError(f"not an mpips message: it begins with {magic!r}")
    filtered = bool(flags & FILTERED)
    if code != NO_VALUES and code >= len(DTYPES) + filtered:
        raise ProtocolError(f"unknown value type {code}")
    of_keys = KEY128 if flags & WIDE_KEYS else KEY64
    key_bytes = n_keys * of_keys.itemsize
    value_bytes = rows * width * _ON_WIRE[code].itemsize if code != NO_VALUES else 0
    detached = bool(flags & DETACHED)
    expected = HEADER_BYTES + 16 * n_after + n_meta + (0 if detached else key_bytes + value_bytes)
    if size != expected:
        raise ProtocolError(f"a frame has {size} bytes, but its header says {expected}")
    at = HEADER_BYTES
    after: tuple[tuple[int, int], ...] = ()
    if n_after:
        flat = struct.unpack_from(f"<{2 * n_after}q", frame, at)
        after = tuple([flat[i : i + 2] for i in range(0, 2 * n_after, 2)])
        at += 16 * n_after
    meta = _NO_META
    if n_meta:
        try:
            meta = json.loads(bytes(frame[at : at + n_meta]))
        except ValueError as error:
            raise ProtocolError(f"metadata is not JSON: {error}") from error
        at += n_meta
    try:
        message = Message(
            _KINDS[kind], _COMMANDS[command], sender, origin, shard, epoch, namespace, acked, time, round_,
            KeyRange(first, last + 1), None, None, meta, after, signature,
        )  # fmt: skip
    except KeyError as error:
        raise ProtocolError(f"unknown kind {kind} or command {command}") from error
    message.filtered = filtered
    if detached:
        if code != NO_VALUES:
            message.values = room(value_bytes).view(_ON_WIRE[code]).reshape(rows, width)
        if flags & LISTED:
            message.keys = room(key_bytes).view(of_keys)
        return message, key_bytes, value_bytes
    if flags & LISTED:
        message.keys = np.frombuffer(frame, of_keys, n_keys, at)
    if code != NO_VALUES:
        message.values = np.frombuffer(frame, _ON_WIRE[code], rows * width, at + key_bytes).reshape(
            rows, width
        )
    return message, 0, 0


def bundle(messages: Sequence[Message]) -> Message:
    """Combine small messages of one kind and epoch to the same rank into one, each frame aligned to 8 bytes."""
    bundled = Message(messages[0].kind, Command.BUNDLE, messages[0].sender, epoch=messages[0].epoch)
    frames = [encode(each)[0] for each in messages]
    raw = b"".join(frame.ljust(_padded(len(frame)), b"\0") for frame in frames)
    bundled.values = np.frombuffer(raw, "<i8")
    bundled.after = tuple([(len(frame), 0) for frame in frames])
    return bundled


def unbundle(bundled: Message) -> list[Message]:
    """Return the messages that `bundle` combined."""
    assert bundled.values is not None
    raw, at, messages = _raw(bundled.values), 0, []
    for size, _ in bundled.after:
        messages.append(decode(raw[at : at + size])[0])
        at += _padded(size)
    return messages


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def to_bytes(message: Message) -> bytes:
    """Return a message as bytes: its frame and the buffers that follow."""
    frame, buffers = encode(message)
    return bytes(frame) + b"".join(buffers)


def from_bytes(raw: bytearray) -> Message:
    """Decode the result of `to_bytes`; the message's arrays are views of `raw`, or new ones."""
    at = frame_bytes(raw)
    message, _, _ = decode(raw[:at])
    if at < len(raw):
        for body in bodies(message):
            body[:] = raw[at : at + len(body)]
            at += len(body)
    return message


def frame_bytes(raw: bytearray | memoryview) -> int:
    """Return the size of the frame at the start of `raw`; detached buffers may follow it."""
    head = np.frombuffer(raw, HEADER, 1)[0]
    size = HEADER_BYTES + int(head["meta"]) + 16 * int(head["after"])
    return size if head["flags"] & DETACHED else len(raw)


def bodies(message: Message) -> tuple[memoryview, ...]:
    """Return the writable buffers that receive the detached keys and values of a decoded message."""
    arrays: tuple[NDArray[Any] | None, ...] = (message.keys, message.values)
    return tuple([_raw(array) for array in arrays if array is not None and array.size])


def _raw(array: NDArray[Any]) -> memoryview:
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return array.reshape(-1).view(np.uint8).data
