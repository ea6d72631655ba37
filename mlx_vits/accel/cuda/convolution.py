"""Convolutions on CUDA: MLX's own, but for those of several groups."""

from __future__ import annotations

import mlx.core as mx

from mlx_vits.accel.cpu import convolution as as_products


def conv1d(
    x: mx.array, weight: mx.array, stride: int, padding: int, dilation: int, groups: int
) -> mx.array:
    """`(N, T, C)` with `(O, K, C / groups)` to `(N, Y, O)`; see `nn/ops.py`."""
    if groups > 1:
        # The gradient of MLX 0.32.4's own ends in an illegal memory access.
        return as_products.conv1d(x, weight, stride, padding, dilation, groups)
    return mx.conv1d(x, weight, stride, padding, dilation)


def conv_transpose1d(
    x: mx.array, weight: mx.array, stride: int, padding: int, dilation: int
) -> mx.array:
    """`(N, T, C)` with `(O, K, C)` to `(N, Y, O)`; see `nn/ops.py`."""
    return mx.conv_transpose1d(x, weight, stride, padding, dilation)
