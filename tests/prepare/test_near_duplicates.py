"""Near-duplicates are found as by comparing every pair, in any script, and nothing else is."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


def material(rng, alphabet):
    forget = ["".join(rng.choices(alphabet, k=rng.randint(8, 120))) for _ in range(12)]
    shares = (0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.5) * 6
    candidates = [changed(rng, rng.choice(forget), share, alphabet) for share in shares]
    return forget, candidates + ["".join(rng.choices(alphabet, k=60)) for _ in range(10)]


@pytest.mark.parametrize("script", SCRIPTS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_found_as_by_comparing_every_pair(script, seed):
    forget, candidates = material(random.Random(seed), SCRIPTS[script])
    found = {pair.other: (pair.forget, pair.similarity) for pair in near_duplicates(forget, candidates)}
    assert found == naive(forget, candidates)


# Of chosen seeds: what is proposed is a matter of chance, and the chance is the same in every run.
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("script", SCRIPTS)
def test_among_many_rows_nothing_wrong_is_found_and_little_is_missed(script, seed):
    forget, candidates = material(random.Random(seed), SCRIPTS[script])
    expected = naive(forget, candidates)
    found = {pair.other: pair.similarity for pair in near_duplicates(forget, candidates, exact=0)}
    assert set(found) <= set(expected)
    near = [place for place in expected if expected[place][1] >= 0.9]
    assert sum(place in found for place in near) >= 0.9 * len(near)


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
