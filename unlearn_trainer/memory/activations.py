"""What autograd keeps of a forward, found without a value: on the meta device tensors have shapes and types only."""

import copy

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface

from ..head.projection import VocabularyHead
from ..model.trials import base_of


def saved_for_backward(
    model: torch.nn.Module,
    rows: int,
    length: int,
    cast_to: torch.dtype | None = None,
    autocast: torch.dtype | None = None,
) -> tuple[int, int]:
    """Bytes that autograd keeps of a training forward through the body of ``model``, which is on the meta device.

    Args:
        rows, length: of the batch.
        cast_to: type the model is cast to first.
        autocast: type that autocast computes in.

    Returns:
        Activations, and the copies of weights that autocast makes.
    """
    model = copy.deepcopy(model).to(cast_to).train()
    base = base_of(model)
    if base.config._attn_implementation != "eager":
        base.set_attn_implementation(_FUSED)
    head = VocabularyHead(base)
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    # Some models look into a mask of one sort, some into one of the other, and on meta there is nothing to see.
    masks = [torch.ones_like(ids), torch.zeros(rows, 1, length, length, dtype=cast_to, device="meta")]
    for mask in masks:
        weights = {id(storage): storage for storage in map(torch.Tensor.untyped_storage, model.parameters())}
        kept: dict[int, torch.UntypedStorage] = {}
        casting = _Autocast(autocast)

        def keep(tensor: torch.Tensor, kept: dict[int, torch.UntypedStorage] = kept) -> torch.Tensor:
            kept[id(tensor.untyped_storage())] = tensor.untyped_storage()
            return tensor

        try:
            hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
            with hooks, casting, head.replaced(lambda hidden: hidden[..., :1]):
                model(input_ids=ids, attention_mask=mask, use_cache=False)
            break
        except (RuntimeError, ValueError, TypeError):
            if mask is masks[-1]:
                raise
    copies = {id(each.untyped_storage()) for each in casting.copies.values()}
    sizes = {True: 0, False: 0}
    for key, storage in kept.items():
        if key not in weights:
            sizes[key in copies] += storage.nbytes()
    return sizes[False], sizes[True]


class _Autocast(TorchFunctionMode):
    """What autocast does to the types, on the meta device, which it leaves alone; nothing where ``dtype`` is None."""

    LOWERED = frozenset(
        getattr(place, name)
        for place, names in (
            (functional, ("linear", "conv1d", "scaled_dot_product_attention")),
            (torch, ("matmul", "bmm", "baddbmm", "addmm", "mm", "einsum")),
            (torch.Tensor, ("matmul", "__matmul__", "bmm", "baddbmm", "addmm", "mm")),
        )
        for name in names
    )
    RAISED = frozenset((functional.softmax, functional.layer_norm, torch.softmax, torch.rsqrt, torch.Tensor.pow))

    def __init__(self, dtype: torch.dtype | None):
        super().__init__()
        self.dtype = dtype
        self.copies: dict[int, torch.Tensor] = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        dtype = self.dtype if function in self.LOWERED else torch.float32 if function in self.RAISED else None
        if self.dtype is None or dtype is None:
            return function(*args, **kwargs)
        return function(
            *(self._cast(value, dtype) for value in args),
            **{name: self._cast(value, dtype) for name, value in kwargs.items()},
        )

    def _cast(self, value, dtype):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, torch.nn.Parameter):
            return value.to(dtype)
        if id(value) not in self.copies:
            self.copies[id(value)] = value.to(dtype)
        return self.copies[id(value)]


class _SavedByFusedAttention(torch.autograd.Function):
    """Keeps what the fused kernels keep: their inputs, the mask, the output and its normalizers."""

    @staticmethod
    def forward(ctx, query, key, value):
        rows, heads, length, _ = query.shape
        out = value.new_empty(rows, heads, length, value.shape[-1])
        mask = value.new_empty(rows, 1, length, length)
        normalizers = value.new_empty(rows, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, mask, normalizers)
        return out


def _fused_attention(module, query, key, value, attention_mask, **settings):
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # beside a mask, grouped heads are repeated
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = _SavedByFusedAttention.apply(query.to(value.dtype), key.to(value.dtype), value)
    return out.transpose(1, 2).contiguous(), None


_FUSED = "saved_by_fused_attention"
AttentionInterface.register(_FUSED, _fused_attention)
