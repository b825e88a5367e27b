"""Which transformer blocks are trained (`--trainable_layers`), and where the languages look most alike inside a model.

What a model knows in one language reaches the others through representations that they share. They lie in the blocks
between those that read a language and those that write it, so a change of these alone carries over and costs less.
"""

import re

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..config.layer_spec import FLAG, parse_layers
from ..errors import ConfigError
from .trials import base_of


def transformer_blocks(model: PreTrainedModel) -> list[nn.ModuleList]:
    """The list of a model's transformer blocks, whatever it is called; several where each block is spread over some.

    Those of a tower for pictures or sound beside the language model are left out.

    Raises:
        ConfigError: the model has no list of `num_hidden_layers` modules, nor of `decoder_layers`.
    """
    config = model.config.get_text_config()
    count = getattr(config, "num_hidden_layers", None)
    # What is a decoder alone may have more layers than the encoder that this number is of in its configuration.
    found = _lists_of(model, count) or _lists_of(model, getattr(config, "decoder_layers", None))
    if not found:
        raise ConfigError(
            f"{FLAG}: {type(model).__name__} has no list of its {count} layers; "
            "give a regular expression over its parameters' names instead"
        )
    # A tower for pictures or sound, which may have as many layers, is a model with a configuration of its own.
    kinds = type(model.config), type(config)
    own = [blocks for blocks, described in found if isinstance(described, kinds)]
    return own or [blocks for blocks, _ in found]


def _lists_of(model: PreTrainedModel, count: int | None) -> list[tuple[nn.ModuleList, PretrainedConfig]]:
    """The lists of ``count`` modules in ``model``, each with the configuration of the innermost model around it."""
    found: dict[str, tuple[nn.ModuleList, PretrainedConfig]] = {}
    around: dict[str, PretrainedConfig] = {"": model.config}
    for name, module in model.base_model.named_modules():
        if isinstance(module, PreTrainedModel):
            around[f"{name}." if name else ""] = module.config
        # Within a block a list of as many modules can only be something else, such as experts.
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == count and not inside:
            nearest = max((prefix for prefix in around if name.startswith(prefix)), key=len)
            found[name] = module, around[nearest]
    return list(found.values())


def restrict_training(model: PreTrainedModel, spec: str | None) -> PreTrainedModel:
    """The model with all weights frozen but those that `--trainable_layers` names; as it is where that is ``None``.

    Layers are numbered from 0. Embeddings, vocabulary head and the norms outside of the blocks are frozen, unless a
    regular expression names them (by `re.search`; a tied weight goes by each of its names).

    Raises:
        ConfigError: see :func:`parse_layers`; or the model has no such layer or parameter.
    """
    if spec is None:
        return model
    chosen = parse_layers(spec)
    if isinstance(chosen, re.Pattern):
        named = list(model.named_parameters(remove_duplicate=False))
        trained = [parameter for name, parameter in named if chosen.search(name)]
        if not trained:
            middle = named[len(named) // 2][0]
            raise ConfigError(
                f"{FLAG} {spec} is no layer numbers such as 8-14, and as a regular expression it matches none of the "
                f"model's parameters, which have names like {middle}"
            )
    else:
        blocks = transformer_blocks(model)
        count = len(blocks[0])
        if max(each[-1] for each in chosen) >= count:
            raise ConfigError(
                f"{FLAG} {spec}: the model has {count} layers, counted from 0; choose among 0-{count - 1}"
            )
        numbers = {number for each in chosen for number in each}
        trained = [p for group in blocks for number in numbers for p in group[number].parameters()]
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    return model


def check_trained(model: nn.Module, blocks: int | None) -> None:
    """Refuses a training that cannot move a single weight.

    Args:
        model: perhaps with an adapter.
        blocks: how many of the first blocks the loss depends on; None where it depends on all of the model.

    Raises:
        ConfigError: no weight is trainable, or none that the loss depends on.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("no weight of the model is trainable (requires_grad): there is nothing to train")
    if blocks is None:
        return
    plain = base_of(model)
    behind = {id(p) for group in transformer_blocks(plain) for block in group[blocks:] for p in block.parameters()}
    head = plain.get_output_embeddings()
    embedding = {id(p) for p in plain.get_input_embeddings().parameters()}
    behind |= {id(p) for p in head.parameters()} - embedding if head is not None else set()
    if all(id(parameter) in behind for parameter in model.parameters() if parameter.requires_grad):
        raise ConfigError(
            f"the objectives look at the states behind block {blocks}, and only weights behind that are trained; "
            f"choose {FLAG} below {blocks} (blocks are counted from 0), or a greater --rmu_layer"
        )
