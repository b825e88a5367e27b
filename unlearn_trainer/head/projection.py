"""The output projection of a causal language model: where it sits, and what ``forward`` does to its logits.

Any ``AutoModelForCausalLM`` works, whatever it calls its parts: the body is run by the model's own ``forward`` with
the output projection taken out, and the projection's scale and soft cap are measured on the model instead of being
looked up by name.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..model.trials import nothing_besides, sample_ids


class VocabularyHead:
    """A model's output projection with the scale and soft cap its ``forward`` applies to the logits.

    The logits of hidden states h are ``cap * tanh(scale * (h W' + b) / cap)``, or without the tanh where the model has
    no soft cap. Both figures are measured once by sending known values through the model's own ``forward``.

    Args:
        model: an ``AutoModelForCausalLM`` instance (unwrapped, adapters removed from around it).

    Raises:
        ConfigError: the model has no output embeddings, or alters its logits in a way that is neither scale nor cap.
    """

    def __init__(self, model: PreTrainedModel):
        module: nn.Module | None = model.get_output_embeddings()
        if module is None:
            raise ConfigError(
                f"{type(model).__name__} has no output embeddings; use a checkpoint that AutoModelForCausalLM can load"
            )
        self.module = module
        self._slot: tuple[dict[str, nn.Module | None], str] | None = next(
            (parent._modules, name)
            for parent in model.modules()
            for name, child in parent._modules.items()
            if child is module
        )
        # A forward that is patched later still finds the layer's own here.
        self.projection_forward: Callable[[torch.Tensor], torch.Tensor] = module.forward
        self._constants: tuple[float, float | None] | None = None

    def let_go_of_the_model(self) -> None:
        """Keep the projection alone: nothing here refers to the rest of the model any more."""
        self._slot = None

    @property
    def scale(self) -> float:
        """What the raw projections are multiplied by.

        Raises:
            RuntimeError: it has not been measured yet.
        """
        return self._measured()[0]

    @property
    def cap(self) -> float | None:
        """The greatest logit of a model that has a soft cap.

        Raises:
            RuntimeError: it has not been measured yet.
        """
        return self._measured()[1]

    def _measured(self) -> tuple[float, float | None]:
        if self._constants is None:
            raise RuntimeError("scale and soft cap of the logits are not known before measure() is called")
        return self._constants

    @property
    def is_linear(self) -> bool:
        """Whether the head is a plain linear layer, whose gradients can be written down directly."""
        return isinstance(self.module, nn.Linear) and type(self.module).forward is nn.Linear.forward

    @property
    def weight(self) -> torch.Tensor:
        """[V, d] of a linear head."""
        return cast(torch.Tensor, self.module.weight)

    @property
    def vocabulary(self) -> int:
        """The number of logits a token gets, padding of the embedding included."""
        weight = getattr(self.module, "weight", None)
        return len(weight if weight is not None else next(self.module.parameters()))

    @contextlib.contextmanager
    def replaced(self, stand_in: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Within the context the model calls ``stand_in`` in place of its output projection.

        Raises:
            RuntimeError: :meth:`let_go_of_the_model` was called.
        """
        if self._slot is None:
            raise RuntimeError("the head no longer knows the model that it was taken from")
        siblings, name = self._slot
        siblings[name] = _StandIn(self.module, stand_in)
        try:
            yield
        finally:
            siblings[name] = self.module

    def final_hidden(
        self, forward: Callable, args: tuple, kwargs: dict[str, Any], with_layers: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The input of the output projection, [rows x length, d]: the model's own forward stopped before its head.

        With ``with_layers`` also the states [rows, length, d] between its blocks, as ``output_hidden_states`` does.
        """
        captured: list[torch.Tensor] = []

        def stand_in(hidden: torch.Tensor) -> torch.Tensor:
            captured.append(hidden)
            return hidden[..., :1]

        more = nothing_besides(forward)
        more |= {"output_hidden_states": True, "return_dict": True} if with_layers else {}
        with self.replaced(stand_in):
            # An adapter's forward names every argument of the model's, those that were not given as None.
            found = forward(*args, **(kwargs | {"use_cache": False} | more))
        return captured[-1].flatten(0, -2), found.hidden_states if with_layers else ()

    @torch.no_grad()
    def measure(self, model: nn.Module, forward: Callable) -> None:
        """Find scale and soft cap once; sharded models only can when called from inside their wrapped forward."""
        if self._constants is not None:
            return
        # 1e-3 is in the linear part of every soft cap in use, 1e4 far beyond its knee.
        values = torch.tensor([1e-3, 1.0, 30.0, 1e4, -1e4], dtype=torch.float32)
        dtypes: list[torch.dtype] = []

        def stand_in(hidden: torch.Tensor) -> torch.Tensor:
            dtypes.append(hidden.dtype)
            return values.to(hidden.device, hidden.dtype).expand(*hidden.shape[:-1], -1)

        parameter = next(self.module.parameters())
        training = [module for module in model.modules() if module.training]
        model.eval()
        ids = torch.zeros(1, 1, dtype=torch.long, device=parameter.device)
        with self.replaced(stand_in):
            seen = forward(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        self._check_reads_forward(model, forward, parameter.device)
        for module in training:
            module.training = True
        seen = seen[0, -1].float().cpu()
        # Under mixed precision the logits are coarser than the weights.
        rounding = max(torch.finfo(dtypes[-1]).eps, 1e-5)
        scale = (seen[0] / values[0]).item()
        cap = None
        if abs(seen[3] - scale * values[3]) > 4 * rounding * abs(scale * values[3]):
            cap = seen[3].abs().item()
        scale = _snap(scale, rounding)
        cap = _snap(cap, rounding) if cap is not None else None
        expected = values * scale if cap is None else cap * torch.tanh(values * scale / cap)
        if not torch.allclose(seen, expected, rtol=8 * rounding, atol=8 * rounding * (cap or 1.0)):
            raise ConfigError(
                f"{type(model).__name__} changes its logits by something other than a scale and a tanh soft cap; "
                f"its vocabulary head cannot be computed in chunks (sent {values.tolist()}, saw {seen.tolist()})"
            )
        self._constants = scale, cap

    def _check_reads_forward(self, model: nn.Module, forward: Callable, device: torch.device) -> None:
        """Refuses a model whose predictions see the tokens that they are to predict."""
        length, changed = 8, 2
        row = sample_ids(model, length)
        ids = torch.tensor([row, [*row[:-changed], *row[:changed]]], device=device)
        kwargs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.autocast(device.type, enabled=False):
            hidden, _ = self.final_hidden(forward, (), kwargs)
        if len(hidden) != 2 * length:  # somebody's hooks add rows of their own, so that nothing can be told
            return
        kept = hidden.float().unflatten(0, (2, -1))[:, :-changed]
        eps = torch.finfo(hidden.dtype).eps
        if (kept[0] - kept[1]).norm() > max(1e-5, 2 * eps) * kept[0].norm():
            raise ConfigError(
                f"{type(model).__name__} predicts a token from those behind it too, so that its loss says nothing of "
                "what it knows; choose a causal language model such as XGLM, BLOOM, Llama, Qwen or Gemma"
            )

    def operands(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight [V, d] and bias [V] of a linear head, as autocast casts them where it is on."""
        weight, bias = self.weight, cast("torch.Tensor | None", self.module.bias)
        device = weight.device.type
        if torch.is_autocast_enabled(device) and weight.dtype == torch.float32:
            dtype = torch.get_autocast_dtype(device)
            return weight.to(dtype), bias.to(dtype) if bias is not None else None
        return weight, bias

    def finish_(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn raw projections into the model's logits, in place."""
        if self.cap is not None:
            return logits.mul_(self.scale / self.cap).tanh_().mul_(self.cap)
        return logits.mul_(self.scale) if self.scale != 1.0 else logits

    def finish_backward_(self, grad: torch.Tensor, logits: torch.Tensor, unit: float = 1.0) -> torch.Tensor:
        """Turn d loss / d logits into d loss / d raw projection, in place; ``logits`` / ``unit`` are used up."""
        if self.cap is not None:
            grad.mul_(logits.mul_(unit / self.cap).square_().neg_().add_(1))
        return grad.mul_(self.scale) if self.scale != 1.0 else grad


class _StandIn(nn.Module):
    """Takes the place of the output projection while the body runs; models read its weight's dtype and device."""

    def __init__(self, module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.__dict__["weight"] = getattr(module, "weight", None)
        self.__dict__["bias"] = getattr(module, "bias", None)
        self.function = function

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.function(hidden)


def _snap(value: float, rounding: float) -> float:
    """Undo the rounding of a measured constant: a whole number or its inverse where one is that near."""
    for candidate in (round(value), 1 / round(1 / value) if abs(value) < 1 and round(1 / value) else None):
        if candidate and abs(candidate - value) <= 2 * rounding * abs(value):
            return float(candidate)
    return value
