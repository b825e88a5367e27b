"""What evaluation costs: one teacher-forced pass against a `generate` a position and a forward a candidate.

    python benchmarks/eval_cost.py --json eval_cost.json

The slow ways are those of the code released with the LingTea paper. Their figures have to equal those of
``MultilingualEvaluator``, which computes all its other metrics in the same pass.
"""

import argparse
import functools
import sys

import torch
from common import (
    DATA,
    build_model,
    flags,
    in_fresh_process,
    load_tokenizer,
    peak_memory,
    report,
    sizes,
    timed_in_turn,
)
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from unlearn_trainer.data import Cloze, Item, load_splits, tokenize_splits
from unlearn_trainer.evaluation.evaluator import SCORED_TO_THE_END, MultilingualEvaluator
from unlearn_trainer.head.attached import attach_head
from unlearn_trainer.model.trials import embedding_of

BMLAMA_LANGUAGES = ["en", "fr", "es", "pt", "ar", "vi", "ca", "hi", "bn"]
VARIANTS = ("ma_generate", "ma_ours", "pa_loop", "pa_ours")


def main() -> None:
    parser = flags(__doc__.split("\n")[0], repeats=3, batch_size=16)
    parser.add_argument("--ma_rows", type=int, default=2, help="rows of --max_length tokens for memorization accuracy")
    parser.add_argument("--pa_rows", type=int, default=27, help="rows with candidates for probing accuracy")
    args = parser.parse_args()
    memory = {}
    for name in VARIANTS:
        memory[name] = in_fresh_process(eval_memory, args, name)
        print(f"{name} takes {memory[name] / 1e6:.0f} MB", file=sys.stderr, flush=True)
    variants = EvalVariants(args)
    figures: dict[str, float] = {}
    seconds = timed_in_turn(
        {name: functools.partial(variants.run, name, figures) for name in VARIANTS},
        # A `generate` a position is hundreds of short runs already; one forward is over in a moment, good or bad.
        {name: args.repeats * {"ma_ours": 3}.get(name, 1) if name != "ma_generate" else 1 for name in VARIANTS},
    )
    check_equal(args, figures)
    tokens = {
        "ma": sum(map(len, variants.text["input_ids"])),
        "pa": sum(len(ids) for row in variants.cloze["candidate_input_ids"] for ids in row),
    }
    rows = [
        {
            "variant": name,
            "seconds": seconds[name],
            "tokens_per_second": tokens[name[:2]] / seconds[name],
            "peak_memory_bytes": memory[name],
        }
        for name in VARIANTS
    ]
    count = sizes(variants.model)
    head, body, length = count["head"], count["body"], args.max_length
    ratios = {
        "ma_speedup": seconds["ma_generate"] / seconds["ma_ours"],
        # Operations a position, in units of 2: `generate` reads the whole prefix, length / 2 tokens on average, and
        # projects its last position, (length / 2) B + H; one forward over the row spends B + H a position.
        "ma_speedup_bound": (length / 2 * body + head) / (body + head),
        "pa_speedup": seconds["pa_loop"] / seconds["pa_ours"],
    }
    print(f"body {body / 1e6:.3g}e6 and head {head / 1e6:.3g}e6 parameters, H/B {head / body:.2f}\n")
    report(args, rows, ratios, parameters=count, tokens=tokens)


def check_equal(args: argparse.Namespace, figures: dict[str, float]) -> None:
    """The slow and the fast way have to give one figure; in bfloat16 a token in a hundred may be a tie.

    Raises:
        AssertionError: they do not.
    """
    tolerance = 0.02 if args.dtype == "bfloat16" else 1e-9
    for slow, fast in (VARIANTS[:2], VARIANTS[2:]):
        if abs(figures[slow] - figures[fast]) > tolerance:
            raise AssertionError(f"{slow} gives {figures[slow]}, {fast} {figures[fast]}")


class EvalVariants:
    """A model, rows for both metrics, and the slow and the fast way as methods that return the figure."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.model = build_model(args).eval().requires_grad_(False)
        attach_head(self.model)
        self.vocabulary = self.model.get_input_embeddings().num_embeddings
        self.text = half_known_rows(self.model, args.ma_rows, args.max_length)
        self.languages, self.cloze = cloze_rows(args, self.vocabulary)

    def run(self, name: str, figures: dict[str, float]) -> None:
        """Run variant ``name`` and put its figure in ``figures``."""
        figures[name] = getattr(self, name)()

    def ma_generate(self) -> float:
        """Memorization accuracy: every position predicted by a call of ``generate`` with the true prefix."""
        ids = torch.tensor(self.text["input_ids"], device=self.args.device)
        hits = []
        for position in range(1, ids.shape[1]):
            prefix = ids[:, :position]
            settings = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
            found = self.model.generate(prefix, attention_mask=torch.ones_like(prefix), **settings)
            hits.append(found[:, -1] == ids[:, position])
        return torch.stack(hits).double().mean().item()

    def ma_ours(self) -> float:
        return self._evaluate(self.text, ["xx"], "memorization_accuracy")

    @torch.no_grad()
    def pa_loop(self) -> float:
        """Probing accuracy, mean over languages: each candidate alone, by the NLL of its whole sentence."""
        right: dict[int, list[bool]] = {}
        for row in self.cloze:
            skipped = 0 if self.languages[row["language"]] in SCORED_TO_THE_END else 1
            losses = []
            for candidate in row["candidate_input_ids"]:
                ids = torch.tensor([candidate], device=self.args.device)
                log_probs = torch.log_softmax(self.model(ids).logits[0, :-1].float(), -1)
                nll = nn.functional.nll_loss(log_probs, ids[0, 1:], reduction="none")
                losses.append(nll[: len(nll) - skipped].mean().item())
            right.setdefault(row["language"], []).append(row["candidate_correct"][losses.index(min(losses))])
        return sum(sum(hits) / len(hits) for hits in right.values()) / len(right)

    def pa_ours(self) -> float:
        return self._evaluate(self.cloze, self.languages, "probing_accuracy")

    def _evaluate(self, rows: Dataset, languages: list[str], metric: str) -> float:
        evaluator = MultilingualEvaluator(languages, len(languages), 0, self.args.batch_size, show_progress=False)
        figures = evaluator(self.model, {"test": rows}, torch.device(self.args.device))["test"]
        return sum(found[metric] for found in figures.values()) / len(figures)


def eval_memory(args: argparse.Namespace, name: str) -> int:
    """Peak bytes of a variant without the weights, for :func:`~common.in_fresh_process`."""
    variants = EvalVariants(args)
    return peak_memory(getattr(variants, name), args.device)


# ---- rows -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def half_known_rows(model: PreTrainedModel, count: int, length: int) -> Dataset:
    """Rows in which about every other token is what ``model`` predicts there, the others being random."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, device = embedding_of(model).num_embeddings, model.device
    ids = torch.randint(3, vocabulary, (count, 1), generator=generator).to(device)
    cache = None
    while ids.shape[1] < length:
        found = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        cache = found.past_key_values
        noise = torch.randint(3, vocabulary, (count,), generator=generator).to(device)
        is_known = (torch.rand(count, generator=generator) < 0.5).to(device)
        following = torch.where(is_known, found.logits[:, -1].argmax(-1), noise)
        ids = torch.cat([ids, following[:, None]], 1)
    rows = [{"input_ids": row, "labels": row, "language": 0, "item": item} for item, row in enumerate(ids.tolist())]
    return Dataset.from_list(rows)


def cloze_rows(args: argparse.Namespace, vocabulary: int) -> tuple[list[str], Dataset]:
    """Languages, and ``--pa_rows`` tokenized rows with candidates: of BMLAMA where its files are, else invented."""
    if (DATA / "bmlama53").is_dir():
        splits = load_splits(str(DATA / "bmlama53"), retain_file="retain-32-x1.jsonl")
        languages = BMLAMA_LANGUAGES
    else:
        languages = ["en", "fr", "es"]
        splits = {"forget": invented_items(languages)}
    items = splits["forget"][: -(-args.pa_rows // len(languages))]
    tokenizer = load_tokenizer(args) or trained_tokenizer(items, languages, vocabulary)
    rows = tokenize_splits({"forget": items}, tokenizer, languages, max_seq_length=args.max_length)
    found = rows.datasets["forget"]
    return languages, found.select(range(min(args.pa_rows, len(found))))


def invented_items(languages: list[str], count: int = 32, candidates: int = 10) -> list[Item]:
    """Facts of random words, the blank at the start, in the middle or at the end, as languages differ."""
    generator = torch.Generator().manual_seed(0)

    def word() -> str:
        length = int(torch.randint(3, 9, (1,), generator=generator))
        letters = torch.randint(0, 26, (length,), generator=generator)
        return "".join(chr(97 + letter) for letter in letters.tolist())

    items = []
    for number in range(count):
        content = {}
        for place, language in enumerate(languages):
            words = [word() for _ in range(8)]
            words.insert(3 * place, "<mask>")
            choices = [word() for _ in range(candidates)]
            content[language] = Cloze(" ".join(words) + ".", (choices[number % candidates],), tuple(choices))
        items.append(Item("cloze", f"invented:{number + 1}", content))
    return items


def trained_tokenizer(items: list[Item], languages: list[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A tokenizer for a model without one: BPE on the rows' own sentences, so small that words fall into pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocabulary, 2000),
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = {
        passage.text
        for item in items
        for language in languages
        if language in item.content
        for passage, _ in item.content[language].choices()
    }
    tokenizer.train_from_iterator(sorted(sentences), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


if __name__ == "__main__":
    main()
