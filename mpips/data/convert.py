"""Convert data between svmlight and HDF5, and from delimited categories to both, with hashed keys."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mpips.data.compression import MAGIC, compressing_into
from mpips.data.csr import write_csr
from mpips.data.examples import Examples, Tally
from mpips.data.kernels import COLON, DOT, LOWER_E, MINUS, NEWLINE, PLUS, POWERS, SPACE, ZERO
from mpips.data.read import named_format, read
from mpips.data.spec import DataSpec, find
from mpips.errors import DataError, InputError, cannot_write
from mpips.files.safe_open import replacing
from mpips.jit.kernel import kernel

LONGEST_PAIR = 48
"""Bytes of the longest " id:value": 20 digits, and a value of at most 9 digits in 16 characters."""
PIECE = 1 << 16
"""Non-zeros, and examples, that are formatted at a time."""


@kernel()
def write_integer(out: NDArray[np.uint8], pos: int, whole: np.uint64) -> int:
    """Write an integer in decimal at `pos`; return the position after it."""
    begin = pos
    while True:
        quotient = whole // np.uint64(10)
        out[pos] = np.uint8(ZERO) + np.uint8(whole - quotient * np.uint64(10))
        pos += 1
        whole = quotient
        if whole == np.uint64(0):
            break
    end = pos
    pos -= 1
    while begin < pos:
        out[begin], out[pos] = out[pos], out[begin]
        begin += 1
        pos -= 1
    return end


@kernel()
def write_float(out: NDArray[np.uint8], pos: int, value: np.float32) -> int:
    """Write a finite float32 with the fewest digits, at most nine, that restore the same bits; return the end."""
    size = np.float64(value)
    if np.signbit(value):
        out[pos] = MINUS
        pos += 1
        size = -size
    if size < 16777216.0 and size == np.floor(size):
        return write_integer(out, pos, np.uint64(size))
    exponent = int(np.floor(np.log10(size)))
    digits, power = np.uint64(0), 0
    for count in range(1, 10):
        power = exponent - count + 1
        digits = np.uint64(np.rint(size * POWERS[300 - power]))
        back = np.float64(digits) * POWERS[300 + power]
        if np.float32(back * (1 - 2.0**-49)) == np.float32(back * (1 + 2.0**-49)) == np.float32(size):
            break
    while digits % np.uint64(10) == np.uint64(0):
        digits //= np.uint64(10)
        power += 1
    if power >= 0 or power < -12:
        pos = write_integer(out, pos, digits)
        if power == 0:
            return pos
        out[pos] = LOWER_E
        out[pos + 1] = MINUS if power < 0 else PLUS
        return write_integer(out, pos + 2, np.uint64(abs(power)))
    unit = np.uint64(1)
    for _ in range(-power):
        unit = unit * np.uint64(10)
    pos = write_integer(out, pos, digits // unit)
    out[pos] = DOT
    end = write_integer(out, pos, unit + digits % unit)
    out[pos] = DOT
    return end


@kernel("i8(f4[::1], i8[::1], u8[::1], f4[::1], u1[::1])")
def write_lines(
    labels: NDArray[np.float32],
    indptr: NDArray[np.int64],
    keys: NDArray[np.uint64],
    values: NDArray[np.float32],
    out: NDArray[np.uint8],
) -> int:
    """Write rows as svmlight lines to `out`, which is long enough for any; return the bytes written."""
    pos = 0
    for row in range(labels.shape[0]):
        out[pos] = PLUS if labels[row] > 0 else MINUS
        out[pos + 1] = ZERO + 1
        pos += 2
        for i in range(indptr[row], indptr[row + 1]):
            out[pos] = SPACE
            pos = write_integer(out, pos + 1, keys[i])
            out[pos] = COLON
            pos = write_float(out, pos + 1, values[i] if values.shape[0] > 0 else np.float32(1))
        out[pos] = NEWLINE
        pos += 1
    return pos


def svmlight_lines(batch: Examples) -> bytes:
    """Return a batch as svmlight text, one line per example; values are restored to the same bits."""
    values = np.zeros(0, np.float32) if batch.values is None else batch.values
    out = np.empty(4 * len(batch) + LONGEST_PAIR * len(batch.keys), np.uint8)
    size = write_lines(batch.labels, batch.indptr, batch.keys, values, out)
    return out[:size].tobytes()


def write_svmlight(path: str, kind: str, batches: Iterable[Examples]) -> None:
    """Write batches as svmlight text, compressed as `kind` ("gz", "xz", "bz2", "zst" or ""); atomically."""
    with replacing(path) as whole:
        file = compressing_into(path, whole, kind) if kind else whole
        for batch in batches:
            begin = 0
            while begin < len(batch):
                end = int(np.searchsorted(batch.indptr, batch.indptr[begin] + PIECE, side="right")) - 1
                end = min(max(end, begin + 1), begin + PIECE)
                file.write(svmlight_lines(batch.rows(begin, end)))
                begin = end
        if kind:
            file.close()


def check_target(files: Sequence[str], target: str, force: bool) -> None:
    """Raise `InputError` if writing `target` would overwrite an input or another existing file.

    A glob that matches the output of an earlier call, or a call without an output, makes the last input the target. An
    empty file may be replaced, as `mktemp` makes it.
    """
    if not os.path.lexists(target):
        return
    if not os.path.isfile(target):
        raise InputError(f"{target}: exists, and is not a regular file; name a file to write")
    if any(os.path.samefile(file, target) for file in files):
        raise InputError(f"{target}: is one of the files to read; name another one to write")
    if os.path.getsize(target) and not force:
        raise InputError(f"{target}: exists; remove it, or give --force to replace it")


def convert(
    source: str | Sequence[str], target: str, spec: DataSpec | None = None, force: bool = False
) -> Tally:
    """Convert files to one svmlight (.svm, also compressed, as .svm.gz) or HDF5 file (.h5), by the target's name.

    `spec` describes the source: its format, header, separator, crosses. The target is written atomically; an
    existing one is replaced only with `force`. Returns the counts of written examples and skipped bad lines. Raises
    `InputError`, also for a delimited target: hashed keys cannot be converted to columns.
    """
    spec = DataSpec() if spec is None else spec
    files, empty = find(source if isinstance(source, str) else list(source))
    kind = os.path.splitext(target)[1][1:].lower()
    kind = kind if kind in MAGIC else ""
    form = named_format(target)
    if form == "tsv":
        raise InputError(
            f"{target}: cannot convert to columns: keys are hashes; write .svm, .svm.gz or .h5 instead"
        )
    if form not in ("svmlight", "hdf5") or (form == "hdf5" and kind):
        raise InputError(
            f"{target}: the name must end in .svm (or .svm.gz, .svm.xz, .svm.bz2, .svm.zst) or .h5"
        )
    if spec.key_bits != 64:
        raise InputError(f"[data] key_bits = {spec.key_bits}: keys of converted examples have 64 bits")
    if not files:
        raise InputError("nothing to convert: name at least one source file")
    check_target([*files, *empty], target, force)
    tally = Tally(empty=empty)
    examples = check_not_empty(read(files, spec, tally=tally), tally, files)
    try:
        if form == "svmlight":
            write_svmlight(target, kind, examples)
        else:
            write_csr(target, examples)
    except OSError as error:
        raise cannot_write(target, error, kind=DataError) from None
    return tally


def check_not_empty(batches: Iterable[Examples], tally: Tally, files: Sequence[str]) -> Iterator[Examples]:
    """Pass batches through; raise `DataError` if there are no examples."""
    yield from batches
    if tally.examples == 0:
        raise DataError(f"{files[0]}: holds no examples{', nor do the others' if len(files) > 1 else ''}")
