"""Dropout whose random numbers come from a key.

A layer that draws from global random state would have its mask frozen into a compiled graph, so
models take a `Dropout` as an argument: `no_dropout`, or a `KeyedDropout` made once per step.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

Dropout = Callable[[mx.array, float], mx.array]


def no_dropout(x: mx.array, p: float) -> mx.array:
    """Evaluation: `x` as it is."""
    return x


class KeyedDropout:
    """Zeroes each element with probability p and scales the rest by 1 / (1 - p).

    Every call splits the key, so the masks of one forward differ and depend on the key alone.
    """

    def __init__(self, key: mx.array):
        self._key = key

    def replay(self, function: Callable[..., mx.array]) -> Callable[..., mx.array]:
        """A function that draws the same masks every time that it is called.

        Args:
            function: takes a dropout after its other arguments.
        """
        start, is_first = self._key, True

        def run(*inputs: mx.array) -> mx.array:
            nonlocal is_first
            own = KeyedDropout(start)
            output = function(*inputs, own)
            if is_first:
                self._key, is_first = own._key, False
            return output

        return run

    def __call__(self, x: mx.array, p: float) -> mx.array:
        if p == 0.0:
            return x
        self._key, key = mx.random.split(self._key)
        keep = mx.random.bernoulli(1.0 - p, x.shape, key=key)
        # One product, forward and backward: `where` on arrays takes zeros of their size besides.
        scale, zero = mx.array(1.0 / (1.0 - p), x.dtype), mx.array(0.0, x.dtype)
        return x * mx.where(keep, scale, zero)


def replayed(dropout: Dropout, function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """`function` with a dropout for its last argument, the same in every call."""
    if isinstance(dropout, KeyedDropout):
        return dropout.replay(function)
    return lambda *inputs: function(*inputs, dropout)
