"""Convolutions in two dimensions, of height 1.

cuDNN has fast kernels for those, and MLX tells the gradient of a weight from a forward by their
sizes along the second axis.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_vits.accel.cpu import convolution as as_products
from mlx_vits.accel.cuda.fused import Geometry, convolution
from mlx_vits.accel.cuda.kernels import is_used


def conv1d(
    x: mx.array, weight: mx.array, stride: int, padding: int, dilation: int, groups: int
) -> mx.array:
    """`(N, T, C)` with `(O, K, C / groups)` to `(N, Y, O)`; see `nn/ops.py`."""
    if groups > 1:
        # The gradient of MLX 0.32.4's own ends in an illegal memory access.
        return as_products.conv1d(x, weight, stride, padding, dilation, groups)
    geometry = Geometry(stride, padding, dilation)
    if is_used(x, weight):
        return convolution(geometry)(x, weight)
    return geometry.convolve(x, weight).squeeze(1)


def conv_transpose1d(
    x: mx.array, weight: mx.array, stride: int, padding: int, dilation: int
) -> mx.array:
    """`(N, T, C)` with `(O, K, C)` to `(N, Y, O)`; see `nn/ops.py`."""
    geometry = ((1, stride), (0, padding), (1, dilation))
    return mx.conv_transpose2d(x[:, None], weight[:, None], *geometry).squeeze(1)
