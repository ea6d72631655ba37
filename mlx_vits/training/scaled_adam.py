"""ScaledAdam, with which the GPT stage is trained.

Adam whose step is proportional to each tensor's root mean square (RMS), with a second, slower
update of the tensor's size: it is scaled up or down as a whole. Both are invariant to the scale of
the gradient, so sums of gradients do as well as means.

Source: GPT-SoVITS `AR/modules/optim.py` (`ScaledAdam`), from k2-fsa/icefall; Yao et al. 2023,
arXiv:2310.11230. Upstream stacks tensors of equal shape and keeps statistics of each; here every
tensor has its own, which gives the same numbers.

Upstream has two faults, which `compat` brings back:

* a large gradient is to be scaled down, but the factor reaches the update of the size alone; the
  step and its second moments take the gradient as it came. Here it scales all three.
* tensors of one element are to stay within +-`scalar_max`, but are clamped before the update is
  added, which takes them beyond. Here they are clamped after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map

from mlx_vits.training.losses import added, total
from mlx_vits.training.optimizers import leaves

_CORRECTED_UP_TO = 0.99  # second moments are corrected for their start while less of them is seen


@dataclass(frozen=True)
class ScaledAdamOptions:
    """Settings but for the learning rate; the defaults are upstream's.

    Attributes:
        betas: decay of the first and second moments.
        eps: added to the root of second moments.
        scalar_lr_scale: share of the learning rate for sizes, and for tensors of one element.
        min_rms: a tensor of a smaller RMS takes steps as if it had this one, and is not shrunk.
        max_rms: a tensor of a larger RMS is shrunk.
        scalar_max: largest magnitude of a tensor of one element.
        size_update_period: steps between two updates of the size.
        clipping_scale: gradients are scaled down to this multiple of the median norm.
        clipping_update_period: steps over which the median is taken, and before the first of which
            nothing is scaled down: a short training never gets there.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    scalar_lr_scale: float = 0.1
    min_rms: float = 1e-5
    max_rms: float = 3.0
    scalar_max: float = 10.0
    size_update_period: int = 4
    clipping_scale: float = 2.0
    clipping_update_period: int = 1000


class ScaledAdam(optim.Optimizer):
    """ScaledAdam over a tree of parameters.

    Its state is arrays alone, so it can be compiled with the step, saved and restored like AdamW's:
    of each tensor `delta` and `exp_avg_sq`, and of those with more than one element `param_rms`,
    `scale_exp_avg_sq` and `scale_grads`; of all `model_norms`, `model_norm_threshold` and
    `clip_factor`, by which the last step's gradients were scaled down.

    Args:
        learning_rate: a number, or a schedule of the step.
        options: everything else.
        compat: whether to compute what upstream does, see above.
    """

    def __init__(
        self,
        learning_rate: float | Callable[[mx.array], mx.array],
        options: ScaledAdamOptions | None = None,
        *,
        compat: bool = False,
    ):
        super().__init__()
        self._maybe_schedule("learning_rate", learning_rate)
        self.options, self.compat = options or ScaledAdamOptions(), compat
        self.state["model_norms"] = mx.zeros((self.options.clipping_update_period,))
        self.state["model_norm_threshold"] = mx.array(0.0)
        self.state["clip_factor"] = mx.array(1.0)

    def init_single(self, parameter: mx.array, state: dict[str, mx.array]) -> None:
        """Begin the state of one tensor."""
        state["delta"] = mx.zeros_like(parameter)
        state["exp_avg_sq"] = mx.zeros_like(parameter)
        if parameter.size > 1:
            state["param_rms"] = _rms(parameter)
            state["scale_exp_avg_sq"] = mx.array(0.0)
            state["scale_grads"] = mx.zeros((self.options.size_update_period,))

    def apply_gradients(self, gradients: Any, parameters: Any) -> Any:
        """Return the updated parameters, those that have gradients."""
        if not self._initialized:  # here, since what is begun depends on the parameters
            self.init(tree_map(lambda _, parameter: parameter, gradients, parameters))
        self.state["clip_factor"] = factor = self._clip_factor(gradients)

        def apply(gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
            return self._apply(gradient, parameter, state, factor)

        for name, schedule in self._schedulers.items():
            self.state[name] = schedule(self.step)
        updated = tree_map(apply, gradients, parameters, self.state)
        self.state["step"] = self.step + 1
        return updated

    def _clip_factor(self, gradients: Any) -> mx.array:
        """The factor, at most 1; also enters the norm into the ring of the last norms."""
        period, step = self.options.clipping_update_period, self.step.astype(mx.int32)
        squares = leaves(tree_map(_squared_norm, gradients, self.state)).values()
        norm = mx.sqrt(added(squares))
        place = (mx.arange(period) == step % period) & (step > 0)
        norms = mx.where(place, norm, self.state["model_norms"])
        median = mx.sort(norms)[min(2 * (period // 4), period - 1)]
        threshold = mx.where(
            step % period == 0,
            self.options.clipping_scale * median,
            self.state["model_norm_threshold"],
        )
        self.state["model_norms"], self.state["model_norm_threshold"] = norms, threshold
        return mx.where(step < period, 1.0, mx.minimum(1.0, threshold / (norm + 1e-20)))

    def _apply(
        self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array], factor: mx.array
    ) -> mx.array:
        clipped = gradient * factor
        taken = gradient if self.compat else clipped
        beta1, beta2 = self.options.betas
        state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * mx.square(taken)
        state["delta"] = beta1 * state["delta"]
        if parameter.size == 1:
            return self._apply_scalar(taken, parameter, state)
        state["delta"] += (1 - beta1) * parameter * self._size_step(clipped, parameter, state)
        seen = 1 - beta2 ** (self.step + 1).astype(mx.float32)
        moment = state["exp_avg_sq"] / mx.where(seen < _CORRECTED_UP_TO, seen, 1.0)
        size = mx.maximum(state["param_rms"], self.options.min_rms)
        step = size * taken / (mx.sqrt(moment) + self.options.eps)
        state["delta"] -= (1 - beta1) * self.learning_rate * step
        return parameter + state["delta"]

    def _apply_scalar(
        self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]
    ) -> mx.array:
        beta1, beta2 = self.options.betas
        rate, most = self.learning_rate * self.options.scalar_lr_scale, self.options.scalar_max
        moment = state["exp_avg_sq"] / (1 - beta2 ** (self.step + 1).astype(mx.float32))
        state["delta"] -= (1 - beta1) * rate * gradient / (mx.sqrt(moment) + self.options.eps)
        if self.compat:
            return mx.clip(parameter, -most, most) + state["delta"]
        return mx.clip(parameter + state["delta"], -most, most)

    def _size_step(
        self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]
    ) -> mx.array:
        """By which share the tensor is to grow; 0 but for every `size_update_period`-th step."""
        options, period = self.options, self.options.size_update_period
        rate, step = self.learning_rate * options.scalar_lr_scale, self.step.astype(mx.int32)
        is_due = step % period == period - 1
        place = mx.arange(period) == step % period
        grads = mx.where(place, total(parameter * gradient), state["scale_grads"])
        rms = mx.where(is_due, _rms(parameter), state["param_rms"])
        beta = options.betas[1] ** period
        moment = beta * state["scale_exp_avg_sq"] + (1 - beta) * mx.mean(mx.square(grads))
        moment = mx.where(is_due, moment, state["scale_exp_avg_sq"])
        state["scale_grads"], state["param_rms"] = grads, rms
        state["scale_exp_avg_sq"] = moment
        seen = 1 - beta ** ((step + 1) // period).astype(mx.float32)
        share = -rate * mx.sqrt(seen) * mx.sum(grads) / (mx.sqrt(moment) + options.eps)
        share = mx.where(rms < options.min_rms, 0.0, share)
        share = mx.where(rms > options.max_rms, -rate * period, share)
        return mx.where(is_due, share, 0.0)


def _rms(array: mx.array) -> mx.array:
    return mx.sqrt(total(mx.square(array)) / array.size)


def _squared_norm(gradient: mx.array, state: dict[str, mx.array]) -> mx.array:
    """Of a gradient in proportion to its tensor's size."""
    return total(mx.square(gradient * state["param_rms"] if "param_rms" in state else gradient))
