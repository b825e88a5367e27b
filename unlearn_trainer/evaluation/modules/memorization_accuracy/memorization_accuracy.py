"""Memorization accuracy as an `evaluate` module."""

import datasets
import evaluate

from unlearn_trainer.evaluation import metrics

_DESCRIPTION = "Share of a text's tokens that the model predicts greedily from the true prefix, mean over texts."
_CITATION = "Tirumala et al. (2022), Memorization Without Overfitting: Analyzing the Training Dynamics of LLMs."
_INPUTS = """
Args:
    predictions: for each text, the greedy prediction (token id) at every labelled token
    references: for each text, the true token ids, as many as there are predictions
Returns:
    memorization_accuracy: between 0 and 1; a text without tokens counts as 0
"""


class MemorizationAccuracy(evaluate.Metric):
    def _info(self):
        token_ids = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": token_ids, "references": token_ids}),
        )

    def _compute(self, predictions, references):
        per_row = metrics.memorization_accuracy(*metrics.token_hits(predictions, references))
        return {"memorization_accuracy": per_row.mean().item()}
