"""No chance in training: what draws random numbers in a model is found out on the model itself, and switched off.

The figures of the training rows, which language weights and guards rest on, are those of the model only when a forward
in training mode is one in evaluation mode. And a student whose forward is left to chance is not its own teacher.
"""

import contextlib
import inspect
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.utils import logging

from .trials import base_of, embedding_of, rounding_of, sample_ids

logger = logging.get_logger(__name__)

TRIAL_TOKENS = 16


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout of ``model`` to 0, in its modules, not in its configuration, and gives drawn hashes a seed.

    With dropout the figures of the training rows, which language weights and guards rest on, are not those of the
    model, and the student differs from a teacher of the same weights: preference trainers turn it off for that reason.
    """
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():  # what is handed to functional.dropout, or skips whole layers
            if ("dropout" in name or name.endswith(("pdrop", "layerdrop"))) and isinstance(value, float):
                setattr(module, name, 0.0)
        if getattr(module, "hash_seed", 0) is None:  # of locality-sensitive attention, which draws in both modes
            module.hash_seed = 0


def switch_off_chance(model: nn.Module, noise: float | None = None) -> None:
    """Makes the forward of ``model`` in training mode the one in evaluation mode, as far as chance sets them apart.

    After :func:`disable_dropout` there are modules that draw otherwise, such as routers that draw experts or shake
    what they see. They run as in evaluation; which these are shows in a forward of a few tokens. Where none can be run
    (ZeRO-3 has no whole weights yet) the code of routers and experts tells. What still sets the two modes apart is
    named in a warning.

    Args:
        model: not yet wrapped by an engine, perhaps with an adapter. Its mode and the random states stay the same.
        noise: of ``--neftune_noise_alpha``, which is kept, as it was asked for, and named.
    """
    if noise:
        logger.warning(
            "--neftune_noise_alpha shakes the embeddings of the training rows: their losses, and what language "
            "weights and the guard make of them, are not those of the model without noise"
        )
    if any(hasattr(parameter, "ds_id") or parameter.is_meta for parameter in model.parameters()):
        run_as_in_evaluation(model, _routers(model))
        return
    with _same_random_states(model), _same_modes(model):
        model.train()
        try:
            trained, drawing = _forward(model)
        except Exception:  # such as kernels that need another device than the one where the model still lies
            run_as_in_evaluation(model, _routers(model))
            return
        if drawing:
            run_as_in_evaluation(model, {type(module) for module in drawing.values()})
            trained, drawing = _forward(model)
        model.eval()
        evaluated, _ = _forward(model)
    difference = (trained - evaluated).norm() / evaluated.norm()
    if difference > rounding_of(model):
        logger.warning(
            "the model predicts otherwise in training than when it is measured, by %.1g of its logits%s: the losses "
            "of the training rows, and what language weights make of them, are not those of the model",
            difference.item(),
            f", because of chance in {', '.join(sorted(drawing))}" if drawing else "",
        )


def run_as_in_evaluation(model: nn.Module, classes: set[type[nn.Module]]) -> None:
    """Lets the own code of every module of ``classes`` run as in evaluation, in every forward of the model or a copy.

    A module's parts keep their mode, and so does the module itself between forwards, so that checkpointing of
    activations and whoever else asks for its mode go on as before.
    """
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if type(module) in classes and not hasattr(module, "_mode_outside"):
            module._mode_outside = []
            module.register_forward_pre_hook(_enter_evaluation, prepend=True)
            module.register_forward_hook(_leave_evaluation, always_call=True)


def _enter_evaluation(module: Any, args: Any) -> None:
    module._mode_outside.append(module.training)
    module.training = False


def _leave_evaluation(module: Any, args: Any, output: Any) -> None:
    module.training = module._mode_outside.pop()


@torch.no_grad()
def _forward(model: nn.Module) -> tuple[torch.Tensor, dict[str, nn.Module]]:
    """Logits [length, V] of a few tokens, and the modules whose own code drew random numbers, by name."""
    base = base_of(model)
    device = embedding_of(model).weight.device
    ids = torch.tensor([sample_ids(model, TRIAL_TOKENS)], device=device)
    watch = _Watch(device)
    handles = []
    for module in base.modules():
        handles.append(module.register_forward_pre_hook(watch.enter, prepend=True))
        handles.append(module.register_forward_hook(watch.leave, always_call=True))
    try:
        logits = base(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in base.named_modules()}
    # A reversible layer notes the seed of its forward for its backward, which fails without.
    drawing = {names[module] or type(base).__name__: module for module in watch.drawing}
    return logits[0].float(), {name: each for name, each in drawing.items() if not hasattr(each, "backward_pass")}


class _Watch:
    """Hooks that find the modules whose own code, not that of their parts, moves a random state."""

    def __init__(self, device: torch.device):
        self.device = device
        self.running: list[nn.Module] = []
        self.drawing: dict[nn.Module, None] = {}
        self.seen = _random_states(device)

    def enter(self, module, args):
        self._look()
        self.running.append(module)

    def leave(self, module, args, output):
        self._look()
        self.running.pop()

    def _look(self):
        states = _random_states(self.device)
        if states != self.seen and self.running:
            self.drawing[self.running[-1]] = None
        self.seen = states


def _random_states(device: torch.device) -> tuple[object, ...]:
    """What tells one state of the generators from another."""
    _, keys, place, *_ = np.random.get_state()
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return [state.numpy().tobytes() for state in states], random.getstate(), (np.asarray(keys).tobytes(), place)


@contextlib.contextmanager
def _same_random_states(model: nn.Module) -> Iterator[None]:
    device = embedding_of(model).weight.device
    states = random.getstate(), np.random.get_state()
    others = {"devices": [device], "device_type": device.type} if device.type != "cpu" else {"devices": []}
    with torch.random.fork_rng(**others):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextlib.contextmanager
def _same_modes(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _routers(model: nn.Module) -> set[type[nn.Module]]:
    """Classes of routers and blocks of experts whose code asks for the mode."""
    classes = {type(module) for module in model.modules()}
    routers = {each for each in classes if re.search(r"router|moe|gate(?!d)", each.__name__, re.IGNORECASE)}
    return {each for each in routers if "self.training" in _source(each)}


def _source(of_class: type[nn.Module]) -> str:
    try:
        return inspect.getsource(of_class.forward)
    except (OSError, TypeError):
        return ""
