"""Synthesis recorded once for a shape, and played back.

Describing synthesis to MLX takes Python longer than an NVIDIA GPU takes to compute it. What was
recorded belongs to the weights and the shapes it was recorded with, and nothing is fused: the
result is the same to the last bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

LIMIT = 16  # shapes that are remembered


class Recorder:
    """Call a function of a model, arrays and settings, recorded or not.

    A shape is recorded when it is met for the second time: most sentences are said once.

    Args:
        function: of a model, a tree of arrays, and hashable settings, to an array.
        limit: shapes that are remembered, those met last.
    """

    def __init__(self, function: Callable[..., mx.array], limit: int = LIMIT):
        self._function, self._limit = function, limit
        self._model: nn.Module | None = None
        self._met: OrderedDict[Hashable, Callable[..., mx.array] | None] = OrderedDict()

    def __call__(self, model: nn.Module, inputs: Any, *settings: Hashable) -> mx.array:
        if model is not self._model:
            self._met.clear()
            self._model = model
        leaves: Any = tree_flatten(inputs)
        key = (*((name, array.shape) for name, array in leaves), settings)
        is_known = key in self._met
        function = self._met.pop(key, None)
        if is_known and function is None:
            function = mx.compile(partial(self._call, model, settings))
        self._met[key] = function
        if len(self._met) > self._limit:
            self._met.popitem(last=False)
        return function(inputs) if function else self._call(model, settings, inputs)

    def _call(self, model: nn.Module, settings: tuple[Hashable, ...], inputs: Any) -> mx.array:
        return self._function(model, inputs, *settings)
