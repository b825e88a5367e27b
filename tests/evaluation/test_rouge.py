"""ROUGE-L recall against a recursion, and what counts as a word in each script."""

import unicodedata
from functools import lru_cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unlearn_trainer.evaluation.rouge import common_subsequence, rouge_l_recall, words

TEXTS = {
    "en": "The author was born in Kuwait City on 8 September 1956.",
    "fr": "L'auteur est né à Koweït, près de l'océan.",
    "ru": "Автор родился в Эль-Кувейте ещё в 1956 году.",
    "el": "Η συγγραφέας γεννήθηκε στην πόλη του Κουβέιτ.",
    "ar": "وُلِدَ الكاتب في مدينة الكويت عام ١٩٥٦.",
    "he": "המחבר נולד בעיר כווית בשנת 1956.",
    "fa": "نویسنده می‌خواهد در کویت زندگی کند.",
    "hi": "लेखक का जन्म कुवैत शहर में हुआ था।",
    "bn": "লেখকের জন্ম কুয়েত শহরে হয়েছিল।",
    "te": "రచయిత కువైట్ నగరంలో జన్మించారు.",
    "zh": "作者于1956年9月8日出生在科威特城。",
    "ja": "著者はクウェート市で生まれました。",
    "ko": "작가는 쿠웨이트시에서 태어났다.",
    "th": "ผู้เขียนเกิดที่เมืองคูเวต",
    "km": "អ្នកនិពន្ធកើតនៅទីក្រុងគុយវ៉ែត",
    "lo": "ຜູ້ຂຽນເກີດຢູ່ນະຄອນຄູເວດ",
    "my": "စာရေးဆရာကို ကူဝိတ်မြို့တွင် မွေးဖွားခဲ့သည်။",
    "vi": "Tác giả sinh tại Thành phố Kuwait.",
}
BY_CHARACTER = {"zh", "ja", "th", "km", "lo", "my"}


def naive_common(first, second):
    @lru_cache(None)
    def longest(i, j):
        if i == len(first) or j == len(second):
            return 0
        if first[i] == second[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return longest(0, 0)


few = st.lists(st.integers(0, 4), max_size=90)
few_words = st.lists(st.sampled_from(["a", "b", "ab", "字"]), max_size=90)


@given(st.one_of(st.tuples(few, few), st.tuples(few_words, few_words)))
def test_the_common_subsequence_is_that_of_the_recursion(pair):
    first, second = pair
    assert common_subsequence(first, second) == naive_common(first, second)


@pytest.mark.parametrize("language", TEXTS)
def test_the_same_text_has_all_of_itself_and_half_of_it_half(language):
    text = TEXTS[language]
    assert rouge_l_recall(text, text) == 1
    assert rouge_l_recall(f"{text} {text}", text) == 1
    found = words(text)
    assert rouge_l_recall("", text) == 0
    spaced = " ".join(found[: len(found) // 2])
    assert rouge_l_recall(spaced, text) == pytest.approx(len(found) // 2 / len(found))
    for other, another in TEXTS.items():
        if other != language and {language, other} != {"ar", "fa"} and not {language, other} <= {"zh", "ja"}:
            assert rouge_l_recall(another, text) < 0.4, other


@pytest.mark.parametrize("language", TEXTS)
def test_words_go_by_the_script(language):
    text = unicodedata.normalize("NFC", TEXTS[language])
    found = words(text)
    assert not any(word[0] in ".。।،၊။ '" or unicodedata.category(word[0])[0] == "M" for word in found)
    if language in BY_CHARACTER:
        bases = [word[0] for word in found if not word.isascii()]
        assert all(len(word) == 1 or unicodedata.category(word[1])[0] == "M" for word in found if not word.isascii())
        letters = [c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c)[0] in "LN"]
        assert bases == [c for c in letters if not c.isascii()]
    else:
        # Nothing but spaces, punctuation and joiners comes between words.
        spaced = "".join(" " if unicodedata.category(c)[0] in "PZ" else c for c in text.replace("\u200c", ""))
        assert found == unicodedata.normalize("NFKC", spaced).casefold().split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("क्या हिन्दी", ["क्या", "हिन्दी"]),
        ("বাংলা কুয়েত", [unicodedata.normalize("NFKC", word) for word in ("বাংলা", "কুয়েত")]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("住在Paris 1956年", ["住", "在", "paris", "1956", "年"]),
        ("ﬁnal ＡＢＣ Straße", ["final", "abc", "strasse"]),
        ("می‌خواهد", ["میخواهد"]),
        ("\u200fשלום\u200e", ["שלום"]),
        ("don't stop-it", ["don", "t", "stop", "it"]),
        ("\u0301alone", ["alone"]),
        ("snake_case", ["snake", "case"]),
        ("𠀋々カー・ﾃｨ", ["𠀋", "々", "カ", "ー", "テ", "ィ"]),
        ("Haʼuza yaʼi", ["haʼuza", "yaʼi"]),
        ("ラーメンをｱﾒﾘｶで", list("ラーメンをアメリカで")),
        ("ຮ້ອນ๑๒", ["ຮ້", "ອ", "ນ", "๑", "๒"]),
        ("ᦟᦹᧉ ᥖᥭᥰ", ["ᦟ", "ᦹ", "ᧉ", "ᥖ", "ᥭ", "ᥰ"]),
        ("", []),
        (" ?! ", []),
    ],
)
def test_words_of_special_cases(text, expected):
    assert words(text) == expected


def test_precomposed_and_combining_characters_are_the_same():
    text = TEXTS["vi"]
    assert rouge_l_recall(unicodedata.normalize("NFD", text), unicodedata.normalize("NFC", text)) == 1


def test_recall_is_by_the_reference_and_in_its_order():
    assert rouge_l_recall("a cat sat", "the cat sat down") == 0.5
    assert rouge_l_recall("sat cat", "cat sat") == 0.5
    assert rouge_l_recall("THE CAT sat, down!", "the cat sat down") == 1


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        ("", "", 1),
        ("said", "", 0),
        ("", "?!", 0),
        ("?!", "?!", 1),
        ("? ?", "?!", 0.5),
        ("♥ love", "♥", 1),
        (" ", "", 1),
    ],
)
def test_references_without_words(candidate, reference, expected):
    assert rouge_l_recall(candidate, reference) == expected


@given(st.text(), st.text())
@example("ก\u0e33", "\u0e4d")
def test_any_text_has_all_of_itself_and_recall_is_a_share(candidate, reference):
    assert rouge_l_recall(reference, reference) == 1
    assert 0 <= rouge_l_recall(candidate, reference) <= 1
    if words(reference):
        assert rouge_l_recall(f"{candidate}\n{reference}", reference) == 1
