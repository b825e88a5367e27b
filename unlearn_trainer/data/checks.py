"""Checks across splits: languages without rows, empty splits, identifiers for texts, and text that occurs twice."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ..errors import ConfigError, DataError, did_you_mean
from .items import NO_IDENTIFIER, QA, Cloze, Item, Text, shorten

logger = logging.getLogger(__name__)

# Printable ASCII without white space: an identifier, an address, or one word.
LIKE_AN_IDENTIFIER = re.compile(r"[!-~]+")


def resolve_languages(
    forget: Sequence[Item], languages: Sequence[str] | None, heldout_languages: Sequence[str]
) -> list[str]:
    """Languages to train in: those asked for, or all of the forget split (in file order) that are not held out.

    Raises:
        ConfigError: no language is left, one is given twice, or one is both trained and held out.
    """
    if languages is None:
        present = dict.fromkeys(language for item in forget for language in item.content)
        languages = [language for language in present if language not in heldout_languages]
        if not languages:
            raise ConfigError("--heldout_languages holds out every language of the forget split; leave one to train")
    both = [*languages, *heldout_languages]
    for language in both:
        if both.count(language) > 1:
            raise ConfigError(
                f"language {language!r} is given more than once in --languages and --heldout_languages; "
                "a language is either trained or held out"
            )
    if not languages:
        raise ConfigError("--languages is empty; name at least one language, or leave the flag out to train in all")
    return list(languages)


def check_splits(
    splits: Mapping[str, Sequence[Item] | None],
    languages: Sequence[str] | None,
    heldout_languages: Sequence[str] = (),
    show_texts: bool = False,
) -> list[str]:
    """Refuse splits that cannot be trained on or that would make the figures meaningless.

    Args:
        splits: ``forget`` (required), ``retain``, ``valid``, ``test`` (each may be absent or None).
        languages: languages to train in; None for all of the forget split that are not held out.
        heldout_languages: languages that are only evaluated.
        show_texts: let errors quote the texts that they are about.

    Returns:
        The languages to train in.

    Raises:
        DataError: no forget split, an empty split, a trained language without a forget row, a held-out language
            without any row, identifiers in the place of Indonesian (``id``) texts, or the same complete text (white
            space and Unicode normalised, in any two languages) in forget and in another split.

    Warned of only: languages that go unused because the forget split lacks them, what looks like identifiers under
    another language code, a text that a split holds twice in one language, and a prompt or question that forget and
    retain share with another answer.
    """
    splits = {name: items for name, items in splits.items() if items is not None}
    if "forget" not in splits:
        raise DataError("there is no forget split; give --data_dir or --forget_file")
    for name, items in splits.items():
        if not items:
            raise DataError(f"the {name} split is empty; check --data_dir or --{name}_file")
    chosen = languages is not None
    languages = resolve_languages(splits["forget"], languages, heldout_languages)
    check_languages(splits, languages, heldout_languages)
    used = {*languages, *heldout_languages}
    if not chosen:
        _warn_of_unused_languages(splits, used)
    for items in splits.values():
        _check_identifiers(items, used)
    _check_overlap(splits, used, show_texts)
    _warn_of_repetitions(splits, used)
    if "retain" in splits:
        _warn_of_shared_cues(splits["forget"], splits["retain"], used)
    return languages


def check_languages(
    splits: Mapping[str, Sequence[Item]], languages: Sequence[str], heldout_languages: Sequence[str]
) -> None:
    """Refuse a language without rows and a split without any of the languages (see :func:`check_splits`)."""
    present = {
        name: list(dict.fromkeys(language for item in items for language in item.content))
        for name, items in splits.items()
    }
    everywhere = list(dict.fromkeys(language for names in present.values() for language in names))
    for language in languages:
        if language not in present["forget"]:
            raise DataError(
                f"no row of the forget split is in language {language!r} of --languages; "
                f"the forget split has {', '.join(present['forget'])}{did_you_mean(language, present['forget'])}"
            )
        if language not in present.get("retain", [language]):
            logger.warning("no row of the retain split is in language %r: nothing will be retained in it", language)
    for language in heldout_languages:
        if language not in everywhere:
            raise DataError(
                f"no row of any split is in language {language!r} of --heldout_languages; "
                f"the data have {', '.join(everywhere)}{did_you_mean(language, everywhere)}"
            )
    for name, names in present.items():
        if not {*languages, *heldout_languages} & {*names}:
            raise DataError(
                f"the {name} split has no row in {', '.join([*languages, *heldout_languages])}, only in "
                f"{', '.join(names)}; change --languages or --{name}_file"
            )


def _entries(items: Sequence[Item], languages: set[str]) -> Iterator[tuple[Item, str, Text | Cloze | QA]]:
    for item in items:
        for language, content in item.content.items():
            if language in languages:
                yield item, language, content


def counted(by_language: Mapping[str, int]) -> str:
    """``en: 2, sw: 1``, for messages; without zeros."""
    return ", ".join(f"{language}: {count}" for language, count in by_language.items() if count)


def _warn_of_unused_languages(splits: Mapping[str, Sequence[Item]], used: set[str]) -> None:
    unused: dict[str, list[str]] = {}
    for name, items in splits.items():
        for language in dict.fromkeys(language for item in items for language in item.content):
            if language not in used:
                unused.setdefault(language, []).append(name)
    if unused:
        names = dict.fromkeys(name for names in unused.values() for name in names)
        logger.warning(
            "the rows in %s (of %s) are not used, because the forget split has none in %s; "
            "add translations to it, or name languages in --heldout_languages to measure them without training",
            *(", ".join(unused), ", ".join(names), "this language" if len(unused) == 1 else "these languages"),
        )


def _check_identifiers(items: Sequence[Item], languages: set[str]) -> None:
    """Refuse, under ``id``, and else warn of a "language" of text rows that holds one identifier after another."""
    rows = [item for item in items if item.kind == "text" and item.id is None and len(item.content) > 1]
    for code in dict.fromkeys(language for item in rows for language in item.content if language in languages):
        having = [item for item in rows if code in item.content]
        values = [item.content[code].text for item in having]
        # Words beside words are a word list, and one word beside one sentence may be its translation.
        if (
            all(LIKE_AN_IDENTIFIER.fullmatch(value) for value in values)
            and not all(LIKE_AN_IDENTIFIER.fullmatch(text.text) for item in having for text in item.content.values())
            and (len(values) > 1 or any(character.isdigit() for character in values[0]))
        ):
            if code == "id":
                raise DataError(
                    f"{having[0].source}: the value of 'id' looks like an identifier, as all 'id' texts of this split "
                    f"do: {NO_IDENTIFIER} (if they are Indonesian, give them the code 'ind')"
                )
            logger.warning(
                "%s: %r is taken as a language, but no text of this split in it has white space; "
                "if it holds identifiers, take it out of the rows",
                *(having[0].source, code),
            )


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _check_overlap(splits: Mapping[str, Sequence[Item]], languages: set[str], show_texts: bool) -> None:
    forget: dict[str, tuple[Item, str]] = {}
    for item, language, content in _entries(splits["forget"], languages):
        for text in content.complete():
            forget.setdefault(_normal(text), (item, language))
    for name, items in splits.items():
        if name == "forget":
            continue
        shared = [
            (item, language, text)
            for item, language, content in _entries(items, languages)
            for text in content.complete()
            if _normal(text) in forget
        ]
        if shared:
            item, language, text = shared[0]
            other, other_language = forget[_normal(text)]
            more = f" (and {len(shared) - 1} more)" if len(shared) > 1 else ""
            raise DataError(
                f"{item.where(language)}: the {language!r} text{f' {shorten(text)}' if show_texts else ''} of the "
                f"{name} split is also in the forget split, {other.where(other_language)} ({other_language!r}){more}; "
                "remove it from one"
            )


def _warn_of_repetitions(splits: Mapping[str, Sequence[Item]], languages: set[str]) -> None:
    for name, items in splits.items():
        first: dict[tuple[str, str], Item] = {}
        repeated: list[tuple[Item, str, Item]] = []
        for item, language, content in _entries(items, languages):
            earlier = first.setdefault((language, _normal(content.target.text)), item)
            if earlier is not item:
                repeated.append((item, language, earlier))
        if repeated:
            item, language, earlier = repeated[0]
            logger.warning(
                "the %s split holds texts more than once, which counts and weighs each of them as often (%s); "
                "the first: %s repeats %s in language %r; keep one",
                *(name, counted(Counter(language for _, language, _ in repeated))),
                *(item.where(language), earlier.where(language), language),
            )


def _cues(items: Sequence[Item], languages: set[str]) -> Iterator[tuple[Item, tuple[str, str]]]:
    for item, language, content in _entries(items, languages):
        if content.cue is not None:
            yield item, (language, _normal(content.cue))


def _warn_of_shared_cues(forget: Sequence[Item], retain: Sequence[Item], languages: set[str]) -> None:
    cues = {cue for _, cue in _cues(forget, languages)}
    shared = {item.source for item, cue in _cues(retain, languages) if cue in cues}
    if shared:
        logger.warning(
            "%d of %d retain items share their prompt or question with a forget item (the answers differ)",
            len(shared),
            len(retain),
        )
