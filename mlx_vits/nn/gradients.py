"""Functions with gradients of their own, and without any where none is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx

_IS_ASKED_FOR = ContextVar("is_asked_for", default=True)  # of each thread


@contextmanager
def no_gradient(off: bool = True) -> Iterator[None]:
    """Says that nothing computed within a `with` block is differentiated.

    A function with a gradient of its own takes MLX two operations more, and each of them is
    scheduled like one that computes.
    """
    before = _IS_ASKED_FOR.set(_IS_ASKED_FOR.get() and not off)
    try:
        yield
    finally:
        _IS_ASKED_FOR.reset(before)


def with_gradient(forward: Callable[..., Any], gradient: Callable[..., Any]) -> Any:
    """`forward`, of arrays to one or several, with this gradient.

    Args:
        gradient: of the arrays, the cotangents and what came out, as `mx.custom_function` gives
            them, to a gradient for each array.
    """
    function: Any = mx.custom_function(forward)
    function.vjp(gradient)

    def run(*arrays: mx.array) -> Any:
        return function(*arrays) if _IS_ASKED_FOR.get() else forward(*arrays)

    return run


def sum_to(bias: mx.array, gradient: mx.array) -> mx.array:
    """The gradient in a bias, from that in what it was added to.

    Args:
        bias: `(C,)`, `(1, C)`, or one number `(1,)`.
        gradient: `(..., C)`.
    """
    if bias.size != gradient.shape[-1]:
        gradient = gradient.reshape(-1, bias.size)
    if bias.ndim == 2:
        return mx.sum(gradient.flatten(0, -2), axis=0, keepdims=True)
    return mx.sum(gradient, axis=tuple(range(gradient.ndim - 1)))
