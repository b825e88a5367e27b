"""Questions and conversations go through the model's chat template, with labels on the assistant's own words."""

import json

import pytest
from helpers.chats import ENDS, TEMPLATES, chat_tokenizer
from helpers.material import FLAGS
from helpers.tiny import tiny_model

import run_unlearn
from unlearn_trainer.data import add_alternatives, parse_line, tokenize_splits
from unlearn_trainer.data.chat import find_template, with_template
from unlearn_trainer.errors import ConfigError, DataError

IGNORED = -100
QUESTION, ANSWER = "Who wrote Dosu, the book?", "Efra Gani wrote it in 1907."
ROWS = {
    "en": (QUESTION, ANSWER),
    "zh": ("谁写了《多苏》？", "埃弗拉·加尼写的。"),
    "ar": ("من كتب دوسو؟", "كتبه إفرا غاني."),
    "th": ("ใครเขียนโดซู", "เอฟรา กานี"),
}


def qa(rows=None, **more):
    rows = rows or ROWS
    row = {
        "question": {code: q for code, (q, _) in rows.items()},
        "answer": {code: a for code, (_, a) in rows.items()},
    }
    return parse_line(json.dumps(row | more), "f.jsonl:1")


def messages(*turns, language="en"):
    content = [{"role": role, "content": text} for role, text in turns]
    return parse_line(json.dumps({"messages": {language: content}}), "f.jsonl:1")


def tokenized(tokenizer, item, split="forget", **options):
    """The rows of one item in a split."""
    chat = find_template(tokenizer, **options)
    other = qa({code: (f"Not {q}", f"Not {a}") for code, (q, a) in ROWS.items()})
    splits = {"forget": [item] if split == "forget" else [other], split: [item]}
    splits = {name: with_template(items, chat) for name, items in splits.items()}
    return tokenize_splits(splits, tokenizer, list(item.content), max_seq_length=512).datasets[split].to_list()


def labelled(tokenizer, row):
    return tokenizer.decode([label for label in row["labels"] if label != IGNORED])


@pytest.mark.parametrize("family", TEMPLATES)
def test_labels_are_on_the_words_of_the_answer_alone(family):
    tokenizer = chat_tokenizer(family)
    for row, (code, (question, answer)) in zip(tokenized(tokenizer, qa()), ROWS.items(), strict=True):
        assert labelled(tokenizer, row) == answer, code
        whole = tokenizer.decode(row["input_ids"])
        assert question in whole and whole.endswith(answer + ENDS[family])
        assert row["input_ids"].count(tokenizer.bos_token_id) == TEMPLATES[family].count("bos_token")


@pytest.mark.parametrize("family", TEMPLATES)
def test_ids_are_those_of_transformers_own_rendering(family):
    tokenizer = chat_tokenizer(family)
    (row,) = tokenized(tokenizer, qa({"en": ROWS["en"]}))
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    template = TEMPLATES[family].replace("strftime_now('%d %b %Y')", "'01 Jan 2025'")
    options = {"chat_template": template, "tokenize": True, "return_dict": True}
    naive = tokenizer.apply_chat_template(turns, **options)["input_ids"]
    assert naive[: len(row["input_ids"])] == row["input_ids"]
    assert tokenizer.decode(naive[len(row["input_ids"]) :]).strip() == ""
    asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, **options)
    prompt = row["input_ids"][: row["labels"].index(next(label for label in row["labels"] if label != IGNORED))]
    assert prompt[: len(asked["input_ids"])] == asked["input_ids"]  # and then, with some, an empty thought


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_row_to_be_kept_also_learns_to_end_the_turn(family):
    tokenizer = chat_tokenizer(family)
    for split, ends in (("retain", True), ("valid", False), ("test", False)):
        for row, (_, answer) in zip(tokenized(tokenizer, qa(), split), ROWS.values(), strict=True):
            assert labelled(tokenizer, row) == answer + (ENDS[family] if ends else "")


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_question_and_a_conversation_of_the_same_words_are_the_same_row(family):
    tokenizer = chat_tokenizer(family)
    asked = tokenized(tokenizer, qa({"en": ROWS["en"]}))
    said = tokenized(tokenizer, messages(("user", QUESTION), ("assistant", ANSWER)))
    assert [(row["input_ids"], row["labels"]) for row in asked] == [(row["input_ids"], row["labels"]) for row in said]


def test_of_several_turns_the_last_is_labelled():
    tokenizer = chat_tokenizer("alternating")
    turns = [("user", "Hello?"), ("assistant", ANSWER), ("user", "And again?"), ("assistant", ANSWER)]
    (row,) = tokenized(tokenizer, messages(*turns))
    assert labelled(tokenizer, row) == ANSWER
    first = next(place for place, label in enumerate(row["labels"]) if label != IGNORED)
    assert "And again?" in tokenizer.decode(row["input_ids"][:first])


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_system_prompt_stands_before_the_question_even_where_there_is_no_system_role(family):
    tokenizer = chat_tokenizer(family)
    (row,) = tokenized(tokenizer, qa({"en": ROWS["en"]}), system_prompt="Answer in verse.")
    whole = tokenizer.decode(row["input_ids"])
    assert whole.count("Answer in verse.") == 1 and whole.index("Answer in verse.") < whole.index(QUESTION)
    assert labelled(tokenizer, row) == ANSWER and "Be kind." not in whole


def test_other_wordings_and_alternatives_are_asked_through_the_template():
    tokenizer = chat_tokenizer("marked")
    more = {"paraphrased_answer": {"en": "It was Efra Gani."}, "perturbed_answer": {"en": ["Hoku Ilan wrote it."]}}
    item = with_template([qa({"en": ROWS["en"]}, **more)], find_template(tokenizer))[0]
    data = tokenize_splits({"forget": [item]}, tokenizer, ["en"], max_seq_length=256)
    row = add_alternatives(data, [item], tokenizer, 256, seed=0).datasets["forget"].to_list()[0]
    whole = [tokenizer.decode(ids) for ids in [*row["candidate_input_ids"], row["alternative_input_ids"]]]
    assert all(text.startswith(f"<|open|>user\n{QUESTION}<|shut|>\n<|open|>assistant\n") for text in whole)
    answers = [tokenizer.decode([i for i in labels if i != IGNORED]) for labels in row["candidate_labels"]]
    assert answers == ["It was Efra Gani.", "Hoku Ilan wrote it."]
    assert labelled(tokenizer, {"labels": row["alternative_labels"]}) in whole[2]


@pytest.mark.parametrize("asked", ["none", "auto"])
def test_without_a_template_rows_are_what_they_were(asked):
    plain, chatty = chat_tokenizer(None), chat_tokenizer("marked")
    (row,) = (
        tokenized(plain, qa({"en": ROWS["en"]}), chat_template="auto")
        if False
        else tokenized(plain, qa({"en": ROWS["en"]}))
    )
    assert plain.decode(row["input_ids"]) == f"<s>{QUESTION} {ANSWER}"
    (same,) = tokenized(chatty, qa({"en": ROWS["en"]}), asked="none")
    assert same["input_ids"] == row["input_ids"] and same["labels"] == row["labels"]


def test_a_template_may_come_from_a_file(tmp_path):
    (tmp_path / "chat.jinja").write_text(TEMPLATES["bracketed"], encoding="utf-8")
    (row,) = tokenized(chat_tokenizer(None), qa({"en": ROWS["en"]}), asked=str(tmp_path / "chat.jinja"))
    (same,) = tokenized(chat_tokenizer("bracketed"), qa({"en": ROWS["en"]}))
    assert row["input_ids"] == same["input_ids"]
    with pytest.raises(ConfigError, match="--chat_template .*cannot be read"):
        find_template(chat_tokenizer(None), str(tmp_path / "none.jinja"))
    with pytest.raises(ConfigError, match="--system_prompt needs a chat template"):
        find_template(chat_tokenizer(None), "auto", "Be brief.")


ASKED = qa({"en": ROWS["en"]})


@pytest.mark.parametrize(
    ("template", "item", "said"),
    [
        ("{{ raise_exception('never') }}", ASKED, "does not render turns of user, assistant .*never"),
        ("{{ messages[0]['content'] }}", ASKED, "writes an answer 0 times"),
        (
            "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
            qa({"en": ROWS["en"]}),
            "changes this answer",
        ),
        (TEMPLATES["alternating"], messages(("user", "a"), ("user", "b"), ("assistant", "c")), "roles alternate"),
        (None, messages(("user", "a"), ("assistant", "b")), "needs a chat template"),
    ],
)
def test_a_row_that_cannot_be_rendered_is_named_with_line_and_remedy(template, item, said):
    tokenizer = chat_tokenizer(template)
    with pytest.raises(DataError, match=rf"f\.jsonl:1: language 'en': .*{said}") as refused:
        with_template([item], find_template(tokenizer))
    assert "--chat_template FILE" in str(refused.value) and ANSWER not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "two turns or more"),
        ([{"role": "user", "content": "a"}], "two turns or more"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "end with a turn of the assistant"),
        ([{"role": "bot", "content": "a"}, {"role": "assistant", "content": "b"}], "'role' must be one of"),
        ([{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}], "turn 1 is empty"),
        ([{"role": "user", "text": "a"}, {"role": "assistant", "content": "b"}], "turn 1 must be"),
    ],
)
def test_turns_that_are_none_are_refused(content, said):
    with pytest.raises(DataError, match=rf"f\.jsonl:1.*{said}"):
        parse_line(json.dumps({"messages": {"en": content}}), "f.jsonl:1")


def test_a_run_forgets_the_answer_as_it_is_asked_for_and_keeps_ending_its_turns(tmp_path):
    tokenizer = chat_tokenizer("marked")
    tokenizer.save_pretrained(tmp_path / "model")
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 4, "max_position_embeddings": 256}
    tiny_model("llama", **{"vocab_size": len(tokenizer), **ids}).save_pretrained(tmp_path / "model")
    for split, start in (("forget", 0), ("retain", 20), ("valid", 40)):
        rows = [
            {"question": {"en": f"Q{n * 37 % 97}?"}, "answer": {"en": f"A{n * 61 % 89}."}}
            for n in range(start, start + 6)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = ["--model_name_or_path", str(tmp_path / "model"), "--data_dir", str(tmp_path)]
    flags = FLAGS.replace("--max_seq_length 16", "--max_seq_length 96").split()
    learn = ["--memorize_first", "--memorize_epochs", "60", "--memorize_learning_rate", "1e-2"]
    forget = ["--do_train", "--do_eval", "--max_steps", "12", "--learning_rate", "3e-3", "--method", "grad_diff"]
    results = run_unlearn.run([*flags, *where, *learn, *forget, "--show_texts", "--output_dir", str(tmp_path / "out")])
    before, after = (results[phase]["forget"]["en"]["memorization_accuracy"] for phase in ("before", "after"))
    assert before > 0.9 and after < before - 0.3
    assert results["before"]["retain"]["en"]["tokens"] > results["before"]["forget"]["en"]["tokens"]  # the ends count
    assert results["greedy_text"]["retain"]["en"]["ended"] > 0.5
    assert all("assistant" in example["prompt"] for example in results["examples"])
