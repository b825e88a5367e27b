"""The audit's checks of knowledge on real subjects, against plain logits, loops and the definitions written out."""

import copy
import itertools
import json
import math
import re
import zlib
from fractions import Fraction
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from helpers.tiny import tiny_config, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from unlearn_trainer.audit.checks.knowledge import (
    consistencies,
    forget_quality,
    generation,
    harmonic_mean_of_means,
    probing,
    rank_consistency,
    truth_ratio,
    utility,
)
from unlearn_trainer.audit.checks.memorization import ROW_FIGURES, SCORES, memorization
from unlearn_trainer.audit.report.entries import MEANINGS
from unlearn_trainer.audit.subject import AuditData, Subject
from unlearn_trainer.config.arguments import ModelArguments
from unlearn_trainer.data import tokenize_splits
from unlearn_trainer.data.items import parse_line
from unlearn_trainer.evaluation.probing import CandidateScores

LANGUAGES, HELDOUT = ["en", "sw"], ["de"]
ALL = LANGUAGES + HELDOUT
CITIES = {
    "en": ["Paris", "Rome", "Oslo", "Cairo", "Lima"],
    "sw": ["Parisi", "Roma", "Oslo", "Kairo", "Limu"],
    "de": ["Pariser", "Rom", "Osloer", "Kairo", "Lima"],
}
ASKED = {"en": "The capital of {} is", "sw": "Mji mkuu wa {} ni", "de": "Hauptstadt von {} ist"}
COUNTRIES = ["Alda", "Bero", "Cimi", "Dosu", "Efra", "Fano", "Gila", "Hodo"]


def cloze(item, candidates=4):
    return {
        "prompt": {code: f"{ASKED[code].format(COUNTRIES[item])} <mask>, in full." for code in ALL},
        "answers": {code: [CITIES[code][item % candidates]] for code in ALL},
        "candidates": {code: CITIES[code][:candidates] for code in ALL},
    }


def qa(item, languages=ALL):
    wrong = {code: [c for c in CITIES[code][:4] if c != CITIES[code][item % 4]] for code in languages}
    return {
        "question": {code: f"{ASKED[code].format(COUNTRIES[item])} what?" for code in languages},
        "answer": {code: f"It is {CITIES[code][item % 4]} of {COUNTRIES[item]}" for code in languages},
        "paraphrased_answer": {code: f"{CITIES[code][item % 4]} no doubt" for code in languages},
        "perturbed_answer": {code: [f"{city} no doubt" for city in wrong[code]] for code in languages},
    }


def text(item):
    return {code: f"{COUNTRIES[item]} {' '.join(CITIES[code][: item + 1])} ({ASKED[code]})" for code in ALL}


@pytest.fixture(scope="module")
def subject_of(tmp_path_factory):
    """``subject_of({split: lines}, known=..., max_seq_length=...)``: a model taught the splits in ``known``."""

    def build(splits, known=("forget",), max_seq_length=120):
        lines = {split: [json.dumps(line) for line in found] for split, found in splits.items()}
        folder = tmp_path_factory.mktemp("subject")
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(itertools.chain(*lines.values()), 330, 1, False, ["<pad>", "</s>"])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="</s>")
        items = {split: [parse_line(line, split) for line in found] for split, found in lines.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
            data = tokenize_splits(items, tokenizer, LANGUAGES, HELDOUT, max_seq_length)
        model = teach(tiny_model(vocab_size=330, max_position_embeddings=256), [data.datasets[s] for s in known])
        model.save_pretrained(folder / "model")
        shared = AuditData(tokenizer, data, items, max_seq_length, tiny_config(folder / "out"))
        return Subject("after", ModelArguments(str(folder / "model"), dtype="float32"), shared, {})

    return build


def teach(model, known, steps=40):
    """A few steps on the first of every three rows, so that something is known and something is not."""
    rows = [row for dataset in known for row in dataset.to_list()[::3]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps if rows else 0):
        width = max(len(row["input_ids"]) for row in rows)
        ids, labels = (
            torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows])
            for name, fill in (("input_ids", 0), ("labels", -100))
        )
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


# ---- the independent computation -----------------------------------------------------------------------------------


def mean(values):
    values = list(values)
    return sum(values) / len(values)


@torch.no_grad()
def token_nll(model, ids):
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    return [-float(logits[t - 1].log_softmax(-1)[ids[t]]) for t in range(1, len(ids))]


def answer_nll(model, ids, labels):
    return mean(x for x, label in zip(token_nll(model, ids), labels[1:], strict=True) if label != -100)


def candidate_losses(model, row, of_answer):
    pairs = zip(row["candidate_input_ids"], row["candidate_labels"], strict=True)
    # Of a sentence the paper leaves out the last token.
    return [answer_nll(model, *pair) if of_answer else mean(token_nll(model, pair[0])[:-1]) for pair in pairs]


def place(losses, right):
    return sorted(range(len(losses)), key=losses.__getitem__).index(right)


@torch.no_grad()
def spoken(model, ids, length):
    for _ in range(length):
        ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-length:]


def longest_common(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def naive_words(subject, ids):
    return re.findall(r"[^\W_]+", subject.tokenizer.decode(ids, skip_special_tokens=True).lower())


def naive_recall(subject, model, row):
    """ROUGE-L recall and exactness of a text's second half, or of what is labelled."""
    labelled = [at for at, label in enumerate(row["labels"]) if label != -100]
    begin = len(row["labels"]) // 2 if len(labelled) == len(row["labels"]) else labelled[0]
    right = [row["input_ids"][at] for at in labelled if at >= begin]
    said = spoken(model, row["input_ids"][:begin], len(right))
    if 1 in said:
        said = said[: said.index(1)]
    said, right = naive_words(subject, said), naive_words(subject, right)
    return longest_common(said, right) / len(right), float(said == right)


def rows_of(subject, split, language):
    return [row for row in subject.datasets[split].to_list() if row["language"] == subject.languages.index(language)]


def as_pairs(figure):
    return dict(zip(figure["items"], figure["values"], strict=True))


# ---- probing and RankC ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facts(subject_of):
    return subject_of({"forget": [cloze(item) for item in range(5)] + [cloze(5, 1)]})


def test_probing_equals_plain_logits_and_loops(facts):
    found, model = probing(facts).as_json(), facts.load()
    assert list(found["rows"]["probing_accuracy"]) == ALL
    ranks = []
    for language in ALL:
        rows = rows_of(facts, "forget", language)
        by_sentence, by_answer = (
            {r["item"]: place(candidate_losses(model, r, how), r["candidate_correct"].index(True)) for r in rows}
            for how in (False, True)
        )
        figures = {name: as_pairs(by_language[language]) for name, by_language in found["rows"].items()}
        assert figures["probing_accuracy"] == {item: float(p == 0) for item, p in by_sentence.items()}
        assert figures["probing_accuracy_answer_tokens"] == {item: float(p == 0) for item, p in by_answer.items()}
        assert figures["mean_reciprocal_rank"] == pytest.approx({i: 1 / (1 + p) for i, p in by_sentence.items()})
        ranks += by_sentence.values()
    assert len(set(ranks)) > 2


def naive_rank_consistency(first, second):
    """Equation 2 of the paper, as it stands there."""
    size = len(first)
    total = 0
    for j in range(1, size + 1):
        weight = math.exp(size - j) / sum(math.exp(size - k) for k in range(1, size + 1))
        total += weight * len(set(first[:j]) & set(second[:j])) / j
    return total


def test_rank_consistency_equals_plain_logits_and_loops(facts):
    found, model = probing(facts).as_json(), facts.load()
    order = {
        (row["item"], code): sorted(range(4), key=candidate_losses(model, row, False).__getitem__)
        for code in ALL
        for row in rows_of(facts, "forget", code)
        if len(row["candidate_correct"]) == 4
    }
    between = {
        pair: [naive_rank_consistency(order[item, pair[0]], order[item, pair[1]]) for item in range(5)]
        for pair in itertools.permutations(ALL, 2)
    }
    matrix, (values,) = found["matrix"], found["matrix"]["values"].values()
    assert matrix["rows"] == matrix["columns"] == ALL and list(matrix["values"]) == ["after"]
    for i, j in itertools.product(range(3), repeat=2):
        expected = None if i == j else pytest.approx(mean(between[ALL[i], ALL[j]]))
        assert values[i][j] == expected
    assert len({value for row in values for value in row}) == 4
    for code in ALL:
        others = [other for other in ALL if other != code]
        expected = {item: mean(between[code, other][item] for other in others) for item in range(5)}
        assert as_pairs(found["rows"]["rank_consistency"][code]) == pytest.approx(expected)
    # The mean of RankC over all pairs of orders.
    orders = list(itertools.permutations(range(4)))
    chance = mean(naive_rank_consistency(a, b) for a in orders for b in orders)
    assert f"would have {chance:.2f}." in found["notes"][0]


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(*[st.permutations(range(n))] * 2)))
def test_rank_consistency_matches_its_definition(orders):
    assert rank_consistency(*orders) == pytest.approx(naive_rank_consistency(*orders))
    assert rank_consistency(orders[0], orders[0]) == pytest.approx(1)


@pytest.mark.parametrize("orders", [([0, 1], [0, 2]), ([0, 1], [0]), ([], [])])
def test_orders_of_other_candidates_have_no_consistency(orders):
    with pytest.raises(ValueError, match="do not order the same candidates"):
        rank_consistency(*orders)


def scores(item, language, correct, losses):
    return CandidateScores(language, item, tuple(correct), tuple(losses), tuple(losses), 1.0, 1)


def test_only_rows_with_the_same_candidates_are_compared():
    rows = [
        scores(0, 0, [True, False], [1.0, 2.0]),
        scores(0, 1, [True, False], [3.0, 2.0]),
        scores(0, 2, [False, True], [1.0, 2.0]),
        scores(0, 3, [True, False, False], [1.0, 2.0, 3.0]),
        scores(1, 0, [True, False], [1.0, 2.0]),
    ]
    top = math.e / (1 + math.e)
    assert consistencies(rows) == pytest.approx({(0, 0, 1): 1 - top, (0, 1, 0): 1 - top})


def test_rows_that_lost_a_candidate_to_truncation_have_no_part_in_the_consistency(subject_of):
    """Here two languages lose one each, but another one: equally many are left, in other places."""
    subject = subject_of({"forget": [cloze(item) for item in range(2)]})
    assert as_pairs(probing(subject).as_json()["rows"]["rank_consistency"]["en"]).keys() == {0, 1}
    rows = subject.datasets["forget"].to_list()
    for row in rows:
        lost = {"sw": 2, "de": 3}.get(ALL[row["language"]])
        if row["item"] == 1 and lost:
            for name in ("candidate_input_ids", "candidate_labels", "candidate_correct"):
                del row[name][lost]
    subject.datasets = {"forget": datasets.Dataset.from_list(rows)}
    found = probing(subject).as_json()["rows"]
    for code in ALL:
        assert as_pairs(found["rank_consistency"][code]).keys() == {0}
        assert as_pairs(found["probing_accuracy"][code]).keys() == {0, 1}


def test_texts_have_nothing_to_probe(subject_of):
    subject = subject_of({"forget": [text(item) for item in range(2)]}, known=())
    assert probing(subject).as_json() == {"notes": ["no forget row has candidates"]}
    assert truth_ratio(subject).as_json() == {"notes": ["no forget row has a wrong answer to compare with"]}
    assert utility(subject).as_json() == {"notes": ["there is neither a retain nor a valid or test split"]}


# ---- truth ratio and forget quality --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def questions(subject_of):
    splits = {
        "forget": [qa(item) for item in range(4)],
        "retain": [qa(item, ["en", "de"]) for item in range(4, 6)] + [text(0)],
        "valid": [text(item) for item in range(1, 4)],
    }
    return subject_of(splits, known=("forget", "retain"))


def naive_ratio(model, row):
    right, *wrong = (math.exp(-loss) for loss in candidate_losses(model, row, True))
    return mean(wrong) / right


def test_the_truth_ratio_equals_plain_logits_and_loops(questions):
    found, model = truth_ratio(questions).as_json(), questions.load()
    ratios = []
    for language in ALL:
        expected = {row["item"]: naive_ratio(model, row) for row in rows_of(questions, "forget", language)}
        assert found["ratios"][language] == pytest.approx([math.log(r) for r in expected.values()], abs=1e-4)
        closeness = {item: min(ratio, 1 / ratio) for item, ratio in expected.items()}
        assert as_pairs(found["rows"]["truth_ratio"][language]) == pytest.approx(closeness, rel=1e-4)
        ratios += expected.values()
    assert min(ratios) < 1 < max(ratios)


samples = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=6)


@pytest.mark.filterwarnings("error")
@settings(deadline=None)
@given(samples, samples)
def test_forget_quality_equals_the_count_of_all_orders(first, second):
    m, n = len(first), len(second)
    points = sorted({*first, *second})
    distance = max(abs(sum(x <= p for x in first) / m - sum(x <= p for x in second) / n) for p in points)
    reached = total = 0
    for chosen in itertools.combinations(range(m + n), m):
        i = j = 0
        largest = 0.0
        for step in range(m + n):
            i, j = (i + 1, j) if step in chosen else (i, j + 1)
            largest = max(largest, abs(i / m - j / n))
        total += 1
        reached += largest >= distance - 1e-9
    found = forget_quality(first, second)
    assert found == pytest.approx({"statistic": distance, "p_value": reached / total, "n": min(m, n)})


def exact_chance(m, n, distance):
    """Chance that |i n - j m| reaches ``distance`` on the way from (0, 0) to (m, n), counted in whole numbers."""
    inside = [0] * (n + 1)
    for i in range(m + 1):
        for j in range(n + 1):
            reached = abs(i * n - j * m) >= distance
            ways = 1 if i == j == 0 else (inside[j] if i else 0) + (inside[j - 1] if j else 0)
            inside[j] = 0 if reached else ways
    every = math.comb(m + n, m)
    return Fraction(every - inside[n], every)


@pytest.mark.parametrize(
    ("m", "n", "shift"), [(40, 40, 0.0), (40, 40, 0.7), (400, 400, 2.0), (100, 37, 0.5), (60, 59, 9)]
)
def test_forget_quality_of_many_rows_is_exact_however_small(m, n, shift):
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=m) + shift, generator.normal(size=n)
    distance = max(abs(int((first <= x).sum()) * n - int((second <= x).sum()) * m) for x in [*first, *second])
    found, expected = forget_quality(first, second), exact_chance(m, n, distance)
    assert found["statistic"] == pytest.approx(distance / (m * n), rel=1e-12)
    assert found["p_value"] == pytest.approx(float(expected), rel=1e-9)


def test_forget_quality_of_ratios_without_a_common_value_and_of_infinite_ones():
    assert forget_quality([1.0] * 400, [0.0] * 400)["p_value"] == pytest.approx(2 / math.comb(800, 400), rel=1e-9)
    turns = forget_quality(range(0, 14, 2), range(1, 15, 2))  # one after the other: no two samples are nearer
    assert turns == {"statistic": pytest.approx(1 / 7), "p_value": 1, "n": 7}
    mixed = [-math.inf, 0.0, math.inf]
    assert forget_quality(mixed, mixed) == {"statistic": 0, "p_value": 1, "n": 3}
    assert forget_quality([math.inf] * 3, [-math.inf] * 3)["p_value"] == pytest.approx(2 / math.comb(6, 3))


@pytest.mark.parametrize(("first", "second"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0])])
def test_there_is_no_forget_quality_without_numbers(first, second):
    with pytest.raises(ValueError, match="no test between"):
        forget_quality(first, second)


# ---- generation and utility ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cloze", "qa"])
def test_generation_equals_an_argmax_loop(kind, facts, questions):
    subject = facts if kind == "cloze" else questions
    found, model = generation(subject).as_json()["rows"], subject.load()
    recalls = []
    for language in ALL:
        expected = {row["item"]: naive_recall(subject, model, row) for row in rows_of(subject, "forget", language)}
        for name, index in (("rouge_l", 0), ("exact_match", 1)):
            values = {item: pair[index] for item, pair in expected.items()}
            assert as_pairs(found[name][language]) == pytest.approx(values)
        recalls += [recall for recall, _ in expected.values()]
    assert min(recalls) < 1 == max(recalls)


def naive_utility(subject, model, language, splits):
    means = []
    for split in splits:
        rows = rows_of(subject, split, language)
        if not rows:
            continue
        means.append(mean(math.exp(-answer_nll(model, row["input_ids"], row["labels"])) for row in rows))
        means.append(mean(naive_recall(subject, model, row)[0] for row in rows))
        ratios = [naive_ratio(model, row) for row in rows if row["candidate_input_ids"]]
        if ratios:
            means.append(mean(max(0.0, 1 - ratio) for ratio in ratios))
    return 0.0 if 0.0 in means else len(means) / sum(1 / value for value in means)


def test_utility_equals_plain_logits_and_loops(questions):
    result, model = utility(questions).as_json(), questions.load()
    found = result["figures"]
    assert list(found) == ["model_utility", "retain/model_utility", "valid/model_utility"]
    assert found["model_utility"] == found["retain/model_utility"] and "is of retain rows alone" in result["notes"][0]
    for name, splits in zip(found, (["retain"], ["retain"], ["valid"]), strict=True):
        assert list(found[name]) == ALL
        for language, figure in found[name].items():
            expected = naive_utility(questions, model, language, splits)
            assert figure["value"] == pytest.approx(expected, rel=1e-4), (name, language)
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["n"] == min(len(rows_of(questions, split, language)) for split in splits)
    assert len({figure["value"] for by_language in found.values() for figure in by_language.values()} - {0.0}) > 3


def test_without_retain_rows_the_utility_is_over_all_splits_there_are(questions):
    rows, bare = questions.datasets, copy.copy(questions)
    bare.datasets = {"forget": rows["forget"], "valid": rows["valid"], "test": rows["retain"]}
    result, model = utility(bare).as_json(), questions.load()
    assert list(result["figures"]) == ["model_utility", "valid/model_utility", "test/model_utility"]
    assert "is of valid and test rows." in result["notes"][0]
    for language, figure in result["figures"]["model_utility"].items():
        assert figure["value"] == pytest.approx(naive_utility(bare, model, language, ["valid", "test"]), rel=1e-4)


def test_a_language_without_retain_rows_has_no_utility_but_that_of_other_splits(questions):
    bare = copy.copy(questions)
    bare.datasets = questions.datasets | {"retain": questions.datasets["retain"].filter(lambda row: row["item"] < 2)}
    found = utility(bare).as_json()["figures"]
    assert [sorted(figures) for figures in found.values()] == [["de", "en"], ["de", "en"], sorted(ALL)]


def test_utility_takes_evenly_spaced_items_of_a_large_split(questions, monkeypatch):
    monkeypatch.setattr("unlearn_trainer.audit.checks.knowledge.UTILITY_ITEMS", 2)
    found = utility(questions).as_json()["figures"]["valid/model_utility"]
    assert [figure["n"] for figure in found.values()] == [2, 2, 2]
    chosen = SimpleNamespace(languages=questions.languages, tokenizer=questions.tokenizer)
    chosen.datasets = {"valid": questions.datasets["valid"].filter(lambda row: row["item"] != 1)}
    model = questions.load()
    for language in ALL:
        expected = naive_utility(chosen, model, language, ["valid"])
        assert found[language]["value"] == pytest.approx(expected, rel=1e-4)


def test_utility_takes_items_of_every_language_where_each_has_items_of_its_own(subject_of, monkeypatch):
    flat = [{"text": text(item)[code], "language": code} for item in range(1, 4) for code in ALL]
    subject = subject_of({"forget": [text(0)], "retain": flat}, known=("retain",))
    monkeypatch.setattr("unlearn_trainer.audit.checks.knowledge.UTILITY_ITEMS", 2)
    found = utility(subject).as_json()["figures"]["model_utility"]
    chosen, model = copy.copy(subject), subject.load()
    # The first and the last of the three that a language has.
    chosen.datasets = {"retain": subject.datasets["retain"].filter(lambda row: row["item"] // 3 != 1)}
    for language in ALL:
        assert found[language]["n"] == 2
        expected = naive_utility(chosen, model, language, ["retain"])
        assert found[language]["value"] == pytest.approx(expected, rel=1e-4)


def test_the_harmonic_mean_of_means_leaves_missing_values_out():
    first = np.array([[[0.5, math.nan], [0.25, 0.2]], [[1.0, 0.5], [1.0, 0.3]]])
    second = np.array([[[0.1]], [[0.0]]])
    expected = 3 / (1 / 0.375 + 1 / 0.2 + 1 / 0.1)
    assert harmonic_mean_of_means(first, second) == pytest.approx([expected, 0.0])


# ---- memorization ---------------------------------------------------------------------------------------------------


@pytest.fixture
def passages(subject_of):
    return subject_of({"forget": [text(item) for item in range(4)], "valid": [text(item) for item in range(4, 8)]})


def test_memorization_equals_plain_logits_and_loops(passages):
    """The tokenizer puts nothing before a text: its first token is labelled, but nothing predicts it."""
    found, model = memorization(passages).as_json(), passages.load()
    assert found["notes"] == []
    for language in ALL:
        scores = {"auc_zlib": {}, "auc_zlib_mean": {}}
        for split in ("forget", "valid"):
            rows = rows_of(passages, split, language)
            assert all(row["labels"][0] >= 0 for row in rows)
            losses = [token_nll(model, row["input_ids"]) for row in rows]
            spelled = [passages.tokenizer.decode(row["input_ids"][1:]) for row in rows]
            if split == "forget":
                tokens = sum(map(len, losses))
                figures = {name: by_language[language]["value"] for name, by_language in found["figures"].items()}
                assert figures["perplexity"] == pytest.approx(math.exp(sum(map(sum, losses)) / tokens), rel=1e-4)
                expected = sum(map(sum, losses)) / sum(map(len, spelled))
                assert figures["nll_per_character"] == pytest.approx(expected, rel=1e-4)
                # A row counts by its mean, however long it is.
                values = found["rows"]["loss"][language]["values"]
                assert values == pytest.approx([mean(each) for each in losses], rel=1e-4)
            sizes = [len(zlib.compress(each.encode())) for each in spelled]
            for name, over in (("auc_zlib", sum), ("auc_zlib_mean", mean)):
                scores[name][split] = [-over(each) / size for each, size in zip(losses, sizes, strict=True)]
        for name, by_split in scores.items():
            pairs = itertools.product(by_split["forget"], by_split["valid"])
            assert figures[name] == pytest.approx(mean((a > b) + 0.5 * (a == b) for a, b in pairs))
    assert all(MEANINGS[name].startswith("mean over rows of ") for name in ROW_FIGURES)


def test_scores_that_are_no_numbers_tell_no_members(passages):
    tokens = {code: {i for row in rows_of(passages, "forget", code) for i in row["input_ids"]} for code in ALL}
    of_german_alone = min(tokens["de"] - tokens["en"] - tokens["sw"])
    model = passages.load()
    with torch.no_grad():
        model.get_input_embeddings().weight[of_german_alone] = math.nan
    model.save_pretrained(passages.model_args.model_name_or_path)
    found = memorization(passages).as_json()
    for score in SCORES:
        assert list(found["figures"][f"auc_{score}"]) == ["en", "sw"]
        assert f"auc_{score} was left out in 1 language: the score of a row is not a number." in found["notes"]
