"""AdamW for both nets, as upstream sets it up."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten

from mlx_vits.config import Config
from mlx_vits.models.vits import TEXT_SIDE
from mlx_vits.nn import cuda
from mlx_vits.nn.streams import side_by_side


class SharedAdamW(optim.AdamW):
    """MLX's AdamW, number for number, which computes what depends on the step once for all arrays.

    MLX computes the corrections of the bias and the decay anew for each array: ten operations on
    scalars, each of which costs a GPU as much as one on the array.
    """

    def apply_gradients(self, gradients: Any, parameters: Any) -> Any:
        """As MLX's."""
        self._factors: dict[mx.Dtype, tuple[mx.array, mx.array, mx.array]] = {}
        self._stacked: dict[mx.Dtype, mx.array] = {}
        leaves: Any = tree_flatten(gradients)
        self._places = side_by_side([array.size for _, array in leaves])
        try:
            return super().apply_gradients(gradients, parameters)
        finally:
            self._factors, self._stacked = {}, {}
            del self._places

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: Any) -> mx.array:
        """As MLX's."""
        dtype = gradient.dtype
        if dtype not in self._factors:
            self._factors[dtype] = self._of_step(dtype)
            self._stacked[dtype] = mx.stack(list(self._factors[dtype]))
        if cuda.is_used(parameter, gradient):
            moments, factors = (state["m"], state["v"]), self._stacked[dtype]
            b1, b2 = self.betas
            updated = cuda.adamw(parameter, gradient, moments, factors, (b1, b2), self.eps)
            parameter, state["m"], state["v"] = updated
            return parameter
        with next(self._places):
            return self._updated(gradient, parameter, state, self._factors[dtype])

    def _updated(
        self,
        gradient: mx.array,
        parameter: mx.array,
        state: Any,
        factors: tuple[mx.array, mx.array, mx.array],
    ) -> mx.array:
        """The new parameter; the new moments go into the state."""
        decay, rate, correction = factors
        b1, b2 = self.betas
        state["m"] = b1 * state["m"] + (1 - b1) * gradient
        state["v"] = b2 * state["v"] + (1 - b2) * mx.square(gradient)
        root = mx.sqrt(state["v"])
        if self.bias_correction:
            root = root * correction
        return parameter * decay - rate * state["m"] / (root + self.eps)

    def _of_step(self, dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
        """What a parameter, the first moment and the root of the second are multiplied by."""
        rate = self.learning_rate.astype(dtype)
        decay, correction = 1 - rate * self.weight_decay, mx.array(1.0, dtype)
        if self.bias_correction:
            b1, b2 = self.betas
            rate = (rate / (1 - b1**self.step)).astype(dtype)
            correction = mx.rsqrt(1 - b2**self.step).astype(dtype)
        return decay, rate, correction


class Optimizers(NamedTuple):
    """AdamW for both nets; the generator's text-side tensors have a learning rate of their own."""

    generator: optim.MultiOptimizer
    discriminator: optim.AdamW


def build_optimizers(config: Config, *, bias_correction: bool = True) -> Optimizers:
    """AdamW as upstream sets it up; learning rates are set by `set_learning_rates`.

    Args:
        bias_correction: PyTorch always corrects; MLX's default is not to, which makes early
            updates two to three times as large.
    """

    def adamw() -> optim.AdamW:
        return SharedAdamW(
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
