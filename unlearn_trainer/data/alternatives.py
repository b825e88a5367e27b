"""Alternative answers: what a model should say where it used to state a forgotten fact, "I do not know" and the like.

For objectives that compare the fact with a refusal or train one: IdkDPO (Maini et al., 2024, arXiv:2401.06121, after
Rafailov et al., 2023, arXiv:2305.18290).
"""

import hashlib
import json
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError, DataError, UnlearnError, quote_name, show_name, without_controls
from .cache import cached_rows
from .encoding import Encoded, encode, hash_tokenizer, special_ids
from .items import MASK, Cloze, Item, Passage, Text, shorten
from .tokenize import IDS, TokenizedData

logger = logging.getLogger(__name__)

FLAG = "--alternative_answers"
ALTERNATIVES = "alternatives.json"  # in a folder of data it is taken without being named
SHIPPED = Path(__file__).with_name(ALTERNATIVES)
FEATURES = datasets.Features({"alternative_input_ids": IDS, "alternative_labels": IDS})

# ISO 639-3 (as in FLORES codes) to the code of the shipped texts; macrolanguages beside their standard variety.
ISO_639_1 = dict(
    pair.split(":")
    for pair in (
        "afr:af ara:ar arb:ar aze:az azj:az bel:be ben:bn bul:bg cat:ca ces:cs cmn:zh cym:cy dan:da deu:de ell:el "
        "eng:en est:et ekk:et eus:eu fas:fa pes:fa fin:fi fra:fr gle:ga glg:gl heb:he hin:hi hrv:hr hun:hu hye:hy "
        "ind:id ita:it jpn:ja kat:ka kor:ko lat:la lit:lt lav:lv lvs:lv mal:ml mar:mr msa:ms zsm:ms nep:ne npi:ne "
        "nld:nl pol:pl por:pt ron:ro rus:ru slk:sk slv:sl spa:es sqi:sq als:sq srp:sr swa:sw swh:sw swe:sv tam:ta "
        "tel:te tha:th tur:tr ukr:uk urd:ur vie:vi xho:xh yor:yo zho:zh zul:zu"
    ).split()
)


def add_alternatives(
    data: TokenizedData,
    forget: Sequence[Item],
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    seed: int,
    path: str | None = None,
) -> TokenizedData:
    """The same data, with an alternative answer to every forget row in a trained language.

    Args:
        data: what :func:`~unlearn_trainer.data.tokenize.tokenize_splits` made of ``forget`` (among others).
        path: see :func:`load_alternatives`; the rest: see :func:`with_alternatives`.
    """
    alternatives = load_alternatives(data.languages, path)
    languages = [*data.languages, *data.heldout_languages]
    rows = with_alternatives(data.datasets["forget"], forget, alternatives, languages, tokenizer, max_seq_length, seed)
    return replace(data, datasets={**data.datasets, "forget": rows})


def find_alternatives(path: str | None, data_dir: str | None) -> str | None:
    """The file that was named, else the one that lies beside the splits, else ``None``."""
    beside = Path(data_dir or "") / ALTERNATIVES
    return path or (str(beside) if data_dir and beside.is_file() else None)


def load_alternatives(languages: Sequence[str], path: str | None = None) -> dict[str, tuple[str, ...]]:
    """The texts of each language: those of the file at ``path``, and the shipped ones for languages it lacks.

    A language is looked up by its whole code, then by the part before its script or region; an ISO 639-3 code finds
    the two-letter one (``zho_Hant``: ``zho_Hant``, ``zh-Hant``, ``zho``, ``zh``).

    Args:
        path: a JSON object from language codes to lists of texts.

    Raises:
        DataError: the file cannot be read or is not such an object.
        ConfigError: there is no text for one of the languages.
    """
    sources = [_read(Path(path))] if path else []
    sources.append(_read(SHIPPED))
    found = {}
    for language in languages:
        texts = next((source[code] for source in sources for code in _codes(language) if code in source), None)
        if texts is None:
            entry = f'"{language}": ["..."]'
            remedy = f"add {entry} to {FLAG} {path}" if path else f"give {FLAG} FILE with {{{entry}}}"
            raise ConfigError(f"there is no alternative answer in language {language!r}; {remedy}")
        found[language] = texts
    return found


def with_alternatives(
    rows: datasets.Dataset,
    items: Sequence[Item],
    alternatives: Mapping[str, Sequence[str]],
    languages: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    seed: int,
) -> datasets.Dataset:
    """The tokenized forget split with the columns ``alternative_input_ids`` and ``alternative_labels``.

    They hold the row's prompt or question with a text of ``alternatives`` as its answer, truncated and labelled as the
    row itself; the text depends on ``seed``, the item and the language only. Within a sentence that goes on after the
    answer it loses its full stop.

    Args:
        rows: the forget split of :func:`~unlearn_trainer.data.tokenize.tokenize_splits`.
        items: the items it was made of.
        alternatives: language to texts; rows in other languages, the held-out ones, get empty lists.
        languages: codes that the rows' ``language`` column indexes.
        max_seq_length: in tokens, special tokens included.

    Raises:
        DataError: a text row, which has no question; an alternative answer of which truncation leaves no label.
    """

    def where(index: int) -> str:
        language = languages[language_of[index]]
        return f"{items[item_of[index]].where(language)}: the forget split in language {language!r}"

    def alternative(index: int) -> Passage | None:
        language = languages[language_of[index]]
        if language not in alternatives:
            return None
        content = items[item_of[index]].content[language]
        if isinstance(content, Text):
            raise DataError(
                f"{where(index)}: objectives with alternative answers need cloze or qa rows, and this is a text; "
                "choose another --forget_objective, or give such rows"
            )
        texts = alternatives[language]
        digest = hashlib.sha256(f"{seed} {item_of[index]} {language}".encode()).digest()
        text = texts[int.from_bytes(digest[:8], "big") % len(texts)]
        if isinstance(content, Cloze) and content.prompt.partition(MASK)[2].strip():
            text = _without_full_stop(text)
        return content.fill(text)

    def columns(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        wanted = [passages[index] for index in batch["index"]]
        unique = list(dict.fromkeys(passage for passage in wanted if passage))
        encoded: dict[Passage | None, Encoded] = {None: Encoded([], [])}
        encoded |= zip(unique, encode(tokenizer, unique, max_seq_length), strict=True)
        for index, passage in zip(batch["index"], wanted, strict=True):
            if passage and not encoded[passage].counts:
                raise DataError(
                    f"{where(index)}: its alternative answer keeps no label within {max_seq_length} tokens; "
                    "raise --max_seq_length, or take the row out"
                )
        return {
            "alternative_input_ids": [encoded[passage].input_ids for passage in wanted],
            "alternative_labels": [encoded[passage].labels for passage in wanted],
        }

    _warn_of_special_tokens(alternatives, tokenizer)
    item_of, language_of = rows["item"][:], rows["language"][:]
    passages = [alternative(index) for index in range(len(rows))]
    content = json.dumps(["alternatives", hash_tokenizer(tokenizer), max_seq_length, passages])
    key = hashlib.sha256(content.encode()).hexdigest()[:32]
    added = cached_rows(columns, len(rows), FEATURES, key, "Tokenizing alternative answers")
    return datasets.concatenate_datasets([rows, added], axis=1)


def _warn_of_special_tokens(alternatives: Mapping[str, Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> None:
    names = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
    for language, texts in alternatives.items():
        for number, text in enumerate(texts, start=1):
            if not any(name in text for name in names):
                continue
            written = encode(tokenizer, [Passage(text)], None)[0].written
            if written:
                logger.warning(
                    "%s: text %d of language %r has the special tokens %s written in it, which become the tokens "
                    "themselves; take them out, unless an answer shall end there",
                    *(FLAG, number, language, " ".join(map(show_name, tokenizer.convert_ids_to_tokens(written)))),
                )


def _codes(language: str) -> list[str]:
    """The codes under which a language may be found, the closest first."""
    head = language.replace("_", "-").partition("-")[0]
    short = ISO_639_1.get(head, head)
    return [language, short + language[len(head) :].replace("_", "-"), head, short]


def _without_full_stop(text: str) -> str:
    while text and unicodedata.category(text[-1]) == "Po":
        text = text[:-1]
    return text


def _read(path: Path) -> dict[str, tuple[str, ...]]:
    place = f"{without_controls(str(path))} ({FLAG})"
    example = 'write {"en": ["I do not know.", "..."], ...}'

    def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"{place}: language {quote_name(name)} occurs twice; put its texts into one list")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unrepeated)
    except OSError as error:
        raise DataError(f"{place}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not valid UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{place}: broken JSON at {where} ({error.msg}); {example}") from error
    except UnlearnError:
        raise
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of thousands of digits
        raise DataError(f"{place}: broken JSON ({error}); {example}") from error
    if not isinstance(content, dict) or not content:
        raise DataError(
            f"{place}: must hold an object from language codes to lists of texts, not {shorten(content)}; {example}"
        )
    for language, texts in content.items():
        if not isinstance(texts, list) or not texts:
            raise DataError(
                f"{place}: language {quote_name(language)} needs a list of texts, not {shorten(texts)}; {example}"
            )
        for text in texts:
            if not isinstance(text, str) or not text.strip() or text != text.encode(errors="replace").decode():
                raise DataError(
                    f"{place}: language {quote_name(language)}: {shorten(text)} is no text; write an answer, or take "
                    "it out"
                )
    return {language: tuple(texts) for language, texts in content.items()}
