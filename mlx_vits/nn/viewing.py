"""Parts of a long array as arrays of their own."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from functools import cache

import mlx.core as mx


def view(flat: mx.array, start: int, shape: tuple[int, ...]) -> mx.array:
    """`(N,)` from an element on as an array of this shape: one operation, a slice would be two.

    MLX's own gradient of it fills the whole array.

    Args:
        flat: one element after another in memory.
    """
    return mx.as_strided(flat, shape, _strides(shape), start)


@cache
def _strides(shape: tuple[int, ...]) -> list[int]:
    return list(itertools.accumulate(shape[:0:-1], operator.mul, initial=1))[::-1]


def views(flat: mx.array, shapes: Sequence[tuple[int, ...]]) -> list[mx.array]:
    """`(N,)` as arrays of these shapes, one after another."""
    sizes = [math.prod(shape) for shape in shapes]
    starts = [0, *itertools.accumulate(sizes[:-1])]
    return [view(flat, start, shape) for start, shape in zip(starts, shapes, strict=True)]
