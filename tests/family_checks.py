"""What holds of every family, each check against plain forwards of the untouched model over one row at a time."""

import copy

import torch

from unlearn_trainer.evaluation.decoding import rounding_of, way_to_continue
from unlearn_trainer.evaluation.generation import greedy_continuations
from unlearn_trainer.lm_head import attach_head

CPU = torch.device("cpu")
# Lengths on both sides of a tiny model's windows, and one row of a single token.
PROMPT_SIZES = (4, 11, 1, 7, 11, 17)
NEW_TOKENS = 6


def rows_of_ids(sizes, seed=0, vocabulary=211):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocabulary, (size,), generator=generator).tolist() for size in sizes]


@torch.no_grad()
def plain_logits(model, ids):
    ids = torch.tensor([ids])
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].double()


def check_continuations(model):
    """Every token is the most likely one by the plain forward over its row, or as likely up to rounding."""
    tried = copy.deepcopy(model)
    attach_head(tried)
    prompts = rows_of_ids(PROMPT_SIZES)
    lengths = [NEW_TOKENS - number % 2 for number in range(len(prompts))]
    found = greedy_continuations(tried, prompts, lengths, CPU, 4, show_progress=False)
    assert [len(ids) for ids in found] == lengths
    for prompt, ids in zip(prompts, found, strict=True):
        assert_greedy(model, prompt, ids)
    return way_to_continue(tried, CPU, max(map(len, prompts)) + NEW_TOKENS)


def assert_greedy(model, prompt, ids):
    logits = plain_logits(model, prompt + ids)[len(prompt) - 1 : -1]
    best = logits.max(-1).values
    chosen = logits[range(len(ids)), ids]
    # Two logits that share a scale are told apart from this difference on.
    margin = 4 * rounding_of(model) * logits.abs().amax(-1)
    assert (best - chosen <= margin).all(), (prompt, ids, logits.argmax(-1).tolist())
