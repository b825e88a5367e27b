"""What an audit measures, as values: a figure and its name, the result of a check; and how they stand in JSON.

The only place where the name of a figure is made into ``variant/metric``, as files have it, and read back from it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

# ``{"items": [...], "values": [...]}`` of the rows of one language.
Rows = Mapping[str, Sequence]
KNOWLEDGE = ("memorization_accuracy", "extraction_strength")


@dataclass(frozen=True)
class Variant:
    """What was done to the model or its prompts, or the split that a figure is of; without a name neither.

    Args:
        is_control: it tells what an attack does by itself, or is of rows that nobody asked to forget. Either way it
            says nothing about what the model still knows of the forget rows.
    """

    name: str = ""
    is_control: bool = False

    @classmethod
    def named(cls, name: str) -> "Variant":
        """The variant of this name: a control, if that or any part between slashes is the name of one."""
        return cls(name, any(part in CONTROLS for part in name.split("/")))


RELEARNED_FROM_OTHER_TEXT = Variant("relearned_from_other_text", is_control=True)
RANDOM_DIRECTION = Variant("random_direction", is_control=True)
PRIMED_WITH_ANOTHER = Variant("primed_with_another", is_control=True)
CONTROLS = {
    variant.name: variant
    for variant in (
        RELEARNED_FROM_OTHER_TEXT,
        RANDOM_DIRECTION,
        PRIMED_WITH_ANOTHER,
        *(Variant(split, is_control=True) for split in ("retain", "valid", "test")),
    )
}


@dataclass(frozen=True)
class Name:
    """What a figure is of: a metric, of the model as it is or under a variant."""

    metric: str
    variant: Variant = field(default_factory=Variant)

    @classmethod
    def read(cls, text: str) -> "Name":
        """The name that is written ``metric`` or ``variant/metric``; the variant may have slashes of its own."""
        variant, _, metric = text.rpartition("/")
        return cls(metric, Variant.named(variant))

    def __str__(self) -> str:
        return f"{self.variant.name}/{self.metric}" if self.variant.name else self.metric

    @property
    def counts_as_knowledge(self) -> bool:
        """Whether the figure says what the model knows of the forget rows: the verdict rests on these."""
        return self.metric in KNOWLEDGE and not self.variant.is_control


class Span(NamedTuple):
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval and the number of rows that it rests on; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @property
    def span(self) -> "Span":
        """The value and the ends as numbers, to be compared; NaN, which lies nowhere, where there is none."""
        return Span(*(math.nan if end is None else end for end in (self.value, self.low, self.high)))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Estimate":
        return cls(*(content.get(key) for key in ("value", "low", "high", "n")))

    def as_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True)
class Figure(Estimate):
    """A figure of the audited model beside the same of the other models.

    Args:
        before, never_seen: of these models.
        excess: how far the audited model lies above the never-seen figure.
        known: how far the model before did.
        position: between a model that never saw the rows (0) and the model before (1).
        statistic: of a test, where ``value`` is its p-value.
    """

    before: Estimate | None = None
    never_seen: Estimate | None = None
    excess: Estimate | None = None
    known: Estimate | None = None
    position: Estimate | None = None
    statistic: float | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Figure":
        """Reads a figure of audit.json; a comparison that it lacks, or has as null, is None."""
        known = {key: Estimate.from_json(content[key]) for key in COMPARISONS if content.get(key) is not None}
        own = Estimate.from_json(content)
        return cls(own.value, own.low, own.high, own.n, **known, statistic=content.get("statistic"))

    def as_json(self) -> dict[str, Any]:
        """The figure as in audit.json, which has no key for a comparison that was not made."""
        compared = {key: getattr(self, key) for key in COMPARISONS}
        found = super().as_json() | {key: each.as_json() for key, each in compared.items() if each is not None}
        return found if self.statistic is None else found | {"statistic": self.statistic}


COMPARISONS = ("before", "never_seen", "excess", "known", "position")


@dataclass(frozen=True)
class Matrix:
    """A metric by two things, such as languages, for each model: ``values[model][row][column]``, None if unknown."""

    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str
    column_title: str
    metric: str
    values: Mapping[str, Sequence[Sequence[float | None]]]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Matrix":
        return cls(**{each.name: content[each.name] for each in fields(cls)})

    def as_json(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass
class Result:
    """What a check has found out about one model. Figures and rows are by name, then by language.

    Args:
        rows: values of single rows, of which means are made and compared.
        figures: what is of all rows of a language together.
        matrix: where the check has one.
        notes: sentences for the reader.
        doubts: variant to why a low figure under it says nothing.
        withheld: why the attack cannot be made on this model.
        ratios: language to the log truth ratios of its rows.
    """

    rows: dict[Name, Mapping[str, Rows]] = field(default_factory=dict)
    figures: Mapping[Name, Mapping[str, Estimate]] = field(default_factory=dict)
    matrix: Matrix | None = None
    notes: Sequence[str] = ()
    doubts: Mapping[Variant, str] = field(default_factory=dict)
    withheld: str | None = None
    ratios: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def add_rows(self, by_metric: Mapping[str, Mapping[str, Rows]], variant: Variant | None = None) -> None:
        """Takes in ``{metric: {language: rows}}`` of a variant; without one, of the model as it is."""
        self.rows |= {Name(metric, variant or Variant()): by_language for metric, by_language in by_metric.items()}

    @property
    def names(self) -> Iterator[Name]:
        """Of all figures, those made of rows first."""
        yield from (*self.rows, *self.figures)

    def as_json(self) -> dict[str, Any]:
        """The result as it is kept in a file; what is empty is left out, but for the notes."""
        figures = {
            str(name): {language: figure.as_json() for language, figure in by_language.items()}
            for name, by_language in self.figures.items()
        }
        found = {
            "rows": {str(name): by_language for name, by_language in self.rows.items()},
            "figures": figures,
            "matrix": self.matrix.as_json() if self.matrix else None,
            "doubts": {variant.name: reason for variant, reason in self.doubts.items()},
            "withheld": self.withheld,
            "ratios": self.ratios,
        }
        return {key: value for key, value in found.items() if value} | {"notes": list(self.notes)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Result":
        """Reads a result from its file, those of earlier versions too."""
        return cls(
            rows=read_names(content.get("rows", {})),
            figures={
                name: {language: Estimate.from_json(figure) for language, figure in by_language.items()}
                for name, by_language in read_names(content.get("figures", {})).items()
            },
            matrix=Matrix.from_json(content["matrix"]) if content.get("matrix") else None,
            notes=content.get("notes", []),
            doubts={Variant.named(name): reason for name, reason in content.get("doubts", {}).items()},
            withheld=content.get("withheld"),
            ratios=content.get("ratios", {}),
        )


def read_names(content: Mapping[str, Any]) -> dict[Name, Any]:
    """The content by :class:`Name` in place of the written one."""
    return {Name.read(text): value for text, value in content.items()}


def read_figures(content: Mapping[str, Mapping[str, Any]]) -> dict[Name, Figure]:
    """The figures of one language from audit.json."""
    return {name: Figure.from_json(figure) for name, figure in read_names(content).items()}
