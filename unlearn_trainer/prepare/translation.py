"""Translations that are missing, made by a sequence-to-sequence model: NLLB, M2M100 or Opus-MT (Marian)."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..errors import ConfigError, did_you_mean
from .collection import FIELDS, Row
from .languages import short_tag

BATCH = 16
# How the tokens that name a language are written: NLLB, M2M100, and Opus-MT models with several targets.
CODES = (re.compile(r"([a-z]{3}_[A-Z][a-z]{3})"), re.compile(r"__([a-z_]+)__"), re.compile(r">>(\w+)<<"))
TRANSLATED = ("question", "answer", "paraphrased_question", "paraphrased_answer")


def translate_splits(
    splits: dict[str, list[Row]], languages: Mapping[str, Sequence[str]], translator: str, output_dir: Path
) -> dict[str, Any]:
    """Add what is missing in ``languages`` to the rows of all splits; texts, and questions with their answers.

    What was translated is kept beside the output folder until that is written, so that a run that was cut short goes
    on from there. Decoding is greedy: the same text is translated alike every time.

    Args:
        splits: changed in place.
        languages: to translate the rows of each split into, in any spelling; they become keys as they are written.
        translator: name or folder of the model.
        output_dir: of the prepared rows.

    Returns:
        What prepare.json says: the translator, and the items of each split by language that are machine translations.

    Raises:
        ConfigError: cloze rows or conversations, whose parts cannot be translated one by one; a model that cannot be
            loaded, or that does not know a language.
    """
    wanted = []
    for split, rows in splits.items():
        for number, row in enumerate(rows):
            if "prompt" in row.content or "messages" in row.content:
                raise ConfigError(
                    f"{row.source}: --translate_to translates texts, and questions with answers; a prompt with a mask "
                    "or a conversation would not fit together afterwards"
                )
            wanted += [(split, number, key) for key in languages.get(split, ()) if key not in row.languages]
    kept = output_dir.with_name(f"{output_dir.name}.translations.jsonl")
    known = _read_kept(kept)
    model = _Translator(translator)
    with open(kept, "a", encoding="utf-8") as file:
        todo = [job for job in _jobs(splits, wanted) if (translator, *job) not in known]
        for job, text in model.translate(list(dict.fromkeys(todo))):
            known[translator, *job] = text
            file.write(json.dumps([translator, *job, text], ensure_ascii=False) + "\n")
            file.flush()
    made: dict[str, dict[str, list[int]]] = {}
    for split, number, key in wanted:
        row = splits[split][number]
        source = row.languages[0]
        texts = {text: known[translator, source, key, text] for text in _texts(row, source)}
        splits[split][number] = _with_translation(row, key, texts)
        made.setdefault(split, {}).setdefault(key, []).append(number)
    kept.unlink(missing_ok=True)
    return {"translator": translator, "machine_translations": made}


def _jobs(splits: dict[str, list[Row]], wanted: list[tuple[str, int, str]]) -> Iterator[tuple[str, str, str]]:
    """(source language, target language, text) of everything to translate."""
    for split, number, key in wanted:
        row = splits[split][number]
        source = row.languages[0]
        for text in _texts(row, source):
            yield source, key, text


def _texts(row: Row, language: str) -> list[str]:
    if not any(isinstance(row.content.get(name), dict) for name in FIELDS):
        return [row.content[language]]
    return [row.content[name][language] for name in TRANSLATED if name in row.content]


def _with_translation(row: Row, key: str, texts: dict[str, str]) -> Row:
    source = row.languages[0]
    if not any(isinstance(row.content.get(name), dict) for name in FIELDS):
        return Row({**row.content, key: texts[row.content[source]]}, row.source)
    content: dict[str, Any] = {}
    for name, value in row.content.items():
        if name in TRANSLATED:
            content[name] = {**value, key: texts[value[source]]}
        elif not isinstance(value, dict):
            content[name] = value  # lists of wrong answers are in the first languages alone, and go
    return Row(content, row.source)


def _read_kept(path: Path) -> dict[tuple[str, ...], str]:
    known: dict[tuple[str, ...], str] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                *key, text = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            known[tuple(key)] = text
    return known


class _Translator:
    def __init__(self, name: str):
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.model = AutoModelForSeq2SeqLM.from_pretrained(name).eval()
        except Exception as error:  # of many kinds
            raise ConfigError(
                f"--translator {name} cannot be loaded ({' '.join(str(error).split())[:300]}); name an NLLB, M2M100 "
                "or Opus-MT model, or a folder that holds one"
            ) from error
        self.codes: dict[str, tuple[str, str]] = {}  # short tag to the code and the token that stands for it
        named = getattr(self.tokenizer, "lang_token_to_id", {})  # M2M100 keeps these apart
        for token in (*self.tokenizer.get_vocab(), *named):
            for form in CODES:
                found = form.fullmatch(token)
                if found and short_tag(found[1]):
                    self.codes.setdefault(short_tag(found[1]), (found[1], token))
        self.by_prefix = any(token.startswith(">>") for _, token in self.codes.values())

    def translate(self, jobs: Sequence[tuple[str, str, str]]) -> Iterator[tuple[tuple[str, str, str], str]]:
        """Each job with its translation, batch by batch of about equally long texts of one pair of languages."""
        import torch

        pairs = list(dict.fromkeys((source, target) for source, target, _ in jobs))
        bar = tqdm(total=len(jobs), desc="Translating", disable=not jobs, leave=False)
        for pair in pairs:
            own = sorted((job for job in jobs if job[:2] == pair), key=lambda job: len(job[2]))
            options, prefix = self._settings(*pair)
            for start in range(0, len(own), BATCH):
                batch = own[start : start + BATCH]
                inputs = self.tokenizer([prefix + text for *_, text in batch], return_tensors="pt", padding=True)
                room = 2 * inputs["input_ids"].shape[1] + 16
                with torch.no_grad():
                    ids = self.model.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=room, **options)
                for job, text in zip(batch, self.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                    if not text.strip():
                        raise ConfigError(
                            f"the translator has no word for a text from {pair[0]} into {pair[1]}; take another one"
                        )
                    yield job, text.strip()
                bar.update(len(batch))
        bar.close()

    def _settings(self, source: str, target: str) -> tuple[dict[str, Any], str]:
        """Options of ``generate``, and what stands before a text."""
        if not self.codes:  # a model of one pair of languages, which nothing in it names
            return {}, ""
        if self.by_prefix:
            return {}, f"{self._code(target)[1]} "
        self.tokenizer.src_lang = self._code(source)[0]
        return {"forced_bos_token_id": self.tokenizer.convert_tokens_to_ids(self._code(target)[1])}, ""

    def _code(self, language: str) -> tuple[str, str]:
        tag = short_tag(language)
        if tag not in self.codes:
            raise ConfigError(
                f"the translator does not know {language}{did_you_mean(tag, self.codes)}; leave it out, or take "
                "another --translator"
            )
        return self.codes[tag]
