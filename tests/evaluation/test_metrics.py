"""The flat tensor metrics against plain Python twins, and against the golden figures of real checkpoints."""

import json
import math
import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from unlearn_trainer.evaluation import metrics

GOLDEN = Path(os.environ.get("UNLEARN_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
RATIOS = ["0.05", "0.2", "0.29", "0.4", "0.5", "1.0"]

ragged_hits = st.lists(st.lists(st.booleans(), max_size=12), min_size=1, max_size=8)
# Few distinct values, so that ties are common.
nlls = st.one_of(st.floats(0, 60), st.sampled_from([0.0, 1.0, 2.5]))
ragged_nlls = st.lists(st.lists(nlls, max_size=12), min_size=1, max_size=8)

# The first example also pays for torch's start-up.
no_deadline = settings(deadline=None)


def flatten(ragged, dtype=torch.float64):
    rows = [row for row, values in enumerate(ragged) for _ in values]
    flat = [value for values in ragged for value in values]
    return torch.tensor(flat, dtype=dtype), torch.tensor(rows, dtype=torch.long), len(ragged)


def assert_rows_equal(actual, expected, dtype=torch.float64):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=dtype))


def naive_extraction_strength(hits):
    for k in range(len(hits)):
        if all(hits[k:]):
            return 1 - k / len(hits)
    return 0.0


def naive_min_k(values, ratio):
    if not values:
        return 0.0
    count = max(1, math.floor(Fraction(ratio) * len(values)))
    return sum(sorted(values)[-count:]) / count


@no_deadline
@given(ragged_hits)
def test_accuracy_and_extraction_strength_match_the_twins(ragged):
    flat = flatten(ragged)
    assert_rows_equal(metrics.memorization_accuracy(*flat), [sum(row) / len(row) if row else 0.0 for row in ragged])
    assert_rows_equal(metrics.extraction_strength(*flat), [naive_extraction_strength(row) for row in ragged])


@no_deadline
@given(ragged_nlls)
def test_probability_and_a_min_k_of_all_tokens_match_the_twins(ragged):
    flat = flatten(ragged)
    means = [sum(row) / len(row) if row else 0.0 for row in ragged]
    assert_rows_equal(metrics.min_k(*flat, ratio=1.0), means)
    expected = [math.exp(-mean) if row else 0.0 for row, mean in zip(ragged, means, strict=True)]
    assert_rows_equal(metrics.probability(*flat), expected)


@no_deadline
@given(ragged_nlls, st.sampled_from(RATIOS))
def test_min_k_matches_the_twin(ragged, ratio):
    assert_rows_equal(metrics.min_k(*flatten(ragged), float(ratio)), [naive_min_k(row, ratio) for row in ragged])


token_statistics = st.tuples(nlls, st.floats(-20, 0), st.floats(0.01, 5))


@no_deadline
@given(st.lists(st.lists(token_statistics, max_size=12), min_size=1, max_size=8), st.sampled_from(RATIOS))
def test_min_k_plus_plus_matches_the_twin(ragged, ratio):
    columns = [flatten([[token[i] for token in row] for row in ragged])[0] for i in range(3)]
    _, rows, num_rows = flatten([[token[0] for token in row] for row in ragged])
    expected = [naive_min_k([(mean + nll) / std for nll, mean, std in row], ratio) for row in ragged]
    assert_rows_equal(metrics.min_k_plus_plus(*columns, rows, num_rows, float(ratio)), expected)


def test_min_k_counts_a_share_that_floating_point_rounds_down():
    assert math.floor(0.29 * 100) == 28
    values, rows, num_rows = flatten([[1.0] * 28 + [0.0] * 72])
    assert metrics.min_k(values, rows, num_rows, 0.29).item() == pytest.approx(28 / 29)


def test_min_k_ignores_an_infinite_value_it_does_not_keep():
    assert_rows_equal(metrics.min_k(*flatten([[1.0, 3.0, -math.inf]]), 0.4), [3.0])


def test_min_k_plus_plus_of_a_distribution_without_spread():
    nll, rows, num_rows = flatten([[0.0], [30.0]])
    certain, impossible = metrics.min_k_plus_plus(nll, torch.zeros(2), torch.zeros(2), rows, num_rows).tolist()
    assert certain == 0
    assert math.isfinite(impossible) and impossible > 1e6


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bool, torch.float32),
        (torch.int64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_figures_keep_the_dtype_of_the_values_and_at_least_float32(dtype, expected):
    flat = flatten([[1] * 300, [], [0, 1, 1]], dtype)
    assert_rows_equal(metrics.memorization_accuracy(*flat), [1.0, 0.0, 2 / 3], expected)
    assert_rows_equal(metrics.extraction_strength(*flat), [1.0, 0.0, 2 / 3], expected)
    if dtype.is_floating_point:
        assert_rows_equal(metrics.min_k(*flat, ratio=1.0), [1.0, 0.0, 2 / 3], expected)
        assert_rows_equal(metrics.probability(*flat), [math.exp(-1), 0.0, math.exp(-2 / 3)], expected)
        assert_rows_equal(metrics.min_k(*flat), [1.0, 0.0, 1.0], expected)


def test_no_rows_at_all():
    nothing = flatten([])
    for metric in (metrics.memorization_accuracy, metrics.extraction_strength, metrics.probability, metrics.min_k):
        assert metric(*nothing).shape == (0,)


def test_token_hits_flattens_ragged_rows():
    hits, rows, num_rows = metrics.token_hits([[1, 2], [], [5]], [[1, 3], [], [5]])
    assert (hits.tolist(), rows.tolist(), num_rows) == ([1.0, 0.0, 1.0], [0, 0, 2], 3)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [([[1], [1, 2]], [[1], [1]], "row 1: 2 predicted tokens for 1"), ([[1]], [], "1 rows of predictions for 0")],
)
def test_token_hits_names_the_row_that_does_not_fit(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metrics.token_hits(predictions, references)


@pytest.mark.parametrize(
    ("losses", "correct", "accuracy", "reciprocal_rank"),
    [
        ([1.0, 2.0, 3.0], [True, False, False], 1, 1),
        ([2.0, 1.0, 3.0], [True, False, False], 0, 1 / 2),
        ([1.0, 1.0, 3.0], [True, False, False], 0, 1 / 2),  # tied with a wrong one
        ([1.0, 1.0, 3.0], [True, True, False], 1, 1),  # every tied candidate is correct
        ([4.0, 1.0, 3.0], [True, False, True], 0, 1 / 2),  # the better of two correct ones counts
        ([1.0], [True], 1, 1),
        ([1.0, 2.0], [False, False], 0, 0),
        ([math.nan, 2.0], [True, False], 0, 1 / 2),
        ([1.0, math.nan], [True, False], 0, 1 / 2),
    ],
)
def test_probing_accuracy_and_reciprocal_rank(losses, correct, accuracy, reciprocal_rank):
    assert metrics.probing_accuracy([losses], [correct]) == [accuracy]
    assert metrics.mean_reciprocal_rank([losses], [correct]) == reciprocal_rank


def test_probing_is_a_figure_per_row_and_the_reciprocal_rank_a_mean():
    losses, correct = [[1.0, 2.0], [3.0, 2.0]], [[True, False], [True, False]]
    assert metrics.probing_accuracy(losses, correct) == [1.0, 0.0]
    assert metrics.mean_reciprocal_rank(losses, correct) == 0.75
    with pytest.raises(ValueError):
        metrics.probing_accuracy([[1.0, 2.0]], [[True]])


candidate_losses = st.lists(st.floats(0, 50), min_size=1, max_size=5)


@given(candidate_losses, candidate_losses)
def test_the_truth_ratio_matches_its_definition(wrong, right):
    ratio = (sum(math.exp(-x) for x in wrong) / len(wrong)) / (sum(math.exp(-x) for x in right) / len(right))
    log_ratio = metrics.log_truth_ratio([*right, *wrong], [True] * len(right) + [False] * len(wrong))
    assert log_ratio == pytest.approx(math.log(ratio), abs=1e-9)
    assert metrics.truth_ratio_score(log_ratio, is_forget=True) == pytest.approx(min(ratio, 1 / ratio))
    assert metrics.truth_ratio_score(log_ratio, is_forget=False) == pytest.approx(max(0, 1 - ratio), abs=1e-9)


def test_the_truth_ratio_takes_the_arithmetic_mean_of_the_wrong_answers():
    # P(wrong) 0.5 and 0.125, P(right) 0.25: geometric 1, arithmetic 1.25.
    losses = [math.log(4), math.log(2), math.log(8)]
    assert metrics.log_truth_ratio(losses, [True, False, False]) == pytest.approx(math.log(1.25))


def test_the_truth_ratio_of_a_ruined_model_is_a_number():
    assert metrics.log_truth_ratio([2000.0, 1000.0], [True, False]) == 1000
    assert metrics.truth_ratio_score(1000, is_forget=True) == metrics.truth_ratio_score(1000, is_forget=False) == 0
    assert metrics.truth_ratio_score(-1000, is_forget=False) == 1
    assert metrics.log_truth_ratio([math.inf, 1.0], [True, False]) == math.inf


@pytest.mark.parametrize("correct", [[True, True], [False, False]])
def test_there_is_no_truth_ratio_without_both_sides(correct):
    with pytest.raises(ValueError, match="no truth ratio"):
        metrics.log_truth_ratio([1.0, 2.0], correct)


def test_perplexity_comes_from_sums():
    assert metrics.perplexity(10 * math.log(7), 10) == pytest.approx(7)
    assert metrics.perplexity(1e6, 10) == math.inf
    assert math.isnan(metrics.perplexity(0.0, 0))


def golden_cases():
    return [
        pytest.param(path.parent, split, id=f"{path.parent.name}-{split}")
        for path in sorted(GOLDEN.glob("*/metrics.json"))
        for split in ("forget", "retain")
    ] or [pytest.param(None, None, marks=pytest.mark.skip(reason=f"no golden figures below {GOLDEN}"))]


@pytest.mark.parametrize(("folder", "split"), golden_cases())
@torch.no_grad()
def test_metrics_of_a_real_checkpoint_match_the_golden_figures(folder, split):
    meta = json.loads((folder / "meta.json").read_text())
    batch = json.loads((folder / "batch.json").read_text())[split]
    golden = [row for row in json.loads((folder / "metrics.json").read_text())["rows"] if row["split"] == split]
    model = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=getattr(torch, meta["dtype"])).eval()

    labels = torch.tensor(batch["labels"])[:, 1:]
    logits = model(torch.tensor(batch["input_ids"]), attention_mask=torch.tensor(batch["attention_mask"])).logits
    rows, positions = (labels != -100).nonzero(as_tuple=True)
    log_probs = logits[:, :-1][rows, positions].log_softmax(-1)
    targets = labels[rows, positions]
    nll = -log_probs.gather(-1, targets[:, None]).squeeze(-1)
    mean = (log_probs.exp() * log_probs).sum(-1)
    std = (log_probs.exp() * (log_probs - mean[:, None]) ** 2).sum(-1).sqrt()
    hits, num_rows = (log_probs.argmax(-1) == targets).to(nll.dtype), len(labels)

    figures = {
        "memorization_accuracy": metrics.memorization_accuracy(hits, rows, num_rows),
        "extraction_strength": metrics.extraction_strength(hits, rows, num_rows),
        "nll_mean": metrics.min_k(nll, rows, num_rows, 1.0),
        "probability": metrics.probability(nll, rows, num_rows),
        "min_k_0_2": metrics.min_k(nll, rows, num_rows, 0.2),
        "min_k_0_4": metrics.min_k(nll, rows, num_rows, 0.4),
        "min_k_plus_plus_0_2": metrics.min_k_plus_plus(nll, mean, std, rows, num_rows, 0.2),
    }
    assert len(golden) == num_rows
    for name, figure in figures.items():
        expected = [row[name] for row in sorted(golden, key=lambda row: row["row"])]
        assert figure.tolist() == pytest.approx(expected, rel=meta["rtol"], abs=meta["atol"]), name
