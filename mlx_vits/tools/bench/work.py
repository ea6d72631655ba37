"""What is measured: a version's model with weights of a recipe, and batches of noise.

The weights are PyTorch's initial values drawn from a fixed seed, at the full size of a version: the
time of a step depends on shapes alone. Axes: B batch, T spectrogram frames, N samples, L phonemes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from mlx_vits.tools.bench.graphs import Graph, count_graph, count_operations
from mlx_vits.training.optimizers import build_optimizers, set_learning_rates, update_state
from mlx_vits.training.regularization import effective_weights
from mlx_vits.training.step import Batch, GANStep, draw_step
from mlx_vits.training.vits_trainer import freeze_for

_SEED = 20742
_PHONEMES_PER_SECOND = 14  # of the demo's clips, rounded
_LEARNING_RATE = 1e-5
Part = Callable[[mx.array], Any]  # of a random key, to arrays


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
    """One work's nets, optimizers and batch, and the parts of it that are timed and counted.

    `forward_g` is the generator's forward of training, `step_d` the discriminator on real and
    generated audio with its update, `step` a whole step, `synthesis` one clip from codes. Within a
    step, `weight_norm` and the `update` of all parameters by AdamW are only counted.

    Args:
        compiled: whether the step and its parts run through `mx.compile`.
        compute: what a step computes in; synthesis is fp32.
    """

    def __init__(self, work: Work, *, compiled: bool, compute: mx.Dtype = mx.float32):
        self.gan = gan = make_step(work, compiled=compiled, compute=compute)
        batch, config, frames = make_batch(work), work.config, work.frames
        samples = config.train.segment_size
        noise = mx.random.normal((1, frames, config.model.inter_channels))
        codes = mx.random.randint(0, config.reduced_dims.codebook_size, (1, frames // 2))
        style = mx.random.normal((1, 1, config.model.gin_channels))

        def forward_g(key: mx.array) -> list[mx.array]:
            out = gan.forward(batch, draw_step(key, batch, config))
            return [out.y_hat, out.z_p, out.m_p, out.logs_p]

        def step_d(key: mx.array) -> mx.array:
            real = batch.wav[:, :samples]
            loss, grads = gan.discriminator_gradients(real, real[:, ::-1])
            gan.optimizers.discriminator.update(gan.discriminator, grads)
            return loss

        def weight_norm(key: mx.array) -> list[Any]:
            return [effective_weights(net) for net in (gan.generator, gan.discriminator)]

        def update(key: mx.array) -> list[Any]:
            for optimizer, net in zip(gan.optimizers, gan.state[:2], strict=True):
                optimizer.update(net, net.trainable_parameters())
            return []  # but the state

        def synthesize(model: SynthesizerTrn, style: mx.array) -> mx.array:
            return model.decode(codes, batch.text[:1], [style], noise=noise).wav

        def compile_(function: Part) -> Part:
            if not compiled:
                return function
            return mx.compile(function, inputs=gan.state, outputs=gan.state)

        def with_state(function: Part) -> Part:
            return lambda key: [function(key), gan.state]

        speaker = fold_model(gan.generator)  # as a voice speaks: no weight norm is left
        mx.eval(speaker.parameters(), noise, codes, style)
        speak = accel.inference(synthesize)
        self._steps = 0
        self._parts: dict[str, Part] = {
            "forward_g": compile_(forward_g),
            "step_d": with_state(compile_(step_d)),
            "step": with_state(partial(gan, batch)),
            "synthesis": lambda key: speak(speaker, style),
            "weight_norm": compile_(weight_norm),
            "update": with_state(compile_(update)),
        }
        self._plain: dict[str, Part] = {
            "forward_g": forward_g,
            "step_d": with_state(step_d),
            "step": lambda key: [gan.run(batch, draw_step(key, batch, config)).losses, gan.state],
            "synthesis": lambda key: synthesize(gan.generator, style),
        }

    def run(self, part: str) -> None:
        """Compute a part; return when its result is there."""
        self._steps += 1
        mx.eval(self._parts[part](mx.random.key(self._steps)), self.gan.state)

    def count_kernels(self) -> dict[str, Graph]:
        """Count the kernels of every part."""
        found = {}
        for name, part in self._parts.items():
            with _kept(self.gan.state):
                found[name] = count_graph(part(mx.random.key(0)))
        return found

    def count_operations(self) -> dict[str, float]:
        """Count the operations of what is timed; `step_g` is what is left of a step."""
        found = {}
        for name, part in self._plain.items():
            with _kept(self.gan.state):
                found[name] = count_operations(part)
        return found | {"step_g": found["step"] - found["forward_g"] - found["step_d"]}


def make_step(work: Work, *, compiled: bool = False, compute: mx.Dtype = mx.float32) -> GANStep:
    """The training step over both nets with fresh optimizers."""
    mx.random.seed(_SEED)
    generator, discriminator = SynthesizerTrn(work.config), MultiPeriodDiscriminator(work.config)
    freeze_for(generator, "all")
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
