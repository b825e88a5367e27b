"""What is saved is what was loaded, but for what was trained: no marks of a run on configuration or tokenizer.

A Trainer sets ``use_cache`` of the model's configuration to False, and the ids of special tokens in it and in the
generation settings to the tokenizer's; and a tokenizer without a padding token is lent one. All of that is good for
the time of the run only: whoever loads the result has not trained it.
"""

import contextlib
from collections.abc import Iterator

from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What a Trainer writes into the configuration and the generation settings.
OF_THE_TRAINER = ("use_cache", "bos_token_id", "eos_token_id", "pad_token_id")


def lend_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the end-of-text token fill short rows, until the tokenizer is saved."""
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_is_lent = True


@contextlib.contextmanager
def as_loaded(tokenizer: PreTrainedTokenizerBase | None) -> Iterator[None]:
    """Within the context the tokenizer has the padding token that it was loaded with, which may be none."""
    lent = getattr(tokenizer, "padding_is_lent", False)
    if lent:
        tokenizer.pad_token = None
    try:
        yield
    finally:
        if lent:
            tokenizer.pad_token = tokenizer.eos_token


class SavedAsLoaded:
    """Mix-in before ``Trainer``: configuration, generation settings and tokenizer are saved as they were passed in."""

    def __init__(self, *args, model: PreTrainedModel, **kwargs):
        self._loaded = [{name: _value(part, name) for name in OF_THE_TRAINER} for part in _settings(model)]
        super().__init__(*args, model=model, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        parts = _settings(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        used = [{name: _value(part, name) for name in OF_THE_TRAINER} for part in parts]
        try:
            for part, values in zip(parts, self._loaded, strict=True):
                _write(part, values)
            with as_loaded(self.processing_class):
                super()._save(output_dir, state_dict)
        finally:
            for part, values in zip(parts, used, strict=True):
                _write(part, values)


_ABSENT = object()


def _settings(model: PreTrainedModel) -> list:
    """The configuration of the model, of its text part, and its generation settings."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return [base.config, base.config.get_text_config(), getattr(base, "generation_config", None)]


def _value(part, name):
    return vars(part).get(name, _ABSENT) if part is not None else _ABSENT


def _write(part, values):
    for name, value in values.items():
        if value is not _ABSENT:
            setattr(part, name, value)
        elif part is not None and name in vars(part):
            delattr(part, name)
