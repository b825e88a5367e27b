"""The three losses of a side: which objective gets which, and that no cut of the tokens changes what comes out."""

import pytest
import torch
from helpers.tiny import rows_with_companions, tiny_trainer

from unlearn_trainer.head import chunked
from unlearn_trainer.head.packing import lay_out
from unlearn_trainer.step.losses import RowLoss, StateLoss, TokenLoss

# Forget and retain objective, and the classes of their losses.
PAIRS = {
    ("gradient_ascent", "lingtea"): (TokenLoss, TokenLoss),
    ("jensun", "jsd"): (TokenLoss, TokenLoss),
    ("jensun_in_place", "kl"): (TokenLoss, TokenLoss),
    ("pdu_unshifted", "nll"): (TokenLoss, TokenLoss),
    ("calibrated", "nll"): (TokenLoss, TokenLoss),
    ("npo", "nll"): (RowLoss, TokenLoss),
    ("dpo", "kl"): (RowLoss, TokenLoss),
    ("rmu", "rmu"): (StateLoss, StateLoss),
}


def trainer_and_batch(folder, pair):
    forget, retain = pair
    trainer = tiny_trainer(
        folder,
        forget=rows_with_companions(6),
        forget_objective=forget,
        retain_objective=retain,
        relearn_coef=0.0,
        per_device_train_batch_size=6,
    )
    pairs = [(is_forget, row) for is_forget in (True, False) for row in range(6)]
    return trainer, trainer.data_collator([trainer.train_dataset[each] for each in pairs])


def step(folder, pair):
    """Loss and gradient of one batch."""
    trainer, batch = trainer_and_batch(folder, pair)
    with torch.no_grad():  # not the teacher any more
        for parameter in trainer.model.parameters():
            parameter.mul_(1.05)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    return loss.detach(), gradient


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_no_cut_of_the_tokens_changes_the_step(pair, tmp_path, monkeypatch):
    loss, gradient = step(tmp_path / "whole", pair)
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 1)
    monkeypatch.setattr(chunked, "MIN_CHUNK_TOKENS", 3)
    monkeypatch.setattr(chunked, "TILE_BYTES", 1)
    cut_loss, cut_gradient = step(tmp_path / "cut", pair)
    assert torch.allclose(loss, cut_loss, rtol=1e-5, atol=1e-6)
    assert gradient.norm() > 0 and (gradient - cut_gradient).norm() <= 1e-4 * gradient.norm()


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_the_class_goes_by_the_objective_and_the_result_by_the_own_rows(pair, tmp_path):
    trainer, batch = trainer_and_batch(tmp_path, pair)
    layout = lay_out(trainer.model, batch["input_ids"], batch["attention_mask"], trainer.step_loss.reads_padding)
    counts = trainer._get_num_items_in_batch([batch], batch["labels"].device)
    segments, losses = trainer.step_loss.segments(batch, layout, counts, trainer.language_weights)
    assert tuple(type(losses[side]) for side in ("forget", "retain")) == PAIRS[pair]
    trainer.model(**layout.inputs, segments=segments)
    logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    log_p = logits[:, :-1].log_softmax(-1).gather(-1, batch["labels"][:, 1:, None].clamp(min=0))[..., 0]
    labelled = batch["labels"][:, 1:] != -100
    for side in ("forget", "retain"):
        rows = batch["is_forget"] if side == "forget" else torch.arange(len(batch["row"])) >= len(batch["row"]) - 6
        result = losses[side].result()
        assert result.row_languages.tolist() == batch["language"][rows].tolist()
        assert result.figures["tokens"].tolist() == labelled[rows].sum(1).tolist()
        assert torch.allclose(result.figures["nll"], -(log_p * labelled)[rows].sum(1), rtol=1e-4)
        assert torch.isfinite(result.terms).all()
