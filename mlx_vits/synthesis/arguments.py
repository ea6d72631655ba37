"""Arrays that a caller gives, checked before anything is computed with them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

Array = np.ndarray | mx.array


def floats(array: Array, shape: tuple[int | None, ...], name: str) -> mx.array:
    """Check the shape of an array and return it as fp32.

    Args:
        shape: None where any size will do.
        name: for messages.

    Raises:
        ValueError: it has another shape.
    """
    result = array if isinstance(array, mx.array) else mx.array(np.asarray(array))
    _check_shape(result, shape, name)
    return result.astype(mx.float32)


def integers(array: Array, shape: tuple[int | None, ...], name: str, count: int) -> mx.array:
    """Check shape and range (0 to `count` - 1) of an array and return it as int32; see `floats`.

    Raises:
        ValueError: it has another shape, or holds something else.
    """
    values = np.array(array)
    _check_shape(values, shape, name)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} holds {values.dtype}; integers are needed")
    if values.size and not (values.min() >= 0 and values.max() < count):
        raise ValueError(
            f"{name} reaches from {values.min()} to {values.max()}; only 0 to {count - 1} exist"
        )
    return mx.array(values.astype(np.int32))


def _check_shape(array: Array, shape: tuple[int | None, ...], name: str) -> None:
    fits = len(array.shape) == len(shape) and all(
        wish in (None, size) for size, wish in zip(array.shape, shape, strict=True)
    )
    if not fits or 0 in array.shape:
        wished = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(array.shape)}; [{wished}] is needed")
