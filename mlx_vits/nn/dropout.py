"""Dropout whose random numbers come from a key.

A layer that draws from global random state would have its mask frozen into a compiled graph, so
models take a `Dropout` as an argument: `no_dropout`, or a `KeyedDropout` made once per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import mlx.core as mx

from mlx_vits.nn import cuda
from mlx_vits.nn.gradients import sum_to, with_gradient
from mlx_vits.nn.masking import masked

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
        if cuda.is_used(x):
            return self.of_sum(x, p, cuda.zero(x.dtype), cuda.one(x.dtype))
        start = self._next()
        # A view; one number as an index would be a gather.
        keep = mx.random.bernoulli(1.0 - p, x.shape, key=self._keys[start : start + 2])
        # One product, forward and backward: `where` on arrays takes zeros of their size besides.
        scale, zero = mx.array(1.0 / (1.0 - p), x.dtype), mx.array(0.0, x.dtype)
        return x * mx.where(keep, scale, zero)

    def of_sum(self, x: mx.array, p: float, bias: mx.array, mask: mx.array) -> mx.array:
        """As `dropped`, on CUDA; in place of bias and mask may be one number."""
        start = self._next()
        return _dropout_on_cuda(p, self._keys, start)(x, bias, mask)

    def _next(self) -> int:
        """Where the next key begins."""
        if self._taken == _KEYS - 1:
            self._keys, self._taken = _split(self._keys[-2:]), 0
        self._taken += 1
        return 2 * (self._taken - 1)


def _split(key: mx.array) -> mx.array:
    """Keys of two numbers each, one after another."""
    return mx.random.split(key, _KEYS).flatten()


def _dropout_on_cuda(p: float, keys: mx.array, start: int) -> Callable[..., mx.array]:
    def forward(x: mx.array, bias: mx.array, mask: mx.array) -> mx.array:
        return cuda.dropout(x, bias, mask, p, keys, start)

    def gradient(
        primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
    ) -> list[mx.array]:
        _, bias, mask = primals
        of_x = cuda.dropout(cotangent, cuda.zero(cotangent.dtype), mask, p, keys, start)
        return [of_x, sum_to(bias, of_x), mx.zeros_like(mask)]

    return with_gradient(forward, gradient)


def dropped(
    dropout: Dropout,
    x: mx.array,
    p: float,
    bias: mx.array | None = None,
    mask: mx.array | None = None,
) -> mx.array:
    """Dropout of `x + bias` where a mask is not 0.

    Args:
        x: `(..., C)`.
        bias: `(C,)` or None.
        mask: `(..., 1)` of the type of x, or None.
    """
    given = [array for array in (x, bias, mask) if array is not None]
    if isinstance(dropout, KeyedDropout) and p and cuda.is_used(*given):
        bias = cuda.zero(x.dtype) if bias is None else bias
        return dropout.of_sum(x, p, bias, cuda.one(x.dtype) if mask is None else mask)
    return masked(dropout(x if bias is None else x + bias, p), mask)


def replayed(dropout: Dropout, function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """`function` with a dropout for its last argument, the same in every call."""
    if isinstance(dropout, KeyedDropout):
        return dropout.replay(function)
    return lambda *inputs: function(*inputs, dropout)
