"""All metrics of all languages in one teacher-forced pass over the rows.

Every row lies on exactly one process. Its figures go into one table of all rows, reduced once at the end and
aggregated in a fixed order, so the figures do not depend on how many processes there were.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..head.attached import attach_head
from ..head.chunked import Segment, Segments
from ..head.packing import goes_by_mask, mask_for
from ..model.trials import base_of
from ..objectives.statistics import TokenStatistics
from . import metrics
from .generation import continued_rows, question_rows
from .prefix_tree import PrefixTree, collate_trees, split_by_size
from .probing import CandidateScores, candidate_sums, probing_figures

# Figures of one sequence, in the order of the table's columns.
COLUMNS = (
    "tokens",
    "nll",
    "token_probability",
    "memorization_accuracy",
    "extraction_strength",
    "probability",
    "min_k",
    "min_k_40",
    "min_k_plus_plus",
    "sentence_tokens",
    "sentence_nll",
    "last_nll",
)
ROW_METRICS = ("memorization_accuracy", "extraction_strength", "probability", "min_k", "min_k_40", "min_k_plus_plus")
# Metrics that fall as a text is known better; all others rise.
FALLS_WITH_KNOWLEDGE = {"loss", "perplexity", "min_k", "min_k_40", "min_k_plus_plus", "sentence_perplexity"}
# The paper leaves the sentence's last token (its full stop) out of the probing score, except in Chinese.
SCORED_TO_THE_END = {"zh", "zho", "cmn", "yue"}
# Attention over a tree costs the square of its nodes: beyond this it eats up what sharing saves.
MAX_TREE_NODES = 512


def row_figures(statistics: TokenStatistics, rows: torch.Tensor, num_rows: int, min_k_ratio: float = 0.2) -> dict:
    """Per-row figures from the statistics of labelled tokens.

    Args:
        statistics: with ``nll`` and ``hit``; the moments of log p add Min-K++.
        rows: [tokens] sorted row index of each token.
        num_rows: number of rows; those without tokens get zeros.
        min_k_ratio: share of the least likely tokens in Min-K and Min-K++; ``min_k_40`` has 0.4 of its own.

    Returns:
        dict of float tensors [num_rows].
    """
    nll = statistics.nll
    sums = nll.new_zeros(3, num_rows)
    sums[0].index_add_(0, rows, torch.ones_like(nll))
    sums[1].index_add_(0, rows, nll)
    sums[2].index_add_(0, rows, torch.exp(-nll))
    figures = {
        "tokens": sums[0],
        "nll": sums[1],
        "token_probability": sums[2],
        "memorization_accuracy": metrics.memorization_accuracy(statistics.hit, rows, num_rows),
        "extraction_strength": metrics.extraction_strength(statistics.hit, rows, num_rows),
        "probability": metrics.probability(nll, rows, num_rows),
    }
    if statistics.log_prob_mean is not None:
        moments = statistics.log_prob_mean, statistics.log_prob_std
        figures["min_k"] = metrics.min_k(nll, rows, num_rows, min_k_ratio)
        figures["min_k_40"] = metrics.min_k(nll, rows, num_rows, 0.4)
        figures["min_k_plus_plus"] = metrics.min_k_plus_plus(nll, *moments, rows, num_rows, min_k_ratio)
    return figures


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """What is scored: a row (``candidate`` -1) or one of its candidates."""

    split: str
    row: int
    language: int
    candidate: int
    input_ids: Sequence[int]
    labels: Sequence[int]


class MultilingualEvaluator:
    """Evaluates a causal language model, split by split and language by language.

    Args:
        languages: codes that the rows' ``language`` column indexes, trained languages first.
        num_trained: how many of them are trained; means and worst cases are taken over these.
        pad_token_id: fills short rows; masked, never judged.
        batch_size: rows a forward and process, if they are as long as the longest; more of shorter ones.
        show_progress: draw a progress bar on the main process.
        tokenizer: with one, questions are also continued by the model, for ROUGE-L.
    """

    def __init__(
        self,
        languages: Sequence[str],
        num_trained: int,
        pad_token_id: int,
        batch_size: int,
        show_progress: bool = True,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        self.languages, self.num_trained = list(languages), num_trained
        self.pad_token_id, self.batch_size, self.show_progress = pad_token_id, batch_size, show_progress
        self.tokenizer = tokenizer

    def __call__(
        self,
        model: nn.Module,
        datasets: Mapping[str, Dataset],
        device: torch.device,
        heldout: bool = True,
        probing: bool = True,
        description: str = "evaluating",
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Figures ``{split: {language: {metric: number, "rows": n, "tokens": n}}}``; call it on every process.

        Args:
            model: put in eval mode for the duration; a plain one gets its vocabulary head (``attach_head``).
            datasets: tokenized rows of each split.
            device: where the batches go.
            heldout: include the languages that are not trained.
            probing: score the candidates of cloze and qa rows, and continue the questions of qa rows.
            description: label of the progress bar.
        """
        sequences = list(self._sequences(datasets, heldout, rows=True, candidates=probing))
        table = self._run(model, sequences, device, description)
        figures = self._aggregate(datasets, sequences, table)
        if probing and self.tokenizer is not None:
            self._add_rouge(figures, model, datasets, device, heldout, description)
        return figures

    def candidates(
        self,
        model: nn.Module,
        datasets: Mapping[str, Dataset],
        device: torch.device,
        heldout: bool = True,
        description: str = "probing",
    ) -> dict[str, list[CandidateScores]]:
        """The scores of every row's candidates, whole on every process, rows in the order of the split.

        Arguments as for a call. A split without candidates in any of the languages is left out.
        """
        sequences = list(self._sequences(datasets, heldout, rows=False, candidates=True))
        return self._scored(datasets, sequences, self._run(model, sequences, device, description))

    def rows(
        self,
        model: nn.Module,
        datasets: Mapping[str, Dataset],
        device: torch.device,
        heldout: bool = True,
        description: str = "evaluating",
    ) -> dict[str, dict[str, np.ndarray]]:
        """The figures of every row, whole on every process: ``{split: {column: array [rows]}}``.

        Columns, rows in the order of the split:

        - ``language``, ``item``: int64, as in the split
        - ``tokens``: int64, labelled tokens of the row
        - ``loss``: their mean NLL in nats; so ``loss @ tokens / tokens.sum()`` is a split's loss
        - those of :data:`ROW_METRICS` (``min_k``: the 0.2 least likely tokens; ``min_k_40``: 0.4)

        Arguments as for a call. A split without a row in any of the languages is left out.
        """
        sequences = list(self._sequences(datasets, heldout, rows=True, candidates=False))
        table = self._run(model, sequences, device, description)
        found = {}
        for split, dataset in datasets.items():
            members = [index for index, sequence in enumerate(sequences) if sequence.split == split]
            if not members:
                continue
            chosen = [sequences[index] for index in members]
            items = dataset.with_format(None)["item"]
            column = dict(zip(COLUMNS, table[members].T, strict=True))
            found[split] = {
                "language": np.array([sequence.language for sequence in chosen]),
                "item": np.array([items[sequence.row] for sequence in chosen]),
                "tokens": column["tokens"].astype(np.int64),
                "loss": column["nll"] / np.maximum(column["tokens"], 1),
                **{name: column[name] for name in ROW_METRICS},
            }
        return found

    def _sequences(self, datasets, heldout, rows, candidates):
        """What is scored: rows, their candidates, or both."""
        num_languages = len(self.languages) if heldout else self.num_trained
        for split, dataset in datasets.items():
            columns = ["input_ids", "labels", "language"]
            with_candidates = candidates and "candidate_input_ids" in dataset.column_names
            if with_candidates:
                columns += ["candidate_input_ids", "candidate_labels"]
            for row, values in enumerate(dataset.select_columns(columns).with_format(None)):
                if values["language"] >= num_languages:
                    continue
                if rows:
                    yield _Sequence(split, row, values["language"], -1, values["input_ids"], values["labels"])
                if with_candidates:
                    pairs = zip(values["candidate_input_ids"], values["candidate_labels"], strict=True)
                    for index, (ids, labels) in enumerate(pairs):
                        yield _Sequence(split, row, values["language"], index, ids, labels)

    @torch.no_grad()
    def _run(self, model, sequences, device, description):
        """The table [sequences, columns], whole on every process."""
        if not sequences:
            return np.zeros((0, len(COLUMNS)))
        whole = base_of(model)
        if isinstance(whole, PreTrainedModel):
            attach_head(whole)
        state = PartialState()
        training = model.training
        model.eval()
        batches = self._batches(sequences, goes_by_mask(model, max(len(s.input_ids) for s in sequences)))
        table = torch.zeros(len(sequences), len(COLUMNS), dtype=torch.float64)
        # Every process runs equally many forwards, or sharded weights could not be gathered: spare ones are idle.
        rounds = math.ceil(len(batches) / state.num_processes)
        bar = tqdm(
            total=rounds, desc=description, disable=not (self.show_progress and state.is_main_process), leave=False
        )
        for index in range(rounds):
            mine = index * state.num_processes + state.process_index
            batch = batches[mine] if mine < len(batches) else batches[0][-1:]
            figures = self._forward(model, [[sequences[i] for i in group] for group in batch], device)
            if mine < len(batches):
                table[[i for group in batch for i in group]] = figures
            bar.update()
        bar.close()
        model.train(training)
        if state.num_processes > 1:
            table = reduce(table.to(device), reduction="sum").cpu()
        return table.numpy()

    def _batches(self, sequences, share):
        """Batches of groups of indices; a group is a row, or candidates of one row that share their beginning."""
        groups: list[tuple[bool, int, list[int]]] = []
        longest = max(len(sequence.input_ids) for sequence in sequences)
        for (_, _, is_row), members in itertools.groupby(
            range(len(sequences)), lambda i: (sequences[i].split, sequences[i].row, sequences[i].candidate < 0)
        ):
            members = list(members)
            parts = [[index] for index in range(len(members))]
            if share and not is_row:
                parts = split_by_size([sequences[i].input_ids for i in members], max(longest, MAX_TREE_NODES))
            for part in parts:
                group = [members[index] for index in part]
                groups.append((is_row, len(PrefixTree([sequences[i].input_ids for i in group])), group))
        # Candidates apart from rows: they need the NLL alone, which is half the work.
        groups.sort(key=lambda group: (not group[0], -group[1]))
        budget = self.batch_size * longest
        batches: list[list[list[int]]] = []
        size, of_rows = 0, None
        for is_row, nodes, members in groups:
            if is_row != of_rows or (len(batches[-1]) + 1) * size > budget:
                batches.append([])
                size, of_rows = nodes, is_row
            batches[-1].append(members)
        return batches

    def _forward(self, model, groups, device):
        """Table rows [sequences, columns] of groups of sequences, each group run as one prefix tree."""
        trees = [PrefixTree([sequence.input_ids for sequence in group]) for group in groups]
        members = [
            (row, sequence, path)
            for row, (tree, group) in enumerate(zip(trees, groups, strict=True))
            for sequence, path in zip(group, tree.paths, strict=True)
        ]
        of_rows = groups[0][0].candidate < 0
        batch = collate_trees(trees, self.pad_token_id)
        seen = batch.pop("seen", None)
        batch = {name: value.to(device) for name, value in batch.items()}
        if seen is not None:
            batch["attention_mask"] = mask_for(model, seen.to(device))
        length = batch["input_ids"].shape[1]

        # Everything below is per (sequence, token): which sequence, which node spells it, which node predicts it.
        lengths = np.array([len(path) - 1 for _, _, path in members])
        owner = np.repeat(np.arange(len(members)), lengths)
        offset = np.repeat([row * length for row, _, _ in members], lengths)
        node = np.concatenate([np.array(path[1:], dtype=np.int64) for _, _, path in members]) + offset
        before = np.concatenate([np.array(path[:-1], dtype=np.int64) for _, _, path in members]) + offset
        labelled = np.concatenate([np.array(sequence.labels[1:]) != -100 for _, sequence, _ in members])
        # A row is judged by its labels only; a candidate by its whole sentence, each shared node computed once.
        chosen = labelled.nonzero()[0] if of_rows else np.unique(node, return_index=True)[1]
        segment = Segment(
            positions=torch.from_numpy(before[chosen]).to(device),
            targets=batch["input_ids"].flatten()[torch.from_numpy(node[chosen]).to(device)],
            needs=frozenset({"nll", "log_prob_moments"} if of_rows else {"nll"}),
        )
        model(**batch, segments=Segments(segment))
        found = {k: v.cpu().double() for k, v in vars(segment.statistics).items() if v is not None}
        if of_rows:
            rows = torch.from_numpy(owner[chosen])
            figures = row_figures(TokenStatistics(**found), rows, len(members))
        else:
            nll = found["nll"].numpy()[np.searchsorted(node[chosen], node)]
            figures = {name: torch.from_numpy(sums) for name, sums in candidate_sums(nll, owner, labelled).items()}
        missing = torch.zeros(len(members), dtype=torch.float64)
        return torch.stack([figures.get(name, missing).double() for name in COLUMNS], dim=1)

    def _aggregate(self, datasets, sequences, table):
        groups: dict[tuple[str, int], list[int]] = {}
        for index, sequence in enumerate(sequences):
            if sequence.candidate < 0:
                groups.setdefault((sequence.split, sequence.language), []).append(index)
        candidates = self._scored(datasets, sequences, table)
        result: dict = {split: {} for split in datasets}
        for (split, language), members in groups.items():
            column = dict(zip(COLUMNS, table[members].T, strict=True))
            tokens, nll = column["tokens"].sum(), column["nll"].sum()
            figures = {name: float(column[name].mean()) for name in ROW_METRICS}
            figures |= {
                "loss": float(nll / tokens),
                "perplexity": metrics.perplexity(nll, tokens),
                "token_probability": float(column["token_probability"].sum() / tokens),
                "rows": len(members),
                "tokens": int(tokens),
            }
            scored = [row for row in candidates.get(split, ()) if row.language == language]
            if scored:
                figures |= probing_figures(scored, split == "forget")
            result[split][self.languages[language]] = figures
        return {split: by_language for split, by_language in result.items() if by_language}

    def _scored(self, datasets, sequences, table):
        """``{split: [CandidateScores]}`` from the table's rows of candidates."""
        groups: dict[tuple[str, int], list[int]] = {}
        for index, sequence in enumerate(sequences):
            if sequence.candidate >= 0:
                groups.setdefault((sequence.split, sequence.row), []).append(index)
        given = {
            split: (datasets[split]["candidate_correct"][:], datasets[split]["item"][:])
            for split in dict.fromkeys(split for split, _ in groups)
        }
        found: dict[str, list[CandidateScores]] = {}
        for (split, row), members in groups.items():
            correct, items = given[split]
            language = sequences[members[0]].language
            to_the_end = self.languages[language].replace("_", "-").split("-")[0] in SCORED_TO_THE_END
            sums = dict(zip(COLUMNS, table[members].T, strict=True))
            scores = CandidateScores.from_sums(language, items[row], correct[row], sums, to_the_end)
            found.setdefault(split, []).append(scores)
        return found

    def _add_rouge(self, figures, model, datasets, device, heldout, description):
        """ROUGE-L recall of the answers to the questions, in the splits and languages that consist of questions."""
        count = len(self.languages) if heldout else self.num_trained
        special = self.tokenizer.all_special_ids
        asked = {split: dataset.select(question_rows(dataset, count, special)) for split, dataset in datasets.items()}
        asked = {split: dataset for split, dataset in asked.items() if len(dataset)}
        options = self.batch_size, self.show_progress, f"{description}: answers"
        for split, columns in continued_rows(model, asked, self.tokenizer, device, *options).items():
            for language in np.unique(columns["language"]):
                chosen = columns["rouge_l"][columns["language"] == language]
                figures[split][self.languages[language]]["rouge_l"] = float(chosen.mean())


def flatten_figures(figures: dict, trained: Sequence[str], prefix: str = "eval") -> dict[str, float]:
    """Figures as the Trainer's flat metrics.

    ``<prefix>_<split>_<language>_<metric>``, the mean over the trained languages ``<prefix>_<split>_<metric>``, and
    the worst of them ``<prefix>_<split>_worst_<metric>``.
    """
    flat: dict[str, float] = {}
    for split, by_language in figures.items():
        for language, found in by_language.items():
            flat |= {f"{prefix}_{split}_{language}_{name}": value for name, value in found.items()}
        known = [by_language[language] for language in trained if language in by_language]
        # A language may lack a metric that others have: those of candidates, where its rows have none.
        for name in dict.fromkeys(name for found in known for name in found):
            values = [found[name] for found in known if name in found]
            if name in ("rows", "tokens") or name.startswith("probing_rows"):
                continue
            flat[f"{prefix}_{split}_{name}"] = math.fsum(values) / len(values)
            # On the forget set the worst language is the best known one, elsewhere the least known. The truth ratio is
            # turned round there already.
            falls = name in FALLS_WITH_KNOWLEDGE or (name == "truth_ratio" and split == "forget")
            worst = max if falls != (split == "forget") else min
            flat[f"{prefix}_{split}_worst_{name}"] = worst(values)
    return flat
