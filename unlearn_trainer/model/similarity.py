"""Where the languages look most alike inside a model."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..errors import ConfigError

# Three points are the fewest whose distances can agree or differ: of two, centred, there is but one.
MIN_ITEMS = 3


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
