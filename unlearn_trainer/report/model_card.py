"""The card of an unlearned model: README.md of its folder, from results.json and audit.json alone.

Whoever downloads the model reads it first: what it is, what it has unlearned, how well, and what nobody has looked at.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import write_whole
from .document import Bullets, Heading, Paragraph, Table, markdown_of
from .languages import called
from .run_report import REPORT_HTML, by_language
from .summary import verdict

CARD = "README.md"
# A card with this line in it is ours to write anew.
MARK = "<!-- written by unlearn-trainer; `unlearn-trainer card` writes it anew -->"
# What transformers writes into a card that no person has touched.
GENERATED = "generated automatically"
Blocks = Iterator[Any]


def is_ours(place: Path) -> bool:
    """Whether a card was written by this package or by transformers, and by no person."""
    text = place.read_text(encoding="utf-8", errors="replace")
    return MARK in text or GENERATED in text


def write_card(folder: Path, place: Path | None = None) -> None:
    """Write the card of a finished run; one that a person has written in its folder stays.

    Args:
        folder: the output folder, with results.json and, where there was one, audit/audit.json.
        place: where to write it, whatever is there; by default README.md in the folder.

    Raises:
        ConfigError: there are no results that can be read.
    """
    if place is None and (folder / CARD).exists() and not is_ours(folder / CARD):
        return
    results = _read(folder / "results.json")
    audit = _read(folder / "audit" / "audit.json") if (folder / "audit" / "audit.json").exists() else None
    write_whole(place or folder / CARD, card(results, audit))


def write_card_at(folder: Path, place: Path | None) -> Path:
    """Write the card of a finished run to a place that is free or holds an earlier one; returns the place.

    Raises:
        ConfigError: a person has written what is there.
    """
    place = place or folder / CARD
    if place.exists() and not is_ours(place):
        raise ConfigError(f"{place} was not written by this command; move it away, or give --output_file")
    write_card(folder, place)
    return place


def card(results: Mapping[str, Any], audit: Mapping[str, Any] | None = None) -> str:
    """The card as Markdown with metadata of the Hub.

    Args:
        results: the schema of results.json.
        audit: the content of audit.json, if there is one.
    """
    return f"---\n{_metadata(results)}\n---\n\n{MARK}\n\n{markdown_of(list(_blocks(results, audit)))}"


def _metadata(results: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    config = results["config"]
    base = config["model_name_or_path"]
    adapter = config.get("use_peft") and not config.get("merge_adapter")
    known: dict[str, Any] = {
        "base_model": base if _is_hub_name(base) else None,
        "base_model_relation": ("adapter" if adapter else "finetune") if _is_hub_name(base) else None,
        "language": sorted({code for each in results["languages"] if (code := _iso(each)) is not None}) or None,
        "library_name": "peft" if adapter else "transformers",
        "license": _license_of(base),
        "pipeline_tag": "text-generation",
        "tags": ["machine-unlearning", "multilingual", "unlearn-trainer", config["method"]],
    }
    return ModelCardData(**{key: value for key, value in known.items() if value is not None}).to_yaml()


def _blocks(results: Mapping[str, Any], audit: Mapping[str, Any] | None) -> Blocks:
    config = results["config"]
    base = config["model_name_or_path"]
    yield Heading(1, f"{Path(base).name}, unlearned")
    yield Paragraph(
        verdict(results) or "Nothing was unlearned in this model; its figures are those of the model as it is."
    )
    yield Paragraph(
        f"This is {Path(base).name} after machine unlearning: it was trained to no longer know certain texts or "
        f"facts, in {len(results['languages'])} languages ({', '.join(map(called, results['languages']))}), and to "
        "keep everything else. It is used as the model it was made from."
    )
    yield Heading(2, "How it was unlearned")
    yield Table(("", ""), list(_facts(results)), kind="facts")
    yield from by_language(results)
    yield from _audited(audit)
    yield Heading(2, "Limits")
    yield Bullets(list(_limits(results, audit)))
    yield Heading(2, "How to repeat it")
    made = results.get("environment") or {}
    if made.get("command"):
        yield Paragraph(f"Command: {made['command']}")
    versions = made.get("versions") or {}
    yield Paragraph(
        "Versions: "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        + (f"; commit {made['commit']}" if made.get("commit") else "")
        + f". All settings are in results.json; {REPORT_HTML} shows the figures to people."
    )


def _facts(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    config = results["config"]
    yield "made from", str(config["model_name_or_path"])
    forget = f"{config['forget_objective']} (coefficient {config['forget_coef']:g})"
    retain = f"{config['retain_objective']} (coefficient {config['retain_coef']:g})"
    yield "method", f"{config['method']}: forget by {forget}, keep by {retain}"
    yield "language weights", f"forget {config['forget_weighting']}, retain {config['retain_weighting']}"
    yield "steps", f"{results['steps']}, learning rate {config['learning_rate']:g}, seed {config['seed']}"
    for split, about in (results.get("data") or {}).items():
        rows = sum(figures.get("rows") or 0 for figures in ((results.get("after") or {}).get(split) or {}).values())
        known = [f"sha256 {about['sha256']}"] if about.get("sha256") else [f"dataset {about.get('dataset')}"]
        yield f"data: {split}", ", ".join([*([f"{rows} rows"] if rows else []), *known])


def _audited(audit: Mapping[str, Any] | None) -> Blocks:
    yield Heading(2, "Audit")
    if audit is None:
        yield Paragraph("This model was not audited: nobody has tried to get the texts back.")
        return
    by_verdict: dict[str, list[str]] = {}
    for language, about in audit["languages"].items():
        by_verdict.setdefault(about["verdict"], []).append(called(language))
    rows = [(said, str(len(members)), ", ".join(members)) for said, members in by_verdict.items()]
    yield Table(("verdict", "languages", "which"), rows, (1,))
    yield Paragraph(audit.get("rule") or "")


def _limits(results: Mapping[str, Any], audit: Mapping[str, Any] | None) -> Iterator[str]:
    yield "Figures and attacks find what they look for. Where they found nothing, others may find something."
    held_out = results["heldout_languages"]
    measured = f"; {', '.join(map(called, held_out))} measured, but not trained on" if held_out else ""
    yield f"In other languages than those named nothing was measured{measured}."
    for split in ("valid", "test"):
        if split not in (results.get("after") or {}):
            yield f"No {split} split was measured: what became of other text there is not known."
    if not results.get("never_seen"):
        yield "No model that never saw the texts was measured beside it."
    skipped = (audit or {}).get("skipped") or {}
    for check, why in skipped.items():
        yield f"The audit left out {check.replace('_', ' ')}: {why}"
    yield "The model it was made from still knows the texts, and so does every copy of it."
    yield from results.get("warnings") or []


def _iso(code: str) -> str | None:
    """The code of a language as the Hub has it: without script and region."""
    import langcodes

    try:
        return langcodes.get(code).prefer_macrolanguage().language
    except langcodes.LanguageTagError:
        return None


def _is_hub_name(name: str) -> bool:
    return not Path(name).exists() and 1 <= len(name.split("/")) <= 2 and not name.startswith((".", "/", "~"))


def _license_of(base: str) -> str | None:
    """The licence that the card of the base model names, where that lies on this machine."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    place: Any = Path(base) / CARD
    if not place.is_file() and _is_hub_name(base):
        place = try_to_load_from_cache(base, CARD)
    if not isinstance(place, str | Path) or not Path(place).is_file():
        return None
    try:
        found = ModelCard.load(place, ignore_metadata_errors=True).data.get("license")
    except (OSError, ValueError):  # a card that is no card says nothing
        return None
    return found if isinstance(found, str) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); name the output folder of a finished run") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no results; name the output folder of a finished run")
    return content
