"""One GAN step, as a function of a batch and a random key.

Order, as upstream's `s2_train.py`: one forward of the generator; the discriminator on real and
detached generated audio, and its update; the *updated* discriminator on both again; the generator's
update. Nothing is clipped. Axes: B batch, T spectrogram frames, F bins, N samples, L phonemes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map, tree_unflatten

from mlx_vits.audio.spectrogram import mel_of_spectrogram, mel_spectrogram
from mlx_vits.config import Config
from mlx_vits.models.discriminator import Judge, MultiPeriodDiscriminator
from mlx_vits.models.vits import TEXT_SIDE, SynthesizerOutput, SynthesizerTrn, slice_segments
from mlx_vits.nn import cuda
from mlx_vits.nn.checkpointing import checkpointing, recomputed
from mlx_vits.nn.dropout import KeyedDropout
from mlx_vits.nn.gradients import no_gradient
from mlx_vits.nn.streams import side_by_side
from mlx_vits.training import losses
from mlx_vits.training.moments import (
    flatten,
    moments_by_path,
    set_moments_by_path,
    shapes_of,
)
from mlx_vits.training.optimizers import Optimizers, build_optimizers, set_learning_rates
from mlx_vits.training.packed import Arrays, Packed
from mlx_vits.training.regularization import Anchor, PackedPull

__all__ = [
    "Batch",
    "Draws",
    "GANStep",
    "Gradients",
    "Moments",
    "Optimizers",
    "StepResult",
    "VITSLosses",
    "build_optimizers",
    "draw_step",
    "global_norm",
    "set_learning_rates",
]


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


class Gradients(NamedTuple):
    """Trees of the gradients that were applied, a tensor a name."""

    generator: dict[str, Any]
    discriminator: dict[str, Any]


class StepResult(NamedTuple):
    """What a step did.

    Attributes:
        losses: of the step.
        blocks_g, blocks_d: gradients that were applied, by blocks; see `GANStep.gradients`.
    """

    losses: VITSLosses
    blocks_g: Arrays
    blocks_d: Arrays


class Moments(NamedTuple):
    """AdamW's moments, steps and learning rates by the paths of the tensors, as files hold them.

    Attributes:
        generator: a list `states`: of the text side, and of the rest.
        discriminator: one state.
    """

    generator: dict[str, Any]
    discriminator: dict[str, Any]


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
        compute: what convolutions and products are computed in, see `precision.py`.
        recomputes: whether the backward computes blocks again instead of keeping what they gave.

    Attributes:
        compilations: shapes of batches that were compiled; steps, where it is not compiled.
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
        compute: mx.Dtype = mx.float32,
        recomputes: bool = False,
    ):
        self.recomputes = recomputes
        self.generator, self.discriminator = generator, discriminator
        self.optimizers, self.config = optimizers, generator.config
        self.compilations = 0
        self._packed_g = Packed(generator, TEXT_SIDE, compute)
        self._packed_d = Packed(discriminator, compute=compute)
        self._pull: PackedPull | None = None
        if anchor and reg_strength:
            self._pull = PackedPull(self._packed_g, generator, anchor, reg_strength)
        for packed, groups in self.parts():
            for optimizer, arrays in zip(groups, packed.arrays, strict=True):
                optimizer.init(arrays)
        step: Any = self._losses_only
        if compiled:
            step = mx.compile(step, inputs=self.inputs(), outputs=self.state())
        self._step: Callable[..., VITSLosses] = step

    def parts(self) -> list[tuple[Packed, list[optim.AdamW]]]:
        """Parameters of generator and discriminator, with the optimizer of each group."""
        groups: Any = self.optimizers.generator.optimizers
        return [(self._packed_g, groups), (self._packed_d, [self.optimizers.discriminator])]

    def state(self) -> list[Any]:
        """Everything a step changes: the blocks of both nets, and both optimizers.

        What the nets hold are views of the blocks, which a compiled step neither reads nor makes:
        they are computed where they are read.
        """
        return [
            *(packed.arrays for packed, _ in self.parts()),
            *(optimizer.state for _, groups in self.parts() for optimizer in groups),
        ]

    def inputs(self) -> list[Any]:
        """Everything a step reads besides a batch: its state, and what is frozen."""
        return [self.generator.state, self.discriminator.state, *self.state()]

    def moments(self) -> Moments:
        """What another run needs to continue with, by the paths of the tensors."""
        of_g, of_d = (moments_by_path(packed, groups) for packed, groups in self.parts())
        return Moments({"states": of_g}, of_d[0])

    def set_moments(self, generator: dict[str, Any], discriminator: dict[str, Any]) -> None:
        """Continues with the moments, steps and learning rates of another run.

        Args:
            generator, discriminator: as `moments` gives them.

        Raises:
            ValueError: the states belong to other parameters.
        """
        theirs = [generator["states"], [discriminator]]
        for (packed, groups), states in zip(self.parts(), theirs, strict=True):
            for ours, other in zip(moments_by_path(packed, groups), states, strict=True):
                if shapes_of(ours) != shapes_of(other):
                    raise ValueError("the optimizer's moments are of other parameters")
        for (packed, groups), states in zip(self.parts(), theirs, strict=True):
            set_moments_by_path(packed, groups, states)

    def __call__(self, batch: Batch, key: mx.array) -> VITSLosses:
        """Updates both nets; nothing is evaluated yet."""
        named = self.advance(batch, key)
        self.show()
        return named

    def advance(self, batch: Batch, key: mx.array) -> VITSLosses:
        """As calling it, but the nets hold their former weights until `show`."""
        for packed, _ in self.parts():
            packed.adopt()
        before = self.compilations
        named = self._step(batch, key)
        if self.compilations > before:  # recording it leaves arrays of the record in the nets
            for packed, _ in self.parts():
                packed.show()
        return named

    def show(self) -> None:
        """Gives both nets the weights that the last step left, or that others have set since."""
        for packed, _ in self.parts():
            packed.adopt()
            packed.show()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What is done within a `with` block changes neither the nets nor the optimizers."""
        before = list(_places(self.inputs()))
        try:
            yield
        finally:
            for container, key, array in before:
                container[key] = array
            for packed, _ in self.parts():
                packed.note()

    def _losses_only(self, batch: Batch, key: mx.array) -> VITSLosses:
        self.compilations += 1  # Python runs here once for each shape, where it is compiled
        named = self.run(batch, draw_step(key, batch, self.config)).losses
        for packed, _ in self.parts():
            packed.adopt()  # a subclass may have changed the weights
        return named

    def run(self, batch: Batch, draws: Draws) -> StepResult:
        """The step with given random numbers; the weights are those that the last step left."""
        grads_d: Arrays = []
        parts: dict[str, mx.array] = {}

        def objective() -> mx.array:
            out = self.generated(batch, draws)
            real = self._real_segment(batch, draws)
            # One forward serves both updates: the discriminator is updated in here, on values
            # that carry no gradient, and judges again with its new weights.
            loss_d, grads = self._update_discriminator(real, mx.stop_gradient(out.y_hat))
            grads_d.extend(grads)
            parts.update(self._generator_losses(out, real, batch, draws))
            total = sum(parts.values(), start=mx.array(0.0))
            parts["loss_d"] = loss_d
            parts["peak_fake"] = mx.stop_gradient(mx.max(mx.abs(out.y_hat)))
            return total

        _, grads_task = self._packed_g.value_and_grad_in_use(objective, cast=True)
        return self.finish(parts, grads_task, grads_d)

    def finish(self, parts: dict[str, mx.array], grads_task: Arrays, grads_d: Arrays) -> StepResult:
        """Adds the pull to the generator's gradients, and updates it.

        Args:
            parts: its losses, `loss_d` and `peak_fake`.
            grads_task: gradients of its losses.
            grads_d: those that the discriminator was updated by.
        """
        others = ("loss_d", "peak_fake")
        loss_task = sum((v for k, v in parts.items() if k not in others), start=mx.array(0.0))
        grads_g = grads_task
        loss_reg, norm_task, norm_reg = mx.array(0.0), global_norm(grads_task), mx.array(0.0)
        norm_g = norm_task
        if self._pull is not None:
            loss_reg, grads_reg = self._packed_g.value_and_grad(self._pull)
            grads_g = tree_map(lambda task, reg: task + reg, grads_task, grads_reg)
            norm_g, norm_reg = global_norm(grads_g), global_norm(grads_reg)
        self.update(self._packed_g, grads_g)
        named = VITSLosses(
            **parts,
            loss_reg=loss_reg,
            loss_total=loss_task + loss_reg,
            grad_norm_g=norm_g,
            grad_norm_d=global_norm(grads_d),
            grad_norm_task=norm_task,
            grad_norm_reg=norm_reg,
        )
        return StepResult(named, grads_g, grads_d)

    def forward(self, arrays: Arrays, batch: Batch, draws: Draws) -> SynthesizerOutput:
        """The generator's forward of training, with these blocks."""
        with self._packed_g.in_use(arrays, cast=True):
            return self.generated(batch, draws)

    def generated(self, batch: Batch, draws: Draws) -> SynthesizerOutput:
        """The generator's forward of training, with the weights that it holds."""
        with checkpointing(self.recomputes):
            return self.generator(
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

    def update(self, packed: Packed, grads: Arrays) -> None:
        """One update of a net's parameters by their gradients, both in blocks."""
        groups = dict(self.parts())[packed]
        packed.replace(
            [
                optimizer.apply_gradients(of_group, arrays)
                for optimizer, of_group, arrays in zip(groups, grads, packed.arrays, strict=True)
            ]
        )

    def gradients(self, result: StepResult) -> Gradients:
        """The gradients that `run` applied, as trees."""
        of_g, of_d = result.blocks_g, result.blocks_d
        return Gradients(
            tree_unflatten(list(self._packed_g.unpack(of_g).items())),
            tree_unflatten(list(self._packed_d.unpack(of_d).items())),
        )

    def _real_segment(self, batch: Batch, draws: Draws) -> mx.array:
        hop = self.config.data.hop_length
        return slice_segments(batch.wav, draws.ids_slice * hop, self.config.train.segment_size)

    def _update_discriminator(self, real: mx.array, fake: mx.array) -> tuple[mx.array, Arrays]:
        loss, grads = self._gradients_d(real, fake)
        self.update(self._packed_d, grads)
        return loss, grads

    def _gradients_d(self, real: mx.array, fake: mx.array) -> tuple[mx.array, Arrays]:
        # One batch: exact, as nothing in the discriminator reaches across clips.
        both = mx.concatenate([real, fake])

        def objective() -> mx.array:
            with checkpointing(self.recomputes):
                return sum(self._judged(_loss_d, True, both), start=mx.array(0.0))

        return self._packed_d.value_and_grad_in_use(objective, cast=True)

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
        arrays = self._packed_d.arrays
        with self._packed_d.in_use(arrays, cast=True), checkpointing(self.recomputes):
            of_each = self._judged(_losses_of_fake, False, real, fake)
        gen, fm = zip(*of_each, strict=True)
        zero = mx.array(0.0)
        return {"loss_gen": sum(gen, start=zero), "loss_fm": sum(fm, start=zero)}

    def _judged(self, loss: Callable[..., Any], learns: bool, *wavs: mx.array) -> list[Any]:
        """A loss of every sub-discriminator, one after the other."""
        return [
            recomputed([net], partial(loss, net), *wavs, learns=learns)
            for net in self.discriminator.discriminators
        ]


def _loss_d(net: Judge, both: mx.array) -> mx.array:
    real, fake = mx.split(net(both).score, 2)
    return losses.discriminator_loss([real], [fake])


def _losses_of_fake(net: Judge, real: mx.array, fake: mx.array) -> list[mx.array]:
    with no_gradient():
        on_real = net(mx.stop_gradient(real))
    on_fake = net(fake)
    return [
        losses.generator_loss([on_fake.score]),
        losses.feature_loss([on_real.features], [on_fake.features]),
    ]


def _places(tree: Any) -> Iterator[tuple[Any, Any, mx.array]]:
    """Every array of a tree, with the container that holds it and the key."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, mx.array):
            yield tree, key, value
        elif isinstance(value, (dict, list)):
            yield from _places(value)


def global_norm(tree: Any) -> mx.array:
    """L2 norm over all arrays of a tree; 0 for an empty one."""
    arrays = list(flatten(tree).values()) if tree else []
    if arrays and cuda.is_used(*arrays):
        return mx.sqrt(mx.sum(cuda.join([cuda.squares(array) for array in arrays])))
    squares = []
    for array, place in zip(arrays, side_by_side([a.size for a in arrays]), strict=True):
        with place:
            squares.append(losses.total(mx.square(array)))
    return mx.sqrt(sum(squares, start=mx.array(0.0)))
