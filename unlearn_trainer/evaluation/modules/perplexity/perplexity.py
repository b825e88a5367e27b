"""Perplexity from sums as an `evaluate` module; the model's losses come from the caller."""

import math

import datasets
import evaluate

from unlearn_trainer.evaluation import metrics

_DESCRIPTION = "exp(summed negative log-likelihood / number of tokens) over all texts: every token weighs the same."
_CITATION = "Jelinek et al. (1977), Perplexity - a measure of the difficulty of speech recognition tasks."
_INPUTS = """
Args:
    predictions: for each text, the summed negative log-likelihood of its tokens in nats
    references: for each text, the number of these tokens
Returns:
    perplexity: 1 or more; infinite where exp overflows
"""


class Perplexity(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        return {"perplexity": metrics.perplexity(math.fsum(predictions), sum(references))}
