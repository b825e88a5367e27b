"""Quantization as an attack: what unlearning only pushed aside comes back once the weights are rounded.

Unlearning with a small learning rate moves weights by less than a step of a coarse grid, so that rounding them undoes
it: 21 % of the forgotten knowledge was there before, 83 % after rounding to 4 bits (Zhang et al. 2024, "Catastrophic
Failure of LLM Unlearning via Quantization"). As deployments do, the matrices of the body are rounded, those of experts
that are kept in one tensor too, not the embeddings, the norms and the vocabulary head; activations keep their type.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...errors import ConfigError
from ..figures import rows_by_language
from ..results import Name, Result, Variant
from ..subject import Subject

GROUP = 128


def round_symmetric(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """``weight`` [out, in] on one grid a row of 2^bits - 1 values symmetric about 0, the largest entry on its end.

    The grid of the weights in LLM.int8() (Dettmers et al. 2022): scale = max |w| / (2^(bits - 1) - 1).
    """
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(1, keepdim=True) / top
    # A row of zeros has no scale and stays as it is.
    scale[scale == 0] = 1
    return (weight / scale).round_().mul_(scale)


def round_asymmetric(weight: torch.Tensor, bits: int, group: int = GROUP) -> torch.Tensor:
    """``weight`` [out, in] on a grid of 2^bits values for every ``group`` inputs of a row, from its least to greatest.

    The round-to-nearest baseline of GPTQ (Frantar et al. 2023): scale = (max - min) / (2^bits - 1) and a whole number
    as zero point, of a range that always includes 0, so that 0 stays 0 and a group of equal values is kept. The last
    group of a row may be smaller.
    """
    levels = 2**bits - 1
    rounded = torch.empty_like(weight)
    # Groups of full length at once, then what is left of each row.
    whole = weight.shape[1] // group * group
    for start, stop, size in ((0, whole, group), (whole, weight.shape[1], weight.shape[1] - whole)):
        if start == stop:
            continue
        groups = weight[:, start:stop].reshape(-1, size)
        low = groups.amin(1, keepdim=True).clamp_(max=0)
        scale = (groups.amax(1, keepdim=True).clamp_(min=0) - low) / levels
        scale[scale == 0] = 1
        zero = (-low / scale).round_()
        grid = (groups / scale).round_().add_(zero).clamp_(0, levels)
        rounded[:, start:stop] = grid.sub_(zero).mul_(scale).view(len(weight), -1)
    return rounded


def nf4(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` [out, in] on the 4-bit NormalFloat grid of bitsandbytes, 64 values a group (Dettmers et al. 2023)."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    device = "cuda" if torch.cuda.is_available() else weight.device
    return dequantize_4bit(*quantize_4bit(weight.to(device).contiguous(), quant_type="nf4"))


def quantize(model: PreTrainedModel, bits: int) -> PreTrainedModel:
    """Round ``model`` to 8 bits (:func:`round_symmetric`) or 4 (:func:`round_asymmetric`), in place; returns it.

    Which weights: see :func:`body_matrices`. They keep their type; grids are computed in float32 at least.

    Raises:
        ConfigError: ``bits`` is neither 8 nor 4.
    """
    if bits not in (4, 8):
        raise ConfigError(f"weights are rounded to 8 bits or 4, not to {bits}")
    return round_matrices(model, lambda weight: (round_symmetric if bits == 8 else round_asymmetric)(weight, bits))


@torch.no_grad()
def round_matrices(model: PreTrainedModel, rounded: Callable[[torch.Tensor], torch.Tensor]) -> PreTrainedModel:
    """Replace the :func:`body_matrices` by what ``rounded`` makes of each, in place; returns the model.

    Args:
        rounded: maps a weight [out, in], at least in float32, to one of its shape.
    """
    for parameter, is_transposed in body_matrices(model):
        with _whole(parameter) as weight:
            # One expert at a time: the wide copy is of one matrix.
            for matrix in weight.unbind() if weight.dim() == 3 else [weight]:
                matrix = matrix.T if is_transposed else matrix
                wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
                matrix.copy_(rounded(wide))
    return model


def body_matrices(model: PreTrainedModel) -> Iterator[tuple[nn.Parameter, bool]]:
    """The weights of the body that multiply a state, each once: [out, in], or [experts, out, in].

    Left out are the vocabulary head, whatever shares its weights with an embedding, biases, and what multiplies no
    state: norms, convolutions, tables of positions, the decay of a recurrence.

    Yields:
        A parameter, and whether its two last dimensions are stored as [in, out].
    """
    settled = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings()
    if head is not None:
        settled |= {id(parameter) for parameter in head.parameters()}
    hidden_size = model.config.get_text_config().hidden_size
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in settled or not _is_matrix(module, name, parameter):
                continue
            settled.add(id(parameter))
            yield parameter, _is_transposed(module, f"{path}.{name}", parameter, hidden_size)


def _is_matrix(module, name, parameter):
    shape = getattr(parameter, "ds_shape", parameter.shape)
    if len(shape) not in (2, 3) or min(shape[-2:]) == 1 or not parameter.is_floating_point():
        return False
    if isinstance(module, nn.Linear | Conv1D):
        return name == "weight"
    if isinstance(module, nn.modules.conv._ConvNd):
        return False
    # Mamba marks the decay of its states, which is no product's factor, as what weight decay must leave alone.
    is_product = not getattr(parameter, "_no_weight_decay", False) and name != "A_log"
    return is_product and not any(word in name for word in ("bias", "embed", "position", "token"))


def _is_transposed(module, name, parameter, hidden_size):
    if isinstance(module, nn.Linear | Conv1D):
        return isinstance(module, Conv1D)  # GPT-2's layers are stored as [in, out]
    if isinstance(getattr(module, "is_transposed", None), bool):  # experts say how they are stored
        return module.is_transposed
    *_, rows, columns = getattr(parameter, "ds_shape", parameter.shape)
    # Of experts that do not, the size of the state tells: it goes into all but the last of their matrices.
    own = ".".join(name.split(".")[-2:])
    leads_back = any(word in own for word in ("down", "w2", "output"))
    return (columns if leads_back else rows) == hidden_size != (rows if leads_back else columns)


def quantization(subject: Subject) -> Result:
    """Forget rows, and retain rows for the utility, after rounding to 8 and 4 bits; to NF4 too where that runs.

    Figures by row: ``int8/memorization_accuracy``, ``int8/extraction_strength``, ``int8/retain_memorization_accuracy``
    (retain rows, which are to stay known), and the same of ``int4`` and, on a CUDA device with bitsandbytes, ``nf4``.
    """
    variants = {"int8": lambda model: quantize(model, 8), "int4": lambda model: quantize(model, 4)}
    if subject.args.device.type == "cuda" and importlib.util.find_spec("bitsandbytes"):
        variants["nf4"] = lambda model: round_matrices(model, nf4)
    splits: dict[str, Dataset] = {
        split: subject.datasets[split] for split in ("forget", "retain") if split in subject.datasets
    }
    result = Result()
    for name, change in variants.items():
        columns = subject.rows(splits, change=change, description=name)
        result.add_rows(rows_by_language(columns["forget"], subject.languages), Variant(name))
        if "retain" in columns:
            known = rows_by_language(columns["retain"], subject.languages, ("memorization_accuracy",))
            result.rows[Name("retain_memorization_accuracy", Variant(name))] = known["memorization_accuracy"]
    return result


@contextlib.contextmanager
def _whole(weight):
    """Within the context ``weight`` can be read and written as a whole, on every process alike."""
    if hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(weight, modifier_rank=0):
            yield weight.data
    else:
        yield weight.data
