"""Which layers of a model can take a LoRA adapter, tried on the model itself."""

import re
from collections.abc import Collection

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

# Of a Mamba mixer, whose kernels read these layers' weights and pass by whatever is put around them.
_READ_BY_KERNELS = ("x_proj", "dt_proj", "out_proj")


def unfit_for_lora(model: PreTrainedModel) -> dict[str, str]:
    """The linear layers of the body that cannot take an adapter, each with the reason.

    A layer may return other than a product (some routers of experts do), or never be called, because others read its
    weights. Both are seen in a forward of a few tokens; experts of which none of the tokens comes by are judged by
    their likes. Under ZeRO-3, where no forward can be run yet, and without values, the layer's class tells.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    unfit = {}
    for name in linear:
        parent, _, own = name.rpartition(".")
        mixer = model.get_submodule(parent)
        # Gated delta networks have a decay of that name too, and call their layers.
        is_mamba = hasattr(mixer, "A_log") and not re.search("delta|attention", type(mixer).__name__.lower())
        if own in _READ_BY_KERNELS and is_mamba:
            unfit[name] = "its weights are read by a kernel"
    if any(hasattr(parameter, "ds_id") or parameter.is_meta for parameter in model.parameters()):
        overrides = {name for name, module in linear.items() if "forward" in vars(type(module))}
        routers = {
            name for name in overrides - {*unfit} if re.search("router|gate", type(linear[name]).__name__.lower())
        }
        return unfit | dict.fromkeys(routers, "it returns other than a product")
    is_product: dict[str, bool] = {}
    handles = [
        module.register_forward_hook(
            lambda module, args, output, name=name: is_product.__setitem__(name, _is_product(module, args, output))
        )
        for name, module in linear.items()
    ]
    try:
        _run_a_few_tokens(model)
    finally:
        for handle in handles:
            handle.remove()
    called = {_kind(name) for name in is_product}
    head = model.get_output_embeddings()
    for name, module in linear.items():
        if name in unfit or module is head:
            continue
        if not is_product.get(name, True):
            unfit[name] = "it returns other than a product"
        elif _kind(name) not in called:
            unfit[name] = "it is never called"
    return unfit


def lora_targets(model: PreTrainedModel, unfit: Collection[str]) -> list[str]:
    """Names of all linear layers that can take an adapter, as PEFT matches them; the vocabulary head is none of them.

    By the last part of the name where all layers so called can, or whole.

    Args:
        unfit: layers that cannot.
    """
    head = model.get_output_embeddings()
    linear = [
        (name, name not in unfit and module is not head)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    fitting = {name for name, fits in linear if fits}
    mixed = {name.rpartition(".")[2] for name, _ in model.named_modules() if name not in fitting}
    chosen = [name if name.rpartition(".")[2] in mixed else name.rpartition(".")[2] for name, fits in linear if fits]
    return list(dict.fromkeys(chosen))


def _is_product(module, args, output):
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    return isinstance(output, torch.Tensor) and bool(args) and output.shape == (*args[0].shape[:-1], len(weight))


def _kind(name):
    """A layer's name without the numbers of blocks and experts."""
    return re.sub(r"\.\d+(?=\.|$)", ".#", name)


@torch.no_grad()
def _run_a_few_tokens(model):
    device = model.get_input_embeddings().weight.device
    ids = (torch.arange(3, 19, device=device) * 7 % model.config.get_text_config().vocab_size)[None]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for module in training:
            module.training = True
