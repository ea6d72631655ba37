"""Arrays laid end to end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlx_vits.nn import cuda


def end_to_end(arrays: Sequence[mx.array]) -> mx.array:
    """The elements of arrays of any shapes, one after another: `(N,)`."""
    if cuda.is_used(*arrays):
        return cuda.join(arrays)
    return mx.concatenate([array.reshape(-1) for array in arrays])


def _join(*arrays: mx.array) -> mx.array:
    return end_to_end(arrays)


def _cut(primals: Sequence[mx.array], cotangent: mx.array, output: mx.array) -> list[mx.array]:
    ends = list(itertools.accumulate(array.size for array in primals))
    places = zip(primals, [0, *ends[:-1]], ends, strict=True)
    return [cotangent[start:end].reshape(array.shape) for array, start, end in places]


# As `end_to_end`, through which a gradient passes.
joined: Any = mx.custom_function(_join)
joined.vjp(_cut)
