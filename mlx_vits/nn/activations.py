"""Activations with gradients of their own: MLX's are many passes on a CPU, launches on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.nn import cuda


def leaky_relu(x: mx.array, slope: float, bias: mx.array | None = None) -> mx.array:
    """`x + bias` above 0, `slope` times it elsewhere. PyTorch's gradient: `slope` at 0.

    Args:
        x: `(..., C)`, or any shape without a bias.
        bias: `(C,)` or None.
    """
    added = cuda.zero(x.dtype) if bias is None else bias
    if cuda.is_used(x, added):
        return _leaky_relu_on_cuda(slope)(x, added)
    x = x if bias is None else x + bias
    return _leaky_relu(slope)(x) if slope else nn.relu(x)


def biased_sum(x: mx.array, y: mx.array, bias: mx.array) -> mx.array:
    """`x + (y + bias)`: `(..., C)` twice and `(C,)`."""
    return _biased_sum_on_cuda(x, y, bias) if cuda.is_used(x, y, bias) else x + (y + bias)


def _biased_sum_gradient(
    primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
) -> list[mx.array]:
    return [cotangent, cotangent, mx.sum(cotangent.reshape(-1, primals[2].size), axis=0)]


_biased_sum_on_cuda: Any = mx.custom_function(lambda *arrays: cuda.biased_sum(*arrays))
_biased_sum_on_cuda.vjp(_biased_sum_gradient)


def mean_of(arrays: Sequence[mx.array]) -> mx.array:
    """The mean of arrays of one shape."""
    if 1 < len(arrays) <= 5 and cuda.is_used(*arrays):
        return _mean_on_cuda(*arrays)
    return sum(arrays[1:], start=arrays[0]) / len(arrays)


def _mean_gradient(
    primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
) -> list[mx.array]:
    return [cotangent / len(primals)] * len(primals)


_mean_on_cuda: Any = mx.custom_function(lambda *arrays: cuda.mean(arrays))
_mean_on_cuda.vjp(_mean_gradient)


@cache
def _leaky_relu(slope: float) -> Callable[[mx.array], mx.array]:
    def forward(x: mx.array) -> mx.array:
        return mx.maximum(x, slope * x)

    def gradient(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        # `where` takes six times as long on a CPU.
        return cotangent * mx.maximum(mx.sign(primal), slope)

    function: Any = mx.custom_function(forward)
    function.vjp(gradient)
    return function


@cache
def _leaky_relu_on_cuda(slope: float) -> Callable[[mx.array, mx.array], mx.array]:
    def forward(x: mx.array, bias: mx.array) -> mx.array:
        return cuda.leaky_relu(x, bias, slope)

    def gradient(
        primals: tuple[mx.array, mx.array], cotangent: mx.array, output: mx.array
    ) -> tuple[mx.array, mx.array]:
        of_sum = cuda.leaky_relu_gradient(cotangent, output, slope)
        return of_sum, mx.sum(of_sum.reshape(-1, primals[1].size), axis=0)

    function: Any = mx.custom_function(forward)
    function.vjp(gradient)
    return function
