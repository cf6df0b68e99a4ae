"""A worker's documents: read once, kept on disk as binary blocks, so that a corpus may be larger than memory.

Three files in the scratch folder hold the words of all tokens, where documents end, and the topics of all tokens. They
have no names: the system releases their disk space when the process ends, however it ends.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from mpips import DataError
from mpips.jobs.lda.parse import CHUNK, MOST_WORDS
from mpips.jobs.lda.readers import (
    Piece,
    Place,
    Reader,
    format_of,
    read_ldac,
    read_text,
    read_uci,
    read_vocabulary,
    uci_vocabulary,
)
from mpips.jobs.lda.words import SHORTEST, SHORTEST_EAST, Lexicon

BLOCK_TOKENS = 4_000_000
KINDS = {"uci": "a UCI bag of words", "ldac": "LDA-C", "text": "text"}


class Block(NamedTuple):
    """Some documents: document d has the words ``words[ptr[d]:ptr[d+1]]``."""

    ptr: NDArray[np.int64]
    """i8[docs+1], from 0 to the number of tokens."""
    words: NDArray[np.int32]
    """i4[tokens]: word ids from 0; in the order of occurrence, where the format tells it."""


class LeftOut(NamedTuple):
    """Words of text that are not counted."""

    short: int = 0
    """Of too few letters."""
    unknown: int = 0
    """Not in the vocabulary."""

    def said(self, tokens: int) -> str:
        """Return a line with the number of omitted words; "" if there are none. `tokens` are counted."""
        if not any(self):
            return ""
        return (
            f"left out {sum(self):,} of {sum(self) + tokens:,} words: {self.short:,} of fewer than {SHORTEST} letters "
            f"({SHORTEST_EAST} in Chinese, Japanese, Korean), {self.unknown:,} not in the vocabulary"
        )


class Span(NamedTuple):
    """The documents and tokens of a corpus that a block holds."""

    doc: int
    docs_end: int
    token: int
    tokens_end: int


@contextmanager
def _written(scratch: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"blocks of documents cannot be kept there: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
            # A full or failing disk is no wrong input, and has another exit code.
            raise OSError(error.errno, text, str(scratch)) from None
        raise DataError(f"{scratch}: {text}") from None


class Corpus:
    """The documents of one part, in blocks on disk, each with the topics of its tokens.

    Use it with `with`, or call `close`, any number of times.

    Args:
        scratch: the folder for the blocks, on a disk with room for 8 bytes a token; created if it does not exist.
        part, parts: this is part `part` of `parts`, to which chunks of documents go round robin.
        block_tokens: the largest number of tokens of a block with more than one document.
    """

    def __init__(
        self, scratch: Path, part: int = 0, parts: int = 1, block_tokens: int = BLOCK_TOKENS
    ) -> None:
        self.docs = 0
        self.tokens = 0
        self.all_docs = 0
        """Number of documents of all parts."""
        self.all_tokens = 0
        """Number of tokens of all parts."""
        self.vocabulary = 0
        self.words: Sequence[str] | None = None
        """The vocabulary's words, if they are known."""
        self.left_out = LeftOut()
        """Omitted words of all parts."""
        self._part, self._parts, self._most = part, parts, block_tokens
        self._scratch, self._sums = scratch, (0, 0)
        self._spans: list[Span] = []
        # The block that is being filled; its ends are those of its complete documents.
        self._open = Span(0, 0, 0, 0)
        with _written(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            self._words, self._ends, self._topics = (self._file() for _ in range(3))
            self._ends.write(bytes(8))

    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._scratch, buffering=0)

    @property
    def blocks(self) -> int:
        """Return the number of blocks; 0: no document is in this part."""
        return len(self._spans)

    @property
    def mark(self) -> int:
        """A checksum of 63 bits of the documents of this part."""
        return (self._sums[0] << 32 | self._sums[1]) >> 1

    def add(self, piece: Piece) -> None:
        """Append words, and the documents that end among them."""
        with _written(self._scratch):
            _write(self._words, piece.words)
            _write(self._ends, piece.ends)
            _write(self._topics, np.full(len(piece.words), -1, np.int32))
        self._sums = crc32(piece.words.data, self._sums[0]), crc32(piece.ends.data, self._sums[1])
        self.tokens += len(piece.words)
        at = 0
        while at < len(piece.ends):
            doc, _, begin, _ = self._open
            fits = int(np.searchsorted(piece.ends, begin + self._most, "right"))
            # Empty documents take space too.
            fits = min(fits, doc + self._most - self.docs)
            alone = fits <= at and self._open.docs_end == doc
            stop = at + 1 if alone else max(fits, at)
            if stop > at:
                end = int(piece.ends[stop - 1])
                self._open = Span(doc, self.docs + stop, begin, end)
            if alone or stop < len(piece.ends):
                self._close_block()
            at = stop
        self.docs += len(piece.ends)

    def _close_block(self) -> None:
        if self._open.docs_end > self._open.doc:
            self._spans.append(self._open)
        self._open = Span(
            self._open.docs_end, self._open.docs_end, self._open.tokens_end, self._open.tokens_end
        )

    def complete(self) -> None:
        """Close the last block: all documents were added."""
        self._close_block()

    def load(self, b: int) -> Block:
        """Read a block."""
        span = self._spans[b]
        ends = _read(self._ends, np.int64, span.doc, span.docs_end + 1)
        return Block(ends - span.token, _read(self._words, np.int32, span.token, span.tokens_end))

    def topics(self, b: int) -> NDArray[np.int32]:
        """Return the topics of a block's tokens, i4[tokens], -1 at first: a mapping of the file, so writes persist."""
        span = self._spans[b]
        size = span.tokens_end - span.token
        if size == 0:
            return np.empty(0, np.int32)
        return np.memmap(self._topics, np.int32, "r+", offset=4 * span.token, shape=(size,)).view(np.ndarray)

    def keep(self, b: int, z: NDArray[np.int32]) -> None:
        """Store z, i4[tokens], as the topics of a block's tokens."""
        topics = self.topics(b)
        if z.shape != topics.shape:
            raise ValueError(f"block {b} has {len(topics)} tokens, not {z.shape}")
        topics[:] = z

    def documents(self, b: int) -> NDArray[np.int64]:
        """Return the indices of a block's documents among those of all parts: i8[docs], the same for any blocks."""
        span = self._spans[b]
        here = np.arange(span.doc, span.docs_end)
        return (here // CHUNK * self._parts + self._part) * CHUNK + here % CHUNK

    def close(self) -> None:
        """Release the disk space."""
        for file in (self._words, self._ends, self._topics):
            file.close()
        self._spans = []

    def __enter__(self) -> Corpus:
        """Return self."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()


def _write(file: IO[bytes], array: NDArray[Any]) -> None:
    view = array.view(np.uint8).data
    while view:
        view = view[file.write(view) :]


def _read(file: IO[bytes], dtype: type[np.generic], begin: int, end: int) -> NDArray[Any]:
    array = np.empty(end - begin, dtype)
    view, at = array.view(np.uint8).data, begin * array.itemsize
    while view:
        size = os.preadv(file.fileno(), [view], at)
        if size == 0:
            raise DataError("a block of documents in the scratch folder is truncated")
        view, at = view[size:], at + size
    return array


def _known(vocab: Path | Sequence[str] | int | None) -> tuple[Sequence[str] | None, int | None, str]:
    """Return what is known of the vocabulary: its words, its size, and its name in messages."""
    if vocab is None:
        return None, None, ""
    if isinstance(vocab, int):
        return None, vocab, "the vocabulary"
    if isinstance(vocab, Path):
        words = read_vocabulary(str(vocab))
        return words, len(words), str(vocab)
    return vocab, len(vocab), "the vocabulary"


def _lexicon(words: Sequence[str] | None, size: int | None, named: str) -> Lexicon:
    if words is None and size is not None:
        raise DataError(
            f"text needs a vocabulary of words, but {named} has only numbers; train with [data] vocab"
        )
    if words is not None and len(set(words)) < len(words):
        word, times = Counter(words).most_common(1)[0]
        raise DataError(f"{named}: has {word!r} {times} times; each word of text must have one number")
    return Lexicon(words)


def open_corpus(
    files: Sequence[Path],
    vocab: Path | Sequence[str] | int | None,
    index: int,
    count: int,
    scratch: Path,
    block_tokens: int = BLOCK_TOKENS,
    polling: Callable[[Iterable[Piece]], Iterable[Piece]] = iter,
    opening: Callable[[str], None] = lambda path: None,
) -> Corpus:
    """Read files of documents once; keep part `index` of `count` in blocks below the folder `scratch`.

    Args:
        files: UCI bags of words, LDA-C or text, compressed or not (`mpips.jobs.lda.readers` detects the format).
        scratch: on a disk with room for 8 bytes a token.
        block_tokens: the largest number of tokens of a block with more than one document.
        vocab: the words, or a file with a word on each line; or the number of words; or None: W for a bag
            of words, the largest id for LDA-C, every word that is seen for text. Words of a text that are not in the
            vocabulary are left out.
        index: the part; chunks of 64 documents go round robin to the parts.
        count: the number of parts.
        polling: wraps the iteration, such as `Context.polling`, so that messages are processed meanwhile.
        opening: is called with each file of documents before it is opened.

    Raises:
        DataError: one line with file and line number.
    """
    if not files:
        raise DataError("[data] train names no files")
    words, size, named = _known(vocab)
    for file in files:
        opening(str(file))
    formats = [(str(file), format_of(str(file))) for file in files]
    kind = formats[0][1]
    for path, other in formats:
        if other != kind:
            raise DataError(
                f"{path}: is {KINDS[other]}, but {files[0]} is {KINDS[kind]}; give files of one kind"
            )
    lexicon = _lexicon(words, size, named) if kind == "text" else None
    corpus = Corpus(scratch, index, count, block_tokens)
    try:
        for path, _ in formats:
            place = Place(index, count, corpus.all_docs, corpus.tokens)
            totals = _Totalled(_reader(path, kind, place, lexicon, size, named))
            for piece in polling(totals):
                corpus.add(piece)
            corpus.all_docs += totals.total.docs
            corpus.all_tokens += totals.total.tokens
            corpus.vocabulary = max(corpus.vocabulary, totals.total.vocabulary)
            if kind == "uci" and size is None:
                size, named = totals.total.vocabulary, path
        corpus.complete()
        if lexicon is not None:
            corpus.left_out = LeftOut(lexicon.short, lexicon.unknown)
        if corpus.all_tokens == 0:
            why = corpus.left_out.said(0) or "documents of words were expected"
            raise DataError(f"{files[0]}: holds no words; {why}")
    except BaseException:
        corpus.close()
        raise
    corpus.vocabulary = corpus.vocabulary if size is None else size
    corpus.words = lexicon.words if lexicon is not None else words
    return corpus


def _reader(
    path: str, kind: str, place: Place, lexicon: Lexicon | None, size: int | None, named: str
) -> Reader:
    if lexicon is not None:
        return read_text(path, place, lexicon)
    if kind == "ldac":
        return read_ldac(path, place, MOST_WORDS if size is None else size)
    return read_uci(path, place, size or 0, named)


def look_at(files: Sequence[Path], vocab: Path | None, like: Path) -> None:
    """Check the first documents of files that are scored after training.

    Args:
        files: the files.
        vocab: as for `open_corpus`.
        like: a file that is trained on: without `vocab`, a bag of words names the number of words.

    Raises:
        DataError: one line with file and line number.
    """
    words, size, named = _known(vocab)
    trained = format_of(str(like)) if words is None else ""
    if trained == "uci":
        size, named = uci_vocabulary(str(like)), str(like)
    for path in map(str, files):
        kind = format_of(path)
        if kind == "text" and trained in ("uci", "ldac"):
            _lexicon(None, 0, str(like))
        lexicon = _lexicon(words, None, named) if kind == "text" else None
        with closing(_reader(path, kind, Place(0, 1), lexicon, size, named)) as pieces:
            next(pieces, None)


class _Totalled:
    """Iterate over a reader's pieces, and keep the totals that it returns."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __iter__(self) -> Iterator[Piece]:
        self.total = yield from self._reader
