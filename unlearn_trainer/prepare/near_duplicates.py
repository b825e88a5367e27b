"""Rows that say nearly what a row to be forgotten says.

A candidate is compared with every forget row by rapidfuzz where these are few, as they mostly are. Among many, MinHash
over character n-grams (Broder, 1997) with locality-sensitive hashing by datasketch proposes pairs, and rapidfuzz says
how alike they are. Characters, because words are written without spaces in some scripts; after NFKC and case folding,
because that is what looks the same to a reader.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

EXACT = 2000  # forget rows up to which every pair is compared: a candidate takes a millisecond or less
GRAM = 3  # characters
PERMUTATIONS = 128
# Of the shares of n-grams from which a pair is looked at: low, because two texts that differ in a word share few.
PROPOSED = 0.2
ALIKE = 0.8  # rapidfuzz's ratio, from which two texts count as near-duplicates


@dataclass(frozen=True)
class Pair:
    """Two texts that are nearly the same.

    Args:
        forget: place of the one among the forget rows.
        other: place of the other among the candidates.
        similarity: from 0 to 1, which is the same text.
    """

    forget: int
    other: int
    similarity: float


class ForgetIndex:
    """The forget rows of one language, against which candidates are held one by one.

    Args:
        texts: the forget rows; memory and time of the index grow with these alone.
        alike: similarity from which a pair is reported.
        exact: forget rows up to which every pair is compared.
    """

    def __init__(self, texts: Sequence[str], alike: float = ALIKE, exact: int = EXACT):
        self._alike = alike
        self._texts = [folded(text) for text in texts]
        self._index = None
        if len(texts) <= exact:
            return
        from datasketch import MinHashLSH  # loaded where there are many rows

        self._index = MinHashLSH(threshold=PROPOSED, num_perm=PERMUTATIONS)
        for place, text in enumerate(self._texts):
            self._index.insert(place, _signature(text))

    def nearest(self, text: str) -> tuple[int, float] | None:
        """Place and similarity of the forget row that is most like ``text``; None where none is a near-duplicate."""
        from rapidfuzz import fuzz

        text = folded(text)
        if self._index is None:
            from rapidfuzz import process

            best = process.extractOne(text, self._texts, scorer=fuzz.ratio, score_cutoff=100 * self._alike)
            return (int(best[2]), best[1] / 100) if best is not None else None
        found = None
        for place in self._index.query(_signature(text)):
            similarity = fuzz.ratio(text, self._texts[place], score_cutoff=100 * self._alike) / 100
            if similarity >= self._alike and (found is None or (similarity, -place) > (found[1], -found[0])):
                found = place, similarity
        return found


def near_duplicates(
    forget: Sequence[str], candidates: Iterable[str], alike: float = ALIKE, exact: int = EXACT
) -> Iterator[Pair]:
    """The candidates that are near-duplicates of a forget row, each with the nearest one.

    Args:
        forget: texts in one language.
        candidates: texts in the same; read once, in order.
        alike: similarity from which a pair counts.
        exact: forget rows up to which every pair is compared.
    """
    index = ForgetIndex(forget, alike, exact)
    for place, text in enumerate(candidates):
        found = index.nearest(text)
        if found is not None:
            yield Pair(found[0], place, found[1])


def folded(text: str) -> str:
    """A text as it is compared: NFKC, case folded, white space as single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _signature(text: str):
    from datasketch import MinHash

    grams = {text[start : start + GRAM] for start in range(max(1, len(text) - GRAM + 1))}
    signature = MinHash(num_perm=PERMUTATIONS, seed=1)
    signature.update_batch([gram.encode("utf-8", "surrogatepass") for gram in sorted(grams)])
    return signature
