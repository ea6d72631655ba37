"""Activation checkpointing: the backward pass recomputes a block's forward instead of keeping it.

Chen et al. 2016, arXiv:1604.06174, by way of `mx.checkpoint`. A gradient passes through a
checkpointed function to its arguments alone, so a block's parameters become arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def checkpoint_blocks(model: AnyModule, classes: Sequence[type[nn.Module]]) -> AnyModule:
    """Have the blocks of a model recompute their activations in the backward pass.

    Args:
        model: changed in place: its blocks become instances of subclasses with the same parameters.
        classes: of the blocks, whose forward takes arrays or None, and returns one array.

    Returns:
        The model.
    """
    for module in model.modules():
        if isinstance(module, tuple(classes)) and not hasattr(module, "is_checkpointed"):
            module.__class__ = _checkpointed(type(module))
    return model


@cache
def _checkpointed(cls: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *inputs: Any) -> Any:
        given = [index for index, value in enumerate(inputs) if value is not None]

        def run(parameters: dict[str, Any], *arrays: mx.array) -> Any:
            own, arguments = self.trainable_parameters(), list(inputs)
            for index, array in zip(given, arrays, strict=True):
                arguments[index] = array
            self.update(parameters)
            try:
                return cls.__call__(self, *arguments)
            finally:
                self.update(own)

        arrays = [inputs[index] for index in given]
        return mx.checkpoint(run)(self.trainable_parameters(), *arrays)

    return type(cls.__name__, (cls,), {"__call__": forward, "is_checkpointed": True})
