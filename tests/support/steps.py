"""Training steps over nets of fixed random weights."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_vits.config import Config
from mlx_vits.models.discriminator import MultiPeriodDiscriminator
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.training.regularization import take_anchor
from mlx_vits.training.step import GANStep, build_optimizers, set_learning_rates
from mlx_vits.training.vits_trainer import freeze_for


def make_step(config: Config, train: Any = "all", *, pull: float = 0.0, **options: Any) -> GANStep:
    """A step, uncompiled unless `options` say so; `pull` is the strength of that to its start."""
    mx.random.seed(0)
    generator = SynthesizerTrn(config)
    freeze_for(generator, train)
    optimizers = build_optimizers(config)
    set_learning_rates(optimizers, 1e-4, 1e-4, 0.4)
    options = {"compiled": False} | options
    if pull:
        options |= {"anchor": take_anchor(generator), "reg_strength": pull}
    return GANStep(generator, MultiPeriodDiscriminator(config), optimizers, **options)


def peak_above_state(step: GANStep, run: Callable[[], Any]) -> int:
    """Bytes at the peak of one update, above what the step holds before it."""
    mx.eval(step.state())
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(run(), step.state())
    return mx.get_peak_memory() - before
