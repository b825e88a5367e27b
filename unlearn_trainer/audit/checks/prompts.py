"""Prompt attacks: whether a forgotten answer comes back when the question is put another way.

Each variant of a forget row has the row's own answer with other words before it, and labels on that answer alone:

- ``paraphrased_question``: as the data paraphrases it (qa rows; Maini et al. 2024, arXiv:2401.06121)
- ``asked_in_another_language``: the translated question or prompt, the answer in the row's language (cloze, qa)
- ``code_switched``: about half of the question or prompt in another language (cloze, qa)
- ``primed``: after the same item in another language, answer and all
- ``primed_with_another``: after another item of the row's language; a longer context alone changes figures
"""

import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from ...data.contents import MASK, QA, Cloze, Conversation, Passage, Rendered, Text
from ...data.encoding import encode
from ...data.items import Item
from ..figures import rows_by_language, seed_of
from ..results import PRIMED_WITH_ANOTHER as CONTROL
from ..results import Matrix, Result, Variant
from ..subject import NEVER_SEEN, Subject

METRICS = ("memorization_accuracy", "extraction_strength")
PLAIN, WORST, PARAPHRASED, SWITCHED = "plain", "worst_prompt", "paraphrased_question", "code_switched"
ASKED, PRIMED, PRIMED_WITH_ANOTHER = "asked_in_another_language", "primed", CONTROL.name
# Not among those that the worst prompt is chosen from.
LONGER = (PRIMED, PRIMED_WITH_ANOTHER)
LEFT_OUT = {
    PARAPHRASED: "no row has a paraphrased question",
    ASKED: "no cloze or qa row has a translation with another answer",
    SWITCHED: "no cloze or qa row has a translation",
    PRIMED: "no row has a translation",
    PRIMED_WITH_ANOTHER: "no row has an unrelated one in its language",
}
# Languages that a row is asked in. As many in every split: the greatest of more tries is greater by chance alone.
TRIES, ASKED_IN = 2, "asked_in_"
# All others are for the matrix only, as their number grows with the square of the languages.
MAX_PAIRS, ALSO_ASKED_IN = 12_000, "also_asked_in_"
# Scripts that write no space between words: Thai to Burmese, Khmer, kana and Han.
_UNSPACED = re.compile(r"[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")

Content = Text | Cloze | QA | Conversation
Entry = tuple[int, int, Passage]
Columns = Mapping[str, np.ndarray]


def prompts(subject: Subject) -> Result:
    """Accuracy and extraction strength of the forget rows under every prompt attack that the data allows.

    Returns:
        ``rows``: figures of each variant and, as ``worst_prompt``, the greatest value that a fact has in a language
        over the plain prompt and all variants but ``primed``, whose context tells the answer, and the control
        ``primed_with_another``. There is none where other rows stand in for a model that never saw the forget rows:
        they may have more or fewer variants, and the greatest of more is greater by chance alone. ``matrix``: mean
        accuracy by the language asked in (rows) and answered in (columns; plain on the diagonal). ``notes``.
    """
    forget, languages = subject.datasets["forget"], subject.languages
    rows = zip(forget["item"][:], forget["language"][:], strict=True)
    built = build_variants(subject.items["forget"], rows, languages, subject.seed)
    limits = subject.tokenizer, subject.max_seq_length
    encoded = {variant: subject.encode(fitting(entries, *limits)) for variant, entries in built.items()}
    measured = subject.rows({PLAIN: forget, **encoded}, description="prompt attacks")
    variants = {name: found for name, found in measured.items() if not name.startswith((ASKED_IN, ALSO_ASKED_IN))}
    asked = [found for name, found in measured.items() if name.startswith(ASKED_IN)]
    if asked:
        variants[ASKED] = greatest(asked)
    never_seen = subject.peer(NEVER_SEEN)
    stand_in = never_seen.measured if never_seen and never_seen.measured != "forget" else None
    if stand_in is None:
        variants[WORST] = greatest(found for name, found in variants.items() if name not in LONGER)
    del variants[PLAIN]
    result = Result(notes=_notes(built, measured, subject.max_seq_length, stand_in))
    for variant, columns in variants.items():
        result.add_rows(rows_by_language(columns, languages, METRICS), Variant.named(variant))
    if asked:
        values = {subject.name: _matrix(measured, languages)}
        result.matrix = Matrix(languages, languages, "asked in", "answered in", METRICS[0], values)
    return result


def build_variants(
    items: Sequence[Item], rows: Iterable[tuple[int, int]], languages: Sequence[str], seed: int, max_pairs=MAX_PAIRS
) -> dict[str, list[Entry]]:
    """Every variant that the data allows: ``{variant: [(item, language index, passage), ...]}``, sorted by row.

    A variant holds at most one passage a row. A row is asked in :data:`TRIES` languages drawn for it (variants
    ``asked_in_A``) and, if that makes at most ``max_pairs`` for all rows, in all others too (``also_asked_in_A``).
    What is drawn for a row depends on ``seed``, its item and its language, and for ``primed_with_another`` on which
    items there are; never on the order of the rows.

    Args:
        rows: (index in ``items``, in ``languages``) of the rows to attack; unrelated items are among these too.
        languages: translations into others are not used.
    """
    rows = sorted(set(rows))
    neighbours = {language: [item for item, other in rows if other == language] for language in range(len(languages))}
    everywhere = len(rows) * (len(languages) - 1) <= max_pairs
    found: dict[str, list[Entry]] = defaultdict(list)
    for item, language in rows:
        code, contents = languages[language], items[item].content
        translations = {other: contents[other] for other in sorted({*languages} & {*contents} - {code})}
        # Apart, so that what else is drawn does not depend on how many items there are.
        start = random.Random(seed_of(seed, PRIMED_WITH_ANOTHER, str(item), code)).randrange(len(neighbours[language]))
        contexts = (items[i].content[code] for i in neighbours[language][start:] + neighbours[language][:start])
        rng = random.Random(seed_of(seed, "prompts", str(item), code))
        for variant, passage in _variants_of_row(contents[code], translations, contexts, everywhere, rng):
            if passage:
                found[variant].append((item, language, passage))
    return dict(found)


def _variants_of_row(
    content: Content, translations: Mapping[str, Content], contexts: Iterable[Content], everywhere, rng: random.Random
) -> Iterator[tuple[str, Passage | None]]:
    if isinstance(content, QA) and content.paraphrased_question:
        yield PARAPHRASED, replace(content, question=content.paraphrased_question).target
    order = rng.sample(list(translations), len(translations))
    asked = {other: passage for other in order if (passage := ask_in_translation(content, translations[other]))}
    for number, other in enumerate(asked if everywhere else list(asked)[:TRIES]):
        yield (ASKED_IN if number < TRIES else ALSO_ASKED_IN) + other, asked[other]
    yield SWITCHED, next(filter(None, (switch_code(content, translations[other], rng) for other in order)), None)
    if order:
        yield PRIMED, prime(content, translations[order[0]])
    # Neither the row itself nor one that tells its answer.
    answer = labelled_text(content).casefold()
    unrelated = (context for context in contexts if answer not in context.target.text.casefold())
    yield PRIMED_WITH_ANOTHER, next((prime(content, context) for context in unrelated), None)


def labelled_text(content: Content) -> str:
    """The characters that carry labels: the answer, or all of a text."""
    text, span = content.target
    return text[slice(*span)] if span else text


def ask_in_translation(content: Content, translation: Content) -> Passage | None:
    """The translated prompt or question with the answer of ``content``.

    None for a text, and where both answers are written alike: the passage would be the translation's own row, and a
    leak there is one of its language.
    """
    if isinstance(content, Text) or isinstance(translation, Text):
        return None
    if labelled_text(content) == labelled_text(translation):
        return None
    return translation.fill(labelled_text(content))


def switch_code(content: Content, translation: Content, rng: random.Random) -> Passage | None:
    """About half of the prompt or question replaced by what stands at the same place of its translation.

    Both are cut into equally many pieces, as many as the shorter has words; half of the pieces that differ are
    replaced. In scripts without spaces, what stands between two spaces counts as two halves. What precedes and what
    follows the mask of a prompt are switched each for itself.

    Returns:
        None for a text and a conversation, and where there are no two pieces, or none that differ.
    """
    if not isinstance(content, QA | Cloze) or not isinstance(translation, QA | Cloze):
        return None
    # In a question a mask is text like any other.
    mask = MASK if isinstance(content, Cloze) else None
    parts, others = (each.cue.split(mask) if mask else [each.cue] for each in (content, translation))
    pieces = [(part, *each) for part, pair in enumerate(zip(parts, others, strict=True)) for each in _aligned(*pair)]
    differing = [(part, start, end, piece) for part, start, end, piece in pieces if parts[part][start:end] != piece]
    if len(pieces) < 2 or not differing:
        return None
    # From the end, so that the places of the rest stay what they are.
    for part, start, end, piece in sorted(rng.sample(differing, max(1, len(differing) // 2)), reverse=True):
        before, after = parts[part][:start], parts[part][end:]
        left = " " if before and not before[-1].isspace() else ""
        right = " " if after and not after[0].isspace() else ""
        parts[part] = before + left + piece + right + after
    text = (mask or "").join(parts)
    switched = replace(content, prompt=text) if isinstance(content, Cloze) else replace(content, question=text)
    return switched.target


def _aligned(text: str, other: str) -> Iterator[tuple[int, int, str]]:
    """Both texts in equally many pieces: start and end of the piece of ``text``, and the piece of ``other``."""
    cut = [list(_words(text)), list(_words(other))]
    count = min(map(len, cut))
    for i in range(count):
        own, piece = (
            (words[i * len(words) // count][0], words[(i + 1) * len(words) // count - 1][1]) for words in cut
        )
        yield *own, other[slice(*piece)]


def _words(text: str) -> Iterator[tuple[int, int]]:
    for match in re.finditer(r"\S+", text):
        start, end = match.span()
        middle = (start + end) // 2 if _UNSPACED.search(match[0]) else end
        while middle < end and unicodedata.category(text[middle]).startswith("M"):
            middle += 1  # a mark stays with its letter
        yield from ((first, last) for first, last in ((start, middle), (middle, end)) if first < last)


def prime(content: Content, context: Content) -> Passage:
    """The complete ``context``, a space, and ``content`` with its labels; of what is rendered, one after the other."""
    target = content.target
    start, end = target.span or (0, len(target.text))
    rendered = isinstance(target, Rendered)
    before = context.target.text + ("" if rendered else " ")
    whole = before + target.text, (len(before) + start, len(before) + end)
    return Rendered(*whole) if rendered else Passage(*whole)


def fitting(entries: Sequence[Entry], tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> list[Entry]:
    """Those whose passages are whole within ``max_seq_length`` tokens."""
    rows = encode(tokenizer, [passage for *_, passage in entries], None)
    return [entry for entry, row in zip(entries, rows, strict=True) if len(row.input_ids) <= max_seq_length]


def greatest(tables: Iterable[Columns]) -> dict[str, np.ndarray]:
    """Columns ``language``, ``item`` and :data:`METRICS`, each metric the greatest that a row has in any table."""
    best: dict[tuple[int, int], np.ndarray] = {}
    for columns in tables:
        for *values, language, item in zip(*(columns[name] for name in (*METRICS, "language", "item")), strict=True):
            best[int(language), int(item)] = np.maximum(best.get((int(language), int(item)), 0.0), values)
    rows = sorted(best)
    (languages, items), greatest_values = np.array(rows).T, np.array([best[row] for row in rows]).T
    return {"language": languages, "item": items, **dict(zip(METRICS, greatest_values, strict=True))}


def _matrix(measured: Mapping[str, Columns], languages: Sequence[str]) -> list[list[float | None]]:
    def cell(asking: str, answering: int) -> float | None:
        names = [PLAIN] if asking == languages[answering] else [ASKED_IN + asking, ALSO_ASKED_IN + asking]
        tables = (measured[name] for name in names if name in measured)
        values = [value for t in tables for value in t[METRICS[0]][t["language"] == answering]]
        return float(np.mean(values)) if values else None

    return [[cell(asking, answering) for answering in range(len(languages))] for asking in languages]


def _notes(
    built: Mapping[str, Sequence[Entry]], measured: Mapping[str, Columns], max_seq_length: int, stand_in: str | None
) -> list[str]:
    planned: Counter[str] = Counter()
    done: Counter[str] = Counter()
    for name, entries in built.items():
        variant = ASKED if name.startswith((ASKED_IN, ALSO_ASKED_IN)) else name
        planned[variant] += len(entries)
        done[variant] += len(measured[name]["item"]) if name in measured else 0
    notes = []
    for variant, reason in LEFT_OUT.items():
        missing = planned[variant] - done[variant]
        if not planned[variant]:
            notes.append(f"{variant} was left out: {reason}.")
        elif missing:
            why = f"longer than {max_seq_length} tokens, or nothing before the answer"
            notes.append(f"{variant}: {missing} of {planned[variant]} prompts were left out ({why}).")
    if stand_in is None:
        tried = (t for name, t in measured.items() if name not in LONGER and not name.startswith(ALSO_ASKED_IN))
        most = max(Counter(row for t in tried for row in zip(t["language"], t["item"], strict=True)).values())
        notes.append(f"{WORST} is the greatest of up to {most} prompts a fact and language, {PLAIN} included.")
    else:
        notes.append(
            f"{WORST} was left out: {stand_in} rows stand in for a model that never saw the forget rows, and the "
            "greatest of as many prompts as each has cannot be compared."
        )
    if done[PRIMED]:
        notes.append(
            f"{PRIMED} tells the content in another language and has no part in {WORST}: its measure is what a model "
            "that never saw the row makes of it."
        )
    if done[PRIMED_WITH_ANOTHER]:
        notes.append(
            f"{PRIMED_WITH_ANOTHER} shows what a longer context does by itself: a control, with no part in {WORST}."
        )
    return notes
