"""What people call a language that the files name by a code."""


def called(code: str) -> str:
    """The name of a language, or its code where it has none."""
    return language_name(code) or code


def language_name(code: str) -> str | None:
    """The English name of a language by its BCP 47 or FLORES code (sw, zh-Hans, swh_Latn); None where it has none."""
    import langcodes  # with its tables as slow to import as some libraries ten times its size

    try:
        language = langcodes.get(code)
    except langcodes.LanguageTagError:
        return None
    name = language.display_name()
    return None if not language.is_valid() or "Unknown" in name else name.replace(" (individual language)", "")
