"""Words of text: how text is split into words, and their numbers.

A word is a run of letters and of the marks that belong to them, such as the vowel signs of Hindi, in lower case. Text
is normalized to NFC first, so that an accented letter is the same however it is written, and invisible characters (soft
hyphens, joiners, marks of direction) are taken out. Chinese, Japanese and Korean words may have two characters, others
have at least three. Scripts without blanks between words are not split: their texts must contain blanks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SHORTEST, SHORTEST_EAST = 3, 2
"""Least number of letters and marks of a word; that of a Chinese, Japanese or Korean word."""
NEWLINE, _UNKNOWN, _SHORT = -1, -2, -3
_MARK = b"\0"
_LOWER = bytes(
    0 if byte == 10 else byte + 32 if 65 <= byte <= 90 else byte if 97 <= byte <= 122 or byte >= 128 else 32
    for byte in range(256)
)
"""ASCII to lower case; newlines to the mark, other characters than letters to blanks."""
_EAST = re.compile(
    "[\u1100-\u11ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
"""Han, kana and hangul."""
_REMEMBERED = 1 << 17
"""Largest number of words without a number that are cached, so that they are not examined again."""


def folded(word: str) -> str:
    """Return the form in which a word is looked up."""
    return unicodedata.normalize("NFC", word.lower())


def is_short(word: str) -> bool:
    """Return whether a word has too few letters to count."""
    return len(word) < SHORTEST and (len(word) < SHORTEST_EAST or not _EAST.search(word))


class _Letters(dict[int, int | None]):
    """Translation of characters beyond ASCII: letters and marks are kept, invisible ones removed, others blanks."""

    def __missing__(self, code: int) -> int | None:
        kind = unicodedata.category(chr(code))
        self[code] = code if code < 128 or kind[0] in "LM" else None if kind == "Cf" else 32
        return self[code]


_LETTERS = _Letters()


class _Numbers(dict[bytes, int]):
    """Numbers of words; new words are appended to the list `words`, if it is given."""

    def __init__(self, words: list[str] | None) -> None:
        super().__init__({_MARK: NEWLINE})
        self._words = words

    def __missing__(self, word: bytes) -> int:
        text = word.decode()
        if is_short(text):
            number = _SHORT
        elif self._words is None:
            number = _UNKNOWN
        else:
            number = len(self._words)
            self._words.append(text)
        if number >= 0 or len(self) < _REMEMBERED:
            self[word] = number
        return number


class Lexicon:
    """Numbers the words of text: those of a vocabulary, or all, in the order of their first occurrence."""

    def __init__(self, words: Sequence[str] | None = None) -> None:
        seen: list[str] = []
        self.words: Sequence[str] = seen if words is None else words
        """The words in the order of their numbers."""
        self.short = self.unknown = 0
        """Numbers of omitted words: too short, and not in the vocabulary."""
        self._numbers = _Numbers(seen if words is None else None)
        for at, word in enumerate(words or ()):
            if not is_short(word):
                self._numbers.setdefault(folded(word).encode(), at)

    def encode(self, text: bytes | bytearray) -> NDArray[np.int32]:
        """Return the numbers of a text's words, `NEWLINE` for each end of a line; raises UnicodeDecodeError."""
        if not text.isascii():
            text = folded(text.decode()).translate(_LETTERS).encode()
        found = bytes(text).translate(_LOWER).replace(_MARK, b" \0 ").split()
        numbers = np.fromiter(map(self._numbers.__getitem__, found), np.int32, len(found))
        known: NDArray[np.int32] = numbers[numbers >= NEWLINE]
        short = int(np.count_nonzero(numbers == _SHORT))
        self.short, self.unknown = self.short + short, self.unknown + len(numbers) - len(known) - short
        return known
