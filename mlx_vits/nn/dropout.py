"""Dropout whose random numbers come from a key.

A layer that draws from global random state would have its mask frozen into a compiled graph, so
models take a `Dropout` as an argument: `no_dropout`, or a `KeyedDropout` made once per step.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import mlx.core as mx

from mlx_vits.nn import cuda

_KEYS = 64  # that are drawn at a time

Dropout = Callable[[mx.array, float], mx.array]


def no_dropout(x: mx.array, p: float) -> mx.array:
    """Evaluation: `x` as it is."""
    return x


class KeyedDropout:
    """Zeroes each element with probability p and scales the rest by 1 / (1 - p).

    Every call takes a key of its own: the masks of one forward differ and depend on the key alone.
    """

    def __init__(self, key: mx.array):
        self._keys, self._taken = _split(key), 0

    def replay(self, function: Callable[..., mx.array]) -> Callable[..., mx.array]:
        """A function that draws the same masks every time that it is called.

        Args:
            function: takes a dropout after its other arguments.
        """
        start, is_first = copy(self), True

        def run(*inputs: mx.array) -> mx.array:
            nonlocal is_first
            own = copy(start)
            output = function(*inputs, own)
            if is_first:
                self._keys, self._taken, is_first = own._keys, own._taken, False
            return output

        return run

    def __call__(self, x: mx.array, p: float) -> mx.array:
        if p == 0.0:
            return x
        key = self._next()
        if cuda.is_used(x):
            return _dropout_on_cuda(p, key)(x)
        keep = mx.random.bernoulli(1.0 - p, x.shape, key=key)
        # One product, forward and backward: `where` on arrays takes zeros of their size besides.
        scale, zero = mx.array(1.0 / (1.0 - p), x.dtype), mx.array(0.0, x.dtype)
        return x * mx.where(keep, scale, zero)

    def _next(self) -> mx.array:
        if self._taken == _KEYS - 1:
            self._keys, self._taken = _split(self._keys[-1]), 0
        self._taken += 1
        # A view; one number as an index would be a gather.
        return self._keys[self._taken - 1 : self._taken].squeeze(0)


def _split(key: mx.array) -> mx.array:
    return mx.random.split(key, _KEYS)


def _dropout_on_cuda(p: float, key: mx.array) -> Callable[[mx.array], mx.array]:
    def gradient(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return cuda.dropout(cotangent, p, key)

    function: Any = mx.custom_function(lambda x: cuda.dropout(x, p, key))
    function.vjp(gradient)
    return function


def replayed(dropout: Dropout, function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """`function` with a dropout for its last argument, the same in every call."""
    if isinstance(dropout, KeyedDropout):
        return dropout.replay(function)
    return lambda *inputs: function(*inputs, dropout)
