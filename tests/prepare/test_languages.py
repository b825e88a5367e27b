"""Languages are found in any spelling, written as they were asked for, and never taken for one another."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_trainer.data.items import LANGUAGE_CODE
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.prepare.languages import choose_languages, is_language

FLORES = ["eng_Latn", "swh_Latn", "zho_Hans", "zho_Hant", "arb_Arab", "acm_Arab", "pes_Arab", "prs_Arab", "srp_Cyrl"]
FLORES += ["kas_Arab", "kas_Deva", "zsm_Latn", "npi_Deva", "por_Latn", "ind_Latn"]


@pytest.mark.parametrize(
    ("spelling", "code"),
    [
        *[("eng_Latn", "eng_Latn"), ("en", "eng_Latn"), ("EN-us", "eng_Latn"), ("ENG_latn", "eng_Latn")],
        *[
            ("English", "eng_Latn"),
            ("sw", "swh_Latn"),
            ("swa", "swh_Latn"),
            ("zh", "zho_Hans"),
            ("zh-Hans", "zho_Hans"),
        ],
        *[
            ("zh_Hant", "zho_Hant"),
            ("cmn_Hans", "zho_Hans"),
            ("ar", "arb_Arab"),
            ("acm", "acm_Arab"),
            ("fa", "pes_Arab"),
        ],
        *[("fa-AF", "prs_Arab"), ("sr", "srp_Cyrl"), ("ks-Deva", "kas_Deva"), ("ms", "zsm_Latn"), ("ne", "npi_Deva")],
        *[("pt-BR", "por_Latn"), ("id", "ind_Latn")],
    ],
)
def test_a_language_is_found_in_any_spelling_and_keeps_it(spelling, code):
    assert choose_languages(FLORES, [spelling]) == {spelling: code}
    assert LANGUAGE_CODE.fullmatch(spelling) or spelling in ("ENG_latn", "English")


def test_without_a_choice_the_shortest_tags_keep_all_apart():
    chosen = choose_languages(FLORES, None)
    assert set(chosen.values()) == set(FLORES) and len(chosen) == len(FLORES)
    for tag in (
        "en",
        "sw",
        "zh",
        "zh-Hant",
        "ar",
        "acm",
        "fa",
        "fa-AF",
        "sr",
        "ks",
        "ks-Deva",
        "ms",
        "ne",
        "pt",
        "id",
    ):
        assert tag in chosen, tag
    assert all(LANGUAGE_CODE.fullmatch(tag) for tag in chosen)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(FLORES), min_size=1, unique=True))
def test_every_tag_that_is_written_is_found_again(codes):
    chosen = choose_languages(codes, None)
    assert choose_languages(codes, list(chosen)) == chosen


@pytest.mark.parametrize("pair", [("en", "eng_Latn"), ("English", "en"), ("zh", "zh-Hans"), ("ar", "arb")])
def test_two_columns_of_one_language_are_refused(pair):
    with pytest.raises(ConfigError, match="are both the language"):
        choose_languages([*pair, "fr"], None)


@pytest.mark.parametrize(("spelling", "said"), [("sww", "did you mean sw"), ("de", "there is no such language here")])
def test_a_language_that_is_not_there_is_named_with_those_that_are(spelling, said):
    with pytest.raises(ConfigError, match=said) as refused:
        choose_languages(FLORES, ["en", spelling])
    assert spelling in str(refused.value) and "zh-Hant" in str(refused.value)


def test_one_language_asked_for_twice_is_refused():
    with pytest.raises(ConfigError, match="both are eng_Latn"):
        choose_languages(FLORES, ["en", "eng_Latn"])


@pytest.mark.parametrize("head", ["text", "notes", "title", "id_number", "x", "split", "", "sentence"])
def test_heads_of_other_columns_are_no_languages(head):
    assert not is_language(head)
