"""The GAN step of `mlx_vits.training.step` on flat vectors, with further losses.

Same order, same losses, same AdamW: a test holds the two together. What fine-tuning does not have:
a share of the KL's gradient for the posterior, the prior decoded beside it, a running mean of the
generator's weights, and `ExtraWeights`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_vits.audio.spectrogram import mel_of_spectrogram, mel_spectrogram
from mlx_vits.models.discriminator import DiscriminatorOutput
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn, slice_segments
from mlx_vits.training import losses
from scripts.demo_base.adamw import AdamW, Net, norm, start
from scripts.demo_base.discriminator import FastDiscriminator
from scripts.demo_base.generator import FastBatch, FastGenerator, Generated
from scripts.demo_base.heard import Listener, heard_loss
from scripts.demo_base.losses import (
    ExtraWeights,
    attention_loss,
    envelope_loss,
    matched_feature_loss,
    score_loss,
    stft_loss,
)

_WEIGHT_DECAY = 0.01  # of every weight, as upstream


class Rates(NamedTuple):
    """What changes from step to step.

    Attributes:
        lr_g, lr_d: learning rates.
        pull: share of the KL's gradient that reaches the posterior.
        adversarial: whether the discriminator takes part.
        spoken: of so many clips the prior is decoded as well.
        heard_own: of so many clips the teacher hears the posterior as well.
        only_prior: whether prior and flow alone learn, from the KL and from what the prior says.
    """

    lr_g: float
    lr_d: float
    pull: float = 1.0
    adversarial: bool = True
    spoken: int = 0
    heard_own: int = 0
    only_prior: bool = False


class FastStep:
    """Both nets as vectors, and their update.

    Args:
        generator, discriminator: whose weights are taken; they are not changed.
        extra: weights of the further losses.
        mean_decay: of the running mean of the generator's weights.
        compiled: whether the step runs through `mx.compile`.
        listener: the teacher, where something is to be heard.

    Attributes:
        nets: the state, by "g" and "d".
        updates: how many each has seen.
    """

    def __init__(
        self,
        generator: SynthesizerTrn,
        discriminator: MultiPeriodDiscriminator,
        extra: ExtraWeights = ExtraWeights(),
        *,
        mean_decay: float = 0.999,
        compiled: bool = False,
        listener: Listener | None = None,
    ):
        self.config, self.extra = generator.config, extra
        train = self.config.train
        self._adamw = AdamW(train.betas, train.eps, _WEIGHT_DECAY, mean_decay)
        self.listener = listener
        of_g, of_d = (dict(_flatten(net.parameters())) for net in (generator, discriminator))
        self.generator = FastGenerator(self.config, {n: a.shape for n, a in of_g.items()})
        self.discriminator = FastDiscriminator({n: a.shape for n, a in of_d.items()})
        self.nets = {
            "g": start(self.generator.flat.pack(of_g)),
            "d": start(self.discriminator.flat.pack(of_d)),
        }
        self.updates = {"g": 0, "d": 0}
        self._compiled = compiled
        self._functions: dict[tuple[bool, int, int, bool], Callable[..., Any]] = {}
        self._is_prior = self.generator.flat.mark(("enc_p.", "flow."))

    def __call__(self, batch: FastBatch, noise: mx.array, rates: Rates) -> dict[str, mx.array]:
        """Updates both nets; nothing is evaluated yet.

        Args:
            noise: `(B, T, C)`, standard normal.

        Returns:
            The losses as weighted in the total, the norms of the gradients, and the largest sample.
        """
        settings = {"g": self._advance("g", rates.lr_g)}
        settings["d"] = self._advance("d", rates.lr_d) if rates.adversarial else settings["g"]
        key = (rates.adversarial, rates.spoken, rates.heard_own, rates.only_prior)
        if key not in self._functions:

            def run(*inputs: Any) -> Any:
                return self._step(*inputs, *key)

            self._functions[key] = mx.compile(run) if self._compiled else run
        # A number would be a constant of the compiled step.
        pull = mx.array(rates.pull, dtype=mx.float32) if self._compiled else rates.pull
        result = self._functions[key](*self.nets.values(), batch, noise, settings, pull)
        self.nets = {"g": Net(*result[0]), "d": Net(*result[1])}
        return result[2]

    def _advance(self, net: str, rate: float) -> list[float] | mx.array:
        """Counts an update; what AdamW takes for it."""
        self.updates[net] += 1
        factors = self._adamw.factors(rate, self.updates[net])
        return mx.array(factors, dtype=mx.float32) if self._compiled else factors

    def _step(
        self,
        net_g: Net,
        net_d: Net,
        batch: FastBatch,
        noise: mx.array,
        settings: dict[str, Any],
        pull: float | mx.array,
        adversarial: bool,
        spoken: int,
        heard_own: int,
        only_prior: bool,
    ) -> tuple[Net, Net, dict[str, mx.array]]:
        parts: dict[str, mx.array] = {}
        extras: dict[str, mx.array] = {}
        judge = [net_d]

        def objective(vector: mx.array) -> mx.array:
            weights = self.generator.flat(vector)
            out = self.generator(weights, batch, noise, pull, spoken, only_prior=only_prior)
            own, said = len(out.wav) - spoken, spoken
            parts.update(self._losses(batch, out, own))
            parts.update(self._heard(batch, out, min(own, heard_own), said))
            if self.extra.attention:
                looked = attention_loss(out.prior.attention, batch.places)
                parts["loss_attention"] = self.extra.attention * looked.loss
                extras["found"] = looked.found
            if adversarial:
                # As in GANStep: one forward serves both updates. It comes after all else that
                # reads `out`: the gradient taken in here ends MLX's tracing of it, and an
                # `mx.compile`d activation (gelu, in `heard.py`) then has no gradient.
                judge[0], extras["loss_d"], extras["grad_norm_d"] = self._update_judge(
                    net_d, batch.wav, mx.stop_gradient(out.wav), settings["d"]
                )
                parts.update(self._judge(judge[0], batch.wav, out.wav))
            extras["peak_fake"] = mx.stop_gradient(mx.max(mx.abs(out.wav[: own or said])))
            return sum(parts.values(), start=mx.array(0.0))

        loss, gradient = mx.value_and_grad(objective)(net_g.weights)
        extras |= {"loss_total": loss, "grad_norm_g": norm(gradient)}
        updated = self._adamw.update(net_g, gradient, settings["g"])
        if only_prior:
            pairs = zip(updated, net_g, strict=True)
            updated = Net(*(mx.where(self._is_prior, new, old) for new, old in pairs))
        return updated, judge[0], parts | extras

    def _losses(self, batch: FastBatch, out: Generated, count: int) -> dict[str, mx.array]:
        """Of the posterior's waveforms, which are `count`, and of the prior's."""
        config, own, said = self.config, out.wav[:count], out.wav[count:]
        kl = losses.kl_loss(out.z_p, out.logs_q, out.prior.m_p, out.prior.logs_p, batch.mask)
        parts = {"loss_kl": config.train.c_kl * kl}
        if count:
            spec = slice_segments(batch.spec, batch.starts, config.segment_frames)
            real = mel_of_spectrogram(spec, config.data)
            mel = losses.mel_loss(real, mel_spectrogram(own, config.data))
            parts["loss_mel"] = config.train.c_mel * mel
        if self.extra.stft and count:
            parts["loss_stft"] = self.extra.stft * stft_loss(batch.wav, own)
        if self.extra.envelope and len(said):
            envelope = envelope_loss(batch.wav[: len(said)], said, config.data.sampling_rate)
            parts["loss_envelope"] = self.extra.envelope * envelope
        return parts

    def _heard(self, batch: FastBatch, out: Generated, own: int, said: int) -> dict[str, mx.array]:
        """What the teacher hears in the prior's segments, and in so many of the clips' own."""
        extra, clips, first = self.extra, len(batch.wav), len(out.wav) - said
        own, said = own if extra.heard_own else 0, said if extra.heard else 0
        if self.listener is None or not own + said:
            return {}
        # Together in one pass; the posterior's last segments lie before the prior's first.
        rows = mx.array([*range(clips - own, clips), *range(said)])
        heard = heard_loss(self.listener, batch.wav[rows], out.wav[first - own : first + said])
        parts = {"loss_heard": extra.heard * mx.mean(heard[own:])} if said else {}
        if own:
            parts["loss_heard_own"] = extra.heard_own * mx.mean(heard[:own])
        return parts

    def _update_judge(
        self, net: Net, real: mx.array, fake: mx.array, settings: Any
    ) -> tuple[Net, mx.array, mx.array]:
        both, counts = mx.concatenate([real, fake]), [len(real), len(fake)]
        targets = np.repeat([1.0, 0.0], counts)
        weights = np.repeat([1 / count for count in counts], counts)

        def objective(vector: mx.array) -> mx.array:
            said = _scores(self.discriminator(self.discriminator.flat(vector), both))
            return score_loss(said, targets, weights)

        loss, gradient = mx.value_and_grad(objective)(net.weights)
        return self._adamw.update(net, gradient, settings), loss, norm(gradient)

    def _judge(self, net: Net, real: mx.array, fake: mx.array) -> dict[str, mx.array]:
        """The losses that the discriminator gives; every generated waveform weighs the same."""
        weights, count = self.discriminator.flat(net.weights), len(real)
        said = self.discriminator(weights, mx.concatenate([real, fake]))
        shares = np.repeat([0.0, 1 / count], [count, len(fake)])
        return {
            "loss_gen": score_loss(_scores(said), 1.0, shares),
            "loss_fm": matched_feature_loss([one.features for one in said], count),
        }


def _flatten(tree: Any) -> list[tuple[str, mx.array]]:
    return tree_flatten(tree)


def _scores(outputs: list[DiscriminatorOutput]) -> list[mx.array]:
    return [output.score for output in outputs]
