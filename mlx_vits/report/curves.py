"""Arithmetic of curves: smoothing, decimation, ticks and number formats.

Axes: K points of a curve.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MINUS = "\u2212"
_RELATIVE_NOISE = 1e-6  # a series that varies by less is drawn as constant


class Points(NamedTuple):
    """A curve: `x` and `y`, `(K,)` float64, finite."""

    x: np.ndarray
    y: np.ndarray


def finite_points(x: np.ndarray, y: np.ndarray, *, positive: bool = False) -> Points:
    """Keep the points that can be drawn; on a logarithmic axis only the positive ones."""
    keep = np.isfinite(x) & np.isfinite(y)
    if positive:
        keep &= y > 0
    return Points(x[keep], y[keep])


def smoothing_window(count: int) -> int:
    """Odd number of steps that the smoothed line averages over: a tenth of the run, at most 201."""
    return 2 * min(count // 20, 100) + 1


def smooth(points: Points, window: int, *, log: bool = False) -> Points:
    """Average over the `window` points around each, over fewer at the ends.

    Args:
        window: odd.
        log: average logarithms, for a logarithmic axis.
    """
    if window <= 1 or not len(points.y):
        return points
    values = np.log(points.y) if log else points.y
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre, reach = np.arange(len(values)), window // 2
    low = np.maximum(centre - reach, 0)
    high = np.minimum(centre + reach + 1, len(values))
    means = (sums[high] - sums[low]) / (high - low)
    return Points(points.x, np.exp(means) if log else means)


def decimate(points: Points, buckets: int = 300) -> Points:
    """Keep at most `2 * buckets` points, the extremes of each bucket, so that peaks survive."""
    count = len(points.y)
    if count <= 2 * buckets:
        return points
    edges = np.linspace(0, count, buckets + 1).astype(int)
    chosen = {0, count - 1}
    for start, stop in pairwise(edges):
        part = points.y[start:stop]
        chosen |= {start + int(part.argmin()), start + int(part.argmax())}
    index = sorted(chosen)
    return Points(points.x[index], points.y[index])


def is_constant(low: float, high: float) -> bool:
    """Tell whether a range is no wider than rounding error."""
    return high - low <= _RELATIVE_NOISE * max(abs(low), abs(high))


def nice_ticks(low: float, high: float, count: int = 6, *, whole: bool = False) -> list[float]:
    """Choose about `count` round numbers within [low, high]; `whole` for integers only."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((s * power for s in (1, 2, 2.5, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    if whole:
        step = max(1.0, step if step != 2.5 else 2.0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * index for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Choose powers of ten within [low, high], low > 0; 1-2-5 steps if those are fewer than two."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first + 1) / count))
    decades = [10.0**power for power in range(first, last + 1) if power % stride == 0]
    fine = [m * 10.0**power for power in range(first, last + 1) for m in (1, 2, 5)]
    for ticks in (decades, fine):
        inside = [tick for tick in ticks if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)]
        if len(inside) >= 2:
            return inside
    return nice_ticks(low, high)


def power_of_ten(exponent: int) -> str:
    """Format a power of ten, such as 10⁻⁷."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def number(value: float, digits: int = 4) -> str:
    """Format a number: `digits` significant digits, thousands separated, 1.2×10⁻⁷ if tiny."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{'' if value > 0 else _MINUS}∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -3 or exponent > 8:
        # Python's own rounding may raise the exponent: 9.999e-6 is 1.00e-5.
        mantissa, rounded = f"{value:.{digits - 1}e}".split("e")
        return signed(f"{mantissa}×{power_of_ten(int(rounded))}")
    return signed(f"{value:,.{max(0, digits - 1 - exponent)}f}")


def percent(value: float, *, sign: bool = False) -> str:
    """Format a share as 12.3 %, with a narrow no-break space; `sign` writes a plus."""
    if not math.isfinite(value):
        return number(value)
    return signed(f"{value:{'+' if sign else ''}.1%}".replace("%", "\u202f%"))


def signed(text: str) -> str:
    """Replace a number's hyphen by a minus sign."""
    return text.replace("-", _MINUS, 1) if text.startswith("-") else text
