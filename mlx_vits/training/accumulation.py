"""One step of a large batch in parts, of which only one is in memory at a time.

The order is that of the step: the discriminator's gradients are gathered over all parts and it is
updated once, then the generator's over all parts, judged by the updated discriminator. As no
forward of the generator outlives its part, each is computed twice; that is the price of the order.

What is gathered is what the whole batch would give, to rounding: losses that are means over clips
are weighted by a part's share of the clips, the KL divergence by its share of the valid frames. The
noise and the slices are those of the whole batch; dropout draws other masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_vits.training.optimizers import add_gradients
from mlx_vits.training.step import Batch, Draws, GANStep, Scalars, draw_step


class Part(NamedTuple):
    """Some clips of a batch.

    Attributes:
        batch: of them alone.
        draws: their random numbers.
        clip_share: of the whole batch's clips, a scalar.
        frame_share: of its valid frames, a scalar.
    """

    batch: Batch
    draws: Draws
    clip_share: mx.array
    frame_share: mx.array


def split_batch(batch: Batch, draws: Draws, count: int) -> Iterator[Part]:
    """Split a batch into parts of as many clips.

    Args:
        count: parts; divides the number of clips.

    Raises:
        ValueError: it does not.
    """
    clips = batch.spec_lengths.shape[0]
    if clips % count:
        raise ValueError(f"{clips} clips cannot be split into {count} parts alike")
    size = clips // count
    keys: Any = [None] * count
    if draws.dropout_key is not None:
        keys = mx.random.split(draws.dropout_key, count)
    frames = mx.sum(batch.spec_lengths).astype(mx.float32)
    for index in range(count):
        rows = slice(index * size, (index + 1) * size)
        part = Batch(*(array[rows] for array in batch))
        own = Draws(draws.noise[rows], draws.ids_slice[rows], keys[index])
        share = mx.sum(part.spec_lengths).astype(mx.float32) / frames
        yield Part(part, own, mx.array(1 / count), share)


class AccumulatingStep:
    """A step over batches that are taken in parts.

    Args:
        step: whose nets and optimizers are updated.
        count: parts of a batch, at least 2.
        compiled: whether each stage runs through `mx.compile`.
    """

    def __init__(self, step: GANStep, count: int, *, compiled: bool):
        self._gan, self._count = step, count

        def stage(function: Any) -> Any:
            # The nets are outputs of those that gather as well: a gradient leaves traced arrays
            # in them.
            state = step.state
            return mx.compile(function, inputs=state, outputs=state) if compiled else function

        self._gathered_d, self._gathered_g = stage(self._gather_d), stage(self._gather_g)
        self._finished_d, self._finished_g = stage(self._finish_d), stage(self._finish_g)

    def __call__(self, batch: Batch, key: mx.array) -> Scalars:
        """Update both nets; the parts are computed one after the other.

        Args:
            batch: of a multiple of `count` clips.
        """
        return self.run(batch, draw_step(key, batch, self._gan.config))

    def run(self, batch: Batch, draws: Draws) -> Scalars:
        """Update both nets with given random numbers."""
        parts = list(split_batch(batch, draws, self._count))
        loss_d: Any = None
        grads_d: Any = None
        terms: Any = None
        grads_g: Any = None
        peak: Any = None
        for part in parts:
            loss, grads = self._gathered_d(part)
            loss_d, grads_d = _added(loss_d, loss), _added(grads_d, grads)
            mx.eval(loss_d, grads_d)  # what the part took is free again
        self._finished_d(grads_d)
        mx.eval(self._gan.state)
        for part in parts:
            own, part_peak, grads = self._gathered_g(part)
            terms, grads_g = _added(terms, own), _added(grads_g, grads)
            peak = part_peak if peak is None else mx.maximum(peak, part_peak)
            mx.eval(terms, grads_g, peak)
        named = {"loss_d": loss_d, **terms, "peak_fake": peak}
        return self._finished_g(named, grads_g, grads_d)

    def _gather_d(self, part: Part) -> tuple[mx.array, Any]:
        gan = self._gan
        real, fake = gan.real_segment(part.batch, part.draws), gan.forward(*part[:2]).y_hat
        loss, grads = gan.discriminator_gradients(real, fake)
        return part.clip_share * loss, tree_map(lambda grad: part.clip_share * grad, grads)

    def _gather_g(self, part: Part) -> tuple[Scalars, mx.array, Any]:
        gan = self._gan

        def objective() -> Any:
            out, real = gan.forward(*part[:2]), gan.real_segment(part.batch, part.draws)
            terms = {
                name: loss * (part.frame_share if name == "loss_kl" else part.clip_share)
                for name, loss in gan.generator_terms(out, real, part.batch, part.draws).items()
            }
            return sum(terms.values()), terms, mx.stop_gradient(mx.max(mx.abs(out.y_hat)))

        (_, terms, peak), grads = nn.value_and_grad(gan.generator, objective)()
        return terms, peak, grads

    def _finish_d(self, grads: Any) -> list[mx.array]:
        self._gan.optimizers.discriminator.update(self._gan.discriminator, grads)
        return []

    def _finish_g(self, terms: Scalars, grads_g: Any, grads_d: Any) -> Scalars:
        return self._gan.update_generator(terms, grads_g, grads_d).losses


def _added(total: Any, more: Any) -> Any:
    return more if total is None else add_gradients(total, more)
