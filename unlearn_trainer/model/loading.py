"""Loading the tokenizer and the model, with one clear error for whatever does not fit together."""

import contextlib
import dataclasses
import importlib.util
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from ..config.arguments import ModelArguments
from ..data.items import shorten
from ..errors import ConfigError, show_name
from .adapter_folders import chain_of, resize_for, sized_for, untie_adapted
from .adapters import lora_targets, unfit_for_lora
from .saving import SavedAsLoaded, as_loaded, lend_padding, refusal_to_save
from .trials import base_of, embedding_of, text_config


def load_tokenizer(model_args: ModelArguments) -> PreTrainedTokenizerBase:
    """The tokenizer of the model or of `--tokenizer_name`, with the end-of-text token for padding if it has none.

    Raises:
        ConfigError: it cannot be loaded, could not be saved, or has neither a padding nor an end-of-text token.
    """
    if model_args.tokenizer_name:  # `revision` and `gguf_file` are places in the model's repository
        tokenizer = _load(AutoTokenizer, "tokenizer", model_args.tokenizer_name, "--tokenizer_name")
    else:
        tokenizer = _load_part(AutoTokenizer, "tokenizer", _with_tokenizer(model_args), "--model_name_or_path")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                f"the tokenizer of {model_args.tokenizer_name or model_args.name} has neither a padding "
                "nor an end-of-text token; save it again with a pad_token set, and name it with --tokenizer_name"
            )
        lend_padding(tokenizer)
    problem = refusal_to_save(tokenizer)
    if problem is not None:
        raise ConfigError(
            f"the tokenizer of {model_args.tokenizer_name or model_args.name} could not be saved: "
            f"{problem}. Mend it, or name another with --tokenizer_name"
        )
    return tokenizer


def load_model(
    model_args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase | None = None,
    flag: str = "--model_name_or_path",
) -> PreTrainedModel:
    """The causal language model of `--model_name_or_path`, in `--dtype`, in evaluation mode, on the CPU.

    A folder that holds nothing but an adapter gives the model that the adapter was put on, with the adapter merged.

    Args:
        tokenizer: when given, its ids must fit into the model's embedding.
        flag: where the name came from, for messages.

    Raises:
        ConfigError: the model cannot be loaded whole, is no causal language model, or does not fit the tokenizer.
    """
    name = model_args.name
    base = _base_of_adapter(model_args, flag)
    if base is not None:
        _check_can_merge(name, flag)
        model = _merged(load_model(base, None, f"{flag} {name}, whose adapter is for"), name, flag)
        if tokenizer is not None:
            _check_ids_fit(model, tokenizer, name)
        return model
    config = load_config(model_args, flag)
    model, info = _load_part(
        AutoModelForCausalLM,
        "model",
        model_args,
        flag,
        output_loading_info=True,
        config=config,
        dtype="auto" if model_args.dtype == "auto" else getattr(torch, model_args.dtype),
        attn_implementation=model_args.attn_implementation,
        **_unpacked(model_args),
    )
    if info["missing_keys"]:
        raise ConfigError(
            f"{flag} {name}: the checkpoint has no values for {shorten(sorted(info['missing_keys']))}, which would be "
            "random; save it again from the causal language model"
        )
    if tokenizer is not None:
        _check_ids_fit(model, tokenizer, name)
    return model


def apply_peft(model: PreTrainedModel, model_args: ModelArguments) -> PreTrainedModel:
    """With `--use_peft`, the model frozen under a trainable LoRA adapter; otherwise the model as it is.

    Raises:
        ConfigError: peft is not installed; no module has a name in `--lora_target_modules`, or it has one that an
            adapter must not be on.
    """
    if not model_args.use_peft:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError("--use_peft needs the package peft: pip install peft") from error
    names = " ".join(model_args.lora_target_modules or ["(all linear layers)"])
    unfit = unfit_for_lora(model)
    targets = model_args.lora_target_modules or lora_targets(model, unfit)
    if not targets:
        raise ConfigError(
            f"--use_peft: {type(model).__name__} has no linear layer that can take an adapter; train it whole"
        )
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        target_modules=targets,
    )
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head is not None and head.weight is embedding.weight
    try:
        adapted = get_peft_model(model, adapter)
    except ValueError as error:
        raise ConfigError(f"--lora_target_modules {names}: {error}") from error
    for name, reason in unfit.items():
        if hasattr(model.get_submodule(name), "lora_A"):
            raise ConfigError(
                f"--lora_target_modules {names}: {name} cannot have an adapter ({reason}); leave it out, or leave "
                "--lora_target_modules out for all layers that can"
            )
    if model.get_output_embeddings() is not head:
        raise ConfigError(
            f"--lora_target_modules {names}: the vocabulary head cannot have an adapter, because the teacher, the "
            "model without one, uses the same head; leave it out"
        )
    if model_args.merge_adapter and is_tied and model.get_input_embeddings() is not embedding:
        raise ConfigError(
            f"--lora_target_modules {names}: merging an adapter into the embedding would change the vocabulary head "
            "too, whose weights it shares; leave out the embedding, or --merge_adapter"
        )
    return cast(PreTrainedModel, adapted)  # it passes on whatever is asked of the model within


def check_adapter(model: PreTrainedModel) -> None:
    """Refuses an adapter that puts virtual tokens before a row's own, whose figures would be of the wrong tokens.

    Raises:
        ConfigError: it is one of prompt or p-tuning.
    """
    config = getattr(model, "active_peft_config", None)
    kind = getattr(config, "peft_type", None)
    if config is not None and config.is_prompt_learning and kind != "PREFIX_TUNING":
        raise ConfigError(
            f"an adapter of the kind {getattr(kind, 'value', kind)} puts virtual tokens before every row, which "
            "shifts all positions; take LoRA, IA3, OFT or prefix tuning"
        )


def save_trained(trainer: SavedAsLoaded, model_args: ModelArguments) -> None:
    """Write the trained model and its tokenizer to the output folder; call it on every process.

    With `--merge_adapter` that is an ordinary model, and the adapter is kept in its folder `adapter`. It is merged on
    the CPU from what was saved, because under ZeRO-3 and FSDP2 no process holds a whole layer.

    Args:
        model_args: of the model that the adapter was put on.
    """
    folder = trainer.args.folder
    if not model_args.merge_adapter:
        trainer.save_model(str(folder), _internal_call=True)  # uploaded only with its results
        return
    trainer.save_model(str(folder / "adapter"), _internal_call=True)
    if trainer.is_world_process_zero():
        from peft import PeftModel

        with _loading_whole(trainer):
            adapted = PeftModel.from_pretrained(load_model(model_args), folder / "adapter", torch_device="cpu")
            adapted.merge_and_unload().save_pretrained(folder)
        if trainer.processing_class is not None:
            with as_loaded(trainer.processing_class):
                trainer.processing_class.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()


@contextlib.contextmanager
def _loading_whole(trainer: Trainer) -> Iterator[None]:
    """Within the context this process alone can load a model, which under ZeRO-3 is the work of all of them."""
    plugin = trainer.args.deepspeed_plugin
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if plugin is not None:  # a file given with --deepspeed, or the launcher's
            set_hf_deepspeed_config(getattr(trainer.args, "hf_deepspeed_config", None) or plugin.dschf)


def check_same_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Refuses a teacher whose distribution over the vocabulary cannot be compared with the student's.

    Raises:
        ConfigError: the two vocabularies differ in size.
    """
    sizes = [text_config(model).vocab_size for model in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the model has a vocabulary of {sizes[0]} tokens and its teacher one of {sizes[1]}; "
            "the teacher must be an earlier state of the same model"
        )


def load_config(model_args: ModelArguments, flag: str = "--model_name_or_path") -> PretrainedConfig:
    """The configuration of `--model_name_or_path`, or of the model that its adapter was put on.

    Raises:
        ConfigError: it cannot be read, or is not of a causal language model.
    """
    base = _base_of_adapter(model_args, flag)
    if base is not None:
        return sized_for(load_config(base, flag), model_args.name, flag)
    config = _load_part(AutoConfig, "model configuration", model_args, flag)
    _check_is_causal(config, model_args.name, flag)
    return config


def _base_of_adapter(model_args: ModelArguments, flag: str) -> ModelArguments | None:
    """What the adapter in a folder was put on; None for a folder with a model of its own, or no folder."""
    chain = chain_of(model_args.name, model_args.revision, flag)
    if len(chain) == 1:
        return None
    name, revision = chain[1]
    return dataclasses.replace(model_args, model_name_or_path=name, gguf_file=None, revision=revision)


def _with_tokenizer(model_args: ModelArguments) -> ModelArguments:
    """The model itself, or, of an adapter that was saved without a tokenizer, the one that it was put on."""
    files = [Path(model_args.name) / name for name in ("tokenizer_config.json", "tokenizer.json")]
    base = None if any(file.exists() for file in files) else _base_of_adapter(model_args, "--model_name_or_path")
    return model_args if base is None else _with_tokenizer(base)


def _check_can_merge(folder: str, flag: str) -> None:
    if is_deepspeed_zero3_enabled():
        raise ConfigError(
            f"{flag} {folder} is an adapter, which cannot be merged into a model that ZeRO-3 loads in parts; train it "
            "with --merge_adapter, or use another engine"
        )
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(f"{flag} {folder} is an adapter, which needs the package peft: pip install peft")


def _merged(model: PreTrainedModel, folder: str, flag: str) -> PreTrainedModel:
    from peft import PeftModel

    resize_for(model, folder, flag)
    try:
        # An adapter freezes the weights that it is put on.
        adapted = PeftModel.from_pretrained(model, folder, torch_device="cpu")
        untie_adapted(base_of(adapted))
        return adapted.merge_and_unload().requires_grad_(True).eval()
    except Exception as error:  # of kinds that cannot be merged, and of files that do not fit, each has its own
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{flag} {folder}: the adapter cannot be merged into the model under it: {reason}"
        ) from error


def _unpacked(model_args: ModelArguments) -> dict:
    """Asks for the plain weights of a GGUF file: releases that can keep them packed do so by default, and what is
    packed can be neither trained nor saved."""
    if model_args.gguf_file is None or not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def _load_part(auto_class, what: str, model_args: ModelArguments, flag: str, **settings):
    places = {"revision": model_args.revision, "gguf_file": model_args.gguf_file}
    settings |= {key: value for key, value in places.items() if value is not None}
    return _load(auto_class, what, model_args.name, flag, **settings)


def _load(auto_class, what: str, name: str, flag: str, **settings):
    looks_like_folder = name.startswith((".", "~", "/")) or name.count("/") > 1
    if looks_like_folder and not Path(name).is_dir():
        raise ConfigError(f"{flag} {name}: there is no such folder")
    try:
        # False, not left out: left out, a person at a terminal would be asked whether to run the repository's code.
        return auto_class.from_pretrained(name, trust_remote_code=False, **settings)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{flag} {name}: besides tensors the pickled weights hold something that could be code, which is never "
            "run; use a checkpoint in the safetensors format"
        ) from error
    except Exception as error:  # each file format and the HTTP client raise errors of their own
        place = "a folder" if Path(name).is_dir() else "no folder here, so it was looked for on the Hub"
        reason = " ".join(str(error).split())
        raise ConfigError(f"{flag} {name} ({place}): no {what} could be loaded from it: {reason}") from error


def check_given(model: object, named: str = "model") -> None:
    """Refuses what Python code hands over in place of a loaded causal language model, perhaps with an adapter.

    Raises:
        ConfigError: it is a name, a folder, a class and the like, another kind of model, or one without a head.
    """
    remedy = "pass a loaded causal language model: AutoModelForCausalLM.from_pretrained(name or folder)"
    kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    if model is None:
        raise ConfigError(f"{named} is None; {remedy}")
    if isinstance(model, (str, Path)):
        raise ConfigError(f"{named} is the name {show_name(model, 200)}; {remedy}")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{named} is {kind}; {remedy}")
    plain: Any = model
    if hasattr(model, "get_base_model"):
        plain = plain.get_base_model()
    config = getattr(plain, "config", None)
    if not isinstance(config, PretrainedConfig) or not hasattr(plain, "get_output_embeddings"):
        raise ConfigError(f"{named} is {kind}, no model of transformers; {remedy}")
    if problem := _not_causal(config):
        raise ConfigError(f"{named} {type(plain).__name__} ({config.model_type}) is {problem}; {remedy}")
    if plain.get_output_embeddings() is None:
        raise ConfigError(
            f"{named} {type(plain).__name__} ({config.model_type}) has no head over the vocabulary, as AutoModel and "
            f"classifiers have none; {remedy}"
        )


def _check_is_causal(config: PretrainedConfig, name: str, flag: str) -> None:
    kind = _not_causal(config)
    if kind is None and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "no language model that generates text from left to right"
    if kind:
        raise ConfigError(
            f"{flag} {name} ({config.model_type}) is {kind}; choose a causal language model such as "
            "XGLM, BLOOM, Llama, Qwen or Gemma"
        )


def _not_causal(config: PretrainedConfig) -> str | None:
    """The kind of model that ``config`` is of, where its predictions are not of what follows."""
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder"
    # `causal` is XLM's word for it.
    is_decoder = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not is_decoder:
        return "an encoder, whose predictions see the whole text"
    return None


def _check_ids_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    rows = embedding_of(model).num_embeddings
    # Gemma 3's text models share a tokenizer whose image placeholder they have no row for; no text ever becomes it.
    placeholders = {
        token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    }
    highest = max(set(tokenizer.get_vocab().values()) - placeholders)
    if highest >= rows:
        raise ConfigError(
            f"the tokenizer has ids up to {highest}, but the embedding of {name} ends at {rows - 1}: the two do not "
            "belong together; name the model's own with --tokenizer_name, or resize the model's embedding and save it"
        )
