"""Tensors of equal shape in stacks, so that an operation covers many of them at once.

What is done to every tensor of a net costs a GPU a launch for each, and the GPT has 295. Axes: N
tensors of a stack, R rows, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_map_with_path

from mlx_vits.training.optimizers import leaves

_MOST_ELEMENTS = 1 << 23  # of a stack: what is computed with it takes memory several times


class Stack(NamedTuple):
    """Which tensors of a tree are in a stack, by path, and their shape."""

    paths: tuple[str, ...]
    shape: tuple[int, ...]


def plan_stacks(tree: Any) -> list[Stack]:
    """Group the arrays of a tree by shape; the order does not depend on the tree's."""
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for path, array in sorted(leaves(tree).items()):
        groups[array.shape].append(path)
    stacks = []
    for shape, paths in sorted(groups.items()):
        count = max(_MOST_ELEMENTS // max(mx.zeros(shape).size, 1), 1)
        parts = (paths[start : start + count] for start in range(0, len(paths), count))
        stacks += [Stack(tuple(part), shape) for part in parts]
    return stacks


def stacked(plan: Sequence[Stack], tree: Any) -> list[mx.array]:
    """The arrays of a tree as stacks `(N, R, C)`."""
    arrays, found = leaves(tree), []
    for stack in plan:
        columns = stack.shape[-1] if stack.shape else 1
        found.append(mx.stack([arrays[path].reshape(-1, columns) for path in stack.paths]))
    return found


def unstacked(plan: Sequence[Stack], stacks: Sequence[mx.array], like: Any) -> Any:
    """The inverse of `stacked`: a tree like another one."""
    arrays = {
        path: part.reshape(stack.shape)
        for stack, whole in zip(plan, stacks, strict=True)
        for path, part in zip(stack.paths, mx.split(whole, len(stack.paths)), strict=True)
    }
    return tree_map_with_path(lambda path, _: arrays[path], like)


def sums(stacks: Iterable[mx.array]) -> mx.array:
    """The sum of each tensor, `(tensors,)`; row by row, as `losses.total` does."""
    return mx.concatenate([mx.sum(mx.sum(stack, axis=2), axis=1) for stack in stacks])


def stacked_norm(tree: Any) -> mx.array:
    """L2 norm over all arrays of a tree, as `global_norm`; 0 for an empty one."""
    stacks = stacked(plan_stacks(tree), tree)
    if not stacks:
        return mx.array(0.0)
    return mx.sqrt(mx.sum(sums(map(mx.square, stacks))))
