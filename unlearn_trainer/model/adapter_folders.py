"""Folders that hold nothing but an adapter: which model it was put on, and how many tokens its embedding has."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..config.finished import base_of_adapter
from ..errors import ConfigError
from .trials import embedding_of, made_without_values

ADAPTER = "adapter_config.json"
PREFIX = "base_model.model."  # of the names in an adapter's file, before the model's own
# What follows a layer's name where its values are saved whole.
WHOLE = (
    *("weight", "base_layer.weight", "token_adapter.base_layer.weight", "original_module.weight"),
    "modules_to_save.weight",
)


def is_adapter(folder: Path) -> bool:
    """Whether the folder has an adapter and no model of its own."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").exists()


def base_of(folder: Path, flag: str) -> tuple[str, str | None]:
    """Name and revision of the model, or of the adapter, that the adapter in ``folder`` was put on.

    A relative name is looked for from where the program runs, as peft does it, and then from the adapter's folder.

    Raises:
        ConfigError: the adapter does not say so.
    """
    file = folder / ADAPTER
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        name, revision = described["base_model_name_or_path"], described.get("revision")
        if not isinstance(name, str) or not name:
            raise ValueError(f"base_model_name_or_path is {name!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{flag} {folder}: {file.name} does not say which model it is for ({error})") from error
    name = base_of_adapter(name, folder)
    if not Path(name).is_dir() and (folder / name).is_dir():
        name = str((folder / name).resolve())
    return name, revision


def chain_of(name: str, revision: str | None, flag: str) -> list[tuple[str, str | None]]:
    """Names and revisions from an adapter down to the model under it; the model alone where it is one.

    Raises:
        ConfigError: an adapter is for itself, directly or by way of others.
    """
    chain = [(name, revision)]
    seen: list[Path] = []
    while is_adapter(folder := Path(chain[-1][0])):
        if folder.resolve() in seen:
            first = seen.index(folder.resolve())
            cycle = " -> ".join(str(name) for name, _ in chain[first:])
            raise ConfigError(
                f"{flag} {name}: no model is under this adapter, because its base leads back to it ({cycle}); name "
                f"the folder of a whole model as base_model_name_or_path in {Path(chain[-2][0]) / ADAPTER}"
            )
        seen.append(folder.resolve())
        chain.append(base_of(folder, flag))
    return chain


def resize_for(model: PreTrainedModel, folder: str, flag: str) -> None:
    """Give embedding and head of ``model`` as many rows as those that the adapter in ``folder`` was saved with.

    The new rows are random until the adapter is put on, whose file has their values.

    Raises:
        ConfigError: the adapter's file cannot be read, or has not all values of the new rows.
    """
    shapes, names, is_tied = _saved_shapes(folder, flag), _names(model), _is_tied(model)
    sizes: dict[str, int] = {}
    whole: set[str] = set()
    for name in names:
        for key, shape in shapes.items():
            ending = key.removeprefix(PREFIX).removeprefix(f"{name}.")
            if ending == key.removeprefix(PREFIX) or len(shape) != 2:
                continue
            if ending in WHOLE:
                sizes[name] = shape[0]
                whole.add(name)
            elif ending.startswith("lora_embedding_A"):
                sizes.setdefault(name, shape[1])
            elif ending.startswith("lora_B"):
                sizes.setdefault(name, shape[0])
    known = set(sizes.values())
    if len(known) > 1:
        found = ", ".join(f"{name} of {size}" for name, size in sizes.items())
        raise ConfigError(f"{flag} {folder}: the adapter has rows that contradict each other ({found}); save it again")
    rows = embedding_of(model).num_embeddings
    wanted = known.pop() if known else rows
    if wanted > rows:
        # Where the two are one, the values of one are those of both, unless it was trained apart from the other.
        is_covered = is_tied and bool(whole - _trained_apart(names, shapes, folder))
        missing = [] if is_covered else [name for name in names if name not in whole]
        if missing:
            raise ConfigError(
                f"{flag} {folder}: the adapter is for a vocabulary of {wanted} tokens and its base has one of {rows}; "
                f"it has no values for the rows that {', '.join(missing)} got, which would be random. Save it again "
                "with save_embedding_layers=True, or train it with the layer among its modules_to_save"
            )
    if wanted != rows:
        model.resize_token_embeddings(wanted, mean_resizing=False)


def untie_adapted(model: PreTrainedModel) -> None:
    """Give the head weights of its own where it shares the embedding's and one of the two has a LoRA adapter.

    Merged into the one, the adapter would change the other too. Call it when the adapter's values are there.
    """
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if any(hasattr(layer, "lora_embedding_A") or hasattr(layer, "lora_A") for layer in layers):
        embedding, head = (getattr(layer, "base_layer", layer) for layer in layers)
        if head is not None and head.weight is embedding.weight:
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
            _note_untied(model.config)


def sized_for(config: PretrainedConfig, folder: str, flag: str) -> PretrainedConfig:
    """The configuration that a model of ``config`` has with the adapter in ``folder`` merged."""
    model = made_without_values(config)
    resize_for(model, folder, flag)
    if _is_tied(model):
        names, shapes = _names(model), _saved_shapes(folder, flag)
        adapted = {key.removeprefix(PREFIX).partition(".lora_")[0] for key in shapes if ".lora_" in key}
        if _trained_apart(names, shapes, folder) or adapted & {*names}:
            _note_untied(model.config)
    return model.config


def _is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _note_untied(config: PretrainedConfig) -> None:
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = False


def _names(model: PreTrainedModel) -> list[str]:
    """Names of the embedding and, where there is one, of the head."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    modules = {module: name for name, module in model.named_modules()}
    return [modules[layer] for layer in layers if layer is not None]


def _saved_shapes(folder: str, flag: str) -> dict[str, tuple[int, ...]]:
    """``{name: shape}`` of the tensors in an adapter's file."""
    from peft.utils import load_peft_weights

    if not any((Path(folder) / f"adapter_model.{ending}").is_file() for ending in ("safetensors", "bin")):
        raise ConfigError(f"{flag} {folder}: the adapter's weights, adapter_model.safetensors, are missing")
    try:
        return {name: tuple(tensor.shape) for name, tensor in load_peft_weights(folder, device="cpu").items()}
    except Exception as error:  # each file format has errors of its own
        reason = " ".join(str(error).split())
        raise ConfigError(f"{flag} {folder}: the adapter's weights cannot be read: {reason}") from error


def _trained_apart(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], folder: str) -> set[str]:
    """Of the embedding and the head those that the adapter holds as trained whole without the other.

    Whether peft trained the two as one, where it was told to, shows in what it saved; it does not know all families.
    """
    described = json.loads((Path(folder) / ADAPTER).read_text(encoding="utf-8"))
    own = described.get("modules_to_save") or ()
    apart = {name for name in names if any(name == each or name.endswith(f".{each}") for each in own)}
    if described.get("ensure_weight_tying"):
        for ending in ("modules_to_save.weight", "weight"):
            saved = [f"{PREFIX}{name}.{ending}" in shapes for name in names]
            if any(saved):
                return set() if all(saved) else apart
    return apart
