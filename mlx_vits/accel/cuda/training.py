"""Equivalents on CUDA of what a training step does to all tensors of a net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map

from mlx_vits.accel.cuda import kernels, many
from mlx_vits.accel.custom_vjp import custom_vjp
from mlx_vits.training import losses, optimizers


def _are_taken(*arrays: mx.array) -> bool:
    """Whether the kernels of `many.py` take these arrays: fp32, and one at least."""
    return bool(arrays) and arrays[0].dtype == mx.float32 and kernels.is_used(*arrays)


class FusedAdamW(optim.AdamW):
    """AdamW whose every launch updates several tensors; the state is that of MLX's."""

    def apply_gradients(self, gradients: Any, parameters: Any) -> Any:
        """Return the updated parameters, in a tree like that of the gradients."""
        if not self._initialized:
            self.init(gradients)
        self.state["step"] = self.step + 1
        tensors: list[tuple[mx.array, mx.array, Any]] = []
        tree_map(lambda *one: tensors.append(one), gradients, parameters, self.state)
        if not tensors:
            return gradients
        grads, before, states = zip(*tensors, strict=True)
        if not _are_taken(*grads, *before):
            return tree_map(self.apply_single, gradients, parameters, self.state)
        moments = [many.Moments(state["m"], state["v"]) for state in states]
        betas = self.betas[0], self.betas[1]
        updated = []
        found = many.adamw(before, grads, moments, self._factors(), betas, self.eps)
        for state, (parameter, after) in zip(states, found, strict=True):
            state["m"], state["v"] = after
            updated.append(parameter)
        following = iter(updated)
        return tree_map(lambda _: next(following), gradients)

    def _factors(self) -> mx.array:
        """What the parameter, the first moment and the root of the second are multiplied by."""
        rate = self.learning_rate.astype(mx.float32)
        decay, correction = 1 - rate * self.weight_decay, mx.array(1.0)
        if self.bias_correction:
            b1, b2 = self.betas
            rate = (rate / (1 - b1**self.step)).astype(mx.float32)
            correction = mx.rsqrt(1 - b2**self.step).astype(mx.float32)
        return mx.stack([decay, rate, correction])


def global_norm(gradients: Any) -> mx.array:
    """L2 norm over all arrays of a tree; 0 for an empty one."""
    arrays = list(optimizers.leaves(gradients).values())
    if not _are_taken(*arrays):
        return optimizers.global_norm(gradients)
    return mx.sqrt(many.sum_of_products(arrays, arrays))


def feature_loss(
    real: Sequence[Sequence[mx.array]], generated: Sequence[Sequence[mx.array]]
) -> mx.array:
    """Twice the mean absolute difference of feature maps, summed; real ones are constants."""
    maps, generated_maps = zip(*losses.feature_pairs(real, generated), strict=True)
    if not _are_taken(*maps, *generated_maps):
        return losses.feature_loss(real, generated)
    loss: mx.array = _distance(maps)(*generated_maps)
    return loss


def _distance(real: Sequence[mx.array]) -> Callable[..., mx.array]:
    weights = [losses.FEATURE_WEIGHT / map_.size for map_ in real]

    def forward(*maps: mx.array) -> mx.array:
        return many.sum_of_distances(real, maps, weights)

    def gradient(
        primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
    ) -> list[mx.array]:
        return many.distance_gradients(real, primals, weights, cotangent)

    return custom_vjp(forward, gradient)


def discriminator_loss(real: Sequence[mx.array], generated: Sequence[mx.array]) -> mx.array:
    """Least squares: real scores to 1, generated ones to 0, summed over sub-discriminators."""
    if not _are_taken(*real, *generated):
        return losses.discriminator_loss(real, generated)
    return _squares([1.0] * len(real) + [0.0] * len(generated), [*real, *generated])


def generator_loss(generated: Sequence[mx.array]) -> mx.array:
    """Least squares: generated scores to 1, summed over sub-discriminators."""
    if not _are_taken(*generated):
        return losses.generator_loss(generated)
    return _squares([1.0] * len(generated), generated)


def _squares(targets: Sequence[float], scores: Sequence[mx.array]) -> mx.array:
    """Mean squared distances of scores from their targets, summed."""
    weights = [1 / score.size for score in scores]

    def forward(*scores: mx.array) -> mx.array:
        return many.sum_of_squares(scores, targets, weights)

    def gradient(primals: Any, cotangent: mx.array, output: mx.array) -> list[mx.array]:
        primals = [primals] if isinstance(primals, mx.array) else primals
        return many.square_gradients(primals, targets, weights, cotangent)

    loss: mx.array = custom_vjp(forward, gradient)(*scores)
    return loss
