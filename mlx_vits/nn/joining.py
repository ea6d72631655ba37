"""Arrays laid end to end."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_vits.nn import cuda


def end_to_end(arrays: Sequence[mx.array]) -> mx.array:
    """The elements of arrays of any shapes, one after another: `(N,)`."""
    if cuda.is_used(*arrays):
        return cuda.join(arrays)
    return mx.concatenate([array.reshape(-1) for array in arrays])
