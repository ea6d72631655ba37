"""Hand-written VJPs, bypassed at inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx

_IS_SKIPPED = ContextVar("is_skipped", default=False)  # per thread


@contextmanager
def skip_custom_vjp() -> Iterator[None]:
    """Run only the forward of functions with hand-written VJPs within a `with` block.

    Their gradient is then MLX's own, through the forward, if there is one. A custom function adds
    two operations to the graph, each scheduled like one that computes.
    """
    before = _IS_SKIPPED.set(True)
    try:
        yield
    finally:
        _IS_SKIPPED.reset(before)


def custom_vjp(forward: Callable[..., Any], gradient: Callable[..., Any]) -> Any:
    """Return `forward`, from arrays to one or more arrays, with a hand-written gradient.

    Args:
        gradient: maps the arrays, the cotangents and the outputs, as passed by
            `mx.custom_function`, to a gradient for each array.
    """
    function: Any = mx.custom_function(forward)
    function.vjp(gradient)

    def run(*arrays: mx.array) -> Any:
        return forward(*arrays) if _IS_SKIPPED.get() else function(*arrays)

    return run


def sum_to(bias: mx.array, gradient: mx.array) -> mx.array:
    """Sum the gradient of an output to that of the bias added to it.

    Args:
        bias: `(C,)`, `(1, C)`, or a scalar `(1,)`.
        gradient: `(..., C)`.
    """
    if bias.size != gradient.shape[-1]:
        gradient = gradient.reshape(-1, bias.size)
    if bias.ndim == 2:
        return mx.sum(gradient.flatten(0, -2), axis=0, keepdims=True)
    return mx.sum(gradient, axis=tuple(range(gradient.ndim - 1)))
