"""Activation checkpointing: the backward computes a block's forward again instead of keeping it.

Chen et al. 2016, arXiv:1604.06174. Models mark their blocks with `recomputed`, which does nothing
unless it is switched on. A gradient passes through a checkpointed function to its arguments alone,
so the arrays of the block's layers become arguments: parameters, or the effective weight where a
layer holds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_vits.nn.weight_norm import WeightNormed

_Place = tuple[Any, str]  # a dictionary of arrays, and a key
_is_on = False
_token = mx.array(0.0)


@contextmanager
def checkpointing(on: bool = True) -> Iterator[None]:
    """Whether blocks whose forward runs within a `with` block are computed again."""
    global _is_on, _token
    before, _is_on = (_is_on, _token), on
    _token = mx.array(0.0)
    try:
        yield
    finally:
        _is_on, _token = before


def recomputed(
    modules: Sequence[nn.Module],
    function: Callable[..., Any],
    *inputs: Any,
    learns: bool = True,
) -> Any:
    """`function(*inputs)`, of which the backward keeps inputs and outputs alone.

    Args:
        modules: whose layers the function calls.
        function: of arrays to a tree of arrays. What else it refers to gets no gradient; it is
            called twice, and has to give the same.
        inputs: arrays, none of them None while it is switched on.
        learns: whether the gradient of the modules' parameters is asked for; where it is not, as
            where they are frozen, it is not computed either.
    """
    if not _is_on:
        return function(*inputs)
    places = list(_places(modules, learns))
    trained = [(container, key) for container, key, is_trained in places if is_trained]
    fixed = [(container, key) for container, key, is_trained in places if not is_trained]
    constants = _taken(fixed)

    def run(weights: list[mx.array], inputs: tuple[mx.array, ...]) -> Any:
        before = _taken(trained), _taken(fixed)
        _put(trained, weights)
        _put(fixed, constants)
        try:
            with checkpointing(False):
                return function(*inputs)
        finally:
            _put(trained, before[0])
            _put(fixed, before[1])

    return _checkpoint(run, _taken(trained), inputs)


def _checkpoint(
    run: Callable[[list[mx.array], tuple[mx.array, ...]], Any],
    weights: list[mx.array],
    inputs: tuple[mx.array, ...],
) -> Any:
    """As `mx.checkpoint`, but one block after the other is computed again.

    A token goes from block to block. Its gradient comes back as each is done with, and the next one
    waits for it; MLX would else compute blocks that do not need each other at the same time.
    """
    global _token
    count = len(weights)
    names: list[str] = []

    def flat(*arrays: mx.array) -> list[mx.array]:
        leaves: Any = tree_flatten(run(list(arrays[:count]), arrays[count:]))
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
    _token, *outputs = function(_token, *weights, *inputs)
    if names == [""]:
        return outputs[0]
    return tree_unflatten(list(zip(names, outputs, strict=True)))


def _places(modules: Sequence[nn.Module], learns: bool) -> Iterator[tuple[Any, str, bool]]:
    """Where the layers of modules hold the arrays that they compute with, and which are trained."""
    inner = {id(part): part for module in modules for part in module.modules()}
    for module in inner.values():
        trained: Any = module.trainable_parameters() if learns else {}
        holds = isinstance(module, WeightNormed) and module.__dict__.get("_held") is not None
        if holds:
            yield module.__dict__, "_held", "weight_v" in trained
        for name, value in module.items():
            if isinstance(value, mx.array) and not (holds and name.startswith("weight_")):
                yield module, name, name in trained


def _taken(places: Sequence[_Place]) -> list[mx.array]:
    return [container[key] for container, key in places]


def _put(places: Sequence[_Place], arrays: Sequence[mx.array]) -> None:
    for (container, key), array in zip(places, arrays, strict=True):
        container[key] = array
