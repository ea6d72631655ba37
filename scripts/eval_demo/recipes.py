"""How each cell of the ablation is trained: the product's own trainer, with one thing changed."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import mlx.nn as nn

from eval_demo.settings import Run, Settings
from mlx_vits.checkpoints.base import Base
from mlx_vits.nn.layers import Convolution
from mlx_vits.nn.weight_norm import split_weight
from mlx_vits.training.step import Batch, Draws, GANStep, StepResult
from mlx_vits.training.vits_trainer import VITSTrainer, VITSTrainingConfig


class Recipe(NamedTuple):
    """What is trained, and how.

    Attributes:
        base: without its discriminator where a fresh one is to start.
        training: the product's options.
        trainer: the product's trainer, or an experiment's.
    """

    base: Base
    training: VITSTrainingConfig
    trainer: type[VITSTrainer]


def choose_recipe(settings: Settings, run: Run, base: Base) -> Recipe:
    """The recipe of a cell.

    Args:
        run: with a seed.
        base: the frozen one.
    """
    assert run.seed is not None
    changes = dict(settings.cells[run.cell])
    is_fresh = changes.pop("fresh_discriminator", False)
    has_units = changes.pop("unit_directions", False)
    training = VITSTrainingConfig(seed=run.seed, **(settings.training | changes))
    return Recipe(
        base=replace(base, discriminator=None) if is_fresh else base,
        training=training,
        trainer=UnitDirectionTrainer if has_units else VITSTrainer,
    )


class UnitDirectionStep(GANStep):
    """A step after which the direction of every trained weight norm has length 1 again.

    The effective weight `g v / |v|` stays as it is; what changes is how far AdamW, whose steps do
    not depend on the size of the gradient, turns a direction in the next update.
    """

    def run(self, batch: Batch, draws: Draws) -> StepResult:
        result = super().run(batch, draws)
        make_directions_unit(self.generator)
        return result


class UnitDirectionTrainer(VITSTrainer):
    """A trainer of `UnitDirectionStep`."""

    step_class = UnitDirectionStep


def make_directions_unit(model: nn.Module) -> None:
    """Divides each trained `weight_v` by its length, over the axes that its norm runs over."""
    for _, layer in model.named_modules():
        if isinstance(layer, Convolution) and "weight_v" in layer.trainable_parameters():
            layer.weight_v = layer.weight_v / split_weight(layer.weight_v, layer.kind).g
