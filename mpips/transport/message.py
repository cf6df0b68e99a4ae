"""Messages: a fixed header, and beside it metadata, keys and values as raw buffers.

A message is [range, keys, values] with the header that says who asks whom for what (paper, section 3.3 and 4.1).
Nothing is pickled and nothing executable travels: the header is a packed struct, metadata is JSON, dependencies
are int64 pairs, keys are uint64, values are one of four number types. A message of up to `INLINE` payload bytes travels
as one frame; the buffers of a larger one follow the frame by themselves and are never copied.

`encode` and `decode` are pure; they know nothing of MPI.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.errors import ProtocolError
from mpips.files.json_values import keep, plain
from mpips.ranges import ALL, KeyRange


class Kind(IntEnum):
    """What a message is in the life of a task."""

    REQUEST = 1  # a part of a task, to the node that executes it
    REPLY = 2  # that part is finished
    FAILURE = 3  # that part raised; the metadata says what and where
    CONTROL = 4  # outside any task: stop, failed, a view; never lost on purpose
    CHAIN = 5  # a change of a shard, on its way down the chain, or the word that it was applied
    SEND_KEYS = 6  # the signature of that part's keys says nothing here: it is to come again, with its keys
    PROBE = 7  # what of the parts (time, was it answered ahead) in `after` has come? Its sender hears nothing
    MISSING = 8  # the parts in `after` have not come, and are to come again; perhaps none


class Command(IntEnum):
    """What a request asks for."""

    PUSH = 1
    PULL = 2
    PUSH_PULL = 3  # push, and the reply carries what the update returns
    CALL = 4  # a user function, issued by the scheduler
    STOP = 5  # control: leave, with the exit code in the metadata
    FAILED = 6  # control: the sender failed and asks the scheduler to end the run
    BARRIER = 7  # control: the sender has nothing left to do
    VIEW = 8  # control: the leader's view, to be adopted
    VIEW_SEEN = 9  # control: the view that the sender has
    ASK_VIEW = 10  # control: a successor to the leader wants to know that
    APPLIED = 11  # chain: the rest of the chain has applied all changes up to `time`
    FEED = 12  # control: a piece of a copy of a shard, for a new member of its chain
    FED = 13  # control: that piece has come
    WHOLE = 14  # control: the sender's copy of a shard is complete
    DRAINED = 15  # control: the sender's shard stands still, to be handed to another primary
    LOG = 16  # control: an entry of the leader's journal
    LOGGED = 17  # control: how many entries have come
    EXPORT = 18  # the rows of a range in key order, piece by piece
    ACKNOWLEDGED = (
        20  # control: whole chains have the pushes (shard, time) in `after`, which were answered ahead
    )
    HASTEN = 21  # control: the origin waits for such words, up to those in `after`, and for nothing else
    ASIDE = 19  # control: a call of a worker's function that runs at once, and is not answered
    ASK_STATE = 22  # control: the leader of a run that is done again wants to know who waits for what
    STATE = 23  # control: that, and how many messages the sender has sent and taken
    ASK_RECEIVED = 24  # chain: which changes have come? The sender hears nothing
    RECEIVED = 25  # chain: all changes up to `time`, and the runs of changes in `after`
    GONE = 26  # control: all have nothing left to do, and leave
    WAITS = 27  # control: what the sender has waited for, and how long
    SENT_AGAIN = 28  # control: how many messages the sender has sent again, by cause
    TOGETHER = 29  # several messages of that kind; `values` are their frames


READS = frozenset((Command.PULL, Command.EXPORT))
"""Requests that change nothing: one that comes again is executed again."""

NO_ROUND = -1
INLINE = 32 * 1024
DTYPES = (np.dtype("<f4"), np.dtype("<f8"), np.dtype("<i4"), np.dtype("<i8"))
_KINDS = {int(kind): kind for kind in Kind}
_COMMANDS = {int(command): command for command in Command}
CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
"""How the types of values are told on the wire."""
_BYTES = np.dtype("u1")
_ON_WIRE = (*DTYPES, _BYTES)
_CODES = {dtype: code for code, dtype in enumerate(_ON_WIRE)}
_KEY = np.dtype("<u8")
MAGIC = b"mps1"
DETACHED = 1  # flag: keys and values follow the frame as messages of their own
LISTED = 2  # flag: the keys are listed, perhaps none; without it `range` stands for all of its keys
REACH = 4  # flag: the answer's values may be written to the address that stands in the place of `rows`
REACHED = 8  # flag: that was done
FILTERED = 16  # flag: what it carries is what filters have made of it (mpips.filters)
NO_VALUES = 255
# magic kind command flags, sender origin, shard epoch, namespace meta, acked, time, round, first, last, keys, rows,
# dtype width, after, signature: every number stands at a multiple of its size, so that kernels can read it
_HEADER = struct.Struct("<4sBBHiiiIIIqqqQQQQB3xII4x16s")
HEADER_BYTES = _HEADER.size
ROUND_AT = 48
"""Where the round stands in a header, in bytes."""
NO_SIGNATURE = bytes(16)

_NO_META: dict[str, Any] = {}


@dataclass(slots=True)
class Message:
    """One message, of or to a task.

    A request is known by `(origin, time)`, its task's caller and that task's time there, and by whom it is addressed
    to: `shard`, or (-1) the rank that gets it. `acked` is the time below which the caller has all replies, `after` are
    half-open runs of times of the caller's that must be finished before this one starts; in a reply, parts (shard,
    time) that whole chains have now, after they were answered ahead. `epoch` is that of the sender's view. In a chain
    `time` numbers the changes of a shard. `round` is the aggregation that a push belongs to (-1: none),
    `range` the half-open key range that it speaks for, also where it lists no key. `keys` are uint64,
    sorted and unique, or None when the message is about every key of `range`; `values` are rows `[n, width]`.
    `signature` stands for the keys beside it, or for those that it comes without (`mpips.transport.key_cache`).

    The values of a `filtered` message are u1[bytes], what filters have made of keys and values.

    Some things stay where they are: `withheld` are the keys that a request was sent without; `slots` the rows that a
    request was found to be about, at the server; `place` where the caller wants the answer's values; `flush` tells the
    filters to hold nothing back, `exact` to round nothing; `restore` sets them back to before this message, which will
    not be; `error` is why a request that has arrived cannot be read.
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
    keys: NDArray[np.uint64] | None = None
    values: NDArray[Any] | None = None
    meta: dict[str, Any] = field(default_factory=lambda: _NO_META)
    after: tuple[tuple[int, int], ...] = ()
    signature: bytes = NO_SIGNATURE
    withheld: NDArray[np.uint64] | None = None
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
"""What a van gives for an answer that is in its place already; see `Van.ask`."""


def reply_to(
    request: Message,
    values: NDArray[Any] | None = None,
    meta: dict[str, Any] | None = None,
    keys: NDArray[np.uint64] | None = None,
) -> Message:
    """Make the reply to a request, with rows of values, with metadata, with keys, or with nothing."""
    reply = Message(Kind.REPLY, request.command, keys=keys, values=values)
    reply.origin, reply.shard, reply.time = request.origin, request.shard, request.time
    reply.namespace = request.namespace
    if meta is not None:
        reply.meta = meta
    return reply


def missing_of(probe: Message, missing: Sequence[tuple[int, int]]) -> Message:
    """Make the answer to a probe: the parts that it names and that have not come."""
    answer = Message(Kind.MISSING, probe.command, origin=probe.origin, shard=probe.shard)
    answer.after = tuple(missing)
    return answer


def _head(
    message: Message, n_keys: int, rows: int, code: int, width: int, n_meta: int, detached: bool
) -> bytes:
    begin, end = message.range
    return _HEADER.pack(
        MAGIC,
        message.kind,
        message.command,
        (DETACHED if detached else 0)
        | (LISTED if message.keys is not None else 0)
        | (FILTERED if message.filtered else 0),
        message.sender,
        message.origin,
        message.shard,
        message.epoch,
        message.namespace,
        n_meta,
        message.acked,
        message.time,
        message.round,
        begin,
        end - 1,
        n_keys,
        rows,
        code,
        width,
        len(message.after),
        message.signature,
    )


def heading(
    message: Message, rows: int = 0, dtype: np.dtype[Any] | None = None, width: int = 0
) -> NDArray[np.uint8]:
    """Give the header of a request without keys, u1[120], as it will be with rows of that type (None: without)."""
    code = NO_VALUES if dtype is None else CODES[dtype]
    detached = dtype is not None and rows * width * dtype.itemsize > INLINE
    return np.frombuffer(bytearray(_head(message, 0, rows, code, width, 0, detached)), np.uint8)


def encode(message: Message) -> tuple[bytearray, tuple[memoryview, ...]]:
    """Give the frame, and the buffers that must follow it (none when they are in the frame)."""
    keys, values = message.keys, message.values
    n_keys = 0 if keys is None else len(keys)
    if keys is not None and (keys.dtype != _KEY or keys.ndim != 1):
        raise ProtocolError(f"keys of type {keys.dtype}, {keys.ndim}-d, cannot travel; use uint64, 1-d")
    code, width, rows = NO_VALUES, 0, 0
    if values is not None:
        code = _CODES.get(values.dtype, NO_VALUES)
        if code == NO_VALUES or (values.dtype == _BYTES and not message.filtered):
            raise ProtocolError(f"values of type {values.dtype} cannot travel; use {_names()}")
        if values.ndim not in (1, 2):
            raise ProtocolError(f"values of {values.ndim} dimensions cannot travel; use rows [n, width]")
        rows = values.shape[0]
        width = values.shape[1] if values.ndim == 2 else 1
    meta = b"" if isinstance(message.meta, dict) and not message.meta else _written(message.meta)
    meta = meta.ljust(-(-len(meta) // 8) * 8)  # keeps keys and values aligned
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


def _written(meta: Any) -> bytes:
    """Write metadata; UsageError naming the key of what JSON cannot say."""
    try:
        return json.dumps(meta, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        return json.dumps(plain(meta, keep), separators=(",", ":")).encode()


def _new(nbytes: int) -> NDArray[np.uint8]:
    return np.empty(nbytes, np.uint8)


def decode(
    frame: bytearray | memoryview, room: Callable[[int], NDArray[np.uint8]] = _new
) -> tuple[Message, int, int]:
    """Read a frame; give the message and the bytes of keys and of values that follow the frame (0: they were in it).

    What follows is to be received into memory that `room(bytes)` gives. Keys and values of an inline message are views
    of `frame`, which must not be written again.

    Raises:
        ProtocolError: the frame is not one that `encode` writes.
    """
    size = len(frame)
    if size < HEADER_BYTES:
        raise ProtocolError(f"a frame of {size} bytes is shorter than the header ({HEADER_BYTES})")
    (
        magic,
        kind,
        command,
        flags,
        sender,
        origin,
        shard,
        epoch,
        namespace,
        n_meta,
        acked,
        time,
        round_,
        first,
        last,
        n_keys,
        rows,
        code,
        width,
        n_after,
        signature,
    ) = _HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise ProtocolError(f"not an mpips message: it begins with {magic!r}")
    filtered = bool(flags & FILTERED)
    if code != NO_VALUES and code >= len(DTYPES) + filtered:
        raise ProtocolError(f"unknown value type {code}")
    key_bytes = n_keys * 8
    value_bytes = rows * width * _ON_WIRE[code].itemsize if code != NO_VALUES else 0
    detached = bool(flags & DETACHED)
    expected = HEADER_BYTES + 16 * n_after + n_meta + (0 if detached else key_bytes + value_bytes)
    if size != expected:
        raise ProtocolError(f"a frame of {size} bytes, its header announces {expected}")
    at = HEADER_BYTES
    after: tuple[tuple[int, int], ...] = ()
    if n_after:
        flat = struct.unpack_from(f"<{2 * n_after}q", frame, at)
        after = tuple(zip(flat[::2], flat[1::2], strict=True))
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
            message.keys = room(key_bytes).view(_KEY)
        return message, key_bytes, value_bytes
    if flags & LISTED:
        message.keys = np.frombuffer(frame, _KEY, n_keys, at)
    if code != NO_VALUES:
        message.values = np.frombuffer(frame, _ON_WIRE[code], rows * width, at + key_bytes).reshape(
            rows, width
        )
    return message, 0, 0


def bundle(messages: Sequence[Message]) -> Message:
    """Put small messages of one kind and epoch to the same rank into one, each frame at a multiple of 8 bytes."""
    together = Message(messages[0].kind, Command.TOGETHER, messages[0].sender, epoch=messages[0].epoch)
    frames = [encode(each)[0] for each in messages]
    raw = b"".join(frame.ljust(_padded(len(frame)), b"\0") for frame in frames)
    together.values = np.frombuffer(raw, "<i8")
    together.after = tuple((len(frame), 0) for frame in frames)
    return together


def unbundle(together: Message) -> list[Message]:
    """Take the messages out of one that was made by `bundle`."""
    assert together.values is not None
    raw, at, messages = _raw(together.values), 0, []
    for size, _ in together.after:
        messages.append(decode(raw[at : at + size])[0])
        at += _padded(size)
    return messages


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def to_bytes(message: Message) -> bytes:
    """Give a message as one string of bytes: its frame, and whatever follows it."""
    frame, buffers = encode(message)
    return bytes(frame) + b"".join(buffers)


def from_bytes(raw: bytearray) -> Message:
    """Read what `to_bytes` gave; the message's arrays are views of `raw`, or new ones."""
    at = frame_bytes(raw)
    message, _, _ = decode(raw[:at])
    if at < len(raw):
        for body in bodies(message):
            body[:] = raw[at : at + len(body)]
            at += len(body)
    return message


def frame_bytes(raw: bytearray | memoryview) -> int:
    """Give the size of the frame at the start of `raw`, which detached buffers may follow."""
    fields = _HEADER.unpack_from(raw)
    size = HEADER_BYTES + fields[9] + 16 * fields[19]
    return len(raw) if not fields[3] & DETACHED else int(size)


def bodies(message: Message) -> tuple[memoryview, ...]:
    """Give the writable buffers into which the detached keys and values of a decoded message are received."""
    arrays: tuple[NDArray[Any] | None, ...] = (message.keys, message.values)
    return tuple(_raw(array) for array in arrays if array is not None and array.size)


def _raw(array: NDArray[Any]) -> memoryview:
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return array.reshape(-1).view(np.uint8).data


def _names() -> str:
    return ", ".join(str(dtype) for dtype in DTYPES)
