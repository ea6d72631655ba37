"""AdamW's state between blocks, as a step holds it, and one moment for each tensor, as files do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from mlx_vits.training.packed import Packed

_SETTINGS = ("step", "learning_rate")  # of an AdamW's state, beside the moments


def moments_by_path(packed: Packed, groups: list[optim.AdamW]) -> list[dict[str, Any]]:
    """The states of a net's optimizers with a moment for each tensor."""
    moments = {
        leaf: packed.unpack(
            [
                {name: optimizer.state[name][leaf] for name in arrays}
                for optimizer, arrays in zip(groups, packed.arrays, strict=True)
            ]
        )
        for leaf in "mv"
    }
    states = []
    for number, optimizer in enumerate(groups):
        leaves: list[tuple[str, Any]] = [(name, optimizer.state[name]) for name in _SETTINGS]
        for path in packed.paths(number):
            leaves += [(f"{path}.{leaf}", moments[leaf][path]) for leaf in "mv"]
        states.append(tree_unflatten(leaves))
    return states


def set_moments_by_path(
    packed: Packed, groups: list[optim.AdamW], states: Sequence[dict[str, Any]]
) -> None:
    """The inverse, into the dictionaries that there are: a compiled step holds on to them."""
    leaves: dict[str, mx.array] = {}
    for state in states:
        leaves |= flatten(state)
    for leaf in "mv":
        end = f".{leaf}"
        tensors = {name.removesuffix(end): a for name, a in leaves.items() if name.endswith(end)}
        for optimizer, arrays in zip(groups, packed.pack(tensors), strict=True):
            for name, array in arrays.items():
                optimizer.state[name][leaf] = array
    for optimizer, state in zip(groups, states, strict=True):
        for name in _SETTINGS:
            optimizer.state[name] = state[name]


def flatten(tree: Any) -> dict[str, mx.array]:
    """The arrays of a tree by path."""
    leaves: Any = tree_flatten(tree)
    return dict(leaves)


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a tree's arrays by path."""
    return {name: array.shape for name, array in flatten(tree).items()}
