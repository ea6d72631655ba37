"""AdamW for both nets, as upstream sets it up."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from mlx_vits.config import Config
from mlx_vits.models.vits import TEXT_SIDE
from mlx_vits.training.losses import total


class Optimizers(NamedTuple):
    """AdamW for both nets; the generator's text-side tensors have a learning rate of their own."""

    generator: optim.MultiOptimizer
    discriminator: optim.AdamW


def build_optimizers(config: Config, *, bias_correction: bool = True) -> Optimizers:
    """Build AdamW as upstream sets it up; learning rates are set by `set_learning_rates`.

    Args:
        bias_correction: PyTorch always corrects; MLX's default is not to, which makes early
            updates two to three times as large.
    """

    def adamw() -> optim.AdamW:
        return optim.AdamW(
            learning_rate=config.train.learning_rate,
            betas=list(config.train.betas),
            eps=config.train.eps,
            weight_decay=0.01,
            bias_correction=bias_correction,
        )

    slow = optim.MultiOptimizer([adamw(), adamw()], [lambda path, _: path.startswith(TEXT_SIDE)])
    return Optimizers(slow, adamw())


def set_learning_rates(
    optimizers: Optimizers, lr_g: float, lr_d: float, text_low_lr_rate: float
) -> None:
    """Set the learning rate of every group."""
    slow, rest = optimizers.generator.optimizers
    slow.learning_rate = lr_g * text_low_lr_rate
    rest.learning_rate = lr_g
    optimizers.discriminator.learning_rate = lr_d


def global_norm(gradients: Any) -> mx.array:
    """L2 norm over all arrays of a tree; 0 for an empty one."""
    squares = [total(mx.square(array)) for array in leaves(gradients).values()]
    return mx.sqrt(sum(squares, start=mx.array(0.0)))


def add_gradients(some: Any, others: Any) -> Any:
    """Sum of two trees of gradients."""
    return tree_map(mx.add, some, others)


def leaves(tree: Any) -> dict[str, mx.array]:
    """The arrays of a tree by path."""
    pairs: Any = tree_flatten(tree)
    return dict(pairs)


def check_state(state: Any, other: Any) -> None:
    """Refuse another optimizer's state that belongs to other parameters.

    Raises:
        ValueError: it does.
    """
    ours, theirs = leaves(state), leaves(other)
    if {k: a.shape for k, a in ours.items()} != {k: a.shape for k, a in theirs.items()}:
        raise ValueError("the optimizer's moments are of other parameters")


def update_state(state: Any, other: Any) -> None:
    """Copy another optimizer's state into this one, in place: compiled functions refer to it.

    Args:
        state: of an optimizer that `init` has seen.
        other: of the same parameters, see `check_state`.
    """
    _copy(state, "", leaves(other))


def _copy(tree: Any, prefix: str, arrays: dict[str, mx.array]) -> None:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        path = f"{prefix}{key}"
        if isinstance(value, mx.array):
            tree[key] = arrays[path]
        else:
            _copy(value, f"{path}.", arrays)
