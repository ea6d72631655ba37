"""Training steps over nets of fixed random weights."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_vits import accel
from mlx_vits.config import Config
from mlx_vits.models.discriminator import MultiPeriodDiscriminator
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.nn.layers import set_compute_dtype
from mlx_vits.training.checkpointed import checkpointed
from mlx_vits.training.optimizers import build_optimizers, set_learning_rates
from mlx_vits.training.regularization import PretrainedRegularization, take_anchor
from mlx_vits.training.step import GANStep
from mlx_vits.training.vits_trainer import freeze_for


def make_step(
    config: Config,
    train: Any = "all",
    *,
    pull: float = 0.0,
    compiled: bool = False,
    compute: mx.Dtype = mx.float32,
    recomputes: bool = False,
) -> GANStep:
    """A step; `pull` is the strength of that to its start."""
    mx.random.seed(0)
    generator, judge = SynthesizerTrn(config), MultiPeriodDiscriminator(config)
    freeze_for(generator, train)
    optimizers = build_optimizers(config)
    set_learning_rates(optimizers, 1e-4, 1e-4, 0.4)
    penalty = None
    if pull:
        penalty = PretrainedRegularization(take_anchor(generator), pull)
    for net in (generator, judge):
        set_compute_dtype(net, compute)
        accel.apply(net)
    kind = checkpointed(GANStep) if recomputes else GANStep
    return kind(generator, judge, optimizers, penalty=penalty, compiled=compiled)


def peak_above_state(step: GANStep, run: Callable[[], Any]) -> int:
    """Bytes at the peak of one update, above what the step holds before it."""
    mx.eval(step.state)
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(run(), step.state)
    return mx.get_peak_memory() - before
