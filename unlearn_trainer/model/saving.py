"""What is saved is what was loaded, but for what was trained: no marks of a run on configuration or tokenizer.

A Trainer sets ``use_cache`` of the model's configuration to False, and the ids of special tokens in it and in the
generation settings to the tokenizer's; and a tokenizer without a padding token is lent one. All of that is good for
the time of the run only: whoever loads the result has not trained it.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.utils import logging

from ..config.unlearn_config import UnlearnConfig
from ..errors import ConfigError
from .trials import base_of

logger = logging.get_logger(__name__)

# What a Trainer writes into the configuration and the generation settings.
OF_THE_TRAINER = ("use_cache", "bos_token_id", "eos_token_id", "pad_token_id")

# Generation settings that do nothing unless another one is set; some releases refuse to save them without it.
OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
OF_BEAMS = ("early_stopping", "length_penalty")
OF_A_DICT = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")
OF_A_CACHE = ("cache_implementation", "cache_config")


def make_savable(model: PreTrainedModel) -> None:
    """See to it that configuration and generation settings of ``model`` can be saved as they are.

    Generation settings that do nothing are left out, with a warning, where transformers refuses to save them. How the
    model generates stays the same.

    Raises:
        ConfigError: one of the two cannot be saved even so.
    """
    base = base_of(model)
    settings = getattr(base, "generation_config", None)
    problem = refusal_to_save(base.config)
    if problem is None and settings is not None and refusal_to_save(settings) is not None:
        idle = _idle(settings)
        for name in idle:
            setattr(settings, name, getattr(GenerationConfig(), name, None))
        problem = refusal_to_save(settings)
        if problem is None:
            logger.warning(
                "the model's generation settings have %s without effect, which transformers refuses to save: the "
                "model is saved without",
                ", ".join(f"{name}={value}" for name, value in idle.items()),
            )
    if problem is not None:
        raise ConfigError(
            f"the model could not be saved: {problem}. Mend config.json or generation_config.json in its folder"
        )


def refusal_to_save(part) -> str | None:
    """Why ``part.save_pretrained`` fails, in one line; None where it does not. Nothing is left behind."""
    with tempfile.TemporaryDirectory() as place:
        try:
            part.save_pretrained(place)
        except Exception as error:  # each part has errors of its own
            return " ".join(str(error).split()) or type(error).__name__
    return None


def _idle(settings: GenerationConfig) -> dict:
    """The settings that do nothing beside the others, with their values."""
    names = [
        *(OF_SAMPLING if settings.do_sample is not True else ()),
        *(OF_BEAMS if (settings.num_beams or 1) == 1 else ()),
        *(OF_A_DICT if settings.return_dict_in_generate is not True else ()),
        *(OF_A_CACHE if settings.use_cache is False else ()),
    ]
    default = GenerationConfig()
    values = {name: getattr(settings, name, None) for name in names}
    return {name: value for name, value in values.items() if value not in (None, False, getattr(default, name, None))}


def lend_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the end-of-text token fill short rows, until the tokenizer is saved."""
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_is_lent = True


@contextlib.contextmanager
def as_loaded(tokenizer: PreTrainedTokenizerBase | None) -> Iterator[None]:
    """Within the context the tokenizer has the padding token that it was loaded with, which may be none."""
    lent = tokenizer if getattr(tokenizer, "padding_is_lent", False) else None
    if lent is not None:
        lent.pad_token = None
    try:
        yield
    finally:
        if lent is not None:
            lent.pad_token = lent.eos_token


class SavedAsLoaded(Trainer):
    """A Trainer that saves configuration, generation settings and tokenizer as they were passed in."""

    args: UnlearnConfig
    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase | None

    def __init__(self, model: PreTrainedModel, **kwargs):
        make_savable(model)
        self._loaded = [{name: _value(part, name) for name in OF_THE_TRAINER} for part in _settings(model)]
        super().__init__(model=model, **kwargs)

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
    base = base_of(model)
    return [base.config, base.config.get_text_config(), getattr(base, "generation_config", None)]


def _value(part: object, name: str) -> Any:
    return vars(part).get(name, _ABSENT) if part is not None else _ABSENT


def _write(part: object, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if value is not _ABSENT:
            setattr(part, name, value)
        elif part is not None and name in vars(part):
            delattr(part, name)
