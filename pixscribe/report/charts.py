"""Charts as SVG, without a library: a few shapes with attributes, coloured by the page's style sheet.

Each is drawn on a canvas of 400 units across, which the page scales. Each comes as a `Figure` with its numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pixscribe.report.blocks import Cell, Column, Figure, Table

WIDTH = 400.0
HEIGHT = 150.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 8.0, 10.0, 24.0
_GAP = 0.12


@dataclass(frozen=True, slots=True)
class Bin:
    """One column of a histogram."""

    label: str
    count: int


def histogram(
    title: str, bins: Sequence[Bin], *, x_title: str, y_title: str, edges: Sequence[str] = (), note: str = ""
) -> Figure:
    """Columns side by side. Below stand their labels, or else `edges` at the left edge of each, if not empty."""
    scale = _Scale(max((each.count for each in bins), default=0))
    step = (WIDTH - LEFT - RIGHT) / max(1, len(bins))
    shapes = [*scale.grid()]
    for number, each in enumerate(bins):
        left = LEFT + number * step
        top = scale.y(each.count)
        box = _tag("rect", x=left + step * _GAP / 2, y=top, width=step * (1 - _GAP), height=HEIGHT - BOTTOM - top)
        shapes.append(_titled(box, f"{each.label}: {_number(each.count)}", "bar"))
        if not edges:
            shapes.append(_text(left + step / 2, HEIGHT - BOTTOM + 14, each.label, "middle"))
    for number, edge in enumerate(edges):
        anchor = "end" if number == len(bins) else "middle"
        shapes.append(_text(LEFT + number * step, HEIGHT - BOTTOM + 14, edge, anchor))
    rows = [(each.label, each.count) for each in bins]
    table = Table((Column(x_title), Column(y_title, "number")), rows, open_rows=1000)
    return Figure(title, _svg(shapes, f"{title}: {_most(bins)}"), table, note)


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart over time; None breaks it. `look` is one of `main` (filled), `second`."""

    name: str
    values: Sequence[float | None]
    look: str = "main"


def over_time(title: str, times: Sequence[str], series: Sequence[Series], *, y_title: str, note: str = "") -> Figure:
    """Lines over equal steps of time; `times` says when each step begins."""
    scale = _Scale(max((value for line in series for value in line.values if value is not None), default=0.0))
    step = (WIDTH - LEFT - RIGHT) / max(1, len(times))
    shapes = [*scale.grid(), *_time_marks(times, step)]
    for line in series:
        shapes += _line(line, scale, step)
    columns = (Column("from"), *(Column(line.name, "number") for line in series))
    rows: list[tuple[Cell, ...]] = [
        (time, *(line.values[number] for line in series)) for number, time in enumerate(times)
    ]
    described = "; ".join(_describe(line) for line in series)
    table = Table(columns, rows, open_rows=1000)
    return Figure(f"{title}, {y_title}", _svg(shapes, f"{title}: {described}"), table, note)


class _Scale:
    """From numbers to heights, with round numbers at the grid's lines."""

    def __init__(self, largest: float) -> None:
        rough = max(largest, 1e-9) / 3
        power = 10.0 ** math.floor(math.log10(rough))
        self.step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        self.top = self.step * max(1, math.ceil(largest / self.step - 1e-9))

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * min(1.0, value / self.top)

    def grid(self) -> list[Markup]:
        """Lines with their numbers."""
        shapes = []
        for number in range(round(self.top / self.step) + 1):
            y = self.y(number * self.step)
            shapes.append(_tag("line", "grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
            shapes.append(_text(LEFT - 6, y + 3.5, _short(number * self.step), "end"))
        return shapes


def _line(line: Series, scale: _Scale, step: float) -> list[Markup]:
    """Runs of neighbours as one line each, a single step as a dot."""
    shapes = []
    for run in _runs(line.values):
        points = [(LEFT + (number + 0.5) * step, scale.y(value)) for number, value in run]
        if len(points) == 1:
            shapes.append(_tag("circle", f"dot {line.look}", cx=points[0][0], cy=points[0][1], r=2.5))
            continue
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        if line.look == "main":
            ground = f"L{points[-1][0]:.1f} {scale.y(0):.1f} L{points[0][0]:.1f} {scale.y(0):.1f} Z"
            shapes.append(_tag("path", "area", d=f"M{path} {ground}"))
        shapes.append(_tag("path", f"line {line.look}", d=f"M{path}"))
    return shapes


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((number, value))
    return [run for run in runs if run]


def _time_marks(times: Sequence[str], step: float) -> list[Markup]:
    """The first, the middle and the last time, as far as they are different."""
    y = HEIGHT - BOTTOM + 14
    if not times:
        return []
    marks = [_text(LEFT, y, times[0], "start")]
    if len(times) > 1:
        marks.append(_text(WIDTH - RIGHT, y, times[-1], "end"))
    if len(times) > 8:
        middle = len(times) // 2
        marks.append(_text(LEFT + middle * step, y, times[middle], "middle"))
    return marks


def _describe(line: Series) -> str:
    known = [value for value in line.values if value is not None]
    return f"{line.name} from {_short(min(known))} to {_short(max(known))}" if known else f"{line.name}: nothing known"


def _most(bins: Sequence[Bin]) -> str:
    if not any(each.count for each in bins):
        return "nothing to show"
    largest = max(bins, key=lambda each: each.count)
    return f"most at {largest.label}, {_number(largest.count)} of {_number(sum(each.count for each in bins))}"


def _svg(shapes: Sequence[Markup], description: str) -> Markup:
    opening = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        int(WIDTH), int(HEIGHT), description
    )
    return opening + Markup("").join(shapes) + Markup("</svg>")


def _tag(name: str, look: str = "", **attributes: float | str) -> Markup:
    named = {"class": look, **attributes} if look else attributes
    told = Markup("").join(
        Markup(' {}="{}"').format(key, f"{value:.1f}" if isinstance(value, float) else value)
        for key, value in named.items()
    )
    return Markup("<{}{}/>").format(Markup(name), told)


def _titled(shape: Markup, title: str, look: str) -> Markup:
    return Markup('<g class="{}"><title>{}</title>{}</g>').format(look, title, shape)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(f"{x:.1f}", f"{y:.1f}", anchor, escape(text))


def _number(value: int) -> str:
    return f"{value:,}"


def _short(value: float) -> str:
    """Few enough letters for an axis."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            divided = value / (1e3 if unit == "k" else limit)
            return f"{divided:.3g}{unit}"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
