"""Convolutions on CUDA: planar ones, alone or with the kernel of `cuda.py` that follows them.

The two are one function with a gradient of its own, and what passes between them keeps the shape it
comes in.

Axes: N batch, T time of x, Y time of y, C channels of x, O of y, K taps. x is `(N, T, C)` and
y is `(N, Y, O)`, or both have height 1: `(N, 1, T, C)` and `(N, 1, Y, O)`. w is `(O, K, C)`,
`(O, K, 1, C)` or, without another view, `(O, 1, K, C)`; one group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_vits.accel.cuda import kernels as cuda
from mlx_vits.accel.custom_vjp import custom_vjp, sum_to

_MOST = 2**31 - 1  # elements that a kernel of `cuda.py` counts


class Geometry(NamedTuple):
    """Of a convolution, in samples."""

    stride: int
    padding: int
    dilation: int

    def convolve(self, x: mx.array, w: mx.array) -> mx.array:
        """To `(N, 1, Y, O)`."""
        return self._convolve(x[:, None] if x.ndim == 3 else x, _planar(w))

    def gradients(self, x: mx.array, w: mx.array, rows: mx.array) -> list[mx.array]:
        """In x and in w, from that in y as `(N Y, O)`.

        In the weight it copies what it reads once. MLX's own pads the input and then copies its
        windows; of a dilated convolution it turns both arrays over.
        """
        outputs, cotangent, planar = len(w), [rows.reshape(len(x), 1, -1, len(w))], _planar(w)
        (of_x,) = mx.vjp(lambda x: self.convolve(x, planar), [x], cotangent)[1]
        taps = w.size // (outputs * w.shape[-1])
        if len(rows) * w.size // outputs > _MOST:
            return [of_x, mx.vjp(lambda w: self.convolve(x, w), [w], cotangent)[1][0]]
        steps = cotangent[0].shape[2]
        read = cuda.windows(x, taps, steps, self.stride, self.dilation, self.padding)
        return [of_x, (rows.T @ read).reshape(w.shape)]

    def _convolve(self, x: mx.array, w: mx.array) -> mx.array:
        return mx.conv2d(x, w, (1, self.stride), (0, self.padding), (1, self.dilation))


def _planar(w: mx.array) -> mx.array:
    """`(O, 1, K, C)`."""
    if w.ndim == 3:
        return w[:, None]
    return w.swapaxes(1, 2) if w.shape[2] == 1 else w


def _shape_as(x: mx.array, y: mx.array) -> tuple[int, ...]:
    """Of y `(N, 1, Y, O)`, without its height where x has none."""
    return y.shape if x.ndim == 4 else (y.shape[0], *y.shape[2:])


@cache
def alone(at: Geometry) -> Callable[[mx.array, mx.array], mx.array]:
    """A function of x and w to y."""

    def forward(x: mx.array, w: mx.array) -> mx.array:
        y = at.convolve(x, w)
        return y if x.ndim == 4 else y.squeeze(1)

    def gradient(
        primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
    ) -> list[mx.array]:
        x, w = primals
        return at.gradients(x, w, cotangent.flatten(0, -2))

    return custom_vjp(forward, gradient)


@cache
def leaky(at: Geometry, slope: float) -> Callable[..., mx.array]:
    """A function of x, w and a bias to the leaky ReLU of y with the bias."""

    def forward(x: mx.array, w: mx.array, bias: mx.array) -> mx.array:
        y = at.convolve(x, w)
        return cuda.leaky_relu(y, bias, slope, _shape_as(x, y))

    def gradient(
        primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
    ) -> list[mx.array]:
        shape = (output.size // output.shape[-1], output.shape[-1])
        rows = cuda.leaky_relu_gradient(cotangent, output, slope, shape=shape)
        x, w, bias = primals
        return [*at.gradients(x, w, rows), sum_to(bias, rows)]

    return custom_vjp(forward, gradient)


@cache
def onto(at: Geometry) -> Callable[..., mx.array]:
    """A function of an array, x, w and a bias to the sum of the array and y with the bias."""

    def forward(to: mx.array, x: mx.array, w: mx.array, bias: mx.array) -> mx.array:
        return cuda.biased_sum(to, at.convolve(x, w), bias)

    def gradient(
        primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
    ) -> list[mx.array]:
        (_, x, w, bias), rows = primals, cotangent.flatten(0, -2)
        return [cotangent, *at.gradients(x, w, rows), sum_to(bias, rows)]

    return custom_vjp(forward, gradient)


@cache
def onto_and_leaky(at: Geometry, slope: float) -> Callable[..., Sequence[mx.array]]:
    """As `onto`, with a leaky ReLU of the sum beside it."""

    def forward(to: mx.array, x: mx.array, w: mx.array, bias: mx.array) -> Any:
        y = at.convolve(x, w)
        return cuda.sum_and_leaky_relu(to, y, bias, slope, _shape_as(x, y))

    def gradient(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> list[mx.array]:
        (_, x, w, bias), total, channels = primals, outputs[0], outputs[0].shape[-1]
        shape = (total.size // channels, channels)
        of_sum, of_leaky = cotangents
        rows = cuda.sum_and_leaky_relu_gradient(of_sum, of_leaky, total, slope, shape)
        of_to = rows.reshape(total.shape)
        return [of_to, *at.gradients(x, w, rows), sum_to(bias, rows)]

    return custom_vjp(forward, gradient)


@cache
def gated_product(at: Geometry) -> Callable[..., Sequence[mx.array]]:
    """Of the gate of y and a condition, see `cuda.gate`: its product with a weight, `(N Y, P)`.

    A function of x, w, its bias, a condition `(N, 1, O)`, a weight `(P, O / 2)` and its bias. What
    comes out besides is for the gradient alone.
    """

    def forward(
        x: mx.array,
        w: mx.array,
        bias: mx.array,
        condition: mx.array,
        weight: mx.array,
        weight_bias: mx.array,
    ) -> Any:
        y = at.convolve(x, w)
        rows = cuda.gate(y, bias, condition, (y.size // len(w), len(w) // 2))
        return mx.addmm(weight_bias, rows, weight.T), rows, y

    def gradient(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> list[mx.array]:
        (x, w, bias, condition, weight, weight_bias), cotangent = primals, cotangents[0]
        _, gated, y = outputs
        of_gated, shape = cotangent @ weight, (y.size // len(w), len(w))
        rows = cuda.gate_gradient(y, bias, condition, of_gated, shape)
        of_condition = mx.sum(rows.reshape(y.shape), axis=2)
        of_convolved = [*at.gradients(x, w, rows), sum_to(bias, of_condition), of_condition]
        return [*of_convolved, cotangent.T @ gated, sum_to(weight_bias, cotangent)]

    return custom_vjp(forward, gradient)
