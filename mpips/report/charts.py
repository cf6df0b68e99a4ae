"""Charts as SVG text in the page's colours: without library or script, the same on screen and on paper.

A chart is a pure function from numbers to text. Colours are classes (`c0` to `c5` for series, `axis`, `grid`, ...) that
the page's style sheet defines, so that one chart serves light, dark and print. Tooltips show the values of points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

from mpips.process.printable import printable
from mpips.report.html import MOST_ROWS, Html, html
from mpips.rundir.progress import real, si

COLOURS = 6
"""Number of colours of series; further series are dashed."""
WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 16, 40
MOST_POINTS = 400
"""Largest number of points of a line; longer lines are thinned."""
LONGEST = 200
"""Largest number of characters of a text."""

Show = Callable[[float], str]


class Series(NamedTuple):
    """A line: points (x, y) in the order of x."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0


class Mark(NamedTuple):
    """A moment on the x axis."""

    x: float
    text: str
    colour: int = 0


class BarPart(NamedTuple):
    """A segment of a bar; `kind` is a class of the style sheet."""

    value: float
    kind: str
    text: str = ""


class Bar(NamedTuple):
    """A bar of consecutive segments, with its name at the left and a note at the right."""

    name: str
    parts: Sequence[BarPart]
    note: str = ""


class Lane(NamedTuple):
    """A row of a timeline: spans (begin, end, kind, text), and moments (x, kind, text) on top of them."""

    name: str
    spans: Sequence[tuple[float, float, str, str]]
    moments: Sequence[tuple[float, str, str]] = ()


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers from `low` to `high`, about `about` of them."""
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(by for by in (1, 2, 5, 10) if (high - low) / (step * by) <= about + 1)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + each) * step, 12) for each in range(count)]


def decades(low: float, high: float) -> list[float]:
    """Return the powers of ten from `low` to `high`, both above 0, at most about six."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    step = max(1, -(-(last - first) // 6))
    return [10.0**each for each in range(first, last + 1, step)]


class _Scale(NamedTuple):
    """A map from values to pixels; a logarithmic one for values above 0."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.begin + share * (self.end - self.begin)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Thin the points of a long line; the first and the last are kept."""
    step = max(1, -(-len(points) // MOST_POINTS))
    kept = list(points[::step])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def is_drawable(value: float) -> bool:
    """Return whether a number can be drawn: it is finite, and far from the limits of floating point."""
    size = abs(real(value))
    return size == 0 or 1e-300 < size < 1e300


class Shape(NamedTuple):
    """An element of a chart: its attributes, of which None leaves one out, and what is inside it, in this order."""

    name: str
    attributes: Mapping[str, object]
    inside: Sequence[Shape] = ()
    title: str | None = None
    text: str | None = None


def _svg(width: float, height: float, label: str, body: Sequence[Shape], kind: str = "chart") -> Html:
    size, description = f"0 0 {width:g} {height:g}", printable(label[:LONGEST])
    return html.chart({"class": kind, "viewBox": size, "role": "img", "aria-label": description}, body)


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> Shape:
    place = {"class": kind, "x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    return Shape("text", place, text=text[:LONGEST])


def _line(x1: float, y1: float, x2: float, y2: float, kind: str | None = None) -> Shape:
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    return Shape("line", {"class": kind, **ends})


def _none() -> Html:
    return html.note("nothing to draw", "none")


def lines(
    series: Sequence[Series],
    *,
    label: str,
    x: str,
    y: str,
    log: bool = False,
    show_x: Show = si,
    show_y: Show = si,
    marks: Sequence[Mark] = (),
) -> Html:
    """Draw lines in one coordinate system.

    Args:
        series: the lines; points that are not `is_drawable` are left out, with `log` also those whose y is not above 0.
        label: a description of the chart for screen readers.
        x: the name of the x axis.
        y: the name of the y axis.
        log: whether y is logarithmic.
        show_x: formats a number on the x axis.
        show_y: formats a number on the y axis.
        marks: moments on the x axis, as vertical lines.
    """
    drawn = [
        each._replace(
            points=thinned([p for p in each.points if all(map(is_drawable, p)) and (p[1] > 0 or not log)])
        )
        for each in series
    ]
    points = [point for each in drawn for point in each.points]
    marks = [mark for mark in marks if is_drawable(mark.x)][:MOST_ROWS]
    if not points:
        return _none()
    xs = [p[0] for p in points] + [mark.x for mark in marks]
    ys = [p[1] for p in points]
    left, right = min(0.0, *xs), max(xs)
    if log:
        at = decades(min(ys), max(ys))
        low, high = min(at[0], *ys), max(at[-1], *ys)
        if high == low:
            low, high = low / 10, high * 10
    else:
        pad = 0.05 * (max(ys) - min(ys)) or abs(max(ys)) * 0.05 or 1.0
        low, high = min(ys) - pad, max(ys) + pad
        if 0 <= min(ys) < 0.8 * max(ys):
            low = 0.0
        at = ticks(low, high)
    across = _Scale(left, right, LEFT, WIDTH - RIGHT)
    up = _Scale(low, high, HEIGHT - BOTTOM, TOP, log)
    body: list[Shape] = []
    for tick in at:
        body.append(_line(LEFT, up(tick), WIDTH - RIGHT, up(tick), "grid"))
        body.append(_text(LEFT - 6, up(tick) + 4, show_y(tick), "tick", "end"))
    for tick in ticks(left, right, 6):
        body.append(_line(across(tick), HEIGHT - BOTTOM, across(tick), HEIGHT - BOTTOM + 4, "axis"))
        body.append(
            _text(across(tick), HEIGHT - BOTTOM + 17, show_x(tick) if tick else "0", "tick", "middle")
        )
    body.append(_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis"))
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x, "name", "middle"))
    body.append(_text(LEFT, TOP - 5, y, "name", "start"))
    for mark in marks:
        place = across(mark.x)
        stroke = _line(place, TOP, place, HEIGHT - BOTTOM, f"mark c{mark.colour % COLOURS}")
        body.append(Shape("g", {}, [stroke], mark.text[:LONGEST]))
    for each in drawn:
        path = " ".join(f"{across(p[0]):.1f},{up(p[1]):.1f}" for p in each.points)
        dashes = " dashed" if each.colour >= COLOURS else ""
        colour = f"c{each.colour % COLOURS}{dashes}"
        body.append(Shape("polyline", {"class": f"line {colour}", "points": path}))
        for point in each.points if len(each.points) <= 60 else each.points[-1:]:
            tooltip = f"{each.name}: {show_x(point[0])}, {show_y(point[1])}"
            at_x, at_y = f"{across(point[0]):.1f}", f"{up(point[1]):.1f}"
            dot = {"class": f"dot {colour}", "cx": at_x, "cy": at_y, "r": "2.2"}
            body.append(Shape("circle", dot, title=tooltip[:LONGEST]))
    return _svg(WIDTH, HEIGHT, label, body)


def bars(rows: Sequence[Bar], *, label: str, show: Show = si, most: float | None = None) -> Html:
    """Draw horizontal bars, from 0 to `most` (default: the longest); segments of 0 or less are left out."""
    if not rows:
        return _none()
    shown = [
        bar._replace(parts=[part for part in bar.parts if part.value > 0 and is_drawable(part.value)])
        for bar in rows[:MOST_ROWS]
    ]
    row, names, notes = 24, 110, 150
    longest = (
        most if most and is_drawable(most) else max(sum(part.value for part in bar.parts) for bar in shown)
    )
    scale = _Scale(0.0, longest or 1.0, names, WIDTH - notes)
    body = []
    for number, bar in enumerate(shown):
        top, at = number * row + 3, 0.0
        body.append(_text(names - 8, top + 13, bar.name, "row", "end"))
        rail = {"x": names, "y": top, "width": WIDTH - names - notes, "height": 17}
        body.append(Shape("rect", {"class": "rail", **rail}))
        for part in bar.parts:
            begin, end = scale(min(at, longest)), scale(min(at + part.value, longest))
            at += part.value
            tooltip = f"{bar.name}: {part.text or part.kind} {show(part.value)}"
            place = {"x": f"{begin:.1f}", "y": top, "width": f"{end - begin:.1f}", "height": 17}
            body.append(Shape("rect", {"class": part.kind, **place}, title=tooltip[:LONGEST]))
        body.append(_text(WIDTH - notes + 8, top + 13, bar.note, "tick"))
    return _svg(WIDTH, row * len(shown) + 4, label, body) + html.more(len(rows) - len(shown))


def timeline(lanes: Sequence[Lane], end: float, *, label: str, show: Show) -> Html:
    """Draw a timeline: a row for each lane, from 0 to `end` (seconds); what is outside is left out."""
    row, names, width = 22, 130, 2 * WIDTH
    end = end if end > 0 and is_drawable(end) else 1e-9
    scale = _Scale(0.0, end, names, width - 20)
    shown = lanes[:MOST_ROWS]
    bottom = row * len(shown) + 6
    body = []
    for tick in ticks(0.0, end, 10):
        body.append(_line(scale(tick), 0, scale(tick), bottom, "grid"))
        body.append(_text(scale(tick), bottom + 14, show(tick) if tick else "0", "tick", "middle"))
    for number, lane in enumerate(shown):
        top = number * row + 4
        body.append(_text(names - 8, top + 12, lane.name, "row", "end"))
        for begin, until, kind, tooltip in lane.spans:
            if not 0 <= begin <= end or not begin <= until:
                continue
            left, size = scale(begin), max(scale(min(until, end)) - scale(begin), 1.0)
            place = {"x": f"{left:.1f}", "y": top, "width": f"{size:.1f}", "height": 15, "rx": 2}
            body.append(Shape("rect", {"class": kind, **place}, title=tooltip[:LONGEST]))
        for x, kind, tooltip in lane.moments:
            if not x >= 0:
                continue
            at = scale(min(x, end))
            dot = Shape("circle", {"cx": f"{at:.1f}", "cy": top + 7.5, "r": 4.5})
            stroke = _line(at, top - 3, at, top + 18)
            body.append(Shape("g", {"class": kind}, [stroke, dot], tooltip[:LONGEST]))
    drawn = _svg(width, bottom + 20, label, body, "chart wide")
    return drawn + html.more(len(lanes) - len(shown))


def standalone(svg: Html, legend: Sequence[tuple[str, str]] = ()) -> Html:
    """Return a chart as a standalone SVG picture, with its legend (class, text) below it, and the style sheet."""
    width, height = _size(svg)
    body, at = [], 12.0
    for kind, text in legend:
        place = {"x": f"{at:.0f}", "y": f"{height + 9:g}", "width": 14, "height": 8, "rx": 2}
        body.append(Shape("rect", {"class": kind, **place}))
        body.append(_text(at + 19, height + 17, text, "tick"))
        at += 36 + 6.2 * len(text)
    inner = Html(str(svg).replace("<svg ", f'<svg width="{width:g}" height="{height:g}" ', 1))
    return _picture(width, height + (26 if legend else 0), inner, body)


def tiled(panels: Sequence[tuple[str, Html]], columns: int) -> Html:
    """Return charts as one standalone SVG picture: (title, chart) row by row, in `columns` columns."""
    sizes = [_size(svg) for _, svg in panels] or [(0.0, 0.0)]
    width, height = max(x for x, _ in sizes) + 20, max(y for _, y in sizes) + 40
    titles, inner = [], Html("")
    for number, (title, svg) in enumerate(panels):
        x, y = width * (number % columns), height * (number // columns)
        titles.append(_text(x + 10, y + 16, title, "name"))
        body = Html(str(svg).partition(">")[2].removesuffix("</svg>"))
        inner += Html(f'<g transform="translate({x + 10:g} {y + 28:g})">') + body + Html("</g>")
    rows = -(-len(panels) // columns)
    return _picture(width * min(columns, len(panels)), height * rows, inner, titles)


def _size(svg: Html) -> tuple[float, float]:
    """Return the width and height of a chart."""
    width, height = str(svg).partition('viewBox="0 0 ')[2].partition('"')[0].split()
    return float(width), float(height)


def _picture(width: float, height: float, inner: Html, body: Sequence[Shape]) -> Html:
    style = files("mpips.report").joinpath("charts.css").read_text(encoding="utf-8")
    size = {"viewBox": f"0 0 {width:g} {height:g}", "width": f"{width:g}", "height": f"{height:g}"}
    return html.picture({"xmlns": "http://www.w3.org/2000/svg", **size}, Html(style), inner, body)
