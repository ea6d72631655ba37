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

from mlx_vits.audio.spectrogram import mel_of_spectrogram, mel_spectrogram
from mlx_vits.config import Config
from mlx_vits.models.discriminator import DiscriminatorOutput, SubDiscriminator
from mlx_vits.models.vits import (
    MultiPeriodDiscriminator,
    SynthesizerOutput,
    SynthesizerTrn,
    slice_segments,
)
from mlx_vits.training import losses
from mlx_vits.training.optimizers import Optimizers, global_norm
from mlx_vits.training.regularization import Penalized, penalized

Scalars = dict[str, mx.array]  # losses, norms of gradients and a peak, by name
Penalty = Callable[[SynthesizerTrn], mx.array]


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
        dropout_key: of `mx.random`, or None for no dropout.
    """

    noise: mx.array
    ids_slice: mx.array
    dropout_key: mx.array | None


class StepResult(NamedTuple):
    """What a step did.

    Attributes:
        losses: scalars by name, as weighted in the total.
        grads_g, grads_d: trees of the gradients that were applied.
    """

    losses: Scalars
    grads_g: Any
    grads_d: Any


def draw_step(key: mx.array, batch: Batch, config: Config) -> Draws:
    """Draw noise, slice starts and a dropout key, all from one key."""
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


def judged(net: SubDiscriminator, real: mx.array, fake: mx.array) -> list[DiscriminatorOutput]:
    """What a sub-discriminator says of real and of generated audio; only the latter learns."""
    return [net(real), net(fake)]


class GANStep:
    """The step over both nets and both optimizers.

    Args:
        generator: trained where its parameters are not frozen.
        discriminator: trained as a whole.
        optimizers: of both.
        penalty: of the generator, added to its loss; its gradient's norm is logged apart.
        compiled: whether `__call__` runs through `mx.compile`.

    Attributes:
        state: everything that a step changes.
        global_norm, judged, discriminator_loss, generator_loss, feature_loss, penalized: may be
            replaced by equivalents, see `accel.optimize`.
    """

    global_norm: Callable[[Any], mx.array] = staticmethod(global_norm)
    discriminator_loss: Callable[..., mx.array] = staticmethod(losses.discriminator_loss)
    judged: Callable[..., list[DiscriminatorOutput]] = staticmethod(judged)
    generator_loss: Callable[..., mx.array] = staticmethod(losses.generator_loss)
    feature_loss: Callable[..., mx.array] = staticmethod(losses.feature_loss)

    def __init__(
        self,
        generator: SynthesizerTrn,
        discriminator: MultiPeriodDiscriminator,
        optimizers: Optimizers,
        *,
        penalty: Penalty | None = None,
        compiled: bool = True,
    ):
        self.generator, self.discriminator = generator, discriminator
        self.optimizers, self.penalty = optimizers, penalty
        self.config = generator.config
        optimizers.generator.init(generator.trainable_parameters())
        optimizers.discriminator.init(discriminator.trainable_parameters())
        self.state = [
            generator.state,
            discriminator.state,
            optimizers.generator.state,
            optimizers.discriminator.state,
        ]
        self._update: Callable[[Batch, mx.array], Scalars] = self._draw_and_run
        if compiled:
            self._update = mx.compile(self._draw_and_run, inputs=self.state, outputs=self.state)

    def __call__(self, batch: Batch, key: mx.array) -> Scalars:
        """Update both nets; nothing is evaluated yet.

        Returns:
            Scalars by name. The feature loss is doubled and the mel loss times 45, as in the total.
            `grad_norm_task` and `grad_norm_reg` are the norms of the two parts of the generator's
            gradient, losses and penalty. `peak_fake` is the largest absolute sample generated.
        """
        return self._update(batch, key)

    def _draw_and_run(self, batch: Batch, key: mx.array) -> Scalars:
        return self.run(batch, draw_step(key, batch, self.config)).losses

    def run(self, batch: Batch, draws: Draws) -> StepResult:
        """Update both nets with given random numbers."""

        def objective() -> Any:
            out, real = self.forward(batch, draws), self.real_segment(batch, draws)
            # One forward serves both updates: the discriminator is updated in here, on audio that
            # carries no gradient, and then judges with its new weights.
            # After this inner gradient MLX cannot differentiate an activation that it compiles
            # itself, as `nn.gelu`: "[Compiled] Cannot vjp primitive".
            loss_d, grads_d = self.discriminator_gradients(real, mx.stop_gradient(out.y_hat))
            self.optimizers.discriminator.update(self.discriminator, grads_d)
            terms = self.generator_terms(out, real, batch, draws)
            peak = mx.stop_gradient(mx.max(mx.abs(out.y_hat)))
            return sum(terms.values()), {"loss_d": loss_d, **terms, "peak_fake": peak}, grads_d

        (_, terms, grads_d), grads = nn.value_and_grad(self.generator, objective)()
        return self.update_generator(terms, grads, grads_d)

    def forward(self, batch: Batch, draws: Draws) -> SynthesizerOutput:
        """The generator's training forward."""
        return self.generator(
            batch.ssl,
            batch.spec,
            batch.spec_lengths,
            batch.text,
            batch.text_lengths,
            noise=draws.noise,
            ids_slice=draws.ids_slice,
            sv_emb=batch.sv_emb if batch.sv_emb.shape[-1] else None,
            key=draws.dropout_key,
        )

    def real_segment(self, batch: Batch, draws: Draws) -> mx.array:
        """The recording where the generator decoded: `(B, segment samples, 1)`."""
        hop = self.config.data.hop_length
        return slice_segments(batch.wav, draws.ids_slice * hop, self.config.train.segment_size)

    def discriminator_gradients(self, real: mx.array, fake: mx.array) -> tuple[mx.array, Any]:
        """The discriminator's loss on real and detached generated audio, and its gradients."""

        def objective() -> mx.array:
            # One batch: exact, as nothing in the discriminator reaches across clips.
            both = mx.concatenate([real, fake])
            return losses.added(self.loss_of(net, both) for net in self._sub_discriminators())

        return nn.value_and_grad(self.discriminator, objective)()

    def _sub_discriminators(self) -> list[SubDiscriminator]:
        nets: Any = self.discriminator.discriminators
        return nets

    def loss_of(self, net: SubDiscriminator, both: mx.array) -> mx.array:
        """A sub-discriminator's own loss on real and generated audio, one after the other."""
        real, fake = mx.split(net(both).score, 2)
        return self.discriminator_loss([real], [fake])

    def judge(self, net: SubDiscriminator, real: mx.array, fake: mx.array) -> list[mx.array]:
        """A sub-discriminator's part of the generator's adversarial and feature losses."""
        on_real, on_fake = self.judged(net, real, fake)
        return [
            self.generator_loss([on_fake.score]),
            self.feature_loss([on_real.features], [on_fake.features]),
        ]

    def generator_terms(
        self, out: SynthesizerOutput, real: mx.array, batch: Batch, draws: Draws
    ) -> Scalars:
        """The generator's loss terms, weighted, judged by the discriminator as it is now."""
        config = self.config
        of_each = [self.judge(net, real, out.y_hat) for net in self._sub_discriminators()]
        spec = slice_segments(batch.spec, draws.ids_slice, config.segment_frames)
        mel = losses.mel_loss(
            mel_of_spectrogram(spec, config.data),
            mel_spectrogram(out.y_hat[..., 0], config.data),
        )
        kl = losses.kl_loss(out.z_p, out.logs_q, out.m_p, out.logs_p, out.mask)
        return {
            "loss_gen": losses.added(gen for gen, _ in of_each),
            "loss_fm": losses.added(fm for _, fm in of_each),
            "loss_mel": config.train.c_mel * mel,
            "loss_kl": config.train.c_kl * kl,
            "loss_commit": out.commit_loss,
        }

    def update_generator(self, terms: Scalars, grads: Any, grads_d: Any) -> StepResult:
        """Add the penalty's gradient and update the generator.

        Args:
            terms: of the generator, `loss_d` and `peak_fake`.
            grads: gradients of the generator's terms.
            grads_d: those that the discriminator was updated by.
        """
        loss = sum(v for k, v in terms.items() if k not in ("loss_d", "peak_fake"))
        norm, loss_reg, norm_reg = self.global_norm(grads), mx.array(0.0), mx.array(0.0)
        norms = {"grad_norm_g": norm, "grad_norm_task": norm, "grad_norm_reg": norm_reg}
        if self.penalty is not None:
            loss_reg, norms["grad_norm_reg"], grads = self.penalized(self.penalty, grads)
            norms["grad_norm_g"] = self.global_norm(grads)
        self.optimizers.generator.update(self.generator, grads)
        norms["grad_norm_d"] = self.global_norm(grads_d)
        totals = {"loss_reg": loss_reg, "loss_total": loss + loss_reg}
        return StepResult(terms | totals | norms, grads, grads_d)

    def penalized(self, penalty: Penalty, grads: Any) -> Penalized:
        """Add a penalty's gradient to gradients of the generator."""
        return penalized(self.generator, penalty, grads, self.global_norm)
