"""An empirical audit: whether a model still has what it was to forget, language by language, also under attack.

The names are loaded when they are first asked for: ``python -m unlearn_trainer.audit`` begins here, and the libraries
behind them take seconds.
"""

import importlib

__all__ = ["audit", "audit_run", "check_arguments"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.run"), name)
