from collections import Counter

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from unlearn_trainer.data.collator import TrainingRows, UnlearnCollator
from unlearn_trainer.data.sampler import UnlearnBatchSampler, group_items
from unlearn_trainer.errors import ConfigError, DataError

SAMPLINGS = st.sampled_from(["balanced", "random", "all"])
SCHEDULES = st.sampled_from(["joint", "alternate"])
SMALL = st.integers(1, 4)
quick = settings(max_examples=40, deadline=None)


@st.composite
def splits(draw):
    """Items with one to four of the languages each, rows numbered in order."""
    languages = draw(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=9))
    row = iter(range(1000))
    return [{language: next(row) for language in sorted(item)} for item in languages]


def full(num_items, num_languages=3):
    return [{lang: item * num_languages + lang for lang in range(num_languages)} for item in range(num_items)]


def micro_batches(forget, retain, epoch=0, *, num_processes=1, **settings):
    """Of every rank: [rank][micro-batch] -> list of (is_forget, row)."""
    ranks = []
    for rank in range(num_processes):
        sampler = UnlearnBatchSampler(forget, retain, num_processes=num_processes, process_index=rank, **settings)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        ranks.append(batches)
    return ranks


def steps(ranks, accumulation_steps):
    """The rows of each optimizer step, over all ranks."""
    assert len({len(batches) for batches in ranks}) == 1
    return [
        [row for batches in ranks for batch in batches[start : start + accumulation_steps] for row in batch]
        for start in range(0, len(ranks[0]), accumulation_steps)
    ]


def epoch_rows(forget, retain, epoch, **settings):
    return [row for batch in micro_batches(forget, retain, epoch, batch_size=3, **settings)[0] for row in batch]


def rows_of(rows, is_forget):
    return [row for kind, row in rows if kind == is_forget]


def owner(items):
    return {row: (item, lang) for item, rows in enumerate(items) for lang, row in rows.items()}


@quick
@given(splits(), splits(), SCHEDULES, SAMPLINGS, SMALL, SMALL, SMALL, st.integers(0, 9))
def test_epoch_covers_the_split_once_over_all_ranks(
    forget, retain, schedule, sampling, batch_size, accumulation, processes, epoch
):
    ranks = micro_batches(
        forget,
        retain,
        epoch,
        num_processes=processes,
        batch_size=batch_size,
        accumulation_steps=accumulation,
        schedule=schedule,
        language_sampling=sampling,
        seed=5,
    )
    drawn = [row for batches in ranks for batch in batches for row in batch]
    for is_forget, items in ((True, forget), (False, retain)):
        if schedule == "joint" and not is_forget:
            assert len(rows_of(drawn, False)) == len(rows_of(drawn, True))
        elif sampling == "all":
            assert Counter(rows_of(drawn, is_forget)) == Counter(owner(items).keys())
        else:
            seen = Counter(owner(items)[row][0] for row in rows_of(drawn, is_forget))
            assert seen == Counter(range(len(items)))


@quick
@given(splits(), splits(), SCHEDULES, SAMPLINGS, st.sampled_from([2, 4, 6, 12]), st.integers(0, 5), st.data())
def test_steps_do_not_depend_on_how_the_global_batch_is_split(
    forget, retain, schedule, sampling, global_batch, epoch, data
):
    def draw(batch_size, processes):
        accumulation = global_batch // (batch_size * processes)
        ranks = micro_batches(
            forget,
            retain,
            epoch,
            num_processes=processes,
            batch_size=batch_size,
            accumulation_steps=accumulation,
            schedule=schedule,
            language_sampling=sampling,
            seed=0,
        )
        rows = 2 if schedule == "joint" else 1
        assert all(len(batch) <= rows * batch_size for batches in ranks for batch in batches)
        return [sorted(step) for step in steps(ranks, accumulation)]

    splittings = [(b, p) for b in (1, 2, 3, 4) for p in (1, 2, 3, 4) if global_batch % (b * p) == 0]
    expected = draw(1, 1)
    batch_size, processes = data.draw(st.sampled_from(splittings))
    assert draw(batch_size, processes) == expected


@quick
@given(splits(), splits(), SAMPLINGS, SMALL, SMALL, SMALL)
def test_joint_batches_pair_as_many_retain_as_forget_rows(
    forget, retain, sampling, batch_size, accumulation, processes
):
    ranks = micro_batches(
        forget,
        retain,
        3,
        num_processes=processes,
        batch_size=batch_size,
        accumulation_steps=accumulation,
        language_sampling=sampling,
        seed=1,
    )
    for batches in ranks:
        for batch in batches:
            assert len(rows_of(batch, True)) == len(rows_of(batch, False)) <= batch_size


@quick
@given(splits(), splits(), SAMPLINGS, SMALL, SMALL, SMALL)
def test_alternate_never_mixes_within_a_step_and_forgets_first(
    forget, retain, sampling, batch_size, accumulation, processes
):
    settings = {"batch_size": batch_size, "accumulation_steps": accumulation, "language_sampling": sampling}
    ranks = micro_batches(forget, retain, 2, num_processes=processes, schedule="alternate", seed=1, **settings)
    assert len(ranks[0]) % accumulation == 0
    kinds = [[is_forget for is_forget, _ in step] for step in steps(ranks, accumulation)]
    assert all(len(set(step)) == 1 for step in kinds)
    firsts = [step[0] for step in kinds]
    assert firsts == sorted(firsts, reverse=True) and set(firsts) == {True, False}


@quick
@given(splits(), splits(), SCHEDULES, SMALL, SMALL, SMALL)
def test_the_items_of_a_short_step_are_dealt_out_evenly(forget, retain, schedule, batch_size, accumulation, processes):
    settings = {"batch_size": batch_size, "accumulation_steps": accumulation, "schedule": schedule}
    ranks = micro_batches(forget, retain, num_processes=processes, seed=1, **settings)
    for start in range(0, len(ranks[0]), accumulation):
        sizes = [len(batch) for batches in ranks for batch in batches[start : start + accumulation]]
        assert max(sizes) - min(sizes) <= (2 if schedule == "joint" else 1)


def test_micro_batch_order_is_that_of_accelerate():
    settings = {"schedule": "alternate", "language_sampling": "balanced", "seed": 3}
    (single,) = micro_batches(full(8), None, batch_size=8, **settings)
    two = micro_batches(full(8), None, batch_size=2, accumulation_steps=2, num_processes=2, **settings)
    assert [two[0][0], two[1][0], two[0][1], two[1][1]] == [single[0][i : i + 2] for i in (0, 2, 4, 6)]


@quick
@given(splits(), SCHEDULES, st.integers(0, 2**31), st.integers(0, 20))
def test_balanced_sees_every_language_of_an_item_once_in_as_many_epochs(items, schedule, seed, first):
    epochs = [
        epoch_rows(items, None, first + i, schedule=schedule, language_sampling="balanced", seed=seed)
        for i in range(12)
    ]
    for index, item in enumerate(items):
        drawn = [owner(items)[row] for rows in epochs for _, row in rows]
        seen = [lang for number, lang in drawn if number == index]
        for start in range(12 - len(item) + 1):
            assert sorted(seen[start : start + len(item)]) == sorted(item)


def test_balanced_languages_are_even_within_each_epoch():
    items = full(33, num_languages=10)
    for epoch in range(5):
        languages = Counter(
            owner(items)[row][1] for _, row in epoch_rows(items, None, epoch, language_sampling="balanced", seed=0)
        )
        assert set(languages.values()) <= {3, 4} and len(languages) == 10


def test_random_draws_every_language_equally_often():
    items = full(30)
    languages = Counter(
        owner(items)[row][1]
        for epoch in range(100)
        for _, row in epoch_rows(items, None, epoch, language_sampling="random", seed=0)
    )
    assert all(abs(languages[lang] - 1000) < 100 for lang in range(3))  # about four standard deviations


@quick
@given(splits(), splits(), SAMPLINGS)
def test_joint_retain_walk_goes_on_without_repetition(forget, retain, sampling):
    walk = [
        row
        for epoch in range(6)
        for row in rows_of(epoch_rows(forget, retain, epoch, language_sampling=sampling, seed=2), False)
    ]
    size = sum(map(len, retain)) if sampling == "all" else len(retain)
    for start in range(0, len(walk), size):
        one_pass = [row if sampling == "all" else owner(retain)[row][0] for row in walk[start : start + size]]
        assert len(set(one_pass)) == len(one_pass)
    if sampling == "balanced":
        for index, item in enumerate(retain):
            seen = [owner(retain)[row][1] for row in walk if owner(retain)[row][0] == index]
            assert len(set(seen[: len(item)])) == len(seen[: len(item)])


@quick
@given(splits(), splits(), SCHEDULES, SAMPLINGS, st.integers(0, 3))
def test_length_is_the_same_in_every_epoch(forget, retain, schedule, sampling, epoch):
    settings = {"batch_size": 2, "accumulation_steps": 3, "num_processes": 2}
    lengths = {
        len(micro_batches(forget, retain, e, schedule=schedule, language_sampling=sampling, seed=9, **settings)[0])
        for e in (0, 1, epoch)
    }
    assert len(lengths) == 1


def test_only_retain_is_one_pass_over_retain():
    rows = epoch_rows(None, full(7), 4, seed=0)
    assert not rows_of(rows, True) and sorted(row // 3 for row in rows_of(rows, False)) == list(range(7))


def test_order_and_languages_change_with_the_epoch_and_the_seed():
    for sampling in ("balanced", "random", "all"):
        runs = [
            tuple(epoch_rows(full(20), full(20), epoch, language_sampling=sampling, seed=seed))
            for epoch, seed in ((0, 0), (1, 0), (0, 1))
        ]
        assert len(set(runs)) == 3
        forget, retain = (rows_of(runs[0], kind) for kind in (True, False))
        assert forget != retain  # equal splits do not walk in step


@pytest.mark.parametrize("sampling", ["balanced", "random"])
def test_the_language_of_an_item_does_not_follow_from_its_place_in_the_order(sampling):
    """Both are drawn: from one stream they would be the same permutation, or the same start of a sequence."""
    items, agree = 60, Counter()
    for seed in range(10):
        for is_forget in (True, False):
            sides = (full(items), None) if is_forget else (None, full(items))
            rows = epoch_rows(*sides, 0, language_sampling=sampling, seed=seed)
            order = [row // 3 for _, row in rows]
            language = {row // 3: row % 3 for _, row in rows}
            agree["by place"] += sum(language[place] == item % 3 for place, item in enumerate(order))
            agree["by rank"] += sum(language[item] == place % 3 for place, item in enumerate(order))
    drawn = 10 * 2 * items
    assert all(abs(agree[how] / drawn - 1 / 3) < 0.06 for how in ("by place", "by rank"))  # four standard deviations


def test_resume_through_accelerate_gives_the_batches_that_were_left():
    from accelerate import skip_first_batches

    split = datasets.Dataset.from_dict(
        {
            "input_ids": [[i, i] for i in range(15)],
            "labels": [[i, i] for i in range(15)],
            "item": [i // 3 for i in range(15)],
            "language": [i % 3 for i in range(15)],
        }
    )

    def loader():
        items = group_items(split, 3)
        sampler = UnlearnBatchSampler(items, items, batch_size=2, accumulation_steps=2, seed=4)
        sampler.set_epoch(6)
        return DataLoader(TrainingRows(split, split), batch_sampler=sampler, collate_fn=UnlearnCollator(0))

    whole = [batch["input_ids"].tolist() for batch in loader()]
    left = [batch["input_ids"].tolist() for batch in skip_first_batches(loader(), 2)]
    assert len(whole) == 3 and left == whole[2:]


def test_empty_shares_of_a_small_step_become_batches_without_labels():
    split = datasets.Dataset.from_dict({"input_ids": [[5, 6]], "labels": [[5, 6]], "item": [0], "language": [0]})
    counts = []
    for rank in range(3):
        ranks = {"num_processes": 3, "process_index": rank}
        sampler = UnlearnBatchSampler(group_items(split, 1), None, batch_size=2, **ranks, seed=0)
        loader = DataLoader(TrainingRows(split, None), batch_sampler=sampler, collate_fn=UnlearnCollator(0))
        counts.append([int((batch["labels"] != -100).sum()) for batch in loader])
    assert counts == [[2], [0], [0]]


def test_group_items_leaves_out_heldout_languages():
    split = datasets.Dataset.from_dict({"item": [0, 0, 1, 2, 2], "language": [0, 2, 2, 1, 0]})
    assert group_items(split, 2) == [{0: 0}, {1: 3, 0: 4}]


def test_group_items_refuses_two_rows_of_one_item_in_one_language():
    split = datasets.Dataset.from_dict({"item": [0, 4, 4], "language": [0, 1, 1]})
    with pytest.raises(DataError, match=r"item 4 has two rows .* language number 1"):
        group_items(split, 2)


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (ConfigError, {"batch_size": 0}),
        (ConfigError, {"process_index": 1}),
        (ConfigError, {"schedule": "both"}),
        (ConfigError, {"language_sampling": "even"}),
        (ConfigError, {"seed": -1}),
        (DataError, {"forget": None, "retain": None}),
        (DataError, {"retain": []}),
    ],
)
def test_refuses(error, changes):
    with pytest.raises(error):
        UnlearnBatchSampler(**{"forget": full(2), "retain": full(2), "batch_size": 1, "seed": 0, **changes})


@quick
@given(splits(), splits(), SCHEDULES, SMALL, SMALL, SMALL, st.randoms(use_true_random=False))
def test_lengths_group_the_rows_of_a_step_and_change_nothing_else(
    forget, retain, schedule, batch_size, accumulation, processes, random
):
    rows = {True: forget, False: retain}
    lengths = {side: [random.randint(1, 50) for _ in range(sum(map(len, items)))] for side, items in rows.items()}
    settings = {
        "num_processes": processes,
        "batch_size": batch_size,
        "accumulation_steps": accumulation,
        "schedule": schedule,
        "seed": 4,
    }
    plain = micro_batches(forget, retain, 1, **settings)
    grouped = micro_batches(forget, retain, 1, lengths=lengths, **settings)
    assert list(map(sorted, steps(grouped, accumulation))) == list(map(sorted, steps(plain, accumulation)))
    # Nothing in a whole step's later micro-batch is longer than what is longest in an earlier one of any rank.
    per_item = 2 if schedule == "joint" else 1
    for start in range(0, len(grouped[0]), accumulation):
        dealt = [ranks[start + j] for j in range(min(accumulation, len(grouped[0]) - start)) for ranks in grouped]
        if any(len(batch) < per_item * batch_size for batch in dealt) or len(dealt) < accumulation * processes:
            continue
        longest = [
            [max(lengths[f][r] for f, r in b[i : i + per_item]) for i in range(0, len(b), per_item)] for b in dealt
        ]
        flat = [size for batch in longest for size in batch]
        assert flat == sorted(flat, reverse=True)
