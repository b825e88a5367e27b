"""Probing accuracy over cloze candidates as an `evaluate` module."""

import math

import datasets
import evaluate

from unlearn_trainer.evaluation import metrics

_DESCRIPTION = "Share of cloze facts whose right candidate has the lowest loss of all candidates."
_CITATION = "Kassner et al. (2021), Multilingual LAMA: Investigating Knowledge in Multilingual Pretrained LMs."
_INPUTS = """
Args:
    predictions: for each fact, the mean negative log-likelihood of the sentence with each candidate filled in
    references: for each fact, whether each candidate is right, in the same order
Returns:
    probing_accuracy: between 0 and 1; a right candidate that ties with a wrong one does not count
    mean_reciprocal_rank: mean of 1 / rank of the best right candidate
"""


class ProbingAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("bool")),
                }
            ),
        )

    def _compute(self, predictions, references):
        per_row = metrics.probing_accuracy(predictions, references)
        return {
            "probing_accuracy": math.fsum(per_row) / len(per_row),
            "mean_reciprocal_rank": metrics.mean_reciprocal_rank(predictions, references),
        }
