"""Extraction strength as an `evaluate` module."""

import datasets
import evaluate

from unlearn_trainer.evaluation import metrics

_DESCRIPTION = "1 - k/n, k the first index from which on every greedy prediction of a text is right, mean over texts."
_CITATION = "Carlini et al. (2021), Extracting Training Data from Large Language Models."
_INPUTS = """
Args:
    predictions: for each text, the greedy prediction (token id) at every labelled token
    references: for each text, the true token ids, as many as there are predictions
Returns:
    extraction_strength: between 0 and 1; a text whose last token is wrong, or that has none, counts as 0
"""


class ExtractionStrength(evaluate.Metric):
    def _info(self):
        token_ids = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": token_ids, "references": token_ids}),
        )

    def _compute(self, predictions, references):
        per_row = metrics.extraction_strength(*metrics.token_hits(predictions, references))
        return {"extraction_strength": per_row.mean().item()}
