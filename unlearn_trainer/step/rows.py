"""Which rows a training uses, and how wide their batches are."""

from collections.abc import Mapping

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..data.batch import RowGroup
from ..data.collator import COMPANIONS, UnlearnCollator, companion_columns, with_companions
from ..errors import ConfigError
from ..objectives import IGNORED, Objective


def rows_in_use(
    objectives: Mapping[RowGroup, Objective | None], forget: Dataset | None, retain: Dataset | None, num_trained: int
) -> dict[RowGroup, Dataset | None]:
    """The rows of both sides as far as an objective asks for them, alternative answers too.

    Args:
        num_trained: rows of the languages below this index are trained on.

    Raises:
        ConfigError: they are not there, or none of them has a label.
    """
    used: dict[RowGroup, Dataset | None] = {}
    for side, rows in ((RowGroup.FORGET, forget), (RowGroup.RETAIN, retain)):
        objective = objectives[side]
        if objective is not None and rows is None:
            raise ConfigError(f"--{side}_objective {objective.name} needs {side} rows; give --{side}_file")
        if objective is not None and not _has_labels(rows, num_trained):
            raise ConfigError(
                f"--{side}_objective {objective.name} has nothing to work on: no row of the {side} split in a trained "
                "language has a label other than -100 behind its first token; give rows that do"
            )
        used[side] = rows if objective is not None else None
        if objective is not None and rows is not None and side is RowGroup.FORGET:
            needed = [each for each in COMPANIONS if each in objective.needs]
            used[side] = with_companions(rows, needed)
            for companion in needed:
                if companion_columns(companion)[0] not in rows.column_names:
                    raise ConfigError(
                        f"--forget_objective {objective.name} needs the {companion} of every row: add them with "
                        f"unlearn_trainer.data.add_{companion}s"
                    )
    return used


def collator_for(
    objectives: Mapping[RowGroup, Objective | None],
    used: Mapping[RowGroup, Dataset | None],
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    max_seq_length: int | None,
) -> UnlearnCollator:
    """What makes batches of ``used``: each as wide as its longest row, or all alike where padding counts in the loss.

    Args:
        config: of the language model, for the pad token where there is no tokenizer.
        max_seq_length: the width of all batches where padding counts; by default that of the longest row of all,
            rounded up to a multiple of 8.
    """
    pad_token_id = getattr(tokenizer, "pad_token_id", None)
    if not any(objective and objective.predicts_next for objective in objectives.values()):
        if pad_token_id is None:
            pad_token_id = config.eos_token_id if isinstance(config.eos_token_id, int) else 0
        return UnlearnCollator(pad_token_id)
    if pad_token_id is None:
        # In XGLM's vocabulary 0 begins a text: where a configuration pads with it, it names no pad token.
        pad_token_id = config.pad_token_id or type(config)().pad_token_id
    columns = [
        rows.with_format(None)[name]
        for rows in used.values()
        if rows is not None
        for name in rows.column_names
        if name.endswith("input_ids")
    ]
    longest = max(len(ids) for column in columns for ids in column)
    return UnlearnCollator(pad_token_id, width=max(longest, max_seq_length or -(-longest // 8) * 8))


def _has_labels(rows: Dataset, num_trained: int) -> bool:
    plain = rows.select_columns(["language", "labels"]).with_format(None)
    return any(row["language"] < num_trained and set(row["labels"][1:]) - {IGNORED} for row in plain)
