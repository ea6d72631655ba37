"""The training loop: one GAN step after another, from a prepared voice.

It decides what comes next and stops when the numbers do; it draws no curve, writes no file and
prints nothing. `mlx_vits/finetune/run.py` drives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlx_vits import accel
from mlx_vits.accel.compilation import compiles_step
from mlx_vits.checkpoints.run import MOST_STEPS, Place, RunState
from mlx_vits.checkpoints.run_info import DAMAGED
from mlx_vits.errors import CheckpointError
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.nn.layers import set_compute_dtype
from mlx_vits.nn.weight_norm import NormScheme
from mlx_vits.system.json_files import build_record, check_ranges
from mlx_vits.training.accumulation import AccumulatingStep
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.checkpointed import checkpointed
from mlx_vits.training.footprint import is_short, usable_memory
from mlx_vits.training.loop import Begun, StepRecord, TrainingLoop, begin, other_settings
from mlx_vits.training.optimizers import (
    build_optimizers,
    check_state,
    set_learning_rates,
    update_state,
)
from mlx_vits.training.precision import CHECKPOINTING, compute_type
from mlx_vits.training.regularization import Anchor, PretrainedRegularization
from mlx_vits.training.step import Batch, GANStep, Scalars

__all__ = ["StepRecord", "VITSTrainer", "VITSTrainingConfig", "freeze_for"]

TrainedPart = Literal["all", "decoder"]
_LARGEST_RATE = 1e38  # of fp32
_LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (1, MOST_STEPS),
    "steps": (1, MOST_STEPS),
    # An epoch is filled up to whole steps, and one of so many clips fits no memory.
    "batch_size": (1, 1024),
    "accumulate": (1, 1024),
    "lr_g": (0.0, _LARGEST_RATE),
    "lr_d": (0.0, _LARGEST_RATE),
    "text_low_lr_rate": (0.0, 100.0),
    "pretrained_reg_strength": (0.0, 1e6),
    "blend": (0.0, 1.0),
    "blend_prior": (0.0, 1.0),
    "segment_size": (1280, 1 << 20),
    "seed": (0, 2**31 - 1),
}


@dataclass(frozen=True)
class VITSTrainingConfig:
    """How a voice is fine-tuned.

    Attributes:
        epochs: passes over the (repeated) clips.
        steps: ends the run after so many updates, whatever `epochs` says; None for no limit.
        batch_size: clips that are computed at a time.
        accumulate: such batches a step; the step is that of one batch so many times as large.
        lr_g, lr_d: learning rates of generator and discriminator, before the decay of an epoch.
        text_low_lr_rate: the text-side tensors learn at this share of `lr_g`.
        pretrained_reg_strength: of the pull toward the pretrained weights.
        blend: share of the way from the pretrained weights to the trained ones at which the voice
            lies, see `blending.py`; training itself does not know of it.
        blend_prior: of `enc_p`, `enc_q` and `flow`; None for `blend`.
        segment_size: samples that are decoded of each clip, a multiple of the hop length.
        seed: of batches, noise, slices and dropout.
        train: "all" as upstream, "decoder" for `dec` and `ref_enc` alone.
        weight_norm: which layers hold their weight as length and direction.
        bias_correction: of AdamW; PyTorch always corrects.
        compiled: whether a step is compiled; None leaves it to the device, see `compiles_step`.
        precision: what is computed in, of `PRECISIONS`; what is saved is the same.
        checkpoint_activations: whether the backward computes blocks of the nets again instead of
            keeping what they gave: "on", "off", or "auto" for where memory is short.
    """

    epochs: int = 8
    steps: int | None = None
    batch_size: int = 4
    accumulate: int = 1
    lr_g: float = 1e-5
    lr_d: float = 1e-5
    text_low_lr_rate: float = 0.4
    pretrained_reg_strength: float = 0.001
    blend: float = 1.0
    blend_prior: float | None = None
    segment_size: int = 20480
    seed: int = 1234
    train: TrainedPart = "all"
    weight_norm: NormScheme = "upstream"
    bias_correction: bool = True
    compiled: bool | None = None
    precision: str = "auto"
    checkpoint_activations: str = "auto"

    @classmethod
    def of_run(cls, values: Mapping[str, Any], source: str | Path) -> VITSTrainingConfig:
        """Check the options that a run was started with.

        Args:
            values: by name.
            source: their file, for messages.

        Raises:
            CheckpointError: one is unknown, or has no such value.
        """
        return build_record(cls, dict(values), f"{source}:", error=CheckpointError, cure=DAMAGED)

    @property
    def clips_a_step(self) -> int:
        """Clips that an update sees."""
        return self.batch_size * self.accumulate

    def __post_init__(self) -> None:
        check_ranges(self, **_LIMITS)
        compute_type(self.precision)
        if self.checkpoint_activations not in CHECKPOINTING:
            raise ValueError(f"checkpoint_activations is {self.checkpoint_activations!r}")


class VITSTrainer(TrainingLoop[dict[str, np.ndarray]]):
    """Fine-tunes a generator and a discriminator on one voice.

    Args:
        generator: with the base's weights, or a run's.
        discriminator: likewise.
        voice: the prepared clips.
        config: how.
        anchor: the base's weights, from `take_anchor` on a generator that `freeze_for` has seen.

    Attributes:
        recomputes: whether activations are checkpointed.
    """

    step_class: type[GANStep] = GANStep  # another recipe of a step is a subclass of both

    def __init__(
        self,
        generator: SynthesizerTrn,
        discriminator: MultiPeriodDiscriminator,
        voice: PreparedVoice,
        config: VITSTrainingConfig,
        anchor: Anchor | None = None,
    ):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.voice, self.config = voice, config
        freeze_for(generator, config.train)
        self.recomputes = self._recomputes()
        self._gan, self._update = self._build_step(anchor)

    def _build_step(self, anchor: Anchor | None) -> tuple[GANStep, Callable[..., Scalars]]:
        """Build the step, and what takes it: in one go, or in parts."""
        config, nets = self.config, (self.generator, self.discriminator)
        for net in nets:
            set_compute_dtype(net, compute_type(config.precision))
            accel.apply(net)
        penalty = None
        if anchor and config.pretrained_reg_strength:
            penalty = PretrainedRegularization(anchor, config.pretrained_reg_strength)
        optimizers = build_optimizers(self.generator.config, bias_correction=config.bias_correction)
        compiled = compiles_step(config.compiled)
        step_class = checkpointed(self.step_class) if self.recomputes else self.step_class
        step = step_class(*nets, optimizers, penalty=penalty, compiled=compiled)
        accel.optimize(step)
        if config.accumulate > 1:
            return step, AccumulatingStep(step, config.accumulate, compiled=compiled)
        return step, step

    def _recomputes(self) -> bool:
        wish = self.config.checkpoint_activations
        if wish != "auto":
            return wish == "on"
        clips = self.voice.largest_batch(self.config.batch_size)
        return is_short(self.generator.config, clips, usable_memory())

    @cached_property
    def steps_per_epoch(self) -> int:
        """Updates of any epoch: only the order of its clips depends on which one it is."""
        return len(self.voice.plan(self.config.clips_a_step, self.config.seed, 1))

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        if self.config.steps is not None:
            return self.config.steps
        return self.config.epochs * self.steps_per_epoch

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        size, seed = self.config.clips_a_step, self.config.seed
        return self.voice.endless(size, seed, self.place.epoch, self.place.batch)

    def _enter_epoch(self, place: Place) -> Place:
        """A place with a batch left in its epoch."""
        if place.batch >= self.steps_per_epoch:
            place = replace(place, epoch=place.epoch + 1, batch=0)
        return replace(place, epoch_batches=self.steps_per_epoch)

    def _begin(self, fields: dict[str, np.ndarray], place: Place) -> Begun:
        place = self._enter_epoch(place)
        rates = self._set_rates(place.epoch)
        batch = Batch(**{name: mx.array(array) for name, array in fields.items()})
        losses = self._update(batch, mx.random.key((self.config.seed << 32) + place.step))
        after = replace(place, step=place.step + 1, batch=place.batch + 1)
        return begin(losses, self._gan.state, rates, after)

    def _set_rates(self, epoch: int) -> dict[str, float]:
        """Learning rates of an epoch; upstream decays them before the first."""
        decay = self.generator.config.train.lr_decay**epoch
        lr_g, lr_d = self.config.lr_g * decay, self.config.lr_d * decay
        set_learning_rates(self._gan.optimizers, lr_g, lr_d, self.config.text_low_lr_rate)
        return {"lr_g": lr_g, "lr_d": lr_d}

    def trees(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as trees of arrays."""
        optimizers = self._gan.optimizers
        return {
            "generator": self.generator.parameters(),
            "discriminator": self.discriminator.parameters(),
            "optimizer_g": optimizers.generator.state,
            "optimizer_d": optimizers.discriminator.state,
        }

    def restore(self, state: RunState, source: str) -> None:
        """Continues where a state was taken.

        Raises:
            CheckpointError: the state belongs to a run of another shape.
        """
        try:
            # The moments first: they tell another kind of run before anything is changed.
            optimizers = self._gan.optimizers
            check_state(optimizers.generator.state, state.trees["optimizer_g"])
            check_state(optimizers.discriminator.state, state.trees["optimizer_d"])
            self.generator.update(state.trees["generator"], strict=True)
            self.discriminator.update(state.trees["discriminator"], strict=True)
            update_state(optimizers.generator.state, state.trees["optimizer_g"])
            update_state(optimizers.discriminator.state, state.trees["optimizer_d"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise other_settings(source, error) from error
        self.place = state.place


def freeze_for(generator: SynthesizerTrn, train: TrainedPart) -> None:
    """Freezes what is not trained.

    `ssl_proj` and `quantizer` never receive a gradient upstream, so nothing may decay them either.
    """
    generator.unfreeze()
    if train == "decoder":
        generator.freeze()
        generator.dec.unfreeze()
        generator.ref_enc.unfreeze()
    else:
        generator.ssl_proj.freeze()
        generator.quantizer.freeze()
