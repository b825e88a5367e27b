#!/usr/bin/env python
"""Suggest --trainable_layers: the layers in which the languages are most alike.

    python scripts/suggest_layers.py my_run.json

It takes the flags and files of run_unlearn.py. Measured is the linear CKA (Kornblith et al. 2019) between languages of
the mean hidden states of the forget items behind each layer, over every two of --languages; --max_train_samples items
are enough. Suggested are the layers around the highest mean, as far as it stays above half-way between the lowest and
the highest. One process is used, on the device of the flags.
"""

from collections.abc import Sequence

import torch

from unlearn_trainer.config.parser import parse_arguments
from unlearn_trainer.console import run_command
from unlearn_trainer.data.sampler import group_items
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.model.loading import load_model
from unlearn_trainer.model.similarity import pooled_states, similarity_by_pair, suggest_range
from unlearn_trainer.runs.loading import load_rows


def suggest(argv: Sequence[str] | None = None) -> str:
    """Print the table; returns the suggested value."""
    model_args, data_args, args = parse_arguments(argv)
    tokenizer, _, data = load_rows(model_args, data_args, args)  # whatever the method, the forget rows are enough
    if "forget" not in data.datasets:
        raise ConfigError("similarity is measured on the forget rows; give --forget_file")
    rows = data.datasets["forget"]
    states = pooled_states(
        load_model(model_args, tokenizer).to(args.device),  # type: ignore[arg-type]  # their decorator hides the binding
        rows["input_ids"],
        tokenizer.pad_token_id,
        args.per_device_eval_batch_size,
        show_progress=not args.disable_tqdm,
    )
    pairs = similarity_by_pair(states, group_items(rows, len(data.languages)), data.languages)
    table = torch.stack(list(pairs.values()))
    mean = table.mean(0)
    print("layer | mean CKA | worst pair")
    for layer, (low, pair) in enumerate(zip(*map(torch.Tensor.tolist, table.min(0)), strict=True)):
        print(f"{layer:5d} | {mean[layer]:8.3f} | {low:.3f} {'-'.join(list(pairs)[pair])}")
    layers = suggest_range(mean.tolist())
    value = f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else str(layers[0])
    print(f"suggested: --trainable_layers {value}")
    return value


if __name__ == "__main__":
    run_command(suggest)
