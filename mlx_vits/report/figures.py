"""Figures of the report: charts side by side, with explanations, first and last values."""

from __future__ import annotations

import math
from html import escape

from mlx_vits.report.charts import Chart, Line, draw_chart, swatch
from mlx_vits.report.curves import finite_points, number, percent, smoothing_window

_ENDS = 20


def grid(charts: list[Chart]) -> str:
    """Build the HTML of charts side by side."""
    return f'<div class="charts">{"".join(_figure(chart) for chart in charts)}</div>'


def _figure(chart: Chart) -> str:
    shown = [line for line in chart.lines if line.kind != "faint"]
    several = len(shown) > 1
    readouts = "".join(
        f"<li>{swatch(line.colour) if several else ''}{_readout(line, several)}</li>"
        for line in shown
    )
    logged = f" <code>{escape(chart.logged)}</code>" if chart.logged else ""
    return f"""<figure class="chart"><figcaption><h4>{escape(chart.title)}{logged}</h4>
<p>{escape(chart.meaning)}</p></figcaption>
<ul class="readouts">{readouts}</ul>
{draw_chart(chart)}</figure>
"""


def _readout(line: Line, several: bool) -> str:
    """Format the first and last values of a curve."""
    values = finite_points(line.steps, line.values).y
    name = f"{escape(line.label)} " if several else ""
    if not len(values):
        return f"{name}<b>no value</b>"
    if len(values) == 1:
        return f"{name}<b>{number(values[0])}</b>{'' if several else ' at the only step'}"
    ends = ends_averaged(len(values)) if line.kind == "noisy" else 1
    first, last = float(values[:ends].mean()), float(values[-ends:].mean())
    change = last / first - 1 if first > 0 and not several else math.inf
    # A relative change means nothing if the start is near 0.
    share = f" ({percent(change, sign=True)})" if abs(change) < 1 else ""
    return f"{name}<b>{number(first)} → {number(last)}</b>{share}"


def ends_averaged(count: int) -> int:
    """Number of steps at either end of a run that the numbers above a curve average over."""
    return 1 if smoothing_window(count) == 1 else min(_ENDS, count // 2)


def describe_smoothing(count: int) -> str:
    """How curves of so many steps are drawn, in words."""
    window = smoothing_window(count)
    if window == 1:
        return "Every step is shown as it was: the run is too short to smooth."
    return (
        "A thin line is every step, the thick one on top the mean over the "
        f"{window} steps around each (fewer at the ends; of logarithms where the axis is "
        f"logarithmic). The numbers above it are means of the first and the last "
        f"{ends_averaged(count)} steps; above other curves, the first and the last value."
    )
