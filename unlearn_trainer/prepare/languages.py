"""Languages by whatever code or name they are asked for, against the codes that a collection has."""

import functools
from collections.abc import Iterable, Mapping, Sequence

from ..errors import ConfigError, did_you_mean, show_name


def choose_languages(available: Sequence[str], wanted: Sequence[str] | None) -> dict[str, str]:
    """Which of a collection's languages are written, and under which key.

    Args:
        available: the collection's own codes, such as ``eng_Latn``, or names of languages.
        wanted: in any spelling (``eng_Latn``, ``en``, ``EN-us``, ``English``); None for all.

    Returns:
        Key to code, in the order of ``wanted``. A wanted language keeps its spelling; without ``wanted`` the key is
        the shortest tag that keeps the available ones apart (``zh`` and ``zh-Hant``).

    Raises:
        ConfigError: a language that is not there, or that more than one code fits; two codes or two wanted ones that
            are the same language.
    """
    tags = _tags_apart(available)
    if wanted is None:
        return {tag: code for code, tag in tags.items()}
    chosen: dict[str, str] = {}
    for spelling in wanted:
        code = _find(spelling, tags)
        if code in chosen.values():
            other = next(key for key, value in chosen.items() if value == code)
            raise ConfigError(f"--languages {other} {spelling}: both are {code}; name it once")
        chosen[spelling] = code
    return chosen


def is_language(code: str) -> bool:
    """Whether a word, such as the head of a column, is the code or the English name of a language."""
    return bool(short_tag(code))


@functools.cache
def short_tag(code: str) -> str:
    """The shortest tag of a language: ``sw`` for ``swh_Latn``, ``zh-Hant`` for ``zho_Hant``, ``en`` for ``English``.

    Script and territory stay where they are not what the language has by default; empty for what is no language.
    """
    import langcodes  # slow to import

    given: langcodes.Language | None
    try:
        given = langcodes.get(code.strip())
        if not given.is_valid() or (len(code) > 3 and "_" not in code and "-" not in code):
            raise langcodes.LanguageTagError
    except langcodes.LanguageTagError:
        try:
            given = langcodes.find(code.strip()) if len(code.strip()) > 3 else None
        except LookupError:
            given = None
    if given is None or not given.language:
        return ""
    given = given.prefer_macrolanguage()
    usual = langcodes.get(given.language or "und").maximize()
    fuller = given.maximize()
    # A language whose usual script is not on record is filled up like no language at all; then any script is its own.
    nowhere = langcodes.get("und").maximize()
    on_record = (usual.script, usual.territory) != (nowhere.script, nowhere.territory) or given.language == "en"
    known = usual.script if on_record else given.script
    script = given.script if given.script and given.script != known else None
    territory = given.territory if given.territory and fuller.territory != usual.territory else None
    return "-".join(part for part in (given.language, script, territory) if part)


def _tags_apart(available: Sequence[str]) -> dict[str, str]:
    """Code to its shortest tag."""
    tags: dict[str, str] = {}
    for code in available:
        tag = short_tag(code) or code
        if tag in tags.values():
            other = next(known for known, value in tags.items() if value == tag)
            raise ConfigError(
                f"{show_name(other)} and {show_name(code)} are both the language {tag}; take one of them out"
            )
        tags[code] = tag
    return tags


def _find(spelling: str, tags: Mapping[str, str]) -> str:
    for code in tags:
        if _plain(code) == _plain(spelling):
            return code
    tag = short_tag(spelling)
    fitting = [code for code, known in tags.items() if known == tag]
    if not fitting and tag:  # without the territory, which collections rarely tell
        fitting = [code for code, known in tags.items() if known == _without_territory(tag)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(f"--languages {spelling} may be {' or '.join(fitting)}; name one of them")
    known = [*tags, *tags.values()]
    raise ConfigError(
        f"--languages {show_name(spelling)}: there is no such language here{did_you_mean(spelling, known)}; there are "
        f"{_listed(tags.values())}"
    )


def _without_territory(tag: str) -> str:
    return "-".join(part for part in tag.split("-") if not (len(part) == 2 and part.isupper()))


def _plain(code: str) -> str:
    return code.strip().replace("_", "-").casefold()


def _listed(tags: Iterable[str], most: int = 30) -> str:
    names = sorted(tags)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
