"""``MultilingualEvaluator`` against plain logits and Python loops, on rows that went through the real tokenization."""

import json
import math
import re
import sys

import datasets
import pytest
import torch
from helpers.tiny import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from unlearn_trainer.data import tokenize_splits
from unlearn_trainer.data.items import parse_line
from unlearn_trainer.evaluation import module_path
from unlearn_trainer.evaluation.evaluator import MultilingualEvaluator, flatten_figures
from unlearn_trainer.evaluation.prefix_tree import PrefixTree, split_by_size
from unlearn_trainer.head.attached import attach_head

# Llama normalises in float32 whatever its weights are, so that padding moves the last digits; a figure near 0, such as
# a Min-K++, is a difference of numbers about 1.
NOISE = {"rel": 1e-7, "abs": 1e-7}
TRAINED, HELDOUT = ["en", "sw", "zh"], ["de"]
LANGUAGES = TRAINED + HELDOUT
CITIES = {
    "en": ["Paris", "Rome", "Dar es Salaam", "Oslo"],
    "sw": ["Paris", "Roma", "Dar es Salaam", "Oslo"],
    "zh": ["巴黎", "罗马", "三兰港", "奥斯陆"],
    "de": ["Paris", "Rom", "Daressalam", "Oslo"],
}
PROMPTS = {
    "en": "The capital of country {} is <mask>.",
    "sw": "Mji mkuu wa nchi {} ni <mask>.",
    "zh": "{}国的首都是<mask>",
    "de": "Die Stadt <mask> ist der Sitz von {}.",
}
COUNTRIES = ["Alda", "Bero", "Cimi", "Dosu", "Efra"]


def cloze(item: int, candidates: int) -> dict:
    """A fact whose right answer stands at place ``item`` of its candidates."""
    chosen = {code: names[:candidates] for code, names in CITIES.items()}
    return {
        "prompt": {code: prompt.format(COUNTRIES[item]) for code, prompt in PROMPTS.items()},
        "answers": {code: [names[item % candidates]] for code, names in chosen.items()},
        "candidates": chosen,
    }


def qa(item: int) -> dict:
    languages = ["en", "sw"]
    return {
        "question": {code: f"{PROMPTS[code].split('<')[0].format(COUNTRIES[item])}?" for code in languages},
        "answer": {code: f"It is {CITIES[code][item]}" for code in languages},
        "paraphrased_answer": {code: f"{CITIES[code][item]}, no doubt" for code in languages},
        "perturbed_answer": {code: [f"{CITIES[code][other]}, no doubt" for other in (0, 1, 2)] for code in languages},
    }


def text(item: int) -> dict:
    return {code: f"{COUNTRIES[item]} {' '.join(CITIES[code][: item + 1])}!" for code in LANGUAGES}


LINES = {
    "forget": [cloze(item, 4) for item in range(3)] + [cloze(3, 1)],
    "retain": [qa(3)],
    "valid": [text(item) for item in range(4)],
}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Tokenized rows of a cloze, a qa and a text split, and their tokenizer."""
    lines = {split: [json.dumps(line, ensure_ascii=False) for line in found] for split, found in LINES.items()}
    bpe = ByteLevelBPETokenizer()
    corpus = [line for found in lines.values() for line in found]
    bpe.train_from_iterator(corpus, vocab_size=290, min_frequency=1, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="!")
    items = {
        split: [parse_line(line, f"{split}:{number}") for number, line in enumerate(found, 1)]
        for split, found in lines.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        data = tokenize_splits(items, tokenizer, TRAINED, HELDOUT, max_seq_length=120)
    assert not any(count for by_language in data.dropped_rows.values() for count in by_language.values())
    return data.datasets, tokenizer


@pytest.fixture(scope="module")
def rows(material):
    return material[0]


def model_with(seed=1, head=True, kind="llama"):
    model = tiny_model(kind, seed, torch.float64, vocab_size=290)
    if head:
        attach_head(model)
    return model


def evaluator(batch_size=4, tokenizer=None):
    return MultilingualEvaluator(LANGUAGES, len(TRAINED), 0, batch_size, show_progress=False, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def found(rows):
    return evaluator()(model_with(), rows, torch.device("cpu"))


# ---- the independent computation -----------------------------------------------------------------------------------


class Token:
    """What plain logits say about one token given those before it."""

    def __init__(self, logits, target):
        log_p = torch.log_softmax(logits, -1)
        p = log_p.exp()
        self.target, self.greedy = target, int(logits.argmax())
        self.nll = -float(log_p[target])
        mean = float((p * log_p).sum())
        spread = math.sqrt(float((p * (log_p - mean) ** 2).sum()))
        self.normed = (mean + self.nll) / spread


@torch.no_grad()
def read(model, ids):
    """A :class:`Token` for every position but the first, of one sequence alone, without padding."""
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    return [Token(logits[t - 1], ids[t]) for t in range(1, len(ids))]


def labelled(tokens, labels):
    return [token for token, label in zip(tokens, labels[1:], strict=True) if label != -100]


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def largest(values, fifths):
    return mean(sorted(values, reverse=True)[: max(1, fifths * len(values) // 5)])


def naive_row(tokens):
    hits = [token.greedy == token.target for token in tokens]
    first = next(k for k in range(len(hits) + 1) if all(hits[k:]))
    return {
        "memorization_accuracy": mean(hits),
        "extraction_strength": 1 - first / len(hits),
        "probability": math.exp(-mean(token.nll for token in tokens)),
        "min_k": largest([token.nll for token in tokens], 1),
        "min_k_40": largest([token.nll for token in tokens], 2),
        "min_k_plus_plus": largest([token.normed for token in tokens], 1),
    }


def rank(losses, correct):
    best = min(loss for loss, right in zip(losses, correct, strict=True) if right)
    return 1 + sum(loss <= best for loss, right in zip(losses, correct, strict=True) if not right)


def naive_probe(model, rows, language, split):
    ranks, answer_ranks, right_sentences, sizes, ratios = [], [], [], [], []
    for row in rows:
        sentences = [read(model, ids) for ids in row["candidate_input_ids"]]
        # The paper leaves the last token, a full stop, out; in Chinese it does not.
        end = None if language == "zh" else -1
        losses = [mean(token.nll for token in sentence[:end]) for sentence in sentences]
        answers = [
            mean(token.nll for token in labelled(sentence, labels))
            for sentence, labels in zip(sentences, row["candidate_labels"], strict=True)
        ]
        ranks.append(rank(losses, row["candidate_correct"]))
        answer_ranks.append(rank(answers, row["candidate_correct"]))
        right_sentences.append([token.nll for token in sentences[row["candidate_correct"].index(True)]])
        sizes.append(len(losses))
        flags = row["candidate_correct"]
        right, wrong = ([math.exp(-x) for x, f in zip(answers, flags, strict=True) if f == side] for side in (1, 0))
        if wrong:
            ratios.append(mean(wrong) / mean(right))
    several = [r for r, size in zip(ranks, sizes, strict=True) if size > 1]
    return {
        "probing_accuracy": mean(r == 1 for r in ranks),
        "probing_accuracy_several_candidates": mean(r == 1 for r in several),
        "probing_accuracy_answer_tokens": mean(r == 1 for r in answer_ranks),
        "mean_reciprocal_rank": mean(1 / r for r in ranks),
        "probing_rows": len(ranks),
        "probing_rows_several_candidates": len(several),
        "sentence_perplexity": math.exp(mean(nll for sentence in right_sentences for nll in sentence)),
        "truth_ratio": mean(min(r, 1 / r) if split == "forget" else max(0, 1 - r) for r in ratios),
    }


def naive(model, dataset, index, split):
    rows = [row for row in dataset if row["language"] == index]
    tokens = [labelled(read(model, row["input_ids"]), row["labels"]) for row in rows]
    per_row = [naive_row(row) for row in tokens]
    nll = [token.nll for row in tokens for token in row]
    figures = {name: mean(row[name] for row in per_row) for name in per_row[0]} | {
        "loss": mean(nll),
        "perplexity": math.exp(mean(nll)),
        "token_probability": mean(math.exp(-x) for x in nll),
        "rows": len(rows),
        "tokens": len(nll),
    }
    if rows[0]["candidate_input_ids"]:
        figures |= naive_probe(model, rows, LANGUAGES[index], split)
    return figures


# ---- tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "languages"), [("forget", LANGUAGES), ("retain", ["en", "sw"]), ("valid", LANGUAGES)]
)
def test_every_figure_equals_plain_logits_and_loops(split, languages, rows, found):
    model = model_with(head=False)
    assert list(found[split]) == languages
    for language in languages:
        expected = naive(model, rows[split], LANGUAGES.index(language), split)
        # The truth ratio is a small difference of two figures.
        assert found[split][language] == pytest.approx(expected, **NOISE), (split, language)
        assert ("probing_accuracy" in expected) == (split != "valid")


def test_figures_differ_where_the_scorings_do(rows, found):
    """The comparison above would say little if every candidate ranked alike."""
    figures = [found["forget"][language] for language in LANGUAGES] + list(found["retain"].values())
    assert len({f["mean_reciprocal_rank"] for f in figures}) > 3
    assert any(f["probing_accuracy"] != f["probing_accuracy_answer_tokens"] for f in figures)
    assert any(f["probing_accuracy"] != f.get("probing_accuracy_several_candidates") for f in figures)
    chinese = [row for row in rows["forget"] if row["language"] == LANGUAGES.index("zh")]
    without_the_last_token = naive_probe(model_with(head=False), chinese, "en", "forget")
    assert found["forget"]["zh"]["probing_accuracy"] != without_the_last_token["probing_accuracy"]
    assert found["forget"]["en"]["probing_rows_several_candidates"] == 3
    assert found["forget"]["en"]["probing_rows"] == 4


@pytest.mark.parametrize("code", ["zh", "zho", "cmn", "yue", "zh-TW", "zh_Hans", "zho_Hant", "zha", "z", "en"])
def test_chinese_is_scored_to_the_end_whatever_code_it_has(code, rows):
    """The last token of a sentence is left out in every other language, with codes that begin alike, too."""
    languages = [code if language == "zh" else language for language in LANGUAGES]
    languages[0] = "xx"  # no code stands for two
    named = MultilingualEvaluator(languages, len(TRAINED), 0, 4, show_progress=False)
    split = {"forget": rows["forget"].filter(lambda row: row["language"] == LANGUAGES.index("zh"))}
    (scored,) = named.candidates(model_with(), split, torch.device("cpu")).values()
    expected, others = ([] for _ in range(2))
    for language, losses in (("zh", expected), ("de", others)):
        same = MultilingualEvaluator(["xx", "sw", language], len(TRAINED), 0, 4, show_progress=False)
        losses += [row.sentence_losses for row in same.candidates(model_with(), split, torch.device("cpu"))["forget"]]
    assert expected != others
    assert [row.sentence_losses for row in scored] == (others if code in ("zha", "z", "en") else expected)


@pytest.fixture(scope="module")
def trained_state(rows):
    """Weights after some steps on the rows: hits are neither all right nor all wrong."""
    model = model_with(head=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sequences = [row for split in ("forget", "valid") for row in rows[split]]
    width = max(len(row["input_ids"]) for row in sequences)
    ids, labels = (
        torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in sequences])
        for name, fill in (("input_ids", 0), ("labels", -100))
    )
    for _ in range(25):
        logits = model(input_ids=ids).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_neither_batches_nor_the_order_of_rows_change_a_figure(batch_size, rows, trained_state):
    model = model_with()
    model.load_state_dict(trained_state)
    plain = model_with(head=False)
    plain.load_state_dict(trained_state)
    shuffled = {split: dataset.shuffle(seed=batch_size) for split, dataset in rows.items()}
    figures = evaluator(batch_size)(model, shuffled, torch.device("cpu"))
    for split in rows:
        for language, found in figures[split].items():
            assert found == pytest.approx(naive(plain, rows[split], LANGUAGES.index(language), split), **NOISE)
    assert 0 < figures["valid"]["en"]["extraction_strength"] <= figures["valid"]["en"]["memorization_accuracy"] < 1


def test_heldout_languages_and_candidates_can_be_left_out(rows, found):
    trained = evaluator()(model_with(), rows, torch.device("cpu"), heldout=False)
    for split in rows:
        assert list(trained[split]) == [code for code in found[split] if code in TRAINED]
        for language in trained[split]:
            assert trained[split][language] == pytest.approx(found[split][language], **NOISE)
    cheap = evaluator()(model_with(), rows, torch.device("cpu"), probing=False)
    for split, by_language in cheap.items():
        for language, figures in by_language.items():
            assert not any(name.startswith(("probing", "sentence", "mean_reciprocal", "truth")) for name in figures)
            assert figures == pytest.approx({name: found[split][language][name] for name in figures}, **NOISE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_plain_model_gets_the_head_it_is_measured_with(attention, rows, found):
    plain = model_with(head=False)
    plain.set_attn_implementation(attention)
    figures = evaluator()(plain, rows, torch.device("cpu"))
    assert figures["forget"]["sw"] == pytest.approx(found["forget"]["sw"], rel=1e-5, abs=1e-5)


def test_rows_without_candidate_columns_are_measured(rows, found):
    bare = rows["valid"].select_columns(["input_ids", "labels", "language", "item"])
    figures = evaluator()(model_with(), {"valid": bare}, torch.device("cpu"))
    assert list(figures) == ["valid"]
    for language, expected in found["valid"].items():
        assert figures["valid"][language] == pytest.approx(expected, **NOISE)


def test_a_split_in_none_of_the_languages_is_left_out(rows):
    only_german = rows["valid"].filter(lambda row: row["language"] == 3)
    assert evaluator()(model_with(), {"valid": only_german}, torch.device("cpu"), heldout=False) == {}


def test_dropout_is_off_during_the_evaluation_and_the_mode_is_put_back(rows):
    model = model_with(kind="gpt2")
    expected = evaluator()(model, rows, torch.device("cpu"))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    assert evaluator()(model, rows, torch.device("cpu")) == expected
    assert model.training
    model.eval()
    evaluator()(model, rows, torch.device("cpu"))
    assert not model.training


def test_figures_of_single_rows_equal_plain_logits_and_loops(rows, trained_state):
    model, plain = model_with(), model_with(head=False)
    model.load_state_dict(trained_state)
    plain.load_state_dict(trained_state)
    shuffled = {split: dataset.shuffle(seed=3) for split, dataset in rows.items()}
    found = evaluator()(model, shuffled, torch.device("cpu"))
    by_row = evaluator(3).rows(model, shuffled, torch.device("cpu"))
    assert list(by_row) == list(rows)
    for split, dataset in shuffled.items():
        columns = {name: values.tolist() for name, values in by_row[split].items()}
        for row, values in enumerate(dataset):
            tokens = labelled(read(plain, values["input_ids"]), values["labels"])
            expected = naive_row(tokens) | {"loss": mean(token.nll for token in tokens), "tokens": len(tokens)}
            expected |= {"language": values["language"], "item": values["item"]}
            assert {name: column[row] for name, column in columns.items()} == pytest.approx(expected, **NOISE)
        assert all(len(column) == len(dataset) for column in columns.values())
        assert len({*zip(columns["language"], columns["item"], strict=True)}) == len(dataset)
        # The same pass as the figures of languages, so the same sums.
        for language, figures in found[split].items():
            of = by_row[split]["language"] == LANGUAGES.index(language)
            tokens = by_row[split]["tokens"][of]
            assert by_row[split]["loss"][of] @ tokens / tokens.sum() == pytest.approx(figures["loss"], **NOISE)
            for name in ("memorization_accuracy", "min_k_plus_plus"):
                assert by_row[split][name][of].mean() == pytest.approx(figures[name], **NOISE)


def test_figures_of_single_rows_without_the_held_out_languages(rows):
    german = rows["valid"].filter(lambda row: row["language"] == 3)
    splits = {"forget": rows["forget"], "valid": german}
    by_row = evaluator().rows(model_with(), splits, torch.device("cpu"), heldout=False)
    assert list(by_row) == ["forget"]
    assert sorted(by_row["forget"]["language"].tolist()) == sorted(x for x in rows["forget"]["language"] if x < 3)
    whole = evaluator().rows(model_with(), splits, torch.device("cpu"))
    assert whole["valid"]["language"].tolist() == [3] * len(german)


def test_candidates_of_single_rows_equal_plain_logits_and_loops(rows, trained_state):
    model, plain = model_with(), model_with(head=False)
    model.load_state_dict(trained_state)
    plain.load_state_dict(trained_state)
    shuffled = {split: dataset.shuffle(seed=4) for split, dataset in rows.items()}
    scored = evaluator(2).candidates(model, shuffled, torch.device("cpu"))
    assert list(scored) == ["forget", "retain"]
    for split, found in scored.items():
        assert [(row.item, row.language) for row in found] == [(r["item"], r["language"]) for r in shuffled[split]]
        for row, values in zip(found, shuffled[split], strict=True):
            sentences = [read(plain, ids) for ids in values["candidate_input_ids"]]
            end = None if LANGUAGES[row.language] == "zh" else -1
            assert list(row.correct) == values["candidate_correct"]
            assert row.sentence_losses == pytest.approx([mean(t.nll for t in each[:end]) for each in sentences])
            answers = zip(sentences, values["candidate_labels"], strict=True)
            answers = [mean(token.nll for token in labelled(*each)) for each in answers]
            assert row.token_losses == pytest.approx(answers)
            right = sentences[row.correct.index(True)]
            assert (row.sentence_nll, row.sentence_tokens) == (
                pytest.approx(math.fsum(token.nll for token in right)),
                len(right),
            )
    trained = evaluator().candidates(model, shuffled, torch.device("cpu"), heldout=False)
    assert [row.item for row in trained["forget"]] == [row.item for row in scored["forget"] if row.language < 3]
    assert evaluator().candidates(model, {"valid": rows["valid"]}, torch.device("cpu")) == {}


def longest_common(first, second):
    if not first or not second:
        return 0
    if first[0] == second[0]:
        return 1 + longest_common(first[1:], second[1:])
    return max(longest_common(first[1:], second), longest_common(first, second[1:]))


def test_rouge_l_is_there_in_the_languages_whose_rows_end_with_the_answer(material, trained_state):
    rows, tokenizer = material
    model, plain = model_with(), model_with(head=False)
    model.load_state_dict(trained_state)
    plain.load_state_dict(trained_state)
    without = evaluator()(model, rows, torch.device("cpu"))
    found = evaluator(4, tokenizer)(model, rows, torch.device("cpu"))
    # Questions, and Chinese prompts, whose mask is at the end.
    expected = {("retain", "en"), ("retain", "sw"), ("forget", "zh")}
    assert {(s, code) for s in found for code in found[s] if "rouge_l" in found[s][code]} == expected
    for split, code in expected:
        recalls = []
        for row in rows[split]:
            if LANGUAGES[row["language"]] != code:
                continue
            answer = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
            ids = row["input_ids"][: -len(answer)]
            for _ in answer:
                ids = [*ids, int(plain(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
            said, right = (tokenizer.decode(part).lower() for part in (ids[-len(answer) :], answer))
            if code == "zh":
                said, right = ([c for c in text if c.isalnum()] for text in (said, right))
            else:
                said, right = (re.findall(r"\w+", text) for text in (said, right))
            recalls.append(longest_common(said, right) / len(right))
        assert found[split][code].pop("rouge_l") == pytest.approx(mean(recalls))
    assert found == without
    assert (
        evaluator(3, tokenizer)(model, rows, torch.device("cpu"), probing=False)["retain"]["en"].get("rouge_l") is None
    )


def test_flat_keys_hold_every_figure_the_mean_and_the_worst(found):
    flat = flatten_figures(found, TRAINED, "eval")
    for split, by_language in found.items():
        trained = [by_language[code] for code in TRAINED if code in by_language]
        for language, figures in by_language.items():
            for name, value in figures.items():
                assert flat[f"eval_{split}_{language}_{name}"] == value
        for name in ("memorization_accuracy", "loss", "perplexity", "min_k", "probability"):
            values = [figures[name] for figures in trained]
            assert flat[f"eval_{split}_{name}"] == pytest.approx(mean(values), rel=1e-12)
            # On the forget set the worst language is the best known one.
            known_best = (max if name in ("memorization_accuracy", "probability") else min)(values)
            known_least = (min if name in ("memorization_accuracy", "probability") else max)(values)
            assert flat[f"eval_{split}_worst_{name}"] == (known_best if split == "forget" else known_least)
    assert not any(key.endswith(("worst_rows", "worst_tokens", "forget_rows", "forget_probing_rows")) for key in flat)


def test_held_out_languages_do_not_enter_means_and_worst_cases():
    figures = {"valid": {"en": {"loss": 1.0, "rows": 2}, "sw": {"loss": 3.0, "rows": 4}, "de": {"loss": 9.0}}}
    flat = flatten_figures(figures, ["en", "sw"], "test")
    assert flat == {
        "test_valid_en_loss": 1.0,
        "test_valid_en_rows": 2,
        "test_valid_sw_loss": 3.0,
        "test_valid_sw_rows": 4,
        "test_valid_de_loss": 9.0,
        "test_valid_loss": 2.0,
        "test_valid_worst_loss": 3.0,
    }
    assert flatten_figures({"valid": {"de": {"loss": 9.0}}}, ["en"]) == {"eval_valid_de_loss": 9.0}


def test_the_worst_truth_ratio_is_the_lowest_in_every_split():
    """On the forget set it is highest where nothing is known any more, elsewhere where the truth is known."""
    for split in ("forget", "retain"):
        figures = {split: {"en": {"truth_ratio": 0.25}, "sw": {"truth_ratio": 0.75}}}
        assert flatten_figures(figures, ["en", "sw"])[f"eval_{split}_worst_truth_ratio"] == 0.25


def test_a_metric_that_the_first_language_lacks_has_its_mean_all_the_same():
    figures = {"retain": {"en": {"loss": 1.0}, "sw": {"loss": 1.0, "probing_accuracy": 0.25}}}
    flat = flatten_figures(figures, ["en", "sw"])
    assert flat["eval_retain_probing_accuracy"] == flat["eval_retain_worst_probing_accuracy"] == 0.25


def test_the_evaluate_modules_give_the_same_numbers(rows, trained_state, tmp_path, monkeypatch):
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("evaluate_modules")]:
        monkeypatch.delitem(sys.modules, name)

    def compute(name, predictions, references):
        module = evaluate.load(module_path(name), cache_dir=str(tmp_path / "data"))
        return module.compute(predictions=predictions, references=references)

    model = model_with()
    model.load_state_dict(trained_state)
    found = evaluator()(model, rows, torch.device("cpu"))["forget"]
    for index, language in enumerate(LANGUAGES):
        chosen = [row for row in rows["forget"] if row["language"] == index]
        tokens = [labelled(read(model, row["input_ids"]), row["labels"]) for row in chosen]
        greedy, true = ([[getattr(t, name) for t in row] for row in tokens] for name in ("greedy", "target"))
        for name in ("memorization_accuracy", "extraction_strength"):
            assert compute(name, greedy, true)[name] == pytest.approx(found[language][name], rel=1e-12)
        sums = compute("perplexity", [math.fsum(t.nll for t in row) for row in tokens], [len(row) for row in tokens])
        assert sums["perplexity"] == pytest.approx(found[language]["perplexity"], **NOISE)
        end = None if language == "zh" else -1
        sentences = [[read(model, ids)[:end] for ids in row["candidate_input_ids"]] for row in chosen]
        losses = [[mean(t.nll for t in sentence) for sentence in row] for row in sentences]
        probing = compute("probing_accuracy", losses, [row["candidate_correct"] for row in chosen])
        assert probing["probing_accuracy"] == found[language]["probing_accuracy"]
        assert probing["mean_reciprocal_rank"] == pytest.approx(found[language]["mean_reciprocal_rank"], rel=1e-12)


# ---- candidates that share their beginning --------------------------------------------------------------------------


def tokens_forwarded(model):
    """A list that collects the size of each forward's input."""
    sizes = []
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, output: sizes.append(inputs[0].numel()))
    return sizes


# What follows the order of the input instead of positions and mask (ALiBi, recurrence) cannot share.
@pytest.mark.parametrize(
    ("kind", "attention", "shares"),
    [
        ("llama", "eager", True),
        ("llama", "sdpa", True),
        ("gpt2", "sdpa", True),
        ("gemma2", "eager", True),
        ("bloom", "eager", False),
        ("falcon_h1", "eager", False),
    ],
)
def test_candidates_that_share_a_beginning_are_scored_as_if_alone(kind, attention, shares, rows):
    model = model_with(kind=kind)
    model.set_attn_implementation(attention)
    sizes = tokens_forwarded(model)
    figures = evaluator(1)(model, rows, torch.device("cpu"))
    for language, found in figures["forget"].items():
        expected = naive(model_with(head=False, kind=kind), rows["forget"], LANGUAGES.index(language), "forget")
        assert found == pytest.approx(expected, rel=5e-7), language
    alone = sum(
        len(ids)
        for split in ("forget", "retain", "valid")
        for row in rows[split]
        for ids in [row["input_ids"], *row["candidate_input_ids"]]
    )
    assert (sum(sizes) < 0.75 * alone) == shares


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=12), st.integers(1, 40))
def test_a_prefix_tree_spells_every_sequence_and_holds_each_beginning_once(sequences, limit):
    groups = list(split_by_size(sequences, limit))
    assert [index for group in groups for index in group] == list(range(len(sequences)))
    for group in groups:
        chosen = [sequences[index] for index in group]
        tree = PrefixTree(chosen)
        assert len(group) == 1 or len(tree) <= limit
        assert [[tree.tokens[node] for node in path] for path in tree.paths] == chosen
        assert len(tree) == len({tuple(ids[: n + 1]) for ids in chosen for n in range(len(ids))})
        assert tree.branches == any(path != list(range(len(tree)))[: len(path)] for path in tree.paths)
        seen = tree.ancestors()
        for path in tree.paths:
            for depth, node in enumerate(path):
                assert tree.depths[node] == depth
                assert seen[node].nonzero()[0].tolist() == path[: depth + 1]
