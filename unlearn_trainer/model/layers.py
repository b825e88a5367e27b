"""Which transformer blocks are trained (`--trainable_layers`), and where the languages look most alike inside a model.

What a model knows in one language reaches the others through representations that they share. They lie in the blocks
between those that read a language and those that write it, so a change of these alone carries over and costs less.
"""

import itertools
import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..config.ranges import shown
from ..errors import ConfigError

FLAG = "--trainable_layers"
_NUMBERS = re.compile(r"\s*\d+\s*(-\s*\d+\s*)?(,\s*\d+\s*(-\s*\d+\s*)?)*")
# Three points are the fewest whose distances can agree or differ: of two, centred, there is but one.
MIN_ITEMS = 3


def parse_layers(spec: str) -> list[range] | re.Pattern:
    """A value of `--trainable_layers`: ranges of block numbers such as `0,3,8-14`, or else a regular expression.

    Raises:
        ConfigError: it is empty, an empty range, or a broken regular expression.
    """
    if not spec.strip():
        raise ConfigError(f"{FLAG} is empty; give layers such as 8-14, or leave it out to train all weights")
    if not _NUMBERS.fullmatch(spec):
        try:
            return re.compile(spec)
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(
                f"{FLAG} {shown(spec)} is neither layer numbers such as 0,3,8-14 nor a regular expression: "
                f"{shown(error)}"
            ) from error
    if re.search(r"\d{7}", spec):
        raise ConfigError(f"{FLAG} {shown(spec)}: no model has a layer of so many digits")
    ranges = []
    for part in spec.split(","):
        first, _, last = part.partition("-")
        ranges.append(range(int(first), int(last or first) + 1))
        if not ranges[-1]:
            raise ConfigError(f"{FLAG} {spec}: {part.strip()} is empty; put the smaller number first")
    return ranges


def transformer_blocks(model: PreTrainedModel) -> list[nn.ModuleList]:
    """The list of a model's transformer blocks, whatever it is called; several where each block is spread over some.

    Raises:
        ConfigError: the model has no list of `num_hidden_layers` modules.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.base_model.named_modules():
        # Within a block a list of as many modules can only be something else, such as experts.
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == count and not inside:
            found[name] = module
    if not found:
        raise ConfigError(
            f"{FLAG}: {type(model).__name__} has no list of its {count} layers; "
            "give a regular expression over its parameters' names instead"
        )
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
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    behind = {id(p) for group in transformer_blocks(plain) for block in group[blocks:] for p in block.parameters()}
    head = plain.get_output_embeddings()
    embedding = {id(p) for p in plain.get_input_embeddings().parameters()}
    behind |= {id(p) for p in head.parameters()} - embedding if head is not None else set()
    if all(id(parameter) in behind for parameter in model.parameters() if parameter.requires_grad):
        raise ConfigError(
            f"the objectives look at the states behind block {blocks}, and only weights behind that are trained; "
            f"choose {FLAG} below {blocks} (blocks are counted from 0), or a greater --rmu_layer"
        )


@torch.no_grad()
def pooled_states(
    model: PreTrainedModel,
    input_ids: Sequence[Sequence[int]],
    pad_token_id: int,
    batch_size: int,
    show_progress: bool = True,
) -> torch.Tensor:
    """Mean hidden state of each text behind each transformer block, on the CPU: [layers, texts, hidden size].

    The first position is left out: many models use it as an attention sink (Xiao et al. 2024), with a state that is
    the same for every text and so large that a mean over the rest would hardly show.
    """
    device = model.device
    # Texts of like length together, the longest first, so that a batch too large for the memory fails at once.
    order = sorted(range(len(input_ids)), key=lambda row: -len(input_ids[row]))
    pooled: list[torch.Tensor] = []
    model.eval()
    for start in tqdm(range(0, len(order), batch_size), "hidden states", disable=not show_progress):
        texts = [torch.tensor(input_ids[row]) for row in order[start : start + batch_size]]
        ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad_token_id).to(device)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
        output = model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
        share = mask.float()
        share[:, 0] = 0
        share /= share.sum(1, keepdim=True)
        # The first of the hidden states are the embeddings.
        states = [torch.einsum("bt,btd->bd", share.to(each.device), each.float()) for each in output.hidden_states[1:]]
        pooled.append(torch.stack([each.cpu() for each in states]))
    found = torch.cat(pooled, 1)
    result = torch.empty_like(found)
    result[:, torch.tensor(order)] = found
    return result


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Linear centred kernel alignment of two representations of the same n items, 0 to 1 (Kornblith et al. 2019).

    1 where the items lie alike up to rotation, shift and one scale. With few items of many dimensions it is high for
    any two representations: compare it between layers over the same items, not with other figures.

    Args:
        x, y: [..., n, d] and [..., n, e].

    Returns:
        [...]; NaN where all items of one side coincide.
    """
    grams = []
    for each in (x, y):
        centred = each.double() - each.double().mean(-2, keepdim=True)
        gram = centred @ centred.mT
        grams.append(gram / torch.linalg.matrix_norm(gram)[..., None, None])
    return (grams[0] * grams[1]).sum((-2, -1))


def similarity_by_pair(
    states: torch.Tensor, items: Sequence[Mapping[int, int]], languages: Sequence[str]
) -> dict[tuple[str, str], torch.Tensor]:
    """Linear CKA [layers] of every two languages, over the items that are there in both.

    Args:
        states: [layers, rows, d], from :func:`pooled_states`.
        items: each item's translations, {language index: row}.
        languages: codes by index.

    Raises:
        ConfigError: no two languages share :data:`MIN_ITEMS` items.
    """
    found = {}
    for a, b in itertools.combinations(range(len(languages)), 2):
        pairs = torch.tensor([(item[a], item[b]) for item in items if a in item and b in item])
        if len(pairs) >= MIN_ITEMS:
            found[languages[a], languages[b]] = linear_cka(states[:, pairs[:, 0]], states[:, pairs[:, 1]])
    if not found:
        raise ConfigError(
            f"no two of the languages {', '.join(languages)} share {MIN_ITEMS} items of the forget rows; "
            "similarity between languages needs translations of the same items"
        )
    return found


def suggest_range(similarity: Sequence[float]) -> range:
    """The layers around the most similar one, as long as they stay above half-way from the lowest to the highest."""
    half = (min(similarity) + max(similarity)) / 2
    peak = max(range(len(similarity)), key=lambda layer: similarity[layer])
    first = last = peak
    while first > 0 and similarity[first - 1] >= half:
        first -= 1
    while last + 1 < len(similarity) and similarity[last + 1] >= half:
        last += 1
    return range(first, last + 1)
