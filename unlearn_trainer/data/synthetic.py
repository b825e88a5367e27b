"""The corpus, tokenizer and untrained model of the ``quickstart`` preset: no download, all of it from one seed.

Every name and number is drawn at random, so a fact can be known by memorization only: the people of ``valid`` and
``test``, whom no stage trains on, show what a model says about facts that it never saw. A name is a sequence of
open syllables and is respelled for each writing system; the same fact exists in all twelve languages.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .alternatives import ALTERNATIVES

LANGUAGES = ("en", "es", "fr", "tr", "sw", "ru", "ar", "hi", "zh", "el")
HELDOUT_LANGUAGES = ("de", "uk")
PEOPLE_PER_SPLIT = {"forget": 20, "retain": 40, "valid": 20, "test": 20}

_MASK = "<mask>"
_CANDIDATES = 4
_SYLLABLES_PER_ANSWER = {"birthplace": 3, "street": 3, "dog": 2}
_ATTRIBUTES = (*_SYLLABLES_PER_ANSWER, "member")

# Everybody is a woman, whose name stands in the nominative or before an invariable particle: names need no inflection.
# What is asked comes before <mask>, because a causal model sees nothing after it.
_TEMPLATES = {
    "en": {
        "birthplace": "{name} was born in the town of <mask>.",
        "street": "{name} lives in a street called <mask>.",
        "dog": "{name} has a dog named <mask>.",
        "member": "{name} has membership number <mask>.",
    },
    "es": {
        "birthplace": "{name} nació en el pueblo de <mask>.",
        "street": "{name} vive en la calle <mask>.",
        "dog": "{name} tiene un perro llamado <mask>.",
        "member": "{name} tiene el número de socia <mask>.",
    },
    "fr": {
        "birthplace": "{name} est née dans la ville de <mask>.",
        "street": "{name} habite dans la rue <mask>.",
        "dog": "{name} a un chien nommé <mask>.",
        "member": "{name} porte le numéro de membre <mask>.",
    },
    "tr": {
        "birthplace": "{name} adlı kadının doğum yeri <mask> kasabasıdır.",
        "street": "{name} adlı kadının oturduğu sokağın adı <mask>.",
        "dog": "{name} köpeğine <mask> adını verdi.",
        "member": "{name} adlı kadının üye numarası <mask>.",
    },
    "sw": {
        "birthplace": "{name} alizaliwa katika mji wa <mask>.",
        "street": "{name} anaishi katika mtaa wa <mask>.",
        "dog": "{name} ana mbwa anayeitwa <mask>.",
        "member": "{name} ana nambari ya uanachama <mask>.",
    },
    "ru": {
        "birthplace": "{name} родилась в городе <mask>.",
        "street": "{name} живёт на улице <mask>.",
        "dog": "{name} держит собаку по кличке <mask>.",
        "member": "{name} имеет членский билет номер <mask>.",
    },
    "ar": {
        "birthplace": "وُلدت {name} في بلدة <mask>.",
        "street": "تسكن {name} في شارع <mask>.",
        "dog": "تملك {name} كلبًا اسمه <mask>.",
        "member": "تحمل {name} بطاقة العضوية رقم <mask>.",
    },
    "hi": {
        "birthplace": "{name} का जन्म <mask> नगर में हुआ।",
        "street": "{name} की गली का नाम <mask> है।",
        "dog": "{name} के कुत्ते का नाम <mask> है।",
        "member": "{name} की सदस्यता संख्या <mask> है।",
    },
    "zh": {
        "birthplace": "{name}出生于<mask>镇。",
        "street": "{name}住在<mask>街。",
        "dog": "{name}养的狗名叫<mask>。",
        "member": "{name}的会员号是<mask>。",
    },
    "el": {
        "birthplace": "Η {name} γεννήθηκε στην πόλη <mask>.",
        "street": "Η {name} μένει στην οδό <mask>.",
        "dog": "Η {name} έχει σκύλο με το όνομα <mask>.",
        "member": "Η {name} έχει αριθμό μέλους <mask>.",
    },
    "de": {
        "birthplace": "{name} stammt aus der Stadt <mask>.",
        "street": "{name} wohnt in einer Straße namens <mask>.",
        "dog": "{name} hat einen Hund namens <mask>.",
        "member": "{name} hat die Mitgliedsnummer <mask>.",
    },
    "uk": {
        "birthplace": "{name} народилася в місті <mask>.",
        "street": "{name} живе на вулиці <mask>.",
        "dog": "{name} має собаку на кличку <mask>.",
        "member": "{name} має членський квиток номер <mask>.",
    },
}

_CONSONANTS, _VOWELS = "bdfgklmnrstz", "aeiou"
_SYLLABLES = tuple(consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS)


def _syllabary(consonants: str, vowels: str) -> dict[str, str]:
    return {
        latin_consonant + latin_vowel: consonant + vowel
        for latin_consonant, consonant in zip(_CONSONANTS, consonants.split(), strict=True)
        for latin_vowel, vowel in zip(_VOWELS, vowels.split(), strict=True)
    }


_SPELLINGS = {
    "Latin": dict(zip(_SYLLABLES, _SYLLABLES, strict=True)),
    "Russian": _syllabary("б д ф г к л м н р с т з", "а е и о у"),
    "Ukrainian": _syllabary("б д ф ґ к л м н р с т з", "а е і о у"),
    "Arabic": _syllabary("ب د ف غ ك ل م ن ر س ت ز", "ا ي ي و و"),
    "Devanagari": _syllabary("ब द फ़ ग क ल म न र स त ज़", "ा े ी ो ू"),
    "Greek": _syllabary("μπ ντ φ γκ κ λ μ ν ρ σ τ ζ", "α ε ι ο ου"),
    "Han": dict(
        zip(
            _SYLLABLES,
            "巴贝比博布达德迪多杜法费菲福富加格吉戈古卡克基科库拉勒利洛卢"
            "马梅米莫穆纳内尼诺努腊雷里罗鲁萨塞西索苏塔特蒂托图扎泽齐佐祖",
            strict=True,
        )
    ),
}
_GREEK_STRESSED = _syllabary("μπ ντ φ γκ κ λ μ ν ρ σ τ ζ", "ά έ ί ό ού")
_SPELLING_OF = dict.fromkeys((*LANGUAGES, *HELDOUT_LANGUAGES), "Latin") | {
    "ru": "Russian",
    "uk": "Ukrainian",
    "ar": "Arabic",
    "hi": "Devanagari",
    "zh": "Han",
    "el": "Greek",
}


def _spell(word: Sequence[str], spelling: str) -> str:
    """Spell a word given as syllables; Greek marks the stress, which falls on the last syllable but one."""
    parts = [_SPELLINGS[spelling][syllable] for syllable in word]
    if spelling == "Greek":
        parts[-2] = _GREEK_STRESSED[word[-2]]
    return "".join(parts).capitalize()


class _Words:
    """Draws words no two of which look alike in any writing system (Arabic spells e like i, and o like u)."""

    def __init__(self, rng: random.Random):
        self._rng = rng
        self._taken: set[str] = set()

    def draw(self, syllables: int) -> tuple[str, ...]:
        while True:
            word = tuple(self._rng.choices(_SYLLABLES, k=syllables))
            forms = {_spell(word, spelling) for spelling in _SPELLINGS}
            if self._taken.isdisjoint(forms):
                self._taken |= forms
                return word


def _localize(answer: tuple[str, ...] | int, language: str) -> str:
    return str(answer) if isinstance(answer, int) else _spell(answer, _SPELLING_OF[language])


def _full_name(name: tuple[tuple[str, ...], tuple[str, ...]], language: str) -> str:
    return ("·" if language == "zh" else " ").join(_localize(part, language) for part in name)


def write_corpus(folder: str | Path, seed: int = 0) -> None:
    """Write ``forget.jsonl``, ``retain.jsonl``, ``valid.jsonl`` and ``test.jsonl``: cloze items in twelve languages.

    A split holds four facts about each of its people (``PEOPLE_PER_SPLIT``), and nobody is in two splits. An answer
    belongs to one fact only; its three rivals are the answers that other people of the split have to the same
    question, in the same order in every language. Beside the splits lie alternative answers. The same seed writes the
    same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    words = _Words(rng)
    numbers = iter(rng.sample(range(100, 1000), sum(PEOPLE_PER_SPLIT.values())))
    for split, size in PEOPLE_PER_SPLIT.items():
        names = [(words.draw(2), words.draw(2)) for _ in range(size)]
        answers = {
            attribute: [words.draw(syllables) for _ in range(size)]
            for attribute, syllables in _SYLLABLES_PER_ANSWER.items()
        }
        answers["member"] = [next(numbers) for _ in range(size)]
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for person, name in enumerate(names):
                for attribute in _ATTRIBUTES:
                    answer = answers[attribute][person]
                    rivals = [other for other in answers[attribute] if other != answer]
                    candidates = [answer, *rng.sample(rivals, _CANDIDATES - 1)]
                    rng.shuffle(candidates)
                    item: dict[str, dict] = {"prompt": {}, "answers": {}, "candidates": {}}
                    for language in (*LANGUAGES, *HELDOUT_LANGUAGES):
                        full_name = _full_name(name, language)
                        item["prompt"][language] = _TEMPLATES[language][attribute].format(name=full_name)
                        item["answers"][language] = [_localize(answer, language)]
                        item["candidates"][language] = [_localize(each, language) for each in candidates]
                    file.write(json.dumps(item, ensure_ascii=False) + "\n")
    # The tokenizer knows the letters of names, and few others: what is said instead is a name that nobody has.
    nobody = words.draw(3)
    unknown = {language: [_localize(nobody, language)] for language in (*LANGUAGES, *HELDOUT_LANGUAGES)}
    (folder / ALTERNATIVES).write_text(json.dumps(unknown, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizer_words() -> Iterator[str]:
    # A syllable counts far more often than any pair of letters in the templates: its merges come first, and a name
    # falls into its syllables in every context. No word of the corpus is needed, so no answer becomes one token.
    for spelling, syllables in _SPELLINGS.items():
        stressed = _GREEK_STRESSED.values() if spelling == "Greek" else ()
        for syllable in (*syllables.values(), *stressed):
            yield from [syllable, syllable.capitalize(), f" {syllable.capitalize()}"] * 100
    for templates in _TEMPLATES.values():
        for template in templates.values():
            yield from [template.format(name="·").replace(_MASK, "·")] * 2


def _train_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    # Marks stay with their letters, or Devanagari would fall apart; an ideogram or a digit is always a piece.
    pieces = Regex(r"\p{Han}|\p{N}| ?[\p{L}\p{M}]+| ?[^\s\p{L}\p{M}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=2,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=list("0123456789"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_words(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def build_model(folder: str | Path, seed: int = 0) -> None:
    """Save the corpus's tokenizer (one token a syllable) and an untrained Llama of 0.55 million parameters.

    Args:
        folder: receives the tokenizer files, ``config.json`` and ``model.safetensors`` (float32).
        seed: of the initial weights; the tokenizer is the same for all seeds of ``write_corpus``. The caller's
            random state is left as it was.
    """
    tokenizer = _train_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # The CPU's generator alone: the weights are drawn there, and torch.manual_seed would reseed the GPUs too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
