"""Multilingual machine unlearning around the Hugging Face Trainer.

The public names are loaded when they are first asked for: the libraries behind them take seconds.
"""

import importlib

_PUBLIC = {
    "LanguageWeightCallback": "weights.callback",
    "MultilingualEvaluator": "evaluation.evaluator",
    "Objective": "objectives",
    "UnlearnConfig": "config.unlearn_config",
    "UnlearnTrainer": "trainer",
    "load_splits": "data",
    "tokenize_splits": "data",
}
__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version

        return version("unlearn-trainer")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return __all__
