"""Draw curves as inline SVG, so that the page needs no library and prints sharply.

Colours come from the page's style sheet through class names, so that one drawing serves light and
dark themes and print. Lengths are in viewBox units, which are pixels at the usual column width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Literal, NamedTuple

import numpy as np

from mlx_vits.report.curves import (
    Points,
    decimate,
    finite_points,
    is_constant,
    log_ticks,
    nice_ticks,
    number,
    power_of_ten,
    signed,
    smooth,
    smoothing_window,
)

WIDTH, HEIGHT = 372, 210
_LEFT, _TOP, _BOTTOM = 50, 15, 36
_RIGHT, _RIGHT_WITH_MARKS = 14, 76
_LINE_HEIGHT = 13  # least distance between two labels
_HALF_DIGIT = 3.4
_MOST_DOTS = 40
_DENSE = 300  # from so many points on, a raw line is a cloud

LineKind = Literal["noisy", "plain", "dots", "faint"]


class Line(NamedTuple):
    """One curve.

    Attributes:
        label: its name.
        colour: "a" to "d", a class of the style sheet.
        steps, values: `(K,)`.
        kind: "noisy": a thin line with a thick smoothed one on top; "plain": as it is; "dots": with
            a dot at each point; "faint": in the background, not in the legend.
    """

    label: str
    colour: str
    steps: np.ndarray
    values: np.ndarray
    kind: LineKind = "noisy"


class Mark(NamedTuple):
    """A horizontal reference line; `style` is a class of the style sheet."""

    value: float
    label: str
    style: str = ""


class Chart(NamedTuple):
    """A drawing and its explanation.

    Attributes:
        title: what is drawn.
        logged: its names in the log, "" for none.
        meaning: an explanation for newcomers: what it is, and where it should go.
        lines: at least one.
        marks: reference values.
        band: shaded range of values.
        log: whether the vertical axis is logarithmic.
        from_zero: whether the vertical axis begins at 0.
    """

    title: str
    logged: str
    meaning: str
    lines: list[Line]
    marks: Sequence[Mark] = ()
    band: tuple[float, float] | None = None
    log: bool = False
    from_zero: bool = False


class _Axis(NamedTuple):
    """A linear or logarithmic map of values `low` to `high` onto `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, values: np.ndarray) -> np.ndarray:
        """Map values."""
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log10(values), math.log10(low), math.log10(high)
        return self.start + (values - low) / (high - low) * (self.end - self.start)

    def one(self, value: float) -> float:
        """Map one value."""
        return float(self.at(np.array([value]))[0])


def draw_chart(chart: Chart) -> str:
    """Draw a chart as an `<svg>` element that fills its column."""
    drawn = [
        (line, finite_points(line.steps, line.values, positive=chart.log)) for line in chart.lines
    ]
    drawn = [(line, points) for line, points in drawn if len(points.y)]
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="'
    if not drawn:
        words = escape(f"{chart.title}: there is nothing to draw")
        middle = f'<text class="axis" x="{WIDTH / 2:g}" y="{HEIGHT / 2:g}" text-anchor="middle">'
        return f'{opening}{words}">{middle}nothing to draw</text></svg>'
    x, y = _axes(chart, [points for _, points in drawn])
    parts = [_band(chart.band, x, y), _grid(x, y), _marks(chart.marks, x, y)]
    # Faint lines first, below the main ones.
    for line, points in sorted(drawn, key=lambda pair: pair[0].kind != "faint"):
        parts.append(_line(line, points, x, y))
    return f'{opening}{escape(_summary(chart, drawn))}">{"".join(parts)}</svg>'


def swatch(colour: str) -> str:
    """Draw a legend's short piece of a line."""
    return (
        '<svg class="swatch" viewBox="0 0 22 8" aria-hidden="true">'
        f'<path class="line {colour}" d="M1 4H21"/></svg>'
    )


def _summary(chart: Chart, drawn: list[tuple[Line, Points]]) -> str:
    said = [
        f"{line.label or 'the curve'} goes from {number(points.y[0])} at step {points.x[0]:,.0f} "
        f"to {number(points.y[-1])} at step {points.x[-1]:,.0f}"
        for line, points in drawn
        if line.kind != "faint"
    ]
    return f"{chart.title}: {'; '.join(said)}"


def _axes(chart: Chart, drawn: list[Points]) -> tuple[_Axis, _Axis]:
    right = _RIGHT_WITH_MARKS if chart.marks else _RIGHT
    first = min(float(points.x.min()) for points in drawn)
    last = max(float(points.x.max()) for points in drawn)
    if first == last:
        first, last = first - 0.5, last + 0.5
    x = _Axis(first, last, _LEFT, WIDTH - right)
    values = [float(v) for points in drawn for v in (points.y.min(), points.y.max())]
    values += [mark.value for mark in chart.marks if math.isfinite(mark.value)]
    low, high = _padded(min(values), max(values), chart)
    return x, _Axis(low, high, HEIGHT - _BOTTOM, _TOP, chart.log)


def _padded(low: float, high: float, chart: Chart) -> tuple[float, float]:
    """Pad a range; a constant gets a range of its own magnitude."""
    if chart.log:
        ratio = max(high / low, 1.5) ** 0.06
        return low / ratio, high * ratio
    if chart.from_zero:
        return min(0.0, low), high * 1.08 if high > 0 else 1.0
    pad = (high - low) * 0.07
    if is_constant(low, high):
        pad = abs(high) * 0.1 or 1.0
    # Losses and loudness cannot be negative, so neither is the axis.
    return max(0.0, low - pad) if low >= 0 else low - pad, high + pad


def _grid(x: _Axis, y: _Axis) -> str:
    ticks = log_ticks(y.low, y.high) if y.log else nice_ticks(y.low, y.high)
    labels, factor = _tick_labels(ticks, y.log)
    parts = []
    for tick, label in zip(ticks, labels, strict=True):
        place = y.one(tick)
        parts.append(f'<path class="grid" d="M{x.start:.1f} {place:.1f}H{x.end:.1f}"/>')
        parts.append(
            f'<text class="axis" x="{x.start - 6:.1f}" y="{place + 3.7:.1f}" '
            f'text-anchor="end">{label}</text>'
        )
    if factor:
        parts.append(f'<text class="axis" x="{x.start:.1f}" y="9">{factor}</text>')
    bottom = y.start
    parts.append(f'<path class="frame" d="M{x.start:.1f} {bottom:.1f}H{x.end:.1f}"/>')
    for tick in nice_ticks(x.low, x.high, whole=True):
        place = x.one(tick)
        label = signed(f"{tick:,.0f}")
        text_x = min(place, WIDTH - _HALF_DIGIT * len(label))  # keeps it inside the drawing
        parts.append(f'<path class="frame" d="M{place:.1f} {bottom:.1f}v4"/>')
        parts.append(
            f'<text class="axis" x="{text_x:.1f}" y="{bottom + 15:.1f}" '
            f'text-anchor="middle">{label}</text>'
        )
    middle = (x.start + x.end) / 2
    parts.append(
        f'<text class="axis" x="{middle:.1f}" y="{HEIGHT - 5}" text-anchor="middle">step</text>'
    )
    return "".join(parts)


def _tick_labels(ticks: list[float], log: bool) -> tuple[list[str], str]:
    """Label vertical ticks; the second value is their common factor ("" for none)."""
    if log:
        plain = all(1e-3 < tick < 1e5 for tick in ticks)
        return [f"{tick:,g}" if plain else _power_label(tick) for tick in ticks], ""
    largest = max(abs(tick) for tick in ticks) or 1.0
    exponent = math.floor(math.log10(largest) + 1e-9)
    shift = exponent if exponent < -2 or exponent > 5 else 0
    scaled = [tick / 10.0**shift for tick in ticks]
    digits = 0
    while digits < 6 and any(abs(v - round(v, digits)) > 1e-7 for v in scaled):
        digits += 1
    labels = [signed(f"{round(v, digits) + 0.0:,.{digits}f}") for v in scaled]
    return labels, f"×{power_of_ten(shift)}" if shift else ""


def _power_label(tick: float) -> str:
    exponent = math.floor(math.log10(tick) + 1e-9)
    mantissa = tick / 10.0**exponent
    ten = power_of_ten(exponent)
    return ten if abs(mantissa - 1) < 1e-6 else f"{mantissa:g}·{ten}"


def _band(band: tuple[float, float] | None, x: _Axis, y: _Axis) -> str:
    if band is None or not all(map(math.isfinite, band)) or band[0] >= band[1]:
        return ""  # a base so quiet that nothing is both loud enough and close to it
    bottom, top = y.one(max(band[0], y.low)), y.one(min(band[1], y.high))
    return (
        f'<rect class="band" x="{x.start:.1f}" y="{top:.1f}" width="{x.end - x.start:.1f}" '
        f'height="{bottom - top:.1f}"/>'
    )


def _marks(marks: Sequence[Mark], x: _Axis, y: _Axis) -> str:
    shown = sorted((m for m in marks if math.isfinite(m.value)), key=lambda mark: mark.value)
    parts = []
    below = math.inf
    for mark in shown:
        place = y.one(mark.value)
        text = min(place + 3.7, below - _LINE_HEIGHT)
        below = text
        parts.append(
            f'<path class="mark {mark.style}" d="M{x.start:.1f} {place:.1f}H{x.end:.1f}"/>'
        )
        parts.append(
            f'<text class="axis {mark.style}" x="{x.end + 5:.1f}" y="{text:.1f}">'
            f"{escape(mark.label)}</text>"
        )
    return "".join(parts)


def _line(line: Line, points: Points, x: _Axis, y: _Axis) -> str:
    window = smoothing_window(len(points.y)) if line.kind == "noisy" else 1
    few = len(points.y) <= _MOST_DOTS
    dots = len(points.y) == 1 or (line.kind == "dots" and few)
    parts = []
    if window > 1:
        dense = " dense" if len(points.y) > _DENSE else ""
        parts.append(_path(points, x, y, f"raw{dense} {line.colour}"))
        points = smooth(points, window, log=y.log)
    style = "faint" if line.kind == "faint" else f"line {line.colour}"
    parts.append(_path(points, x, y, style))
    if dots:
        kept = _placed(points, x, y)
        radius = 1.6 if line.kind == "faint" else 2.8
        parts += [
            f'<circle class="{style}" cx="{px:.1f}" cy="{py:.1f}" r="{radius}"/>' for px, py in kept
        ]
    return "".join(parts)


def _placed(points: Points, x: _Axis, y: _Axis) -> list[tuple[float, float]]:
    return list(zip(x.at(points.x).tolist(), y.at(points.y).tolist(), strict=True))


def _path(points: Points, x: _Axis, y: _Axis, style: str) -> str:
    places = _placed(decimate(points), x, y)
    if len(places) < 2:
        return ""
    drawn = "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
    return f'<path class="{style}" d="M{drawn}"/>'
