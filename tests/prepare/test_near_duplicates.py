"""Near-duplicates are found as by comparing every pair, in any script, and nothing else is."""

import random

import pytest
from rapidfuzz import fuzz

from unlearn_trainer.prepare.near_duplicates import ALIKE, folded, near_duplicates

SCRIPTS = {
    "latin": "abcdefghijklmnop qrstuv",
    "chinese": "".join(chr(0x4E00 + 7 * n) for n in range(200)),
    "arabic": "".join(chr(0x0627 + n) for n in range(25)) + " ",
    "thai": "".join(chr(0x0E01 + n) for n in range(40)),
}


def naive(forget, candidates):
    """Every pair by rapidfuzz."""
    found = {}
    for place, text in enumerate(candidates):
        similarity, row = max(
            (fuzz.ratio(folded(text), folded(own)) / 100, -number) for number, own in enumerate(forget)
        )
        if similarity >= ALIKE:
            found[place] = (-row, similarity)
    return found


def changed(rng, text, share, alphabet):
    letters = list(text)
    for place in rng.sample(range(len(letters)), int(share * len(letters))):
        letters[place] = rng.choice(alphabet)
    return "".join(letters)


# Of chosen seeds: what is proposed is a matter of chance, and the chance is the same in every run.
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("script", SCRIPTS)
def test_found_as_by_comparing_every_pair(script, seed):
    rng, alphabet = random.Random(seed), SCRIPTS[script]
    forget = ["".join(rng.choices(alphabet, k=rng.randint(30, 120))) for _ in range(12)]
    candidates = [
        changed(rng, rng.choice(forget), share, alphabet) for share in (0, 0.02, 0.05, 0.5) for _ in range(6)
    ]
    candidates += ["".join(rng.choices(alphabet, k=60)) for _ in range(10)]
    expected = naive(forget, candidates)
    found = {pair.other: (pair.forget, pair.similarity) for pair in near_duplicates(forget, candidates)}
    assert set(found) <= set(expected)
    near = [place for place in expected if expected[place][1] >= 0.95]  # of these none may be missed
    assert all(place in found and found[place][0] == expected[place][0] for place in near)
    assert len(found) >= 0.8 * len(expected)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ｔｈｅ ｈｏｕｓｅ ｉｓ ｏｌｄ.", "the house is old."),
        ("Straße und  Haus am See", "STRASSE UND HAUS AM SEE"),
        ("é" * 9, "e\u0301" * 9),
    ],
)
def test_what_looks_the_same_is_the_same(one, other):
    ((pair),) = near_duplicates([one], [other])
    assert pair.similarity == 1.0


def test_short_texts_and_empty_ones_are_taken_as_they_are():
    assert [pair.other for pair in near_duplicates(["ab", "x"], ["AB", "y", "", "ab"])] == [0, 3]
    assert list(near_duplicates([], ["a"])) == []
