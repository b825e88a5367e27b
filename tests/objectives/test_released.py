"""LingTea as released: the step of the paper's code, from its formula with all logits, for each family it ran with.

The released code pads every row to one length. For BLOOM the loss of a position is that of the next token, weighted by
1 - q of that token. For XGLM, whose loss in transformers 4.44 had a target at the last position of every row, it is
weighted by 1 - q of the position's own token. Any other family goes as BLOOM does.
"""

import pytest
import torch
from datasets import Dataset
from helpers.tiny import LANGUAGES, tiny_config, tiny_model, tiny_rows
from tokenizers import Tokenizer, models
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from unlearn_trainer.teacher.cache import CachedTeacher
from unlearn_trainer.trainer import UnlearnTrainer
from unlearn_trainer.weights.state import SIDES, SUMS

WEIGHTS = [0.3, 1.0, 1.7]
FAMILIES = ["xglm", "bloom", "llama"]


def whole_rows(lengths, seed=0):
    """Rows labelled from the start, as sentences are."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 211, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_list(
        [{"input_ids": row, "labels": row, "language": i % 3, "item": i} for i, row in enumerate(ids)]
    )


def tokenizer_padding_with(pad):
    words = {f"w{i}": i for i in range(211)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words)), pad_token=f"w{pad}")


# The rows, the length they are padded to, and that as it was asked for.
ROWS = {
    "labelled from the start": (whole_rows([13, 6, 9, 14, 7]), 16, None),
    "labelled behind a prompt": (tiny_rows(2, seed=3), 16, 16),
    "as long as the batch": (whole_rows([8, 5, 8, 3]), 8, 8),
    "padded far": (whole_rows([5, 2, 7]), 24, 24),
}


def make_trainer(folder, kind, rows, dtype=torch.float64, max_seq_length=None, tokenizer=None, **settings):
    teacher = tiny_model(kind, 1, dtype, pad_token_id=1)
    changed = {"method": "lingtea", "forget_objective": "none", "retain_coef": 0.7, "lingtea_alignment": "released"}
    trainer = UnlearnTrainer(
        tiny_model(kind, 0, dtype, pad_token_id=1),
        tiny_config(folder, **(changed | settings)),
        None,
        rows,
        languages=LANGUAGES,
        teacher=teacher,
        processing_class=tokenizer,
        max_seq_length=max_seq_length,
    )
    trainer.model.eval()
    trainer.language_weights.retain = WEIGHTS
    return trainer, teacher


def released_loss(kind, model, teacher, rows, width, pad):
    """The formula, on padded logits."""
    padded = [
        (row["input_ids"] + [pad] * width, row["labels"] + [-100] * width, len(row["input_ids"])) for row in rows
    ]
    x = torch.tensor([ids[:width] for ids, _, _ in padded])
    y = torch.tensor([labels[:width] for _, labels, _ in padded])
    mask = torch.arange(width) < torch.tensor([length for _, _, length in padded])[:, None]
    s, t = (each(input_ids=x, attention_mask=mask.long()).logits for each in (model, teacher))
    t = t.detach()
    q = t.softmax(-1).gather(-1, y.clamp(min=0)[..., None])[..., 0] * (y != -100)
    r = torch.tensor(WEIGHTS, dtype=s.dtype)[rows["language"]][:, None]
    kl = (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1)
    if kind == "xglm":
        target, w = torch.cat([y[:, 1:], torch.full_like(y[:, :1], pad)], 1), 1 - q
    else:
        target, w, s = y[:, 1:], 1 - q[:, 1:], s[:, :-1]
    ce = F.cross_entropy(s.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    return 0.7 * ((r * q * kl).sum() / len(rows) + (r * w * ce).sum() / mask.sum())


def batch_of(trainer, rows=None):
    numbers = rows or range(len(trainer.train_dataset))
    return trainer.data_collator([trainer.train_dataset[False, row] for row in numbers])


def check(trainer, expected):
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch_of(trainer))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    size = max(gradient.norm() for gradient in wanted.values())
    assert size > 1e-3
    for name, parameter in trainer.model.named_parameters():
        assert (parameter.grad - wanted[name]).norm() < 1e-9 * size, name


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_loss_and_gradient_are_those_of_the_formula(kind, rows, tmp_path):
    rows, width, max_seq_length = ROWS[rows]
    trainer, teacher = make_trainer(tmp_path, kind, rows, max_seq_length=max_seq_length)
    assert (batch_of(trainer)["input_ids"].shape[1] == width) or kind != "xglm"
    check(trainer, released_loss(kind, trainer.model, teacher, rows, width, pad=1))


@pytest.mark.parametrize("pad", [0, 5])
def test_the_pad_token_is_the_tokenizers(pad, tmp_path):
    rows, width, max_seq_length = ROWS["padded far"]
    tokenizer = tokenizer_padding_with(pad)
    trainer, teacher = make_trainer(tmp_path, "xglm", rows, max_seq_length=max_seq_length, tokenizer=tokenizer)
    check(trainer, released_loss("xglm", trainer.model, teacher, rows, width, pad))


@pytest.mark.parametrize("kind", FAMILIES)
def test_no_split_of_a_step_changes_it(kind, tmp_path):
    rows, _, _ = ROWS["labelled from the start"]
    trainer, _ = make_trainer(tmp_path, kind, rows)
    found = []
    for split in ([range(5)], [[1], [3, 0], [2, 4]]):
        batches = [batch_of(trainer, part) for part in split]
        # A process without a share of a step has a row that counts nowhere.
        batches.append(trainer.data_collator([]))
        counts = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
        trainer.model.zero_grad()
        losses = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts) for batch in batches]
        sum(losses).backward()
        found.append((sum(losses).item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters()])))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-10)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rows", ["labelled from the start", "labelled behind a prompt"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_figures_of_its_rows_are_those_of_any_other_objective(kind, rows, tmp_path):
    rows, found = ROWS[rows][0], {}
    for alignment in ("paper", "released"):
        trainer, teacher = make_trainer(tmp_path, kind, rows, lingtea_alignment=alignment)
        trainer.compute_loss(trainer.model, batch_of(trainer))
        found[alignment] = trainer.language_weights._batch_sums[SIDES.index("retain")]
    known = SUMS.index("teacher_probability")
    others = [index for index in range(len(SUMS)) if index != known]
    assert (found["paper"] > 0).any(0).sum() >= 4
    torch.testing.assert_close(found["released"][:, others], found["paper"][:, others], rtol=1e-9, atol=1e-9)
    # The teacher's probability is the one that its tokens are weighted by.
    expected = torch.zeros(len(LANGUAGES), dtype=torch.float64)
    for row in rows:
        t = teacher(input_ids=torch.tensor([row["input_ids"]])).logits[0].softmax(-1)
        for column, label in enumerate(row["labels"][1:], 1):
            at = column - 1 if kind == "xglm" else column
            if label != -100 and row["labels"][at] != -100:
                expected[row["language"]] += t[at, row["labels"][at]].detach()
    torch.testing.assert_close(found["released"][:, known], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_cached_teacher_gives_the_training_of_a_resident_one(kind, tmp_path):
    """Beside ascent, whose rows go through the same forward; one row has a single label, which nothing predicts."""
    retain = whole_rows([9, 4, 6, 11, 5, 7, 1, 8], seed=1)
    losses = {}
    for teacher in ("resident", "cached"):
        settings = {"max_steps": 4, "per_device_train_batch_size": 3, "learning_rate": 1e-3, "teacher": teacher}
        trainer = UnlearnTrainer(
            tiny_model(kind, 0),
            tiny_config(tmp_path, lingtea_alignment="released", distill_weighting="language", **settings),
            tiny_rows(4, seed=0),
            retain,
            languages=LANGUAGES,
            teacher=tiny_model(kind, 1),
        )
        trainer.train()
        assert isinstance(trainer.teacher, CachedTeacher) == (teacher == "cached")
        losses[teacher] = [log["retain_loss"] for log in trainer.state.log_history if "retain_loss" in log]
    assert len(losses["resident"]) == 4
    assert losses["cached"] == pytest.approx(losses["resident"], rel=1e-4)
