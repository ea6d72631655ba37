"""The GAN step of `mlx_vits.training.step` on flat vectors, with further losses.

Same order, same losses, same AdamW: a test holds the two together. What fine-tuning does not have:
a share of the KL's gradient for the posterior, the prior decoded beside it, a running mean of the
generator's weights, and `ExtraWeights`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_vits.audio.spectrogram import mel_of_spectrogram, mel_spectrogram
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn, slice_segments
from mlx_vits.training import losses
from mlx_vits.training.step import global_norm
from scripts.demo_base.discriminator import FastDiscriminator, take_waveforms
from scripts.demo_base.generator import FastBatch, FastGenerator, Generated
from scripts.demo_base.losses import ExtraWeights, attention_loss, envelope_loss, stft_loss

_WEIGHT_DECAY = 0.01  # of every weight, as upstream
_MEAN_WARMUP = 9.0  # the running mean follows this closely at first


class Net(NamedTuple):
    """A net's weights and what its optimizer keeps, each a vector of all of them.

    Attributes:
        weights: the present ones.
        m, v: AdamW's moments.
        mean: a running mean of the weights.
    """

    weights: mx.array
    m: mx.array
    v: mx.array
    mean: mx.array


class Rates(NamedTuple):
    """What changes from step to step.

    Attributes:
        lr_g, lr_d: learning rates.
        pull: share of the KL's gradient that reaches the posterior.
        adversarial: whether the discriminator takes part.
        spoken: of so many clips the prior is decoded as well.
    """

    lr_g: float
    lr_d: float
    pull: float = 1.0
    adversarial: bool = True
    spoken: int = 0


class FastStep:
    """Both nets as vectors, and their update.

    Args:
        generator, discriminator: whose weights are taken; they are not changed.
        extra: weights of the further losses.
        mean_decay: of the running mean of the generator's weights.
        compiled: whether the step runs through `mx.compile`.

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
    ):
        self.config, self.extra, self.mean_decay = generator.config, extra, mean_decay
        of_g, of_d = (dict(_flatten(net.parameters())) for net in (generator, discriminator))
        self.generator = FastGenerator(self.config, {n: a.shape for n, a in of_g.items()})
        self.discriminator = FastDiscriminator({n: a.shape for n, a in of_d.items()})
        self.nets = {
            "g": _start(self.generator.flat.pack(of_g)),
            "d": _start(self.discriminator.flat.pack(of_d)),
        }
        self.updates = {"g": 0, "d": 0}
        self._compiled = compiled
        self._functions: dict[tuple[bool, int], Callable[..., Any]] = {}

    def __call__(self, batch: FastBatch, noise: mx.array, rates: Rates) -> dict[str, mx.array]:
        """Updates both nets; nothing is evaluated yet.

        Args:
            noise: `(B, T, C)`, standard normal.

        Returns:
            The losses as weighted in the total, the norms of the gradients, and the largest sample.
        """
        settings = {"g": self._advance("g", rates.lr_g)}
        settings["d"] = self._advance("d", rates.lr_d) if rates.adversarial else settings["g"]
        key = (rates.adversarial, rates.spoken)
        if key not in self._functions:

            def run(*inputs: Any) -> Any:
                return self._step(*inputs, *key)

            self._functions[key] = mx.compile(run) if self._compiled else run
        pull = mx.array(rates.pull, dtype=mx.float32)
        result = self._functions[key](*self.nets.values(), batch, noise, settings, pull)
        self.nets = {"g": Net(*result[0]), "d": Net(*result[1])}
        return result[2]

    def _advance(self, net: str, rate: float) -> mx.array:
        """Counts an update; the learning rate, AdamW's corrections and the mean's decay for it."""
        self.updates[net] += 1
        count, (b1, b2) = self.updates[net], self.config.train.betas
        decay = min(self.mean_decay, count / (count + _MEAN_WARMUP))
        return mx.array([rate, 1 - b1**count, 1 - b2**count, decay], dtype=mx.float32)

    def _step(
        self,
        net_g: Net,
        net_d: Net,
        batch: FastBatch,
        noise: mx.array,
        settings: dict[str, mx.array],
        pull: mx.array,
        adversarial: bool,
        spoken: int,
    ) -> tuple[Net, Net, dict[str, mx.array]]:
        parts: dict[str, mx.array] = {}
        extras: dict[str, mx.array] = {}
        judge = [net_d]

        def objective(vector: mx.array) -> mx.array:
            weights = self.generator.flat(vector)
            out = self.generator(weights, batch, noise, pull, spoken)
            if adversarial:
                # As in GANStep: one forward serves both updates.
                judge[0], extras["loss_d"], extras["grad_norm_d"] = self._update_judge(
                    net_d, batch.wav, mx.stop_gradient(out.wav), settings["d"]
                )
                parts.update(self._judge(judge[0], batch.wav, out.wav))
            parts.update(self._losses(batch, out))
            if self.extra.attention:
                looked = attention_loss(out.prior.attention, batch.places)
                parts["loss_attention"] = self.extra.attention * looked.loss
                extras["found"] = looked.found
            extras["peak_fake"] = mx.stop_gradient(mx.max(mx.abs(out.wav[: len(batch.wav)])))
            return sum(parts.values(), start=mx.array(0.0))

        loss, gradient = mx.value_and_grad(objective)(net_g.weights)
        extras |= {"loss_total": loss, "grad_norm_g": global_norm([_rows(gradient)])}
        return self._updated(net_g, gradient, settings["g"]), judge[0], parts | extras

    def _losses(self, batch: FastBatch, out: Generated) -> dict[str, mx.array]:
        config, clips = self.config, len(batch.wav)
        own, said = out.wav[:clips], out.wav[clips:]
        spec = slice_segments(batch.spec, batch.starts, config.segment_frames)
        mel = losses.mel_loss(
            mel_of_spectrogram(spec, config.data), mel_spectrogram(own, config.data)
        )
        kl = losses.kl_loss(out.z_p, out.logs_q, out.prior.m_p, out.prior.logs_p, batch.mask)
        parts = {"loss_mel": config.train.c_mel * mel, "loss_kl": config.train.c_kl * kl}
        if self.extra.stft:
            parts["loss_stft"] = self.extra.stft * stft_loss(batch.wav, own)
        if self.extra.envelope and len(said):
            envelope = envelope_loss(batch.wav[: len(said)], said, config.data.sampling_rate)
            parts["loss_envelope"] = self.extra.envelope * envelope
        return parts

    def _update_judge(
        self, net: Net, real: mx.array, fake: mx.array, settings: mx.array
    ) -> tuple[Net, mx.array, mx.array]:
        both, count = mx.concatenate([real, fake]), len(real)

        def objective(vector: mx.array) -> mx.array:
            said = losses.scores(self.discriminator(self.discriminator.flat(vector), both))
            return losses.discriminator_loss([s[:count] for s in said], [s[count:] for s in said])

        loss, gradient = mx.value_and_grad(objective)(net.weights)
        return self._updated(net, gradient, settings), loss, global_norm([_rows(gradient)])

    def _judge(self, net: Net, real: mx.array, fake: mx.array) -> dict[str, mx.array]:
        """The losses that the discriminator gives; every generated waveform weighs the same."""
        weights, count = self.discriminator.flat(net.weights), len(real)
        said = self.discriminator(weights, mx.concatenate([real, fake]))
        on_real = losses.features(take_waveforms(said, slice(0, count)))
        own = take_waveforms(said, slice(count, 2 * count))
        loss = losses.generator_loss(losses.scores(own))
        others = len(fake) - count
        if others:
            rest = take_waveforms(said, slice(2 * count, None))
            loss = loss + others / count * losses.generator_loss(losses.scores(rest))
        return {"loss_gen": loss, "loss_fm": losses.feature_loss(on_real, losses.features(own))}

    def _updated(self, net: Net, gradient: mx.array, settings: mx.array) -> Net:
        """AdamW with bias correction, as PyTorch's and MLX's."""
        rate, correction_1, correction_2, decay = (settings[i] for i in range(4))
        (b1, b2), eps = self.config.train.betas, self.config.train.eps
        m = b1 * net.m + (1 - b1) * gradient
        v = b2 * net.v + (1 - b2) * mx.square(gradient)
        weights = net.weights * (1 - rate * _WEIGHT_DECAY)
        step = (rate / correction_1) * m / (mx.sqrt(v) * mx.rsqrt(correction_2) + eps)
        weights = weights - step
        return Net(weights, m, v, decay * net.mean + (1 - decay) * weights)


def _flatten(tree: Any) -> list[tuple[str, mx.array]]:
    return tree_flatten(tree)


def _start(weights: mx.array) -> Net:
    return Net(weights, mx.zeros_like(weights), mx.zeros_like(weights), weights)


def _rows(vector: mx.array, width: int = 1024) -> mx.array:
    """A vector in rows: one long fp32 sum loses digits."""
    return mx.pad(vector, (0, -vector.size % width)).reshape(-1, width)
