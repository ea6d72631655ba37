"""AdamW for both nets, as upstream sets it up."""

from __future__ import annotations

from typing import NamedTuple

import mlx.optimizers as optim

from mlx_vits.config import Config
from mlx_vits.models.vits import TEXT_SIDE


class Optimizers(NamedTuple):
    """AdamW for both nets; the generator's text-side tensors have a learning rate of their own."""

    generator: optim.MultiOptimizer
    discriminator: optim.AdamW


def build_optimizers(config: Config, *, bias_correction: bool = True) -> Optimizers:
    """AdamW as upstream sets it up; learning rates are set by `set_learning_rates`.

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
    """Sets the learning rate of every group."""
    slow, rest = optimizers.generator.optimizers
    slow.learning_rate = lr_g * text_low_lr_rate
    rest.learning_rate = lr_g
    optimizers.discriminator.learning_rate = lr_d
