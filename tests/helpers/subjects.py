"""Tiny models as the subjects of an audit."""

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from helpers.tiny import LANGUAGES, tiny_config, tiny_rows
from unlearn_trainer.audit.subject import AuditData, Subject
from unlearn_trainer.config.arguments import ModelArguments
from unlearn_trainer.data import TokenizedData


def subjects_of(folder, rows=None, heldout=1, settings=None, **models_by_name):
    """``{name: Subject}`` of models, saved to ``folder``; the last ``heldout`` languages are not trained."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    rows = rows or {"forget": tiny_rows(), "retain": tiny_rows(seed=1)}
    count = len(LANGUAGES) - heldout
    data = TokenizedData(rows, LANGUAGES[:count], LANGUAGES[count:], {})
    args = tiny_config(folder / "out", per_device_eval_batch_size=4, **(settings or {}))
    shared = AuditData(tokenizer, data, {split: [] for split in rows}, 64, args)
    found: dict[str, Subject] = {}
    for name, model in models_by_name.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        found[name] = Subject(name, ModelArguments(str(folder / name)), shared, found)
    return found
