"""Greedy continuations against an argmax loop over one row at a time, without padding, cache or vocabulary head."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers.tiny import LANGUAGES, tiny_model, tiny_rows
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from unlearn_trainer.evaluation.generation import (
    continued_rows,
    cut_at,
    end_of_text,
    greedy_continuations,
    prompt_and_reference,
    question_rows,
)
from unlearn_trainer.evaluation.rouge import rouge_l_recall
from unlearn_trainer.head.attached import attach_head

CPU = torch.device("cpu")
MORE = {
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 8},
    "rwkv": {"attention_hidden_size": 32},
    "roberta": {"is_decoder": True},  # its first position is number 1
}


def material(seed=0, count=11):
    """Prompts of 1 to 16 tokens, and how much to add to each."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 17, (count,), generator=generator).tolist()
    prompts = [torch.randint(3, 200, (size,), generator=generator).tolist() for size in sizes]
    return prompts, torch.randint(0, 13, (count,), generator=generator).tolist()


@torch.no_grad()
def naive(model, prompt, length):
    ids = list(prompt)
    for _ in range(length):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def continued(model, prompts, lengths, batch_size=4):
    return greedy_continuations(model, prompts, lengths, CPU, batch_size, show_progress=False)


def word_tokenizer(size=211):
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", bos_token="<s>")


# ALiBi, positions from the mask, sliding windows, recurrent layers; with and without padding, and a cache.
@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "bloom", "opt", "xglm", "gemma3_text", "falcon_h1", "recurrent_gemma", "rwkv", "roberta"]
)
def test_equal_to_an_argmax_loop_on_every_architecture(kind):
    model, plain = (tiny_model(kind, 2, **MORE.get(kind, {})) for _ in range(2))
    attach_head(model)
    prompts, lengths = material()
    expected = [naive(plain, *each) for each in zip(prompts, lengths, strict=True)]
    assert len({tuple(each) for each in expected}) == len(expected) > 5
    assert continued(model, prompts, lengths) == expected


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_neither_batches_nor_the_order_of_rows_change_a_continuation(batch_size):
    model = tiny_model(seed=3)
    prompts, lengths = material(1)
    expected = [naive(model, *each) for each in zip(prompts, lengths, strict=True)]
    assert continued(model, prompts, lengths, batch_size) == expected
    assert continued(model, prompts[::-1], lengths[::-1], batch_size) == expected[::-1]


def test_nothing_to_add_and_nothing_to_begin_with():
    assert continued(tiny_model(), [[5, 6], [7]], [0, 0]) == [[], []]
    assert continued(tiny_model(), [], []) == []


def test_the_checkpoint_s_generation_settings_change_nothing():
    model = tiny_model()
    prompts, lengths = material(2)
    expected = continued(model, prompts, lengths)
    model.generation_config.update(repetition_penalty=9.0, do_sample=True, suppress_tokens=list(range(100)))
    assert continued(model, prompts, lengths) == expected


def test_dropout_is_off_and_the_mode_is_put_back():
    model = tiny_model("gpt2")
    prompts, lengths = material(3)
    expected = continued(model, prompts, lengths)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    assert continued(model, prompts, lengths) == expected
    assert model.training


@pytest.mark.parametrize(
    ("ids", "labels", "prompt", "reference"),
    [
        ([5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [5, 6], [7, 8, 9]),  # a text
        ([5, 6], [5, 6], [5], [6]),
        ([1, 5, 6, 7, 8], [-100, -100, -100, 7, 8], [1, 5, 6], [7, 8]),  # a question
        ([1, 5, 6, 7, 8], [-100, -100, 6, -100, -100], [1, 5], [6]),  # a cloze row
        ([5, 6, 7, 8], [5, 6, -100, -100], [5], [6]),  # nothing predicts the first token
    ],
)
def test_prompt_and_reference(ids, labels, prompt, reference):
    assert prompt_and_reference(ids, labels) == (prompt, reference)


def test_rows_of_questions_end_with_the_answer():
    rows = [
        ([1, 5, 6, 7, 2], [-100, -100, 6, 7, -100], 0),  # the end-of-text token may follow
        ([1, 5, 6, 7], [-100, -100, 6, 7], 1),
        ([1, 5, 6, 7], [-100, -100, 6, -100], 1),  # a cloze row in the same language
        ([1, 5, 6], [-100, 5, 6], 2),
        ([1, 5, 6], [-100, 5, 6], 0),
        ([1, 5, 6], [1, 5, 6], 3),  # a text
    ]
    dataset = Dataset.from_list([dict(zip(("input_ids", "labels", "language"), row, strict=True)) for row in rows])
    assert question_rows(dataset, 4, [1, 2]) == [0, 3, 4]
    assert question_rows(dataset, 2, [1, 2]) == [0, 4]
    assert question_rows(dataset, 4, []) == [3]  # 2 would be a token like any other


def test_a_text_ends_where_the_tokenizer_or_the_checkpoint_says():
    model = tiny_model()
    model.generation_config.eos_token_id = [2, 9]
    assert end_of_text(model, word_tokenizer()) == {2, 9}
    model.generation_config.eos_token_id = None
    assert end_of_text(model, word_tokenizer()) == {2}
    assert cut_at([5, 9, 6, 2], {2, 9}) == [5]
    assert cut_at([5, 6], {2}) == [5, 6]


@pytest.fixture(scope="module")
def memorized():
    """A model that knows the rows of the first seed by heart."""
    model = tiny_model()
    rows = tiny_rows(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        for row in rows:
            model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    attach_head(model)
    return model.eval()


def rows_of(model, batch_size=4, **datasets):
    return continued_rows(model, datasets, word_tokenizer(), CPU, batch_size, show_progress=False)


def test_what_is_known_by_heart_is_continued_word_for_word(memorized):
    known, unknown = tiny_rows(seed=0), tiny_rows(seed=1)
    for row in known:  # the premise: an accuracy of 1 under teacher forcing
        with torch.no_grad():
            guesses = memorized(input_ids=torch.tensor([row["input_ids"]])).logits[0].argmax(-1).tolist()
        assert all(g == label for g, label in zip(guesses, row["labels"][1:], strict=False) if label != -100)
    found = rows_of(memorized, forget=known, test=unknown.shuffle(seed=0))
    assert found["forget"]["language"].tolist() == known["language"][:]
    assert found["forget"]["item"].tolist() == known["item"][:]
    assert (found["forget"]["rouge_l"] == 1).all() and (found["forget"]["exact_match"] == 1).all()
    assert found["test"]["item"].tolist() == unknown.shuffle(seed=0)["item"][:]
    assert found["test"]["rouge_l"].mean() < 0.3 and not found["test"]["exact_match"].any()
    assert set(found["forget"]["language"]) == set(range(len(LANGUAGES)))


def test_recall_and_exactness_of_what_is_known_in_part(memorized):
    """The reference is changed after the fact, so the continuation of each row is known."""
    rows = tiny_rows(seed=0).to_list()
    for row in rows[:2]:
        row["input_ids"][-1] = row["labels"][-1] = 3 + row["input_ids"][-1] % 200
    found = rows_of(memorized, forget=Dataset.from_list(rows))["forget"]
    for row, recall in zip(rows[:2], found["rouge_l"], strict=False):
        right = [f"w{token}" for token in row["labels"] if token != -100]
        assert recall == pytest.approx((len(right) - 1) / len(right))
    assert found["exact_match"].tolist() == [0, 0] + [1] * (len(rows) - 2)


def test_what_comes_after_the_end_of_the_text_does_not_count(memorized):
    row = next(row for row in tiny_rows(seed=0).to_list() if row["labels"].count(-100) <= len(row["labels"]) - 3)
    answer = [token for token in row["labels"] if token != -100]
    end = answer[-2]
    model = tiny_model()
    model.load_state_dict(memorized.state_dict())
    model.generation_config.eos_token_id = end
    found = rows_of(model, forget=Dataset.from_list([row]))["forget"]
    spoken = " ".join(f"w{token}" for token in answer[: answer.index(end)])
    written = " ".join(f"w{token}" for token in answer)
    assert found["rouge_l"].tolist() == [rouge_l_recall(spoken, written)]
    assert found["rouge_l"][0] < 1


WORKER = """
import json, sys
sys.path[:0] = {paths}
from test_generation import CPU, LANGUAGES, continued, material, rows_of, tiny_model, tiny_rows
from accelerate import PartialState
state = PartialState(cpu=True)
model = tiny_model(seed=3)
found = [continued(model, *material(1, count)) for count in (11, 1, 4)]
columns = rows_of(model, 1, test=tiny_rows(items=1).select([0, 1, 2]))["test"]
found.append({{name: values.tolist() for name, values in columns.items()}})
open(f"{folder}/{{state.process_index}}-of-{{state.num_processes}}.json", "w").write(json.dumps(found))
state.destroy_process_group()
"""


@pytest.mark.slow
def test_several_processes_get_the_same_and_all_of_it(tmp_path):
    paths = [*map(str, [Path(__file__).parent, *Path(__file__).resolve().parents[1:3]])]
    (tmp_path / "worker.py").write_text(WORKER.format(paths=paths, folder=tmp_path))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*command, tmp_path / "worker.py"], check=True, capture_output=True, timeout=300)
    model = tiny_model(seed=3)
    expected = [continued(model, *material(1, count)) for count in (11, 1, 4)]
    columns = rows_of(model, test=tiny_rows(items=1).select([0, 1, 2]))["test"]
    expected.append({name: values.tolist() for name, values in columns.items()})
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}-of-2.json").read_text()) == expected
