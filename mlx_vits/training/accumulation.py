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
from mlx.utils import tree_map

from mlx_vits.training.packed import Arrays
from mlx_vits.training.step import Batch, Draws, GANStep, VITSLosses, draw_step


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
    """A batch in parts of as many clips.

    Args:
        count: parts; divides the number of clips.

    Raises:
        ValueError: it does not.
    """
    clips = batch.spec_lengths.shape[0]
    if clips % count:
        raise ValueError(f"{clips} clips cannot be split into {count} parts alike")
    size = clips // count
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
        self._judge: Any = self._gather_d
        self._generate: Any = self._gather_g
        self._update_d: Any = self._finish_d
        self._update_g: Any = self._finish_g
        if compiled:
            inputs, state = step.inputs(), step.state()
            self._judge = mx.compile(self._gather_d, inputs=inputs)
            self._generate = mx.compile(self._gather_g, inputs=inputs)
            self._update_d = mx.compile(self._finish_d, inputs=inputs, outputs=state)
            self._update_g = mx.compile(self._finish_g, inputs=inputs, outputs=state)

    def __call__(self, batch: Batch, key: mx.array) -> VITSLosses:
        """Updates both nets; the parts are computed one after the other.

        Args:
            batch: of a multiple of `count` clips.
        """
        for packed, _ in self._gan.parts():
            packed.adopt()
        return self.run(batch, draw_step(key, batch, self._gan.config))

    def run(self, batch: Batch, draws: Draws) -> VITSLosses:
        """The step with given random numbers."""
        parts = list(split_batch(batch, draws, self._count))
        grads_d: Any = None
        loss_d: Any = None
        for part in parts:
            loss, grads = self._judge(part)
            loss_d, grads_d = _added(loss_d, loss), _added(grads_d, grads)
            mx.eval(loss_d, grads_d)  # what the part took is free again
        self._update_d(grads_d)
        mx.eval(self._gan.state())
        grads_g: Any = None
        named: Any = None
        peak: Any = None
        for part in parts:
            losses, part_peak, grads = self._generate(part)
            named, grads_g = _added(named, losses), _added(grads_g, grads)
            peak = part_peak if peak is None else mx.maximum(peak, part_peak)
            mx.eval(named, grads_g, peak)
        whole = named | {"loss_d": loss_d, "peak_fake": peak}
        losses = VITSLosses(**self._update_g(whole, grads_g, grads_d))
        for packed, _ in self._gan.parts():
            packed.show()
        return losses

    def _gather_d(self, part: Part) -> tuple[mx.array, Arrays]:
        gan = self._gan
        fake = gan.forward(gan.parts()[0][0].arrays, part.batch, part.draws).y_hat
        loss, grads = gan._gradients_d(gan._real_segment(part.batch, part.draws), fake)
        return part.clip_share * loss, tree_map(lambda grad: part.clip_share * grad, grads)

    def _gather_g(self, part: Part) -> tuple[dict[str, mx.array], mx.array, Arrays]:
        gan = self._gan
        found: dict[str, mx.array] = {}
        peaks: list[mx.array] = []

        def objective() -> mx.array:
            out = gan.generated(part.batch, part.draws)
            real = gan._real_segment(part.batch, part.draws)
            for name, loss in gan._generator_losses(out, real, part.batch, part.draws).items():
                found[name] = loss * (part.frame_share if name == "loss_kl" else part.clip_share)
            peaks.append(mx.stop_gradient(mx.max(mx.abs(out.y_hat))))
            return sum(found.values(), start=mx.array(0.0))

        _, grads = gan.parts()[0][0].value_and_grad_in_use(objective, cast=True)
        return found, peaks[0], grads

    def _finish_d(self, grads: Arrays) -> list[mx.array]:
        self._gan.update(self._gan.parts()[1][0], grads)
        return []

    def _finish_g(
        self, named: dict[str, mx.array], grads_g: Arrays, grads_d: Arrays
    ) -> dict[str, mx.array]:
        return self._gan.finish(named, grads_g, grads_d).losses._asdict()


def _added(total: Any, more: Any) -> Any:
    return more if total is None else tree_map(lambda a, b: a + b, total, more)
