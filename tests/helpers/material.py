"""A tiny model with a tokenizer of its own, and parallel texts in three languages, on disk as a user has them."""

import json
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.tiny import tiny_model

LANGUAGES = ["en", "sw", "zh"]
LETTERS = "abcdefghijklmnopqrst"
FLAGS = "--use_cpu --disable_tqdm true --report_to none --save_strategy no --max_seq_length 16"


def write_byte_model(folder, kind="llama", **changes):
    """A tiny model into ``folder`` whose tokenizer knows every byte, and so every script."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"pad_token": "<pad>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "max_position_embeddings": 1024}
    tiny_model(kind, **{"vocab_size": len(vocabulary), **ids, **changes}).save_pretrained(folder)


def write_material(folder, items=6, kind="llama", **changes):
    """Flags of run_unlearn.py for a model ``kind`` and splits of ``items`` items, all written to ``folder``."""
    words = ["<unk>", "<pad>", "</s>", *(language + letter for language in LANGUAGES for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "model")
    ids = {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": 2}
    tiny_model(kind, **{"vocab_size": len(words), **ids, **changes}).save_pretrained(folder / "model")
    rng = random.Random(0)
    for split in ("forget", "retain", "valid"):
        rows = []
        for _ in range(items):
            letters = rng.sample(LETTERS, rng.randint(5, 9))
            rows.append({language: " ".join(language + each for each in letters) for language in LANGUAGES})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [*FLAGS.split(), "--model_name_or_path", str(folder / "model"), "--data_dir", str(folder)]
