"""Dropout whose random numbers come from a key.

A layer that draws from global random state would have its mask frozen into a compiled graph, and
would draw another one where activations are recomputed. So a key is an argument, split once for
each layer; without a key there is no dropout.
"""

from __future__ import annotations

import mlx.core as mx

Key = mx.array | None


def dropout(x: mx.array, p: float, key: Key) -> mx.array:
    """Zero each element with probability p and scale the others by 1 / (1 - p).

    Args:
        x: of any shape.
        key: of `mx.random`, used for nothing else; None for evaluation.
    """
    if key is None or p == 0.0:
        return x
    keep = mx.random.bernoulli(1.0 - p, x.shape, key=key)
    return x * (keep * (1.0 / (1.0 - p))).astype(x.dtype)


def split_key(key: Key, count: int) -> list[Key]:
    """Derive `count` independent keys; as many times None without a key."""
    if key is None:
        return [None] * count
    return [part.reshape(2) for part in mx.split(mx.random.split(key, count), count)]
