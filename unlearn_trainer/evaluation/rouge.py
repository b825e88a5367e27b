"""ROUGE-L recall of texts in any script (Lin, 2004), without stemming.

What counts as a token goes by the characters, not by a language code, so that a Chinese sentence with a Latin name in
it is right, too: a character of a script that is written without spaces is one token with the marks on it, elsewhere a
token is a run of letters, digits and their marks. Upper and lower case are the same.
"""

import re
import unicodedata
from collections.abc import Sequence

# Thai and Lao; Myanmar with its extensions; Khmer; the Tai scripts; kana and Bopomofo; ideographs.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"
    "\u3041-\u312f\u31a0-\u31ff\U0001b000-\U0001b16f"
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def words(text: str) -> list[str]:
    """The tokens of a text: words, or single characters of scripts without spaces; no punctuation or symbols."""
    found: list[str] = []
    in_word = touches = False  # of the character before: may the next letter join it, may the next mark
    for character in unicodedata.normalize("NFKC", text).casefold():
        category = unicodedata.category(character)
        if category == "Cf":  # joiners and marks of direction are within words and say nothing
            continue
        if category[0] == "M":
            # Indic vowels are marks: taken for separators they would break words apart.
            if touches:
                found[-1] += character
            continue
        touches = category[0] in "LN"
        unspaced = touches and bool(_UNSPACED.match(character))
        if in_word and touches and not unspaced:
            found[-1] += character
        elif touches:
            found.append(character)
        in_word = touches and not unspaced
    return found


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
    """Length of the longest common subsequence; a row of the usual table is the bits of one number (Hyyrö, 2004)."""
    places: dict = {}
    for index, token in enumerate(second):
        places[token] = places.get(token, 0) | 1 << index
    whole = (1 << len(second)) - 1
    # A zero stands where the length grows by one from one prefix of `second` to the next.
    row = whole
    for token in first:
        hits = row & places.get(token, 0)
        row = (row + hits | row - hits) & whole
    return len(second) - row.bit_count()
