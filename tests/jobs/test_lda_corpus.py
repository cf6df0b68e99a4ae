"""Readers of documents: all formats, parts and blocks give the same documents, and errors name the line."""

from __future__ import annotations

import errno
import gzip
import lzma
import re
import tempfile
import tracemalloc
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.errors import NO_ROOM, DataError, has_no_room
from mpips.jobs.lda.corpus import Corpus, open_corpus
from mpips.jobs.lda.parse import CHUNK
from mpips.jobs.lda.readers import (
    Place,
    Reader,
    Totals,
    format_of,
    read_ldac,
    read_text,
    read_uci,
    read_vocabulary,
)
from mpips.jobs.lda.words import Lexicon

DATA = Path(__file__).parents[2] / "jobs" / "lda" / "data"
Documents = list[list[tuple[int, int]]]

documents = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=6, unique_by=lambda pair: pair[0]),
    min_size=1,
    max_size=40,
).filter(any)
"""Documents as (word, count) pairs."""


def ldac(docs: Documents) -> str:
    return "".join(" ".join([str(len(doc)), *(f"{w}:{n}" for w, n in doc)]) + "\n" for doc in docs)


def uci(docs: Documents) -> str:
    lines = [f"{d + 1} {w + 1} {n}\n" for d, doc in enumerate(docs) for w, n in doc]
    return f"{len(docs)}\n31\n{len(lines)}\n" + "".join(lines)


def tokens(docs: Documents) -> list[list[int]]:
    return [[w for w, n in doc for _ in range(n)] for doc in docs]


def gathered(reader: Reader) -> tuple[list[list[int]], Totals]:
    """Collect the documents that a reader gives, and what it returns."""
    words: list[int] = []
    ends: list[int] = [0]
    while True:
        try:
            piece = next(reader)
        except StopIteration as end:
            assert ends[-1] == len(words)
            return [words[a:b] for a, b in pairwise(ends)], end.value
        words += piece.words.tolist()
        ends += piece.ends.tolist()


def contents(corpus: Corpus) -> dict[int, list[int]]:
    """Collect a corpus' documents by their indices."""
    found = {}
    for b in range(corpus.blocks):
        block = corpus.load(b)
        assert block.ptr[0] == 0 and block.ptr[-1] == len(block.words)
        for d, index in enumerate(corpus.documents(b).tolist()):
            found[index] = block.words[block.ptr[d] : block.ptr[d + 1]].tolist()
    return found


@settings(max_examples=50)
@given(documents, st.integers(1, 3), st.sampled_from([40, 300, 1 << 20]), st.sampled_from([1, 5, 1 << 10]))
def test_parts_of_both_number_formats_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, docs: Documents, parts: int, size: int, room: int
) -> None:
    docs = docs * 5  # several chunks
    folder = tmp_path_factory.mktemp("made")
    (folder / "d.ldac").write_text(ldac(docs))
    (folder / "docword.d").write_text(uci(docs))
    for read in (
        lambda place: read_ldac(str(folder / "d.ldac"), place, 31, size, room),
        lambda place: read_uci(str(folder / "docword.d"), place, 31, "the vocabulary", size, room),
    ):
        for part in range(parts):
            found, totals = gathered(read(Place(part, parts)))
            assert found == [doc for d, doc in enumerate(tokens(docs)) if d // CHUNK % parts == part]
            assert totals.docs == len(docs) and totals.tokens == sum(map(len, tokens(docs)))
    assert gathered(read_ldac(str(folder / "d.ldac"), Place(0, 1), 99))[1].vocabulary == 1 + max(
        w for doc in docs for w, _ in doc
    )


def runs(line: str) -> list[str]:
    """Cut a line into runs of letters and marks, in lower case."""
    text = unicodedata.normalize("NFC", line.lower()).replace("\xad", "")
    return "".join(each if unicodedata.category(each)[0] in "LM" else " " for each in text).split()


@given(
    st.lists(
        st.text(st.sampled_from("abcXYZ éÉßñΩ_-'’12²٣\t\x00\x85\xa0İ\u0301\xad"), max_size=30), min_size=1
    ),
    st.integers(1, 64),
)
def test_text_is_cut_into_runs_of_three_letters(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int
) -> None:
    path = tmp_path_factory.mktemp("made") / "d.txt"
    path.write_text("x\n" + "\n".join(lines) + "\n", newline="")
    lexicon = Lexicon()
    found, totals = gathered(read_text(str(path), Place(0, 1), lexicon, size))
    wanted = [[word for word in runs(line) if len(word) >= 3] for line in ["x", *lines]]
    assert [[lexicon.words[w] for w in doc] for doc in found] == wanted
    assert list(lexicon.words) == list(dict.fromkeys(word for doc in wanted for word in doc))
    assert totals == (len(lines) + 1, sum(map(len, wanted)), len(lexicon.words))
    known = Lexicon(["abc", "xyz"])
    some, _ = gathered(read_text(str(path), Place(0, 1), known, size))
    assert some == [[("abc", "xyz").index(w) for w in doc if w in ("abc", "xyz")] for doc in wanted]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी की किताबें", ["हिन्दी", "किताबें"]),  # letters with vowel signs; a word of two is short
        ("తెలుగు భాష", ["తెలుగు", "భాష"]),
        ("中国 人 经济 发展", ["中国", "经济", "发展"]),
        ("日本語 の ニュース 東京", ["日本語", "ニュース", "東京"]),
        ("한국 경제 의", ["한국", "경제"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("soft\xadware می\u200cخواهم", ["software", "میخواهم"]),
        ("m² x3y naïve_étude", ["naïve", "étude"]),
    ],
)
def test_words_of_all_scripts_stay_whole(text: str, words: list[str]) -> None:
    lexicon = Lexicon()
    assert [lexicon.words[w] for w in lexicon.encode((text + "\n").encode()) if w >= 0] == words
    given = Lexicon([unicodedata.normalize("NFD", word) for word in dict.fromkeys(words)])
    assert [given.words[w] for w in given.encode((text + "\n").encode()) if w >= 0] == [
        unicodedata.normalize("NFD", word) for word in words
    ]
    assert (lexicon.short, lexicon.unknown) == (given.short, given.unknown)


def test_words_that_are_left_out_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not 中国 人\nknown or unknown, unknown\n")
    for part in range(2):
        with open_corpus([tmp_path / "a.txt"], ["known", "not"], part, 2, tmp_path) as corpus:
            assert corpus.left_out == (5, 3) and corpus.all_tokens == 2
            assert corpus.left_out.said(2).startswith("left out 8 of 10 words: 5 of fewer than 3 letters")
    with open_corpus([tmp_path / "a.txt"], None, 0, 1, tmp_path) as corpus:
        assert corpus.left_out == (5, 0) and corpus.all_tokens == 5


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "a.ldac",
            "1 0:1\n1 2000000000:1\n",
            ":2: word in '2000000000:1' is beyond 16,777,216 words, each of",
        ),
        (
            "docword.a",
            "2\n2000000000\n1\n1 1 1\n",
            ":2: W, the size of the vocabulary, is 2,000,000,000, bey",
        ),
        (
            "docword.a",
            "2000000000\n5\n1\n1 1 1\n",
            ":1: D, the number of documents, is 2,000,000,000, but on",
        ),
        ("a.txt.gz", "", ": is empty"),
        ("a.txt", "\ufeff", ": is empty"),
        ("a", "\n\n", ": holds no words"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_memory_is_taken(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    with pytest.raises(DataError) as caught:
        open_corpus([path], None, 0, 1, tmp_path / "scratch")
    assert str(caught.value).startswith(str(path) + said)


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no files"):
        open_corpus([], None, 0, 1, tmp_path)


@pytest.mark.parametrize("pack", [lambda text: text, gzip.compress, lzma.compress])
@pytest.mark.parametrize("block_tokens", [1, 10, 1000])
def test_blocks_hold_every_document_once(
    tmp_path: Path, pack: Callable[[bytes], bytes], block_tokens: int
) -> None:
    ending = {0x1F: ".gz", 0xFD: ".xz"}.get(pack(b"a")[0], "")
    rng = np.random.default_rng(1)
    docs = [
        [(int(w), int(rng.integers(1, 4))) for w in rng.choice(31, rng.integers(0, 5), replace=False)]
        for _ in range(300)
    ]
    files = [tmp_path / f"{name}.ldac{ending}" for name in "ab"]
    for file, part in zip(files, (docs[:170], docs[170:]), strict=True):
        file.write_bytes(pack(ldac(part).encode()))
    found: dict[int, list[int]] = {}
    for part in range(3):
        with open_corpus(files, None, part, 3, tmp_path / "scratch", block_tokens) as corpus:
            assert (corpus.all_docs, corpus.all_tokens) == (300, sum(map(len, tokens(docs))))
            assert corpus.vocabulary == 31 and corpus.words is None
            for b in range(corpus.blocks):
                block = corpus.load(b)
                assert len(block.words) <= block_tokens or len(block.ptr) == 2
            mine = contents(corpus)
            assert corpus.docs == len(mine) and corpus.tokens == sum(map(len, mine.values()))
            assert not found.keys() & mine.keys()
            found |= mine
    assert [found[d] for d in range(300)] == tokens(docs)
    assert list((tmp_path / "scratch").iterdir()) == []  # the blocks have no names


def test_topics_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.ldac").write_text("1 0:3\n0\n2 1:1 4:2\n0\n")
    with open_corpus([tmp_path / "a.ldac"], None, 0, 1, tmp_path, block_tokens=3) as corpus:
        assert corpus.blocks == 2
        for b in range(2):
            assert corpus.topics(b).tolist() == [-1, -1, -1]
            corpus.keep(b, np.array([b, 7, 9], np.int32))
        first = corpus.topics(0)
        first[1] = 8
        assert [corpus.topics(b).tolist() for b in range(2)] == [[0, 8, 9], [1, 7, 9]]
        assert corpus.load(1).words.tolist() == [1, 4, 4]
        with pytest.raises(ValueError, match="block 0 has 3 tokens"):
            corpus.keep(0, np.zeros(2, np.int32))


def test_blocks_of_empty_documents_are_bounded_too(tmp_path: Path) -> None:
    (tmp_path / "docword.a").write_text("1000\n2\n1\n600 1 1\n")
    with open_corpus([tmp_path / "docword.a"], None, 0, 1, tmp_path, block_tokens=100) as corpus:
        lengths = [len(corpus.load(b).ptr) - 1 for b in range(corpus.blocks)]
        assert sum(lengths) == 1000 and max(lengths) == 100
        assert [d for d, words in contents(corpus).items() if words] == [599]
        assert corpus.topics(0).tolist() == []


def test_a_part_without_documents_has_no_blocks(tmp_path: Path) -> None:
    (tmp_path / "a.ldac").write_text("1 3:1\n")
    with open_corpus([tmp_path / "a.ldac"], None, 1, 2, tmp_path) as corpus:
        assert (corpus.blocks, corpus.docs, corpus.tokens, corpus.vocabulary) == (0, 0, 0, 4)
        assert (corpus.all_docs, corpus.all_tokens) == (1, 1)


def test_memory_is_bounded_by_a_block(tmp_path: Path) -> None:
    line = "50 " + " ".join(f"{w}:200" for w in range(50)) + "\n"
    (tmp_path / "a.ldac").write_text(line * 2000)  # 20 M tokens: 80 MB
    tracemalloc.start()
    try:
        with open_corpus([tmp_path / "a.ldac"], None, 0, 1, tmp_path / "scratch", 100_000) as corpus:
            for b in range(corpus.blocks):
                corpus.keep(b, np.zeros(len(corpus.load(b).words), np.int32))
            assert corpus.tokens == 20_000_000 and corpus.blocks == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 15e6


def test_the_shipped_data() -> None:
    words = read_vocabulary(str(DATA / "reuters395.vocab.gz"))
    found, totals = gathered(read_ldac(str(DATA / "reuters395.ldac.gz"), Place(0, 1), len(words)))
    assert totals == (395, 84010, 4258) and words[:3] == ["church", "pope", "years"]
    assert found[0][:6] == [0, 2, 6, 9, 12, 12] and len(found[0]) == 228


def test_a_vocabulary_gives_words_and_limits(tmp_path: Path) -> None:
    (tmp_path / "v").write_text("first\r\nsecond\r\nto\r\n")
    (tmp_path / "t.txt").write_text("Second, FIRST; third to\n\nsecond\n")
    (tmp_path / "docword.d").write_text("1\n3\n1\n1 3 2\n")
    with open_corpus([tmp_path / "t.txt"], tmp_path / "v", 0, 1, tmp_path) as corpus:
        assert corpus.words == ["first", "second", "to"] and corpus.vocabulary == 3
        assert contents(corpus) == {0: [1, 0], 1: [], 2: [1]}
    for vocab in (tmp_path / "v", ["a", "b", "c"], 3):
        with open_corpus([tmp_path / "docword.d"], vocab, 0, 1, tmp_path) as corpus:
            assert contents(corpus) == {0: [2, 2]} and corpus.vocabulary == 3
    (tmp_path / "a.ldac").write_text("1 1:1\n")
    with open_corpus([tmp_path / "a.ldac"], 3, 0, 1, tmp_path) as corpus:
        assert corpus.vocabulary == 3


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.ldac", "1 x\n", "ldac"),
        ("ap.dat", "2 0:1 3:x\n1 2:1\n", "ldac"),
        ("ap.dat", "0\n1 2:1\n", "ldac"),
        ("docword.x.txt", "many\n", "uci"),
        ("nips.txt", "2\n3\n1\n1 1 1\n", "uci"),
        ("news.txt", "2 words\n", "text"),
        ("news", "A:1 word\n", "text"),
    ],
)
def test_the_format_is_determined_by_name_then_contents(
    tmp_path: Path, name: str, text: str, kind: str
) -> None:
    (tmp_path / name).write_text(text)
    assert format_of(str(tmp_path / name)) == kind


BAD: list[tuple[str, str, str]] = [
    # LDA-C
    ("a.ldac", "1 0:1\nx 0:1\n", ":2: 'x' is not the number of word:count pairs"),
    ("a.ldac", "-1 0:1\n", ":1: '-1' is not the number"),
    ("a.ldac", "1 0:1\n\n1 0:1\n", ":2: is blank; a document without words is written 0"),
    ("a.ldac", "1 0:1\n2 0:1\n", ":2: found 1 word:count pairs where the line's first number says 2"),
    ("a.ldac", "1 0:1 2:1\n", ":1: found 2 word:count pairs where the line's first number says 1"),
    ("a.ldac", "1 4:1\n1 5:1\n", ":2: word in '5:1' is beyond the vocabulary of 5 words"),
    ("a.ldac", "1 99999999999999999999:1\n", ":1: word in '99999999999999999999:1' is beyond"),
    ("a.ldac", "1 0:0\n", ":1: count in '0:0' is not a whole number from 1 to 16777216"),
    ("a.ldac", "1 0:-2\n", ":1: count in '0:-2' is not"),
    ("a.ldac", "1 0:1.5\n", ":1: count in '0:1.5' is not"),
    ("a.ldac", "1 0:16777217\n", ":1: count in '0:16777217' is not"),
    ("a.ldac", "1 0\n", ":1: '0' is not of the form word:count"),
    ("a.ldac", "1 a:1\n", ":1: 'a:1' is not of the form word:count"),
    ("a.ldac", "1 -1:1\n", ":1: '-1:1' is not of the form word:count"),
    ("a.ldac", "", ": is empty"),
    ("a.ldac", "0\n0\n", ": holds no words"),
    # UCI
    ("docword.a", "2\nx\n1\n1 1 1\n", ":2: found 'x' where a UCI bag of words says W"),
    ("docword.a", "2\n5\n", ":3: found '' where a UCI bag of words says NNZ"),
    ("docword.a", "-2\n5\n1\n1 1 1\n", ":1: found '-2' where a UCI bag of words says D"),
    (
        "docword.a",
        "2\n6\n1\n1 1 1\n",
        ":2: W, the size of the vocabulary, is 6, but the vocabulary has 5 words",
    ),
    (
        "docword.a",
        "2\n5\n2\n1 1 1\n3 1 1\n",
        ":5: document '3' is not a whole number from 1 to D, which is 2",
    ),
    ("docword.a", "2\n5\n1\n0 1 1\n", ":4: document '0' is not"),
    ("docword.a", "2\n5\n1\na 1 1\n", ":4: document 'a' is not"),
    ("docword.a", "2\n5\n2\n2 1 1\n1 1 1\n", ":5: document '1' comes after document 2; lines must be sorted"),
    ("docword.a", "2\n5\n1\n1 6 1\n", ":4: word '6' is not a whole number from 1 to W, which is 5"),
    ("docword.a", "2\n5\n1\n1 0 1\n", ":4: word '0' is not"),
    ("docword.a", "2\n5\n1\n1 -1 1\n", ":4: word '-1' is not"),
    ("docword.a", "2\n5\n1\n1 1 0\n", ":4: count '0' is not a whole number from 1 to"),
    ("docword.a", "2\n5\n1\n1 1 -3\n", ":4: count '-3' is not"),
    ("docword.a", "2\n5\n1\n1 1 x\n", ":4: count 'x' is not"),
    ("docword.a", "2\n5\n1\n1 1\n", ":4: is not of the form `document word count`"),
    ("docword.a", "2\n5\n1\n1\n", ":4: "),
    ("docword.a", "2\n5\n1\n1 1 1 1\n", ":4: is not of the form `document word count`"),
    ("docword.a", "2\n5\n1\n1 1 1\n1 2 1\n", ":5: is one line more than NNZ, which is 1"),
    ("docword.a", "2\n5\n3\n1 1 1\n\n", ":6: ends after 1 lines where NNZ says 3"),
    ("docword.a", "0\n5\n0\n", ": holds no words"),
    # text
    ("a.txt", "12 45 of\n\n", ": holds no words; left out 1 of 1 words: 1 of fewer than 3 letters"),
]


@pytest.mark.parametrize(("name", "text", "said"), BAD)
def test_every_part_reports_an_error_with_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    for part in range(2):
        with pytest.raises(DataError) as caught:
            open_corpus([path], ["wa", "wb", "wc", "wd", "we"], part, 2, tmp_path / "scratch")
        assert str(caught.value).startswith(str(path) + said) and "\n" not in str(caught.value)


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"plain\ncaf\xe9\n")
    (tmp_path / "v").write_bytes(b"plain\ncaf\xe9\n")
    for act in (
        lambda: open_corpus([tmp_path / "a.txt"], None, 0, 1, tmp_path),
        lambda: read_vocabulary(str(tmp_path / "v")),
    ):
        with pytest.raises(DataError, match=r"/(a\.txt|v):2: is not UTF-8 text"):
            act()


@pytest.mark.parametrize(
    ("vocab", "said"),
    [
        (["one", "two", "one"], "the vocabulary: has 'one' 2 times"),
        (7, "text needs a vocabulary of words"),
        (Path("v"), "v:2: is blank; a vocabulary has a word on each line"),
    ],
)
def test_a_wrong_vocabulary(tmp_path: Path, vocab: Path | Sequence[str] | int, said: str) -> None:
    (tmp_path / "v").write_text("one\n\ntwo\n")
    (tmp_path / "a.txt").write_text("some words\n")
    with pytest.raises(DataError, match=re.escape(said)):
        open_corpus(
            [tmp_path / "a.txt"], tmp_path / vocab if isinstance(vocab, Path) else vocab, 0, 1, tmp_path
        )


def test_files_of_two_kinds_or_vocabularies(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words\n")
    (tmp_path / "b.ldac").write_text("1 1:1\n")
    (tmp_path / "docword.c").write_text("1\n2\n1\n1 1 1\n")
    (tmp_path / "docword.d").write_text("1\n3\n1\n1 1 1\n")
    with pytest.raises(DataError, match=r"b\.ldac: is LDA-C, but .*a\.txt is text; give files of one kind"):
        open_corpus([tmp_path / "a.txt", tmp_path / "b.ldac"], None, 0, 1, tmp_path)
    with pytest.raises(DataError, match=r"docword\.d:2: W, .* is 3, but .*docword\.c has 2 words"):
        open_corpus([tmp_path / "docword.c", tmp_path / "docword.d"], None, 0, 1, tmp_path)


def test_a_scratch_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "b.ldac").write_text("1 1:1\n")
    with pytest.raises(
        DataError, match=r"blocks of documents cannot be kept there: (Not a directory|File exists)"
    ):
        open_corpus([tmp_path / "b.ldac"], None, 0, 1, tmp_path / "b.ldac" / "scratch")


@pytest.mark.parametrize("number", [*NO_ROOM, errno.EIO])
def test_a_full_disk_is_not_wrong_input(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has another exit code."""

    def full(**_: object) -> None:
        raise OSError(number, "No space")

    (tmp_path / "b.ldac").write_text("1 1:1\n")
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="blocks of documents cannot be kept there: No space") as found:
        open_corpus([tmp_path / "b.ldac"], None, 0, 1, tmp_path / "scratch")
    assert has_no_room(found.value) and found.value.filename == str(tmp_path / "scratch")
