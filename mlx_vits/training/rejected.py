"""Spoiled codes for direct preference optimization (DPO): a stretch said twice, or left out.

Source: GPT-SoVITS `AR/models/utils.py` (`make_reject_y`). Axes: B batch, Y codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

REPEAT, DELETE = 0, 1


class Rejection(NamedTuple):
    """How a row is spoiled.

    Attributes:
        op: `REPEAT` or `DELETE`.
        start, end: which codes, `end` not among them.
    """

    op: int
    start: int
    end: int


def draw_rejections(
    lengths: Sequence[int], random: np.random.Generator, *, compat: bool = False
) -> list[Rejection]:
    """Draw how each row is spoiled: half are repeated, half deleted.

    Args:
        lengths: of the rows, at least 1.
        random: decides alone.
        compat: whether to draw as upstream does, whose range runs over the row's padding too, never
            has the last place in it, and may be empty; then the row is not spoiled at all.
    """
    rejections = []
    for length in lengths:
        op = int(random.integers(2))
        if compat:
            first, last = sorted(random.integers(0, max(lengths), 2).tolist())
        else:
            first, last = sorted(random.choice(length + 1, 2, replace=False).tolist())
        rejections.append(Rejection(op, first, last))
    return rejections


def reject(codes: Sequence[int] | np.ndarray, rejection: Rejection) -> np.ndarray:
    """Return a row spoiled.

    Args:
        codes: `(Y,)`; padding counts as content, as it does upstream.
    """
    row = np.asarray(codes, dtype=np.int32)
    before, chosen, after = np.split(row, [rejection.start, rejection.end])
    middle = [chosen, chosen] if rejection.op == REPEAT else []
    return np.concatenate([before, *middle, after])
