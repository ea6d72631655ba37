"""Activations with gradients of their own: MLX's are many passes on a CPU, launches on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.nn import cuda
from mlx_vits.nn.gradients import sum_to, with_gradient


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
    return [cotangent, cotangent, sum_to(primals[2], cotangent)]


_biased_sum_on_cuda = with_gradient(lambda *arrays: cuda.biased_sum(*arrays), _biased_sum_gradient)


def sum_and_leaky_relu(
    x: mx.array | None, y: mx.array, bias: mx.array, slope: float
) -> tuple[mx.array, mx.array]:
    """`x + (y + bias)` and its leaky ReLU: `(..., C)` twice and `(C,)`; without x, `y + bias`."""
    added = cuda.zero(y.dtype) if x is None else x
    if cuda.is_used(added, y, bias):
        total, activated = _sum_and_leaky_relu_on_cuda(slope)(added, y, bias)
        return total, activated
    total = y + bias if x is None else x + (y + bias)
    return total, leaky_relu(total, slope)


@cache
def _sum_and_leaky_relu_on_cuda(slope: float) -> Callable[..., Sequence[mx.array]]:
    def forward(x: mx.array, y: mx.array, bias: mx.array) -> tuple[mx.array, mx.array]:
        return cuda.sum_and_leaky_relu(x, y, bias, slope)

    def gradient(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> list[mx.array]:
        (x, _, bias), (of_sum, of_leaky) = primals, cotangents
        of_sum = cuda.sum_and_leaky_relu_gradient(of_sum, of_leaky, outputs[0], slope)
        of_x = of_sum if x.size > 1 else mx.zeros_like(x)
        return [of_x, of_sum, sum_to(bias, of_sum)]

    return with_gradient(forward, gradient)


def leaky_mean(arrays: Sequence[mx.array], slope: float) -> mx.array:
    """A leaky ReLU of the mean of arrays of one shape."""
    if 1 < len(arrays) <= 5 and cuda.is_used(*arrays):
        return _leaky_mean_on_cuda(slope)(*arrays)
    return leaky_relu(sum(arrays[1:], start=arrays[0]) / len(arrays), slope)


@cache
def _leaky_mean_on_cuda(slope: float) -> Callable[..., mx.array]:
    def gradient(
        primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
    ) -> list[mx.array]:
        of_each = cuda.leaky_relu_gradient(cotangent, output, slope, len(primals))
        return [of_each] * len(primals)

    return with_gradient(lambda *arrays: cuda.mean(arrays, slope), gradient)


@cache
def _leaky_relu(slope: float) -> Callable[[mx.array], mx.array]:
    def forward(x: mx.array) -> mx.array:
        return mx.maximum(x, slope * x)

    def gradient(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        # `where` takes six times as long on a CPU.
        return cotangent * mx.maximum(mx.sign(primal), slope)

    return with_gradient(forward, gradient)


@cache
def _leaky_relu_on_cuda(slope: float) -> Callable[[mx.array, mx.array], mx.array]:
    def forward(x: mx.array, bias: mx.array) -> mx.array:
        return cuda.leaky_relu(x, bias, slope)

    def gradient(
        primals: tuple[mx.array, mx.array], cotangent: mx.array, output: mx.array
    ) -> tuple[mx.array, mx.array]:
        of_sum = cuda.leaky_relu_gradient(cotangent, output, slope)
        return of_sum, sum_to(primals[1], of_sum)

    return with_gradient(forward, gradient)
