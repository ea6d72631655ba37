"""Differentiable functions of the kernels, each with a hand-written VJP.

Convolutions are computed together with the kernel that follows them, as one function whose gradient
keeps what passes between the two in the shape it comes in.

Axes: N batch, T time of x, Y time of y, C channels of x, O of y, K taps. x is `(N, T, C)` and
y is `(N, Y, O)`, or both have height 1: `(N, 1, T, C)` and `(N, 1, Y, O)`. w is `(O, K, C)`, or
`(O, K, 1, C)`; one group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_vits.accel.cuda import kernels
from mlx_vits.accel.cuda import rows as row_kernels
from mlx_vits.accel.custom_vjp import custom_vjp, sum_to

_MOST = 2**31 - 1  # elements that a kernel counts

Primals = Sequence[mx.array]


class Geometry(NamedTuple):
    """Of a convolution, in samples."""

    stride: int
    padding: int
    dilation: int

    def convolve(self, x: mx.array, w: mx.array) -> mx.array:
        """To `(N, 1, Y, O)`."""
        x = x[:, None] if x.ndim == 3 else x
        return mx.conv2d(x, _planar(w), (1, self.stride), (0, self.padding), (1, self.dilation))

    def gradients(self, x: mx.array, w: mx.array, rows: mx.array) -> list[mx.array]:
        """In x and in w, from that in y as `(N Y, O)`.

        For the weight, the windows of x are copied once. MLX's own pads the input and then copies
        its windows; of a dilated convolution it flips both arrays.
        """
        outputs, cotangent, planar = len(w), [rows.reshape(len(x), 1, -1, len(w))], _planar(w)
        (of_x,) = mx.vjp(lambda x: self.convolve(x, planar), [x], cotangent)[1]
        taps = w.size // (outputs * w.shape[-1])
        if len(rows) * w.size // outputs > _MOST:
            return [of_x, mx.vjp(lambda w: self.convolve(x, w), [w], cotangent)[1][0]]
        steps = cotangent[0].shape[2]
        read = kernels.windows(x, taps, steps, self.stride, self.dilation, self.padding)
        return [of_x, (rows.T @ read).reshape(w.shape)]


def _planar(w: mx.array) -> mx.array:
    """`(O, 1, K, C)`."""
    if w.ndim == 3:
        return w[:, None]
    return w.swapaxes(1, 2) if w.shape[2] == 1 else w


def _shape_as(x: mx.array, y: mx.array) -> tuple[int, ...]:
    """Of y `(N, 1, Y, O)`, without its height where x has none."""
    return y.shape if x.ndim == 4 else (y.shape[0], *y.shape[2:])


@cache
def leaky_convolution(at: Geometry, slope: float) -> Callable[..., mx.array]:
    """A function of x, w and a bias to the leaky ReLU of y with the bias."""

    def forward(x: mx.array, w: mx.array, bias: mx.array) -> mx.array:
        y = at.convolve(x, w)
        return kernels.leaky_relu(y, bias, slope, _shape_as(x, y))

    def gradient(primals: Primals, cotangent: mx.array, output: mx.array) -> list[mx.array]:
        shape = (output.size // output.shape[-1], output.shape[-1])
        rows = kernels.leaky_relu_gradient(cotangent, output, slope, shape=shape)
        x, w, bias = primals
        return [*at.gradients(x, w, rows), sum_to(bias, rows)]

    return custom_vjp(forward, gradient)


@cache
def added_convolution(at: Geometry) -> Callable[..., mx.array]:
    """A function of an array, x, w and a bias to the sum of the array and y with the bias."""

    def forward(to: mx.array, x: mx.array, w: mx.array, bias: mx.array) -> mx.array:
        return kernels.biased_sum(to, at.convolve(x, w), bias)

    def gradient(primals: Primals, cotangent: mx.array, output: mx.array) -> list[mx.array]:
        (_, x, w, bias), rows = primals, cotangent.flatten(0, -2)
        return [cotangent, *at.gradients(x, w, rows), sum_to(bias, rows)]

    return custom_vjp(forward, gradient)


@cache
def added_leaky_convolution(at: Geometry, slope: float) -> Callable[..., Sequence[mx.array]]:
    """As `added_convolution`, with a leaky ReLU of the sum beside it."""

    def forward(to: mx.array, x: mx.array, w: mx.array, bias: mx.array) -> Any:
        y = at.convolve(x, w)
        return kernels.sum_and_leaky_relu(to, y, bias, slope, _shape_as(x, y))

    def gradient(primals: Primals, cotangents: Primals, outputs: Primals) -> list[mx.array]:
        (_, x, w, bias), total, channels = primals, outputs[0], outputs[0].shape[-1]
        shape = (total.size // channels, channels)
        of_sum, of_leaky = cotangents
        rows = kernels.sum_and_leaky_relu_gradient(of_sum, of_leaky, total, slope, shape)
        of_to = rows.reshape(total.shape)
        return [of_to, *at.gradients(x, w, rows), sum_to(bias, rows)]

    return custom_vjp(forward, gradient)


def leaky_of_both(linear: Callable[..., mx.array], slope: float) -> Callable[..., Any]:
    """The leaky ReLU of a linear function of a batch, of whose last half a gradient is asked for.

    A function of that half of x, of all of x, a weight and a bias, to all of y and its last half.
    The gradient is in the half of x alone, and computed of that half alone.

    Args:
        linear: of x and the weight.
    """

    def forward(half: mx.array, x: mx.array, w: mx.array, bias: mx.array) -> Any:
        y = kernels.leaky_relu(linear(x, w), bias, slope)
        return y, mx.split(y, 2)[1]

    def gradient(primals: Primals, cotangents: Primals, outputs: Primals) -> list[mx.array]:
        half, x, w, bias = primals
        of_y = kernels.leaky_relu_gradient(cotangents[1], outputs[1], slope)
        (of_half,) = mx.vjp(lambda half: linear(half, w), [half], [of_y])[1]
        return [of_half, mx.zeros_like(x), mx.zeros_like(w), mx.zeros_like(bias)]

    return custom_vjp(forward, gradient)


@cache
def leaky_relu(slope: float) -> Callable[[mx.array, mx.array], mx.array]:
    """A function of an array `(..., C)` and a bias `(C,)` to the leaky ReLU of their sum."""

    def forward(x: mx.array, bias: mx.array) -> mx.array:
        return kernels.leaky_relu(x, bias, slope)

    def gradient(primals: Primals, cotangent: mx.array, output: mx.array) -> list[mx.array]:
        of_sum = kernels.leaky_relu_gradient(cotangent, output, slope)
        return [of_sum, sum_to(primals[1], of_sum)]

    return custom_vjp(forward, gradient)


@cache
def sum_and_leaky_relu(slope: float) -> Callable[[mx.array, mx.array], Sequence[mx.array]]:
    """A function of an array `(..., C)` and a bias `(C,)` to their sum and its leaky ReLU."""

    def forward(x: mx.array, bias: mx.array) -> Any:
        return kernels.sum_and_leaky_relu(kernels.zero(x.dtype), x, bias, slope)

    def gradient(primals: Primals, cotangents: Primals, outputs: Primals) -> list[mx.array]:
        of_sum, of_leaky = cotangents
        of_sum = kernels.sum_and_leaky_relu_gradient(of_sum, of_leaky, outputs[0], slope)
        return [of_sum, sum_to(primals[1], of_sum)]

    return custom_vjp(forward, gradient)


@cache
def leaky_mean(slope: float) -> Callable[..., mx.array]:
    """A function of two to five arrays of one shape to the leaky ReLU of their mean."""

    def forward(*arrays: mx.array) -> mx.array:
        return kernels.mean(arrays, slope)

    def gradient(primals: Primals, cotangent: mx.array, output: mx.array) -> list[mx.array]:
        count = len(primals)
        return [kernels.leaky_relu_gradient(cotangent, output, slope, count)] * count

    return custom_vjp(forward, gradient)


@cache
def gated_product(at: Geometry) -> Callable[..., Sequence[mx.array]]:
    """Of the gate of y and a condition, see `kernels.gate`: its product with a weight, `(N Y, P)`.

    A function of x, w, its bias, a condition `(N, 1, O)`, a weight `(P, O / 2)` and its bias. Its
    other outputs are for the gradient alone.
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
        rows = kernels.gate(y, bias, condition, (y.size // len(w), len(w) // 2))
        return mx.addmm(weight_bias, rows, weight.T), rows, y

    def gradient(primals: Primals, cotangents: Primals, outputs: Primals) -> list[mx.array]:
        (x, w, bias, condition, weight, weight_bias), cotangent = primals, cotangents[0]
        _, gated, y = outputs
        of_gated, shape = cotangent @ weight, (y.size // len(w), len(w))
        rows = kernels.gate_gradient(y, bias, condition, of_gated, shape)
        of_condition = mx.sum(rows.reshape(y.shape), axis=2)
        of_convolved = [*at.gradients(x, w, rows), sum_to(bias, of_condition), of_condition]
        return [*of_convolved, cotangent.T @ gated, sum_to(weight_bias, cotangent)]

    return custom_vjp(forward, gradient)


def _residual_gradient(primals: Primals, cotangents: Primals, outputs: Primals) -> list[mx.array]:
    (_, y, mask, _), (of_x, of_total) = primals, cotangents
    return [
        *kernels.residual_gradient(of_x, of_total, mask, y.shape),
        mx.zeros_like(mask),
        of_total,
    ]


# A function of x, y, a mask and a total, see `kernels.residual`. The mask gets no gradient, nor
# does a total that is one number.
residual = custom_vjp(lambda *arrays: kernels.residual(*arrays), _residual_gradient)


@cache
def attention(hidden: float) -> Callable[..., mx.array]:
    """A function of scores, their band and what is seen to weights, see `kernels.attention`."""

    def forward(scores: mx.array, band: mx.array, seen: mx.array) -> mx.array:
        return kernels.attention(scores, band, seen, hidden)

    def gradient(primals: Primals, cotangent: mx.array, output: mx.array) -> list[mx.array]:
        _, band, seen = primals
        found = kernels.attention_gradient(cotangent, output, seen, band)
        return [*found, mx.zeros_like(seen)]

    return custom_vjp(forward, gradient)


# A function of three arrays of one shape to one, see `kernels.stacked`.
stacked = custom_vjp(
    lambda *arrays: kernels.stacked(*arrays),
    lambda primals, cotangent, output: mx.split(cotangent, 3),
)


@cache
def projected_heads(count: int) -> Callable[..., Sequence[mx.array]]:
    """To the queries, keys and values of so many heads, each `(B, H, T, C / H)`, queries scaled.

    A function of x `(B, T, C)`, a weight `(3 C, C)` and a bias `(3 C,)`, the queries' first.
    """

    def forward(x: mx.array, w: mx.array, bias: mx.array) -> Any:
        found = kernels.heads(mx.addmm(bias, x, w.T), count, _head_scale(w, count))
        return [part.squeeze(0) for part in mx.split(found, 3)]

    def gradient(primals: Primals, cotangents: Primals, outputs: Primals) -> list[mx.array]:
        (x, w, bias), (of_query, of_k, of_v) = primals, cotangents
        rows = kernels.heads_gradient(of_query, of_k, of_v, _head_scale(w, count))
        of_w = rows.T @ x.reshape(-1, x.shape[-1])
        return [(rows @ w).reshape(x.shape), of_w, sum_to(bias, rows)]

    return custom_vjp(forward, gradient)


def _head_scale(w: mx.array, count: int) -> float:
    width: int = w.shape[1] // count
    return width**-0.5


def _joined(x: mx.array) -> mx.array:
    return mx.contiguous(x.swapaxes(1, 2)).flatten(2)


def _joined_gradient(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    batch, heads, length, width = x.shape
    return mx.contiguous(cotangent.reshape(batch, length, heads, width).swapaxes(1, 2))


# A function of heads `(B, H, T, D)` to `(B, T, H D)`; each of the products that read its gradient
# would copy a view of it.
joined_heads = custom_vjp(_joined, _joined_gradient)


@cache
def narrow(reach: int) -> Callable[[mx.array], mx.array]:
    """A function of a square to its band, see `kernels.narrow`."""

    def gradient(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return kernels.widen(cotangent)

    return custom_vjp(lambda square: kernels.narrow(square, reach), gradient)


@cache
def dropout(p: float) -> Callable[[mx.array, mx.array, mx.array], mx.array]:
    """A function of an array, a mask and a key, see `kernels.dropout`."""

    def run(x: mx.array, mask: mx.array, key: mx.array) -> mx.array:
        return kernels.dropout(x, mask, p, key)

    def gradient(primals: Primals, cotangent: mx.array, output: mx.array) -> list[mx.array]:
        _, mask, key = primals
        return [run(cotangent, mask, key), mx.zeros_like(mask), mx.zeros_like(key)]

    return custom_vjp(run, gradient)


@cache
def added_dropout(p: float) -> Callable[..., mx.array]:
    """A function of an array and x, and of a mask and a key, to the sum with dropout of x."""

    def forward(to: mx.array, x: mx.array, mask: mx.array, key: mx.array) -> mx.array:
        return kernels.dropout(x, mask, p, key, to)

    def gradient(primals: Primals, cotangent: mx.array, output: mx.array) -> list[mx.array]:
        _, _, mask, key = primals
        of_x = kernels.dropout(cotangent, mask, p, key)
        return [cotangent, of_x, mx.zeros_like(mask), mx.zeros_like(key)]

    return custom_vjp(forward, gradient)


@cache
def added_dropped_convolution(at: Geometry, p: float) -> Callable[..., mx.array]:
    """A function of an array, x, w and a bias, and of a mask and a key.

    To the sum of the array and dropout of y with the bias.
    """

    def forward(
        to: mx.array, x: mx.array, w: mx.array, bias: mx.array, mask: mx.array, key: mx.array
    ) -> mx.array:
        return kernels.dropout(at.convolve(x, w), mask, p, key, to, bias, to.shape)

    def gradient(primals: Primals, cotangent: mx.array, output: mx.array) -> list[mx.array]:
        _, x, w, bias, mask, key = primals
        rows = kernels.dropout(cotangent.flatten(0, -2), mask, p, key)
        parameters = [*at.gradients(x, w, rows), sum_to(bias, rows)]
        return [cotangent, *parameters, mx.zeros_like(mask), mx.zeros_like(key)]

    return custom_vjp(forward, gradient)


def _fold(*arrays: mx.array) -> list[mx.array]:
    count = len(arrays) // 2
    weights, norms = row_kernels.fold(arrays[:count], arrays[count:])
    return [*weights, *norms]


def _fold_gradient(primals: Primals, cotangents: Primals, outputs: Primals) -> list[mx.array]:
    count = len(primals) // 2
    parts = primals[:count], primals[count:], outputs[count:], cotangents[:count]
    of_g, of_v = row_kernels.fold_gradient(*parts)
    return [*of_g, *of_v]


# A function of every g and then every v of several layers to their weights and the norms of v.
fold = custom_vjp(_fold, _fold_gradient)
