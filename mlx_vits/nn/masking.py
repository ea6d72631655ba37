"""Masks of padded frames; `None` means that nothing is padded, and skips the multiply.

Axes: B batch, T and S time.
"""

from __future__ import annotations

import mlx.core as mx


def length_mask(lengths: mx.array, length: int) -> mx.array:
    """`(B,)` lengths to a float mask `(B, length, 1)`, 1 before the end."""
    return (mx.arange(length)[None, :, None] < lengths[:, None, None]).astype(mx.float32)


def masked(x: mx.array, mask: mx.array | None) -> mx.array:
    """Zero `(B, T, C)` where a mask `(B, T, 1)` is 0."""
    return x if mask is None else x * mask.astype(x.dtype)


def pairs_of(queries: mx.array | None, keys: mx.array | None) -> mx.array | None:
    """Combine two masks into which query may see which key: `(B, 1, T, S)` booleans."""
    if queries is None or keys is None:
        return None
    return ((queries @ keys.swapaxes(1, 2))[:, None]).astype(mx.bool_)
