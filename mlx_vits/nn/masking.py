"""Masks of what is padded, absent where nothing is: a product with ones is a pass for nothing.

Axes: B batch, T and S time.
"""

from __future__ import annotations

import mlx.core as mx


def masked(x: mx.array, mask: mx.array | None) -> mx.array:
    """`(B, T, C)`, 0 where a mask `(B, T, 1)` is."""
    return x if mask is None else x * mask.astype(x.dtype)


def pairs_of(queries: mx.array | None, keys: mx.array | None) -> mx.array | None:
    """Of two masks, which query may see which key: `(B, 1, T, S)`."""
    if queries is None or keys is None:
        return None
    return (queries @ keys.swapaxes(1, 2))[:, None]
