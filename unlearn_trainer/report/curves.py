"""Curves over the steps of a training, as SVG elements: a faint line a language, and one that stands out."""

import math
from collections.abc import Mapping, Sequence

from .drawing import FONT, TINT, Drawing, finite

WIDTH, HEIGHT = 520, 240
LEFT, TOP, BOTTOM = 52, 26, 34
LINE_HEIGHT = 12
Points = Sequence[tuple[float, float | None]]


def curves(
    series: Mapping[str, Points],
    title: str,
    y_title: str,
    emphasized: str | None = None,
    x_title: str = "step",
    from_zero: bool = True,
    level: float | None = None,
) -> str:
    """One line a series, named at its right end, as an SVG element.

    Args:
        series: points (x, y) by name, x ascending; a y that is None or no number breaks nothing and is left out.
        title: what a screen reader says.
        y_title, x_title: what the axes are.
        emphasized: the series that is drawn in colour; the others are faint.
        from_zero: whether the vertical axis begins at 0.
        level: a value that is marked by a dotted line.

    Raises:
        ValueError: there is no point to draw.
    """
    kept = {name: [(x, y) for x, y in points if finite(y) is not None] for name, points in series.items()}
    lines: dict[str, list[tuple[float, float]]] = {
        name: [(x, float(y)) for x, y in points if y is not None] for name, points in kept.items() if points
    }
    if not lines:
        raise ValueError(f"{title}: no point to draw")
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points] + ([level] if level is not None else [])
    low, high = min([0.0, *ys] if from_zero else ys), max(ys)
    right = LEFT + WIDTH
    named = max(len(name) for name in lines) * FONT * 0.6 + 14
    drawing = Drawing(right + named, TOP + HEIGHT + BOTTOM)
    across, up = _scale(min(xs), max(xs), LEFT, right), _scale(low, high, TOP + HEIGHT, TOP)
    drawing.text(0, 13, y_title, weight=700)
    drawing.text(right, TOP + HEIGHT + 29, x_title, "right", weight=700)
    for tick in _ticks(low, high):
        drawing.line([LEFT, right], [up(tick)] * 2, 0.15)
        drawing.text(LEFT - 6, up(tick) + 4, f"{tick:g}", "right", size=10, alpha=0.7)
    for tick in _ticks(min(xs), max(xs)):
        drawing.text(across(tick), TOP + HEIGHT + 15, f"{tick:g}", "center", size=10, alpha=0.7)
    if level is not None:
        drawing.line([LEFT, right], [up(level)] * 2, 0.6, style=(0, (1, 3)))
    places = _spread({name: up(points[-1][1]) for name, points in lines.items()}, TOP + HEIGHT)
    for name, points in lines.items():
        stands_out = name == emphasized
        with drawing.tooltip(
            f"{name}: {points[0][1]:.3g} at {points[0][0]:g}, {points[-1][1]:.3g} at {points[-1][0]:g}"
        ):
            x, y = [across(x) for x, _ in points], [up(y) for _, y in points]
            drawing.line(
                x, y, 1.0 if stands_out else 0.4, 2.5 if stands_out else 1.2, color=TINT if stands_out else None
            )
            if len(points) == 1:
                drawing.dot(x[0], y[0], 3, not stands_out)
            drawing.text(right + 8, places[name] + 4, name, weight=700 if stands_out else 400, size=10)
    return drawing.svg(title, shrinks=True)


def _scale(low: float, high: float, start: float, end: float):
    """The map from [low, high] to pixels; a range of one value lies in its middle."""
    span = high - low
    return lambda value: (start + end) / 2 if span == 0 else start + (value - low) / span * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    """Some round numbers from ``low`` to ``high``."""
    if high == low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _spread(places: Mapping[str, float], bottom: float) -> dict[str, float]:
    """Names moved apart, so that none stands on another; pushed up again where they would leave the picture."""
    ordered = sorted(places, key=lambda name: places[name])
    moved: dict[str, float] = {}
    last = -math.inf
    for name in ordered:
        last = max(places[name], last + LINE_HEIGHT)
        moved[name] = last
    limit = bottom
    for name in reversed(ordered):
        moved[name] = min(moved[name], limit)
        limit = moved[name] - LINE_HEIGHT
    return moved
