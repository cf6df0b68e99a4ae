"""The topics of new documents, by a trained model."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mpips import (
    ALL,
    MANIFEST,
    NUMBER,
    DataError,
    Each,
    InputError,
    Model,
    UsageError,
    explained,
    load_range,
    read_manifest,
    replacing,
    schema_error,
)
from mpips import keys as key_arrays
from mpips.data.examples import empty_files_note
from mpips.data.stream import is_empty
from mpips.jobs.lda.corpus import Block, Corpus, open_corpus
from mpips.jobs.lda.evaluate import Phi, distinct, infer_theta
from mpips.jobs.lda.model import CELLS, SHOWN, TrainedTopics, flaw_of, read_model
from mpips.jobs.lda.parse import MOST_COUNT
from mpips.jobs.lda.readers import read_vocabulary
from mpips.jobs.lda.topics import draw, named, table

F8 = NDArray[np.float64]
SCHEMA = {
    "facts": {"vocabulary": range(1, 2**31), "topics": range(1, 2**31)},
    "state": {"alpha": Each(NUMBER), "beta": NUMBER},
}
"""What a checkpoint says of a model."""
WORDS, WORDS_OF_ROW = 1 << 26, 64
"""Words of a checkpoint's vocabulary, and further ones for each row: a small file may declare any number."""


class TopicModel(Model):
    """Trained topics, and the shares of topics in documents. These are

    * the name of a file, or a list of names: text with a document on each line, LDA-C or UCI bags of words;
    * `texts=[...]`: the documents themselves, if the words of the vocabulary are known;
    * a scipy sparse matrix or array, or a 2-dimensional array, of counts: column w is the word with the id w.

    Args:
        topics: the counts of words in topics, and the priors.
        folder: where `show` draws its picture.
    """

    def __init__(self, topics: TrainedTopics, folder: Path) -> None:
        self.topics, self._folder = topics, folder

    def transform(self, data: Any = None, *, texts: Sequence[str] | None = None) -> F8:
        """Return the shares of topics in documents, f8[n, K]; each row adds up to 1.

        Raises:
            UsageError: the documents are of no form that is listed above, or a count is no whole number from 0.
            DataError: a file is wrong, or the words of the vocabulary are not known.
        """
        if (data is None) == (texts is None):
            raise UsageError("transform takes documents, or texts=[...], one of them")
        names = [data] if isinstance(data, str | os.PathLike) else data
        if texts is None and not (
            isinstance(names, list | tuple) and all(isinstance(each, str | os.PathLike) for each in names)
        ):
            return self._shares(_block_of(data, self.topics.vocabulary))
        with ExitStack() as stack:
            if texts is not None:
                names = [stack.enter_context(_written(texts))]
            corpus = stack.enter_context(self._opened([Path(each) for each in names]))
            parts = [self._shares(corpus.load(b)) for b in range(corpus.blocks)]
        return np.concatenate([np.empty((0, len(self.topics.alpha))), *parts])[texts is not None :]

    def predict(self, data: Any = None, *, texts: Sequence[str] | None = None) -> NDArray[np.int64]:
        """Return the topic with the largest share in each document, i8[n]. Arguments and errors as `transform`."""
        found: NDArray[np.int64] = np.argmax(self.transform(data, texts=texts), axis=1)
        return found

    def top_words(self, n: int = SHOWN) -> list[list[str]]:
        """Return the n most frequent words of each topic; `#17` is word 17 of an unknown vocabulary."""
        return [named(ids, self.topics.words) for ids in self.topics.top(n).ids.tolist()]

    def vectors(self) -> dict[str, tuple[key_arrays.KeyArray, NDArray[Any]]]:
        """Return `words`, the counts n_wk above 0 by w K + k, and `topics`, n_k by k."""
        topics = self.topics
        words = np.repeat(np.arange(topics.vocabulary, dtype=np.uint64), np.diff(topics.indptr))
        keys = words * np.uint64(len(topics.alpha)) + topics.topics.astype(np.uint64)
        every = np.arange(len(topics.n_k), dtype=np.uint64)
        return {"words": (keys, topics.counts[:, None]), "topics": (every, topics.n_k[:, None])}

    def score_lines(self, lines: Sequence[str], head: str = "") -> list[str]:
        """Return the shares of all topics, separated by tabs, in the document of text in each line. Errors as
        `transform`.
        """
        return ["\t".join(f"{share:.6g}" for share in row) for row in self.transform(texts=lines).tolist()]

    def score_files(self, files: Sequence[Path], out: Path | None) -> None:
        """Write a tab-separated table: a line per document, its number from 0 and the shares of all topics.

        Raises:
            InputError: a file cannot be read, or is invalid.
            OSError: `out` cannot be written.
        """
        with ExitStack() as stack:
            # Opened first, so that an error comes before the work.
            file = None if out is None else stack.enter_context(replacing(out, "w"))
            corpus = stack.enter_context(self._opened(files))
            if words := corpus.left_out.said(corpus.all_tokens):
                print(f"mpips: {words}", file=sys.stderr)
            self._write(sys.stdout if file is None else file, corpus)
        if out is not None:
            print(f"{out}: {corpus.docs:,} documents")

    def show(self, out: Path | None) -> None:
        """Print the topics with their top words, and draw them to `out`, or to `topics.svg` beside the model.

        A picture that is there already is left as it is: it may be an output of the run, whose hash is known.
        """
        top = self.topics.top()
        print(table(top, self.topics.n_k, self.topics.words))
        picture = out or self._folder / "topics.svg"
        if out is None and os.path.lexists(picture):
            print(f"picture: {picture}, which was there before; --out FILE.svg draws another")
            return
        try:
            draw(picture, top, self.topics.n_k, self.topics.words)
            print(f"picture: {picture}")
        except (InputError, OSError) as error:
            if out is not None:
                raise
            # It was not requested.
            print(f"no picture: {error}")

    @contextmanager
    def _opened(self, files: Sequence[Path]) -> Iterator[Corpus]:
        """Read documents of files into a temporary folder."""
        empty = [str(file) for file in files if len(files) > 1 and is_empty(str(file))]
        if 0 < len(empty) < len(files):
            # As in training; if all are empty, the reader raises the error.
            print(f"mpips: {empty_files_note(empty)}", file=sys.stderr)
            files = [file for file in files if str(file) not in empty]
        topics = self.topics
        vocab = topics.vocabulary if topics.words is None else topics.words
        tokens = max(1000, CELLS // len(topics.alpha))
        with (
            tempfile.TemporaryDirectory(prefix="mpips-infer-") as scratch,
            open_corpus(files, vocab, 0, 1, Path(scratch), block_tokens=tokens) as corpus,
        ):
            yield corpus

    def _shares(self, block: Block) -> F8:
        ids, block = distinct(block)
        topics = self.topics
        phi = Phi(topics.rows(ids), topics.n_k, topics.alpha, topics.beta, topics.vocabulary)
        return infer_theta(block, phi)

    def _write(self, file: IO[str], corpus: Corpus) -> None:
        file.write("document\t" + "\t".join(f"topic {k}" for k in range(len(self.topics.alpha))) + "\n")
        for b in range(corpus.blocks):
            documents = corpus.documents(b).tolist()
            for document, shares in zip(documents, self._shares(corpus.load(b)), strict=True):
                file.write(f"{document}\t" + "\t".join(f"{share:.6g}" for share in shares.tolist()) + "\n")


@contextmanager
def _written(texts: Sequence[str]) -> Iterator[Path]:
    """Write texts to a file, a line each, after a line by which it is known as text."""
    if isinstance(texts, str):
        raise UsageError("texts is a list of documents, as in texts=['the first', 'the second']")
    with tempfile.TemporaryDirectory(prefix="mpips-infer-") as folder:
        path = Path(folder, "texts.txt")
        lines = (" ".join(text.split()) + "\n" for text in texts)
        # What is not UTF-8 is for the reader to refuse.
        path.write_text("text\n" + "".join(lines), encoding="utf-8", errors="surrogatepass")
        try:
            yield path
        except DataError as error:
            raise DataError(re.sub(rf"{re.escape(str(path))}(:\d+)?: ", "", str(error))) from None


def _block_of(data: Any, vocabulary: int) -> Block:
    """Return the documents of a matrix of counts."""
    if hasattr(data, "tocsr"):
        rows = data.tocsr()
        indptr, words, counts, width = rows.indptr, rows.indices, rows.data, rows.shape[1]
    else:
        key_arrays.check_unmasked(data, "counts")
        dense = np.asarray(data)
        if dense.ndim != 2 or dense.dtype.kind not in "biuf":
            raise UsageError(
                f"documents must be files, or counts in 2 dimensions; not {dense.ndim}, and {dense.dtype}"
            )
        row, words = np.nonzero(dense)
        counts, width = dense[row, words], dense.shape[1]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(dense)))])
    if width > vocabulary:
        raise UsageError(f"the counts are of {width:,} words, and the vocabulary has {vocabulary:,}")
    times = counts.astype(np.int64)
    if len(counts) and not (np.array_equal(times, counts) and 0 <= times.min() <= times.max() <= MOST_COUNT):
        raise UsageError(f"counts must be whole numbers, from 0 to {MOST_COUNT:,}")
    ends = np.concatenate([[0], np.cumsum(times)])
    return Block(ends[indptr], np.repeat(words, times).astype(np.int32))


def load(source: Path, job: Any) -> TopicModel:
    """Read the topics of a run's folder, of a checkpoint or of a model file; `job`: see `mpips.Model`.

    Raises:
        InputError: there are none, or they are damaged.
    """
    if not (source / MANIFEST).is_file():
        return TopicModel(read_model(source), source if source.is_dir() else source.parent)
    with explained("read", source):
        about = read_manifest(source)["about"]
        if problem := schema_error(about, SCHEMA, "about"):
            raise ValueError(problem)
        vocabulary, topics = about["facts"]["vocabulary"], about["facts"]["topics"]
        alpha, beta = np.array(about["state"]["alpha"], np.float64), float(about["state"]["beta"])
        rows = load_range(source, "words", [ALL], dtype="int32", width=1, key_bits=64)
        if rows.keys[-1:] >= vocabulary * topics or alpha.shape != (topics,):
            raise ValueError(f"its counts are not of {topics} topics of {vocabulary} words")
        if vocabulary > WORDS + WORDS_OF_ROW * len(rows.keys):
            raise ValueError(f"it declares {vocabulary:,} words, and has rows of {len(rows.keys):,} only")
        some = np.flatnonzero(rows.values[:, 0] > 0)
        word, topic = np.divmod(rows.keys[some].astype(np.int64), topics)
        counts = rows.values[some, 0]
        sizes = np.bincount(word, minlength=vocabulary)
        n_k = np.bincount(topic, counts, topics).astype(np.int64)
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        words = None
        with suppress(InputError, KeyError, TypeError):
            name = job["data"]["vocab"]
            words = (
                read_vocabulary(os.path.join(job["job"]["base"], os.path.expanduser(name))) if name else None
            )
        if words is not None and len(words) != vocabulary:
            words = None
    made = TrainedTopics(alpha, beta, n_k, vocabulary, words, indptr, topic.astype(np.int32), counts)
    if flaw := flaw_of(made):
        raise InputError(f"{source}: is damaged: {flaw}")
    return TopicModel(made, source.parent)
