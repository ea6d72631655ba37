"""What is measured: a version's model with weights of a recipe, and batches of noise.

The weights are PyTorch's initial values drawn from a fixed seed, at the full size of a version: the
time of a step depends on shapes alone. Axes: B batch, T spectrogram frames, N samples, L phonemes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_vits import accel
from mlx_vits.config import Config
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.nn.layers import set_compute_dtype
from mlx_vits.synthesis.folding import fold_model
from mlx_vits.training.optimizers import build_optimizers, set_learning_rates, update_state
from mlx_vits.training.regularization import effective_weights
from mlx_vits.training.step import Batch, GANStep, draw_step
from mlx_vits.training.vits_trainer import freeze_for

_SEED = 20742
_PHONEMES_PER_SECOND = 14  # of the demo's clips, rounded
_LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Work:
    """One size to measure.

    Attributes:
        version: v1, v2, v2Pro or v2ProPlus.
        batch_size: clips a step.
        clip_seconds: length of every clip, and of the synthesis.
    """

    version: str = "v2"
    batch_size: int = 2
    clip_seconds: float = 4.5

    @property
    def config(self) -> Config:
        """The version's full size."""
        return Config.from_dict({"version": self.version})

    @property
    def frames(self) -> int:
        """Spectrogram frames of a clip, an even number, at least a segment and two more."""
        data = self.config.data
        frames = round(self.clip_seconds * data.sampling_rate / data.hop_length / 2) * 2
        return max(frames, self.config.segment_frames + 2)

    @property
    def phonemes(self) -> int:
        """Of a clip."""
        return max(2, round(self.seconds * _PHONEMES_PER_SECOND))

    @property
    def seconds(self) -> float:
        """Of a clip, as it is computed."""
        data = self.config.data
        return self.frames * data.hop_length / data.sampling_rate

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Work:
        """The inverse of `to_dict`."""
        return cls(**values)


class StepParts:
    """One work's nets, optimizers and batch, and what is timed of them.

    Every method returns when its result is computed.

    Args:
        compiled: whether the step and its parts run through `mx.compile`.
        compute: what a step computes in; synthesis is fp32.
    """

    def __init__(self, work: Work, *, compiled: bool, compute: mx.Dtype = mx.float32):
        self.work = work
        self.gan = make_step(work, compiled=compiled, compute=compute)
        self.batch = make_batch(work)
        generator, gan, batch = self.gan.generator, self.gan, self.batch
        config, one = work.config, work.frames
        samples, gin = config.train.segment_size, config.model.gin_channels
        self._steps, self._is_compiled = 0, compiled
        noise = mx.random.normal((1, one, config.model.inter_channels))
        codes = mx.random.randint(0, config.reduced_dims.codebook_size, (1, one // 2))
        style = mx.random.normal((1, 1, gin))

        def forward_g(key: mx.array) -> list[mx.array]:
            out = gan.forward(batch, draw_step(key, batch, config))
            return [out.y_hat, out.z_p, out.m_p, out.logs_p]

        def step_d(key: mx.array) -> mx.array:
            real = batch.wav[:, :samples]
            loss, grads = gan.discriminator_gradients(real, real[:, ::-1])
            gan.optimizers.discriminator.update(gan.discriminator, grads)
            return loss

        def weight_norm() -> list[Any]:
            return [effective_weights(net) for net in (gan.generator, gan.discriminator)]

        def update() -> list[Any]:
            for optimizer, net in zip(gan.optimizers, gan.state[:2], strict=True):
                optimizer.update(net, net.trainable_parameters())
            return gan.state

        def synthesize(model: SynthesizerTrn, style: mx.array) -> mx.array:
            return model.decode(codes, batch.text[:1], [style], noise=noise).wav

        speaker = fold_model(generator)  # as a voice speaks: weight norm is not computed again
        mx.eval(speaker.parameters(), noise, codes, style)
        self._forward_g: Any = forward_g
        self._step_d: Any = step_d
        self._weight_norm: Any = weight_norm
        self._update: Any = update
        if compiled:
            self._forward_g = mx.compile(forward_g, inputs=gan.state)
            self._step_d = mx.compile(step_d, inputs=gan.state, outputs=gan.state)
            self._weight_norm = mx.compile(weight_norm, inputs=gan.state)
            self._update = mx.compile(update, inputs=gan.state, outputs=gan.state)
        self._synthesize = partial(accel.inference(synthesize), speaker, style)

    def graphs(self) -> Iterator[tuple[str, Any]]:
        """Arrays of each part that are not computed; the nets stay as they are."""
        gan = self.gan
        work = {
            "forward_g": lambda: self._forward_g(self._key()),
            "step_d": lambda: [self._step_d(self._key()), gan.state],
            "step": lambda: [gan(self.batch, self._key()), gan.state],
            "synthesis": lambda: self._synthesize(),
            "weight_norm": self._weight_norm,
            "update": self._update,
        }
        for name, build in work.items():
            with _kept(gan.state):
                yield name, build()

    def step(self) -> None:
        """A whole training step."""
        mx.eval(self.gan(self.batch, self._key()), self.gan.state)

    def forward_g(self) -> None:
        """The generator's forward of training."""
        mx.eval(self._forward_g(self._key()))

    def step_d(self) -> None:
        """The discriminator on real and generated, and its update."""
        mx.eval(self._step_d(self._key()), self.gan.state)

    def synthesize(self) -> None:
        """One clip from codes."""
        mx.eval(self._synthesize())

    def _key(self) -> mx.array:
        self._steps += 1
        return mx.random.key(self._steps)


def make_generator(work: Work) -> SynthesizerTrn:
    """A generator of full size, frozen as training freezes it."""
    mx.random.seed(_SEED)
    model = SynthesizerTrn(work.config)
    freeze_for(model, "all")
    mx.eval(model.parameters())
    return model


def make_step(work: Work, *, compiled: bool = False, compute: mx.Dtype = mx.float32) -> GANStep:
    """The training step over both nets with fresh optimizers."""
    generator = make_generator(work)
    discriminator = MultiPeriodDiscriminator(work.config)
    optimizers = build_optimizers(work.config)
    set_learning_rates(optimizers, _LEARNING_RATE, _LEARNING_RATE, 0.4)
    for net in (generator, discriminator):
        set_compute_dtype(net, compute)
        accel.apply(net)
    step = GANStep(generator, discriminator, optimizers, compiled=compiled)
    accel.optimize(step)
    mx.eval(step.state)
    return step


@contextmanager
def _kept(state: list[Any]) -> Iterator[None]:
    """Restore the arrays of a state at the end of a `with` block."""
    before = [tree_map(lambda array: array, tree) for tree in state]
    try:
        yield
    finally:
        for tree, kept in zip(state, before, strict=True):
            if isinstance(tree, nn.Module):
                tree.update(kept)
            else:
                update_state(tree, kept)


def make_batch(work: Work) -> Batch:
    """Noise in the shapes of a batch of clips that are all of full length."""
    config, size = work.config, work.batch_size
    data, dims = config.data, config.reduced_dims
    key = mx.random.key(_SEED)
    keys = mx.random.split(key, 5)
    frames, phonemes = work.frames, work.phonemes
    batch = Batch(
        ssl=mx.random.normal((size, frames, dims.ssl_dim), key=keys[0]),
        spec=mx.abs(mx.random.normal((size, frames, data.spec_channels), key=keys[1])),
        spec_lengths=mx.full((size,), frames, mx.int32),
        wav=mx.random.uniform(-0.5, 0.5, (size, frames * data.hop_length, 1), key=keys[2]),
        text=mx.random.randint(0, dims.text_vocab, (size, phonemes), key=keys[3]),
        text_lengths=mx.full((size,), phonemes, mx.int32),
        sv_emb=mx.random.normal((size, dims.sv_dim), key=keys[4]),
    )
    mx.eval(*batch)
    return batch
