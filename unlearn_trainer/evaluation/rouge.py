"""ROUGE-L recall of texts in any script (Lin, 2004), without stemming.

What counts as a token goes by the characters, not by a language code, so that a Chinese sentence with a Latin name in
it is right, too: a character of a script that is written without spaces is one token with the marks on it, elsewhere a
token is a run of letters, digits and their marks. Upper and lower case are the same.
"""

import unicodedata
from collections.abc import Sequence

import regex
from rapidfuzz.distance import LCSseq

# Scripts written without spaces. The mark of a long vowel and the closing mark belong to several, and have none in
# Unicode.
_UNSPACED = "ー〆" + "".join(
    rf"\p{{Script={script}}}"
    for script in (
        *("Thai", "Lao", "Myanmar", "Khmer", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet"),
        *("Han", "Hiragana", "Katakana", "Bopomofo"),
    )
)
# Indic vowels are marks: taken for separators they would break words apart.
_TOKEN = regex.compile(
    rf"[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]]\p{{M}}*|(?:[[\p{{L}}\p{{N}}]--[{_UNSPACED}]]\p{{M}}*)+", regex.V1
)
# Joiners and marks of direction are within words and say nothing.
_FORMAT = regex.compile(r"\p{Cf}+")


def words(text: str) -> list[str]:
    """The tokens of a text: words, or single characters of scripts without spaces; no punctuation or symbols."""
    return _TOKEN.findall(_FORMAT.sub("", unicodedata.normalize("NFKC", text).casefold()))


def rouge_l_recall(candidate: str, reference: str) -> float:
    """Share of the reference's tokens that the candidate has in the same order, from 0 to 1.

    That is the longest common subsequence by the reference's length. A reference without any word is compared by its
    symbols; an empty one is met by an empty candidate only.
    """
    expected, found = words(reference), words(candidate)
    if not expected:
        expected, found = list("".join(reference.split())), list("".join(candidate.split()))
    if not expected:
        return float(not found)
    return common_subsequence(found, expected) / len(expected)


def common_subsequence(first: Sequence, second: Sequence) -> int:
    """Length of the longest common subsequence of tokens, all of one type."""
    return LCSseq.similarity(first, second)
