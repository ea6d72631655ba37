"""Activation checkpointing: the backward pass recomputes a block's forward instead of keeping it.

Chen et al. 2016, arXiv:1604.06174. A gradient passes through a checkpointed function to its
arguments alone, so the parameters of the block's layers become arguments.

`mx.checkpoint` would recompute blocks that do not depend on each other (the sub-discriminators, the
residual blocks of one stage) at the same time, and so save little: 209 MB of 222 for a step of the
demo, where this takes 80. Here each block waits for the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from inspect import signature
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

AnyModule = TypeVar("AnyModule", bound=nn.Module)
_is_on = False
_token = mx.array(0.0)


def checkpoint_blocks(model: AnyModule, classes: Sequence[type[nn.Module]]) -> AnyModule:
    """Have the blocks of a model recompute their activations within `checkpointing`.

    Args:
        model: changed in place: its blocks become instances of subclasses with the same parameters.
        classes: of the blocks, whose forward returns an array.

    Returns:
        The model.
    """
    for module in model.modules():
        if isinstance(module, tuple(classes)) and not hasattr(module, "is_checkpointed"):
            kind: Any = type(module)
            module.__class__ = _checkpointed(kind)
    return model


@cache
def _checkpointed(cls: Any) -> Any:
    _, *names = signature(cls.__call__).parameters
    constants = [names.index("mask")] if "mask" in names else []

    def forward(self: nn.Module, *inputs: Any) -> Any:
        return recomputed(self, partial(cls.__call__, self), *inputs, constants=constants)

    return type(cls.__name__, (cls,), {"__call__": forward, "is_checkpointed": True})


@contextmanager
def checkpointing(on: bool = True) -> Iterator[None]:
    """Choose whether blocks whose forward runs within a `with` block are recomputed."""
    global _is_on, _token
    before, _is_on = (_is_on, _token), on
    _token = mx.array(0.0)
    try:
        yield
    finally:
        _is_on, _token = before


def recomputed(
    module: nn.Module,
    function: Callable[..., Any],
    *inputs: Any,
    learns: bool = True,
    constants: Collection[int] = (),
) -> Any:
    """Return `function(*inputs)`, of which the backward keeps inputs and outputs alone.

    Args:
        module: whose layers the function calls.
        function: to a tree of arrays. It is called twice, and has to give the same.
        inputs: arrays; those that are no floats, and others than arrays, are constants.
        learns: whether the gradient of the module's parameters is computed.
        constants: places of inputs that need no gradient, as masks.
    """
    if not _is_on:
        return function(*inputs)
    places = [
        index for index, value in enumerate(inputs) if index not in constants and _is_float(value)
    ]
    weights: Any = tree_flatten(module.trainable_parameters()) if learns else []
    names = [name for name, _ in weights]

    def run(arrays: Sequence[mx.array]) -> Any:
        own, arguments = module.trainable_parameters(), list(inputs)
        for index, array in zip(places, arrays[len(names) :], strict=True):
            arguments[index] = array
        module.update(tree_unflatten(list(zip(names, arrays, strict=False))))
        try:
            with checkpointing(False):
                return function(*arguments)
        finally:
            module.update(own)

    return _checkpoint(run, [*(array for _, array in weights), *(inputs[i] for i in places)])


def _checkpoint(run: Callable[[Sequence[mx.array]], Any], arrays: Sequence[mx.array]) -> Any:
    """Run a function whose gradient waits for that of the block after it.

    A token passes through all blocks; in the backward a block's recomputation waits for its
    cotangents, and the next block waits for the token that it leaves.
    """
    global _token
    names: list[str] = []

    def flat(*arrays: mx.array) -> list[mx.array]:
        leaves: Any = tree_flatten(run(arrays))
        names[:] = [name for name, _ in leaves]
        return [array for _, array in leaves]

    def forward(token: mx.array, *arrays: mx.array) -> list[mx.array]:
        return [token + 0, *flat(*arrays)]

    def gradient(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> Any:
        again = mx.depends(list(primals[1:]), [*cotangents, *outputs[1:]])
        _, grads = mx.vjp(flat, again, list(cotangents[1:]))
        return (mx.depends([cotangents[0]], grads)[0], *grads)

    function: Any = mx.custom_function(forward)
    function.vjp(gradient)
    _token, *outputs = function(_token, *arrays)
    if names == [""]:
        return outputs[0]
    return tree_unflatten(list(zip(names, outputs, strict=True)))


def _is_float(value: Any) -> bool:
    return isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating)
