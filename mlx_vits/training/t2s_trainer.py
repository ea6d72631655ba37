"""The training loop of the GPT stage: one step after another, from a prepared voice.

Upstream's loop has faults, which `compat` brings back: an epoch's last micro-batches are kept for
the first step of the next epoch instead of being learned at once, an epoch of few micro-batches has
no step at all, and the first step is five times as large as all others. The numbers of the
original's `s1longer-v2.yaml` for the learning rate have no effect there; nor have they here.

Source: GPT-SoVITS `s1_train.py`, `AR/models/t2s_lightning_module.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from mlx_vits import accel
from mlx_vits.accel.compilation import compiles_step
from mlx_vits.checkpoints.run import MOST_STEPS, Place, RunState
from mlx_vits.checkpoints.run_info import DAMAGED
from mlx_vits.errors import CheckpointError, DataError
from mlx_vits.models.t2s import Text2SemanticDecoder
from mlx_vits.system.json_files import build_record, check_ranges
from mlx_vits.training.footprint import exceeds, usable_memory
from mlx_vits.training.loop import Begun, TrainingLoop, begin, other_settings
from mlx_vits.training.optimizers import check_state, update_state
from mlx_vits.training.precision import CHECKPOINTING, compute_type
from mlx_vits.training.regularization import Anchor, StackedPull
from mlx_vits.training.scaled_adam import ScaledAdam
from mlx_vits.training.t2s_footprint import T2SClips, estimate_t2s_peak
from mlx_vits.training.t2s_step import T2SBatch, T2SStep

T2SOptimizer = Literal["scaled_adam", "adamw"]
RATES: dict[str, float] = {"scaled_adam": 0.002, "adamw": 1e-5}
_FIRST_RATE = 0.01  # upstream's
_LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (1, MOST_STEPS),
    "steps": (1, MOST_STEPS),
    "batch_size": (1, 1024),
    "accumulate": (1, 1024),
    "lr": (0.0, 1e38),
    "warm_up": (0, MOST_STEPS),
    "last_share": (0.0, 1.0),
    "replaced": (0.0, 0.5),
    "pretrained_reg_strength": (0.0, 1e6),
    "seed": (0, 2**31 - 1),
    "save_every": (1, MOST_STEPS),
}


@dataclass(frozen=True)
class T2STrainingConfig:
    """How a voice's GPT is fine-tuned.

    Attributes:
        epochs: passes over the (repeated) clips.
        steps: ends the run after so many updates, whatever `epochs` says; None for no limit.
        batch_size: clips that are computed at a time, at most: half as many with DPO, and a quarter
            of an epoch's.
        accumulate: such micro-batches a step; their gradients are summed.
        optimizer: "scaled_adam" as upstream, or "adamw" without weight decay.
        lr: learning rate; None for the optimizer's own, of `RATES`. ScaledAdam's is relative to
            each tensor's size.
        warm_up: steps over which it rises to that; 0 for none, as in a fine-tune.
        last_share: of it, which it falls to by the end along a cosine; 1 for a constant rate.
        replaced: share of the input codes that are others, drawn at random, while the targets stay:
            so a net learns to go on after a bad draw.
        dpo: whether spoiled codes are to become less likely than the recorded ones.
        pretrained_reg_strength: of the pull toward the pretrained weights; `compat` has none.
        seed: of batches and dropout.
        save_every: epochs from one saved state to the next.
        precision: what is computed in, of `PRECISIONS`; what is saved is the same.
        checkpoint_activations: whether the backward computes layers again instead of keeping what
            they gave: "on", "off", or "auto" for where memory is short.
        compiled: whether a step is compiled; None leaves it to the device, see `compiles_step`.
        compat: brings upstream's faults back: those above, those of the loss (`t2s_step.py`) and
            of the optimizer (`scaled_adam.py`).
    """

    epochs: int = 15
    steps: int | None = None
    batch_size: int = 8
    accumulate: int = 4
    optimizer: T2SOptimizer = "scaled_adam"
    lr: float | None = None
    warm_up: int = 0
    last_share: float = 1.0
    replaced: float = 0.0
    dpo: bool = False
    pretrained_reg_strength: float = 0.001
    seed: int = 1234
    save_every: int = 5
    precision: str = "auto"
    checkpoint_activations: str = "auto"
    compiled: bool | None = None
    compat: bool = False

    @classmethod
    def of_run(cls, values: Mapping[str, Any], source: str | Path) -> T2STrainingConfig:
        """Check the options that a run was started with; as `VITSTrainingConfig.of_run`."""
        return build_record(cls, dict(values), f"{source}:", error=CheckpointError, cure=DAMAGED)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return RATES[self.optimizer] if self.lr is None else self.lr

    @property
    def is_pulled(self) -> bool:
        """Whether there is a pull toward the pretrained weights."""
        return bool(self.pretrained_reg_strength) and not self.compat

    def __post_init__(self) -> None:
        check_ranges(self, **_LIMITS)
        compute_type(self.precision)
        if self.optimizer not in RATES:
            raise ValueError(f"optimizer {self.optimizer!r} is not one of {', '.join(RATES)}")
        if self.checkpoint_activations not in CHECKPOINTING:
            raise ValueError(f"checkpoint_activations is {self.checkpoint_activations!r}")


class T2SVoice(Protocol):
    """The clips to train on.

    Attributes:
        dpo: whether batches have spoiled codes.
        compat: whether phonemes are padded on the right.
    """

    dpo: bool
    compat: bool

    def batch_size(self, asked: int) -> int:
        """Return the clips of a micro-batch where so many are asked for."""

    def plan(self, batch_size: int, seed: int, epoch: int) -> Sequence[Any]:
        """The micro-batches of one epoch, from 1, not yet read."""

    def endless(
        self, batch_size: int, seed: int, epoch: int, start: int = 0
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """The fields of `T2SBatch`, one micro-batch after another, epoch after epoch.

        Args:
            epoch: the first, from 1.
            start: micro-batches of the first epoch that are left out.
        """

    def largest_batch(self, batch_size: int) -> T2SClips:
        """The shape of the largest micro-batch that may come."""


class _Group(NamedTuple):
    """The micro-batches of one step.

    Attributes:
        fields: of each.
        epoch, batch, epoch_batches: as those of the place after it.
    """

    fields: list[Mapping[str, np.ndarray]]
    epoch: int
    batch: int
    epoch_batches: int


class T2STrainer(TrainingLoop[_Group]):
    """Fine-tunes a GPT on one voice.

    Args:
        model: with the base's weights, or a run's.
        voice: the prepared clips.
        config: how.
        anchor: the base's weights, from `take_anchor`.

    Attributes:
        batch_size: clips of a micro-batch.
        recomputes: whether layers are computed again in the backward.

    Raises:
        DataError: with `compat`, an epoch has too few micro-batches for a step.
    """

    def __init__(
        self,
        model: Text2SemanticDecoder,
        voice: T2SVoice,
        config: T2STrainingConfig,
        anchor: Anchor | None = None,
    ):
        super().__init__()
        self.model, self.voice, self.config = model, voice, config
        if (voice.dpo, voice.compat) != (config.dpo, config.compat):
            raise ValueError("the voice's `dpo` and `compat` are not those of the training")
        self.batch_size = voice.batch_size(config.batch_size)
        count = len(voice.plan(self.batch_size, config.seed, 1))
        if config.compat and count <= config.accumulate:
            raise DataError(
                f"an epoch of {count} batches has no step where upstream's loop is followed; "
                "choose a smaller batch size, or leave compat off"
            )
        model.unfreeze()
        self.recomputes = self._recomputes()
        self._step = self._build_step(anchor)

    def _build_step(self, anchor: Anchor | None) -> T2SStep:
        config = self.config
        accel.apply(self.model)
        penalty = None
        if anchor and config.is_pulled:
            penalty = StackedPull(self.model, anchor, config.pretrained_reg_strength)
        return T2SStep(
            self.model,
            build_t2s_optimizer(config),
            dpo=config.dpo,
            compat=config.compat,
            replaced=config.replaced,
            penalty=penalty,
            compute=compute_type(config.precision),
            recomputes=self.recomputes,
            compiled=compiles_step(config.compiled),
        )

    def _recomputes(self) -> bool:
        wish = self.config.checkpoint_activations
        if wish != "auto":
            return wish == "on"
        peak = estimate_t2s_peak(
            self.model.config,
            self.voice.largest_batch(self.batch_size),
            is_anchored=self.config.is_pulled,
            dpo=self.config.dpo,
        )
        return exceeds(usable_memory(), peak)

    @property
    def steps_per_epoch(self) -> int:
        count, size = self._count(1), self.config.accumulate
        return (count - 1) // size if self.config.compat else -(-count // size)

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        if self.config.steps is not None:
            return self.config.steps
        return self.config.epochs * self.steps_per_epoch

    def saves_at(self, step: int) -> bool:
        """Whether the state is to be saved after a step: every so many epochs, and at the end."""
        return (
            step == self.total_steps or step % (self.config.save_every * self.steps_per_epoch) == 0
        )

    def _count(self, epoch: int) -> int:
        return len(self.voice.plan(self.batch_size, self.config.seed, epoch))

    def _batches(self) -> Iterator[_Group]:
        epoch, batch = self.place.epoch, self.place.batch
        ahead = self.voice.endless(self.batch_size, self.config.seed, epoch, batch)
        while True:
            taken, count = 0, self._count(epoch)
            while (stop := self._end(batch, count)) is None:
                taken += count - batch
                epoch, batch, count = epoch + 1, 0, self._count(epoch + 1)
            taken, batch = taken + stop - batch, stop
            yield _Group([next(ahead) for _ in range(taken)], epoch, batch, count)

    def _end(self, batch: int, count: int) -> int | None:
        """Where in an epoch of so many micro-batches the step ends that begins at one.

        Returns:
            None where it does not end in this epoch.
        """
        size = self.config.accumulate
        if self.config.compat:
            # Upstream updates after those whose index, from 0, is a multiple, but for 0 itself.
            stop = -(-max(batch, 1) // size) * size + 1
            return stop if stop <= count else None
        return min(batch + size, count) if batch < count else None

    def _begin(self, fields: _Group, place: Place) -> Begun:
        rate = self._set_rate(place.step)
        batches = [
            T2SBatch(**{name: mx.array(array) for name, array in own.items()})
            for own in fields.fields
        ]
        losses = self._step(batches, mx.random.key((self.config.seed << 32) + place.step))
        after = replace(
            place,
            step=place.step + 1,
            epoch=fields.epoch,
            batch=fields.batch,
            epoch_batches=fields.epoch_batches,
        )
        return begin(losses, self._step.state, {"lr": rate}, after)

    def _set_rate(self, step: int) -> float:
        """The learning rate after so many steps."""
        config = self.config
        rate = config.rate
        if config.compat and step == 0 and config.lr is None:
            rate = _FIRST_RATE
        if config.last_share < 1:
            fallen = 0.5 - 0.5 * math.cos(math.pi * step / self.total_steps)
            rate *= 1 - (1 - config.last_share) * fallen
        rate *= min(1.0, (step + 1) / max(config.warm_up, 1))
        self._step.optimizer.learning_rate = rate
        return rate

    def trees(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as trees of arrays."""
        return {"t2s": self.model.parameters(), "optimizer": self._step.optimizer.state}

    def restore(self, state: RunState, source: str) -> None:
        """Continue where a state was taken.

        Raises:
            CheckpointError: the state belongs to a run of another shape.
        """
        try:
            optimizer = self._step.optimizer
            check_state(optimizer.state, state.trees["optimizer"])
            self.model.update(state.trees["t2s"], strict=True)
            update_state(optimizer.state, state.trees["optimizer"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise other_settings(source, error) from error
        self.place = state.place


def build_t2s_optimizer(config: T2STrainingConfig) -> optim.Optimizer:
    """Build the optimizer; the learning rate is set before every step."""
    if config.optimizer == "scaled_adam":
        return ScaledAdam(config.rate, compat=config.compat)
    return optim.AdamW(
        config.rate, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.0, bias_correction=True
    )
