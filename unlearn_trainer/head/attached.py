"""A vocabulary head on a model: the model's forward then fills in segments without ever holding all logits."""

import contextlib
import functools
import types
from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..model.trials import base_of
from .chunked import Segments, fill_segments
from .projection import VocabularyHead

_NAME = "_attached_head"


class AttachedHead:
    """A :class:`VocabularyHead` together with what it changes on the model that it belongs to.

    Once attached, the forward of ``model`` takes two keywords more. With ``segments``, a :class:`Segments`, it fills
    them in and returns ``{"loss": ...}``, a scalar; with ``positions`` it returns ``{"hidden": ...}`` [n, d], the
    final hidden states there, or those of ``layer``. Without them it is the model's own forward.

    What is changed on other people's modules, until :meth:`detach`:

    ==================================  ============================  ================================================
    What                                Who calls it                  Why
    ==================================  ============================  ================================================
    ``forward`` of this ``model``, not  the engine's wrapper, an      Everything runs inside the wrapped forward, so
    of its class                        adapter's model, or whoever   that DDP, ZeRO and FSDP gather and reduce through
                                        calls the model               their own hooks.
    ``forward`` of its output           the forward above, with       It is called as a module, so that ZeRO-3 gathers
    projection                          segments; the model's own     the weights for exactly this call.
                                        forward, without
    the output projection's place in    the model's own forward,      The body runs up to the head and no further;
    its parent, by a stand-in, only     within the forward above      scale and soft cap are measured the same way
    while the body runs                                               (``VocabularyHead.replaced``).
    an attribute that holds this        :func:`head_of`,              Attaching twice gives the first head; a copy of
    object                              :func:`attach_head`           the model must not have another one's.
    ==================================  ============================  ================================================

    Args:
        model: an ``AutoModelForCausalLM`` instance, without engine or adapter around it.

    Attributes:
        head: the model's output projection. It does not refer to the model through this object, so that a teacher's
            head may outlive its body.
        goes_by_mask: whether the model keeps rows apart that share a line; ``None`` before that was tried.

    Raises:
        ConfigError: the model has no output embeddings.
    """

    def __init__(self, model: PreTrainedModel):
        self.model, self.head = model, VocabularyHead(model)
        self.goes_by_mask: bool | None = None

    def attach(self) -> None:
        """Change the model as the table says."""
        self.model.forward = types.MethodType(_forward_with(self.head, type(self.model).forward), self.model)
        self.head.module.forward = types.MethodType(_projection_with(self.head), self.head.module)
        object.__setattr__(self.model, _NAME, self)  # no submodule, and nothing that a state dict holds

    def detach(self) -> None:
        """Leave the model as it was."""
        for module, name in self._changed():
            del vars(module)[name]

    @contextlib.contextmanager
    def detached(self) -> Iterator[None]:
        """Within the context the model is as it was; then as it is now, also where others have wrapped its forward."""
        kept = [(module, name, vars(module)[name]) for module, name in self._changed()]
        self.detach()
        try:
            yield
        finally:
            for module, name, value in kept:
                object.__setattr__(module, name, value)

    def _changed(self) -> tuple[tuple[nn.Module, str], ...]:
        return (self.model, "forward"), (self.head.module, "forward"), (self.model, _NAME)


def attach_head(model: nn.Module) -> VocabularyHead:
    """Attach a head to ``model``, or to the one within an adapter, unless it has one; returns it.

    Raises:
        ConfigError: the model has no output embeddings.
    """
    base = base_of(model)
    if getattr(base, _NAME, None) is None:
        AttachedHead(base).attach()
    return head_of(model)


def head_of(model: nn.Module) -> VocabularyHead:
    """The attached head of ``model``, whatever engine or adapter is around it.

    Raises:
        ConfigError: it has none.
    """
    return attached_to(model).head


def attached_to(model: nn.Module) -> AttachedHead:
    """What :func:`attach_head` has attached to ``model``, whatever engine or adapter is around it.

    Raises:
        ConfigError: nothing.
    """
    attached = getattr(base_of(model), _NAME, None)
    if attached is None:
        raise ConfigError(f"{type(model).__name__} has no vocabulary head attached; call attach_head(model) first")
    return attached


def without_head(model: nn.Module) -> contextlib.AbstractContextManager:
    """Within the context ``model`` is as it was before :func:`attach_head`, and can be copied."""
    attached = getattr(base_of(model), _NAME, None)
    return contextlib.nullcontext() if attached is None else attached.detached()


def _forward_with(head: VocabularyHead, own_forward: Callable) -> Callable:
    """The forward of a model whose class has ``own_forward``, with the keywords that a head adds."""

    @functools.wraps(own_forward)
    def forward(self, *args, segments: Segments | None = None, positions=None, layer: int | None = None, **kwargs):
        if segments is None and positions is None:
            return own_forward(self, *args, **kwargs)
        body = functools.partial(own_forward, self)
        head.measure(self, body)
        of_layers = segments.of_layers if segments is not None else ()
        hidden, layers = head.final_hidden(body, args, kwargs, with_layers=bool(of_layers) or layer is not None)
        if positions is not None:
            return {"hidden": (hidden if layer is None else layers[layer].flatten(0, -2))[positions]}
        # Called as a module, so that ZeRO-3 gathers the weights for exactly this call.
        loss = head.module(hidden, segments)
        for each in of_layers:
            loss = loss + each.fill(layers[each.layer])
        return {"loss": loss}

    return forward


def _projection_with(head: VocabularyHead) -> Callable:
    """The forward of an output projection that fills in segments where it is given some."""

    def forward(self, hidden: torch.Tensor, segments: Segments | None = None) -> torch.Tensor:
        return head.projection_forward(hidden) if segments is None else fill_segments(hidden, head, segments)

    return forward
