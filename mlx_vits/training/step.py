"""One GAN step, as a function of a batch and a random key.

Order, as upstream's `s2_train.py`: one forward of the generator; the discriminator on real and
detached generated audio, and its update; the *updated* discriminator on both again; the generator's
update. Nothing is clipped. Axes: B batch, T spectrogram frames, F bins, N samples, L phonemes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from mlx_vits.audio.spectrogram import mel_of_spectrogram, mel_spectrogram
from mlx_vits.config import Config
from mlx_vits.models.discriminator import MultiPeriodDiscriminator
from mlx_vits.models.vits import TEXT_SIDE, SynthesizerOutput, SynthesizerTrn, slice_segments
from mlx_vits.nn.dropout import KeyedDropout
from mlx_vits.training import losses
from mlx_vits.training.regularization import Anchor, pretrained_regularization


class Batch(NamedTuple):
    """Whole utterances, zero-padded.

    Attributes:
        ssl: `(B, T, ssl_dim)`, T even.
        spec: `(B, T, F)`.
        spec_lengths: `(B,)` int32, valid frames, all longer than a segment.
        wav: `(B, N, 1)`, N at least the samples of the longest clip.
        text: `(B, L)` int32.
        text_lengths: `(B,)` int32.
        sv_emb: `(B, V)`, V = 0 where the version takes no speaker vector.
    """

    ssl: mx.array
    spec: mx.array
    spec_lengths: mx.array
    wav: mx.array
    text: mx.array
    text_lengths: mx.array
    sv_emb: mx.array


class Draws(NamedTuple):
    """The random numbers of one step.

    Attributes:
        noise: `(B, T, C)`, standard normal, for the posterior.
        ids_slice: `(B,)` int32, first frame of each segment.
        dropout_key: for `KeyedDropout`.
    """

    noise: mx.array
    ids_slice: mx.array
    dropout_key: mx.array


class VITSLosses(NamedTuple):
    """Scalars of one step, as weighted in the total (feature loss doubled, mel times 45).

    `grad_norm_task` and `grad_norm_reg` are the two parts of the generator's gradient, whose sum
    has the norm `grad_norm_g`. `peak_fake` is the largest absolute sample that was generated.
    """

    loss_d: mx.array
    loss_gen: mx.array
    loss_fm: mx.array
    loss_mel: mx.array
    loss_kl: mx.array
    loss_commit: mx.array
    loss_reg: mx.array
    loss_total: mx.array
    grad_norm_g: mx.array
    grad_norm_d: mx.array
    grad_norm_task: mx.array
    grad_norm_reg: mx.array
    peak_fake: mx.array


class Optimizers(NamedTuple):
    """AdamW for both nets; the generator's text-side tensors have a learning rate of their own."""

    generator: optim.MultiOptimizer
    discriminator: optim.AdamW


class Gradients(NamedTuple):
    """Trees of the gradients that were applied; only kept where a test asks for them."""

    generator: dict[str, Any]
    discriminator: dict[str, Any]


class StepResult(NamedTuple):
    losses: VITSLosses
    gradients: Gradients


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


def draw_step(key: mx.array, batch: Batch, config: Config) -> Draws:
    """Noise, slice starts and a dropout key, all from one key."""
    noise_key, slice_key, dropout_key = mx.random.split(key, 3)
    shape = (*batch.spec.shape[:2], config.model.inter_channels)
    choices = (batch.spec_lengths - config.segment_frames + 1).astype(mx.float32)
    uniform = mx.random.uniform(shape=choices.shape, key=slice_key)
    # uniform() stays below 1, but its product may round up to the bound.
    starts = mx.minimum(mx.floor(uniform * choices), choices - 1)
    return Draws(
        noise=mx.random.normal(shape, key=noise_key),
        ids_slice=starts.astype(mx.int32),
        dropout_key=dropout_key,
    )


class GANStep:
    """The step over both nets and both optimizers.

    Args:
        generator: trained where its parameters are not frozen.
        discriminator: trained as a whole.
        anchor: the weights to be pulled toward, empty for none.
        reg_strength: of the pull.
        compiled: whether `__call__` runs through `mx.compile`.
    """

    def __init__(
        self,
        generator: SynthesizerTrn,
        discriminator: MultiPeriodDiscriminator,
        optimizers: Optimizers,
        *,
        anchor: Anchor | None = None,
        reg_strength: float = 0.0,
        compiled: bool = True,
    ):
        self.generator, self.discriminator = generator, discriminator
        self.optimizers, self.config = optimizers, generator.config
        self.anchor, self.reg_strength = anchor or {}, reg_strength
        optimizers.generator.init(generator.trainable_parameters())
        optimizers.discriminator.init(discriminator.trainable_parameters())
        state = self.state()
        step: Callable[..., VITSLosses] = self._losses_only
        self._step = mx.compile(step, inputs=state, outputs=state) if compiled else step

    def state(self) -> list[Any]:
        """Everything a step changes: both nets and both optimizers."""
        return [
            self.generator.state,
            self.discriminator.state,
            self.optimizers.generator.state,
            self.optimizers.discriminator.state,
        ]

    def set_moments(self, generator: dict[str, Any], discriminator: dict[str, Any]) -> None:
        """Continues with the moments, steps and learning rates of another run.

        The dictionaries are filled in place: a compiled step holds on to them.

        Raises:
            ValueError: the states belong to other parameters.
        """
        parts = [
            *zip(self.optimizers.generator.state["states"], generator["states"], strict=True),
            (self.optimizers.discriminator.state, discriminator),
        ]
        for ours, theirs in parts:
            if _shapes(ours) != _shapes(theirs):
                raise ValueError("the optimizer's moments are of other parameters")
        for ours, theirs in parts:
            ours.clear()
            ours.update(theirs)

    def __call__(self, batch: Batch, key: mx.array) -> VITSLosses:
        """Updates both nets; nothing is evaluated yet."""
        return self._step(batch, key)

    def _losses_only(self, batch: Batch, key: mx.array) -> VITSLosses:
        return self.run(batch, draw_step(key, batch, self.config)).losses

    def run(self, batch: Batch, draws: Draws) -> StepResult:
        """The step with given random numbers."""
        grads_d: dict[str, Any] = {}
        parts: dict[str, mx.array] = {}

        def objective() -> mx.array:
            out = self.generator(
                batch.ssl,
                batch.spec,
                batch.spec_lengths,
                batch.text,
                batch.text_lengths,
                noise=draws.noise,
                ids_slice=draws.ids_slice,
                sv_emb=batch.sv_emb if batch.sv_emb.shape[-1] else None,
                dropout=KeyedDropout(draws.dropout_key),
            )
            real = self._real_segment(batch, draws)
            # One forward serves both updates: the discriminator is updated in here, on values
            # that carry no gradient, and judges again with its new weights.
            loss_d, grads = self._update_discriminator(real, mx.stop_gradient(out.y_hat))
            grads_d.update(grads)
            parts.update(self._generator_losses(out, real, batch, draws))
            total = sum(parts.values(), start=mx.array(0.0))
            parts["loss_d"] = loss_d
            parts["peak_fake"] = mx.stop_gradient(mx.max(mx.abs(out.y_hat)))
            return total

        loss_task, grads_g = nn.value_and_grad(self.generator, objective)()
        loss_reg, grads_reg = self._regularization()
        norm_task = global_norm(grads_g)
        if grads_reg:
            grads_g = tree_map(lambda task, reg: task + reg, grads_g, grads_reg)
        self.optimizers.generator.update(self.generator, grads_g)
        named = VITSLosses(
            **parts,
            loss_reg=loss_reg,
            loss_total=loss_task + loss_reg,
            grad_norm_g=global_norm(grads_g),
            grad_norm_d=global_norm(grads_d),
            grad_norm_task=norm_task,
            grad_norm_reg=global_norm(grads_reg),
        )
        return StepResult(named, Gradients(grads_g, grads_d))

    def _real_segment(self, batch: Batch, draws: Draws) -> mx.array:
        hop = self.config.data.hop_length
        return slice_segments(batch.wav, draws.ids_slice * hop, self.config.train.segment_size)

    def _update_discriminator(
        self, real: mx.array, fake: mx.array
    ) -> tuple[mx.array, dict[str, Any]]:
        # One batch: exact, as nothing in the discriminator reaches across clips.
        both = mx.concatenate([real, fake])

        def objective() -> mx.array:
            pairs = [mx.split(score, 2) for score in losses.scores(self.discriminator(both))]
            on_real, on_fake = zip(*pairs, strict=True)
            return losses.discriminator_loss(on_real, on_fake)

        loss, grads = nn.value_and_grad(self.discriminator, objective)()
        self.optimizers.discriminator.update(self.discriminator, grads)
        return loss, grads

    def _generator_losses(
        self, out: SynthesizerOutput, real: mx.array, batch: Batch, draws: Draws
    ) -> dict[str, mx.array]:
        config = self.config
        spec = slice_segments(batch.spec, draws.ids_slice, config.segment_frames)
        mel = losses.mel_loss(
            mel_of_spectrogram(spec, config.data),
            mel_spectrogram(out.y_hat[..., 0], config.data),
        )
        kl = losses.kl_loss(out.z_p, out.logs_q, out.m_p, out.logs_p, out.mask)
        return {
            **self._judge(real, out.y_hat),
            "loss_mel": config.train.c_mel * mel,
            "loss_kl": config.train.c_kl * kl,
            "loss_commit": out.commit_loss,
        }

    def _judge(self, real: mx.array, fake: mx.array) -> dict[str, mx.array]:
        on_real, on_fake = self.discriminator(real), self.discriminator(fake)
        return {
            "loss_gen": losses.generator_loss(losses.scores(on_fake)),
            "loss_fm": losses.feature_loss(losses.features(on_real), losses.features(on_fake)),
        }

    def _regularization(self) -> tuple[mx.array, dict[str, Any]]:
        if not self.anchor or self.reg_strength == 0:
            return mx.array(0.0), {}
        return nn.value_and_grad(
            self.generator,
            lambda: pretrained_regularization(self.generator, self.anchor, self.reg_strength),
        )()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves: Any = tree_flatten(tree)
    return {name: array.shape for name, array in leaves}


def global_norm(tree: Any) -> mx.array:
    """L2 norm over all arrays of a tree; 0 for an empty one."""
    leaves: Any = tree_flatten(tree) if tree else []
    squares = [losses.total(mx.square(array)) for _, array in leaves]
    return mx.sqrt(sum(squares, start=mx.array(0.0)))
