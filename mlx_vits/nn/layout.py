"""The one place that knows PyTorch's axes and the names that differ, in both directions.

Upstream's activations are `[B, C, T]`, ours `(B, T, C)`. Weights differ by one permutation per
layer kind, which serves `weight`, `weight_v` and `weight_g` alike; all else has the same axes.

| kind | PyTorch | MLX |
| --- | --- | --- |
| conv1d | [out, in / groups, k] | (out, k, in / groups) |
| conv_transpose1d | [in, out / groups, k] | (out / groups, k, in) |
| conv2d | [out, in, kh, kw] | (out, kh, kw, in) |
"""

from __future__ import annotations

from typing import TypeVar

import mlx.core as mx
import numpy as np

Array = TypeVar("Array", mx.array, np.ndarray)

_TO_MLX: dict[str, tuple[int, ...]] = {
    "conv1d": (0, 2, 1),
    "conv_transpose1d": (1, 2, 0),
    "conv2d": (0, 2, 3, 1),
}
_TO_TORCH = {
    kind: tuple(axes.index(axis) for axis in range(len(axes))) for kind, axes in _TO_MLX.items()
}


def from_torch(array: Array, kind: str | None) -> Array:
    """A parameter in MLX's axes.

    Args:
        array: a parameter in PyTorch's axes; biases and vectors come back as they are.
        kind: the layer's kind, or None for a layer whose axes agree.
    """
    axes = _TO_MLX.get(kind or "")
    return array.transpose(axes) if axes is not None and array.ndim == len(axes) else array


def to_torch(array: Array, kind: str | None) -> Array:
    """A parameter in PyTorch's axes: the inverse of `from_torch`."""
    axes = _TO_TORCH.get(kind or "")
    return array.transpose(axes) if axes is not None and array.ndim == len(axes) else array


def torch_shape(shape: tuple[int, ...], kind: str | None) -> tuple[int, ...]:
    """The shape that `to_torch` would give."""
    axes = _TO_TORCH.get(kind or "")
    if axes is None or len(shape) != len(axes):
        return shape
    return tuple(shape[axis] for axis in axes)


def channels_last(array: Array) -> Array:
    """Activations `[B, C, T]` as `(B, T, C)`."""
    return array.swapaxes(1, 2)


def torch_name(path: str) -> str:
    """Upstream's state-dict name of a parameter path.

    MLX hides attributes that begin with an underscore, so `_codebook` is `codebook` here.
    """
    return path.replace(".codebook.", "._codebook.")
