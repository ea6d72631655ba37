"""Arrays laid end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import mlx.core as mx

from mlx_vits.nn import cuda
from mlx_vits.nn.gradients import with_gradient
from mlx_vits.nn.viewing import views

_ALIGNED = 64  # elements, 128 bytes of bf16


def end_to_end(arrays: Sequence[mx.array], shape: tuple[int, ...] | None = None) -> mx.array:
    """The elements of arrays of any shapes, one after another, in this shape; None for `(N,)`."""
    if cuda.is_used(*arrays):
        return cuda.join(arrays, shape)
    flat = mx.concatenate([array.reshape(-1) for array in arrays])
    return flat if shape is None else flat.reshape(shape)


def _join(*arrays: mx.array) -> mx.array:
    return end_to_end(arrays)


def _join_gradient(
    primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
) -> list[mx.array]:
    return views(cotangent, [one.shape for one in primals])


# As `end_to_end`, through which a gradient passes.
joined = with_gradient(_join, _join_gradient)


def cast_together(arrays: Sequence[mx.array], dtype: mx.Dtype) -> list[mx.array]:
    """Arrays of one type as another; on CUDA in one piece, also in the gradient.

    Each of them begins where cuBLAS and cuDNN can read it: what would put the next one elsewhere
    is cast by itself.
    """
    together = [array for array in arrays if array.size % _ALIGNED == 0]
    if len(together) < 2 or not cuda.is_used(*together):
        return [array.astype(dtype) for array in arrays]
    found = iter(_cast_together(dtype)(*together))
    return [a.astype(dtype) if a.size % _ALIGNED else next(found) for a in arrays]


@cache
def _cast_together(dtype: mx.Dtype) -> Callable[..., list[mx.array]]:
    def cast(arrays: Sequence[mx.array], dtype: mx.Dtype) -> list[mx.array]:
        return views(cuda.join(arrays).astype(dtype), [one.shape for one in arrays])

    def forward(*arrays: mx.array) -> list[mx.array]:
        return cast(arrays, dtype)

    def gradient(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> list[mx.array]:
        return cast(cotangents, primals[0].dtype)

    return with_gradient(forward, gradient)
