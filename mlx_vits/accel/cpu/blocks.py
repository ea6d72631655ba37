"""Equivalents of blocks on a CPU."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache

import mlx.core as mx

from mlx_vits.accel.cpu.pieces import PiecewiseGenerator
from mlx_vits.accel.custom_vjp import custom_vjp
from mlx_vits.models.generator import Generator
from mlx_vits.models.t2s import SelfAttention
from mlx_vits.nn.dropout import Key, dropout
from mlx_vits.nn.layers import LeakyReLU


class FastLeakyReLU(LeakyReLU):
    """`LeakyReLU` without `mx.where`, which takes six times as long on a CPU."""

    def __call__(self, x: mx.array) -> mx.array:
        return _leaky_relu(self.slope)(x)


@cache
def _leaky_relu(slope: float) -> Callable[[mx.array], mx.array]:
    def forward(x: mx.array) -> mx.array:
        return mx.maximum(x, slope * x)

    def gradient(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return cotangent * mx.maximum(mx.sign(primal), slope)

    return custom_vjp(forward, gradient)


class FastSelfAttention(SelfAttention):
    """`SelfAttention` of many queries by powers of 2, which take a third of `mx.exp`'s time."""

    def attend(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        mask: mx.array | None,
        dropout_key: Key = None,
    ) -> mx.array:
        length, depth = query.shape[2:]
        if length == 1:  # more operations would cost what they save
            return super().attend(query, key, value, mask, dropout_key)
        scores = (query * (depth**-0.5 * math.log2(math.e))) @ key.swapaxes(2, 3)
        if mask is not None:
            scores = scores + mx.where(mask, 0.0, -mx.inf).astype(scores.dtype)
        largest = mx.stop_gradient(mx.max(scores, axis=-1, keepdims=True))
        weights = _power_of_2()(scores - largest)
        kept = dropout(weights, self.p_dropout, dropout_key)
        return (kept @ value) / mx.sum(weights, axis=-1, keepdims=True)


@cache
def _power_of_2() -> Callable[[mx.array], mx.array]:
    """2^x; MLX's gradient would take the power again, and a logarithm."""

    def gradient(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return (cotangent * math.log(2.0)) * output

    return custom_vjp(lambda x: mx.power(2.0, x), gradient)


EQUIVALENTS: dict[type, type] = {LeakyReLU: FastLeakyReLU}
FOR_INFERENCE: dict[type, type] = dict(EQUIVALENTS)
if sys.platform.startswith("linux"):
    # Not on macOS, which was not measured: its cores share the matrix units, and MLX vectorizes
    # `mx.exp` there.
    EQUIVALENTS |= {SelfAttention: FastSelfAttention}
    FOR_INFERENCE |= {Generator: PiecewiseGenerator, SelfAttention: FastSelfAttention}
