"""What holds of every family, each check against plain forwards of the untouched model over one row at a time."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig

from helpers.subjects import subjects_of
from unlearn_trainer.audit.checks.logit_lens import accuracy_by_layer
from unlearn_trainer.audit.checks.states import NoResidualStream, blocks_of, on_outputs, try_pushing
from unlearn_trainer.audit.checks.steering import late_layers, steered
from unlearn_trainer.config.arguments import ModelArguments
from unlearn_trainer.data.row_checks import learned_positions
from unlearn_trainer.evaluation.decoding import way_to_continue
from unlearn_trainer.evaluation.evaluator import MultilingualEvaluator
from unlearn_trainer.evaluation.generation import greedy_continuations
from unlearn_trainer.head.attached import attach_head
from unlearn_trainer.head.chunked import Segment, Segments
from unlearn_trainer.head.packing import lay_out
from unlearn_trainer.model.loading import apply_peft, load_model
from unlearn_trainer.model.trials import rounding_of

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
        assert is_greedy(model, prompt, ids), (prompt, ids)
    return way_to_continue(tried, CPU, max(map(len, prompts)) + NEW_TOKENS), like_generate(model, prompts, found)


def like_generate(model, prompts, found):
    """How ``model.generate`` compares; where it is what plain forwards say, ``found`` has to be the same tokens."""
    said = "agrees"
    for prompt, ids in zip(prompts, found, strict=True):
        settings = GenerationConfig(max_new_tokens=len(ids), do_sample=False, pad_token_id=0, eos_token_id=None)
        given = torch.tensor([prompt])
        # What a call leaves out would come from the model's own settings, such as the token to end at.
        generating = copy.deepcopy(model)
        generating.generation_config = settings
        try:
            whole = generating.generate(given, attention_mask=torch.ones_like(given))
        except Exception as error:  # whatever a family's generate raises
            return f"does not run ({type(error).__name__})"
        generated = whole[0, len(prompt) :].tolist()
        if len(generated) != len(ids) or not is_greedy(model, prompt, generated):
            said = "differs from plain forwards"
        elif is_greedy(model, prompt, generated, surely=True):
            assert ids == generated, (prompt, ids, generated)
    return said


def is_greedy(model, prompt, ids, surely=False):
    """Whether each token is the most likely one by plain forwards, up to rounding or, ``surely``, beyond it."""
    logits = plain_logits(model, prompt + ids)[len(prompt) - 1 : -1]
    # Two logits that share a scale are told apart from this difference on.
    margin = 4 * rounding_of(model) * logits.abs().amax(-1)
    chosen = logits[range(len(ids)), ids]
    others = logits.scatter(1, torch.tensor(ids)[:, None], -float("inf")).amax(-1)
    return bool((chosen - others > margin if surely else chosen - others >= -margin).all())


def nll_of(model, ids):
    """[length - 1] of every token but the first, by the plain forward."""
    logits = plain_logits(model, ids)[:-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


def padded(rows):
    mask = torch.tensor([[1] * len(row) + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    ids = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    return ids, mask


def check_loss(model):
    """The loss of padded rows, through the head in chunks, and its gradient are those of single plain rows."""
    rows = rows_of_ids((4, 11, 7, 13), seed=1)
    tried, plain = copy.deepcopy(model), copy.deepcopy(model)
    attach_head(tried)
    segments, _ = _segments_of(tried, rows, *padded(rows))
    loss = tried(**segments)["loss"]
    loss.backward()
    expected = torch.zeros(())
    for row in rows:
        ids = torch.tensor([row])
        logits = plain(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
        expected = expected + torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:], reduction="sum")
    expected.backward()
    assert_near(loss.detach(), expected.detach(), 4 * rounding_of(model))
    pairs = [(a.grad, b.grad) for a, b in zip(tried.parameters(), plain.parameters(), strict=True)]
    assert [a is None for a, _ in pairs] == [b is None for _, b in pairs]
    flat = [torch.cat([each[side].flatten().double() for each in pairs if each[0] is not None]) for side in (0, 1)]
    assert_near(*flat, 20 * rounding_of(model))


def _segments_of(model, rows, ids, mask, layout=None):
    row, column = mask[:, 1:].nonzero(as_tuple=True)
    inputs = layout.inputs if layout else {"input_ids": ids, "attention_mask": mask}
    positions = layout.positions(row, column) if layout else row * ids.shape[1] + column
    segment = Segment(
        positions=positions,
        targets=ids[row, column + 1],
        needs=frozenset({"nll"}),
        loss=lambda statistics, _: (statistics.nll.sum(), statistics.nll.sum()[None]),
    )
    return {**inputs, "segments": Segments(segment)}, segment


@torch.no_grad()
def check_packing(model):
    """Rows that share lines come out as each alone; returns whether they did share lines."""
    tried = copy.deepcopy(model)
    attach_head(tried)
    shared = []
    for sizes in ((7, 3, 2, 4, 5), (23, 5, 11, 12, 9)):  # within the windows of tiny models, and beyond
        rows = rows_of_ids(sizes, seed=2)
        ids, mask = padded(rows)
        layout = lay_out(tried, ids, mask)
        shared.append(len(layout.inputs["input_ids"]) < len(rows))
        kwargs, segment = _segments_of(tried, rows, ids, mask, layout)
        tried(**kwargs)
        expected = torch.cat([nll_of(model, row) for row in rows])
        assert_near(segment.statistics.nll, expected, 4 * rounding_of(model))
    return shared


def check_candidates(model):
    """What candidates score, sharing their beginning or not, is what each scores as a row of its own."""
    common = rows_of_ids((9,), seed=3)[0]
    endings = rows_of_ids((3, 5, 2), seed=4)
    rows = [common + ending for ending in endings]
    labels = [[-100] * len(common) + ending for ending in endings]
    dataset = Dataset.from_list(
        [
            {
                **{"input_ids": rows[0], "labels": labels[0], "language": 0, "item": 0},
                **{"candidate_input_ids": rows, "candidate_labels": labels},
                "candidate_correct": [True, False, False],
            }
        ]
    )
    evaluator = MultilingualEvaluator(["en"], 1, 0, 4, show_progress=False)
    found = evaluator.candidates(copy.deepcopy(model), {"forget": dataset}, CPU)["forget"][0]
    expected = [nll_of(model, row)[len(common) - 1 :].mean() for row in rows]
    assert_near(torch.tensor(found.token_losses), torch.stack(expected), 4 * rounding_of(model))


def check_adapter(model):
    """The default adapter changes nothing before it is trained, and every part of it gets a gradient or none does."""
    adapted = apply_peft(copy.deepcopy(model), ModelArguments(model_name_or_path="tiny", use_peft=True))
    rows = rows_of_ids((9, 9), seed=5)
    attach_head(adapted.get_base_model())
    kwargs, segment = _segments_of(adapted, rows, *padded(rows))
    adapted(**kwargs)["loss"].backward()
    expected = torch.cat([nll_of(model, row) for row in rows])
    assert_near(segment.statistics.nll, expected, 4 * rounding_of(model))
    gradients = [p.grad for p in adapted.parameters() if p.requires_grad]
    assert any(each is not None and each.norm() > 0 for each in gradients)


def check_saving(model, folder):
    """What is saved and loaded again predicts the same."""
    row = rows_of_ids((12,), seed=6)[0]
    tried = copy.deepcopy(model)
    attach_head(tried)
    tried.save_pretrained(folder)
    dtype = str(model.dtype).removeprefix("torch.")
    # In the same attention: near the border of two experts another order of sums draws another one.
    again = load_model(ModelArguments(model_name_or_path=str(folder), dtype=dtype, attn_implementation="eager"))
    pairs = list(zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert all(torch.equal(a.to(b.dtype), b) for a, b in pairs)
    # Some families keep a few weights in float32 when they are loaded in less.
    if all(a.dtype == b.dtype for a, b in pairs):
        assert_near(plain_logits(again, row), plain_logits(model, row), rounding_of(model))


def assert_near(found, expected, share):
    found, expected = found.double(), expected.double()
    assert (found - expected).norm() <= share * expected.norm(), (found.flatten()[:9], expected.flatten()[:9])


@torch.no_grad()
def check_longest(model, configured=128):
    """A row as long as is accepted runs, one more token does not; without a limit more than configured does."""
    limit = learned_positions(model)
    row = rows_of_ids(((limit or configured + 12) + 1,), seed=7)[0]
    assert plain_logits(model, row[:-1]).isfinite().all()
    if limit is not None:
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            plain_logits(model, row)
    return limit


def check_lens(model, folder):
    """The last layer's figures are those of plain forwards, also of a batch of one row; returns why there are none."""
    rows, unsure = [], []
    for item, ids in enumerate(rows_of_ids((13, 11, 9, 7, 5), seed=8)):
        logits = plain_logits(model, ids)[:-1]
        best, second = logits.topk(2).values.T
        # Two logits nearer than this may change places by rounding.
        near = best - second <= 8 * rounding_of(model) * logits.abs().amax(-1)
        unsure.append(near[::2].double().sum() / len(logits))
        # Every other prediction is right, the others as wrong as can be.
        labels = logits.argmax(-1).where(torch.arange(len(logits)) % 2 == 0, logits.argmin(-1))
        rows.append({"input_ids": ids, "labels": [-100, *labels.tolist()], "language": 0, "item": item})
    rows = Dataset.from_list(rows)
    subject = subjects_of(folder, {"forget": rows}, after=model)["after"]
    subject.load = lambda **_: copy.deepcopy(model)
    try:
        with subject.ready() as ready:
            table = accuracy_by_layer(subject, ready, rows)
    except NoResidualStream as error:
        return str(error)
    expected = torch.tensor([0.5] * len(rows), dtype=torch.float64)
    assert ((torch.tensor(table[:, -1]) - expected).abs() <= torch.stack(unsure) + 1e-9).all()
    return None


@torch.no_grad()
def check_steering(model):
    """A push by 0 changes nothing in a single row, a push by something does; returns why there is none."""
    tried = copy.deepcopy(model)
    attach_head(tried)
    try:
        layers = late_layers(len(blocks_of(tried)))
        try_pushing(tried, layers, CPU)
    except NoResidualStream as error:
        return str(error)
    row, plain = rows_of_ids((12,), seed=9)[0], plain_logits(model, rows_of_ids((12,), seed=9)[0])
    blocks = [blocks_of(tried)[layer] for layer in layers]
    generator = torch.Generator().manual_seed(0)
    sizes = {}
    with on_outputs(blocks, lambda index, state: sizes.__setitem__(index, state.shape[-1])):
        plain_logits(tried, row)
    direction = torch.randn(sizes[0], generator=generator)  # several streams may lie side by side
    for number in range(len(blocks)):
        directions = torch.zeros(len(blocks), len(direction))
        directions[number] = direction / direction.norm()
        with steered(blocks, directions, 0.0):
            assert_near(plain_logits(tried, row), plain, rounding_of(model))
        with steered(blocks, directions, 0.4):
            pushed = plain_logits(tried, row)
        assert (pushed - plain).norm() > rounding_of(model) * plain.norm()
    return None


def check_all(model, folder):
    """All of the above but the adapter; returns whether rows shared lines, and how it is continued."""
    check_loss(model)
    packed = check_packing(model)
    way, generate = check_continuations(model)
    check_candidates(model)
    check_saving(model, folder)
    longest = check_longest(model)
    found = {"packed": packed[0], "cached": way.cached, "padded": way.padded, "positions": way.first_position}
    attacks = {"lens": check_lens(model, folder / "lens"), "steering": check_steering(model)}
    return {
        **found,
        "generate": generate,
        "longest": longest,
        **{name: reason or "yes" for name, reason in attacks.items()},
    }
