"""ScaledAdam, with which the GPT stage is trained.

Adam whose step is proportional to each tensor's root mean square (RMS), with a second, slower
update of the tensor's size: it is scaled up or down as a whole. Both are invariant to the scale of
the gradient, so sums of gradients do as well as means.

Source: GPT-SoVITS `AR/modules/optim.py` (`ScaledAdam`), from k2-fsa/icefall; Yao et al. 2023,
arXiv:2310.11230. As there, tensors of equal shape are stacked (`stacks.py`), and statistics are of
each tensor.

Upstream has two faults, which `compat` brings back:

* a large gradient is to be scaled down, but the factor reaches the update of the size alone; the
  step and its second moments take the gradient as it came. Here it scales all three.
* tensors of one element are to stay within +-`scalar_max`, but are clamped before the update is
  added, which takes them beyond. Here they are clamped after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map

from mlx_vits.training.stacks import plan_stacks, stacked, sums, unstacked

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


class _Rates(NamedTuple):
    """What the stacks are multiplied by, `(tensors, 1, 1)` each.

    Attributes:
        gradient: makes its square what is added to the second moment.
        root: of how much the second moment has seen, by which `eps` is multiplied.
        step: of the gradient by the root of the second moment.
        growth: of the tensor as a whole.
    """

    gradient: mx.array
    root: mx.array
    step: mx.array
    growth: mx.array


class ScaledAdam(optim.Optimizer):
    """ScaledAdam over a tree of parameters.

    Its state is arrays alone, so it can be compiled with the step, saved and restored like AdamW's:
    `delta` and `exp_avg_sq` of each stack; `param_rms`, `scale_exp_avg_sq` and `scale_grads` of all
    tensors, in the order of the stacks; `model_norms`, `model_norm_threshold` and `clip_factor`, by
    which the last step's gradients were scaled down.

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

    def init(self, parameters: Any) -> None:
        """Begin the state of the parameters that will have gradients; one that is there is kept."""
        if "param_rms" not in self.state:
            weights = stacked(plan_stacks(parameters), parameters)
            rms = _rms(weights)
            self.state["delta"] = [mx.zeros_like(weight) for weight in weights]
            self.state["exp_avg_sq"] = [mx.zeros_like(weight) for weight in weights]
            self.state["param_rms"] = rms
            self.state["scale_exp_avg_sq"] = mx.zeros_like(rms)
            self.state["scale_grads"] = mx.zeros((self.options.size_update_period, rms.size))
        self._initialized = True

    def apply_gradients(self, gradients: Any, parameters: Any) -> Any:
        """Return the updated parameters, those that have gradients."""
        if not self._initialized:  # here, since what is begun depends on the parameters
            self.init(tree_map(lambda _, parameter: parameter, gradients, parameters))
        for name, schedule in self._schedulers.items():
            self.state[name] = schedule(self.step)
        plan = plan_stacks(gradients)
        grads, weights = stacked(plan, gradients), stacked(plan, parameters)
        rates = self._rates(grads, weights)
        updated: list[mx.array] = []
        start = 0
        for index, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
            own = _Rates(*(rate[start : start + len(weight)] for rate in rates))
            if updated:  # one stack after the other, as each takes memory
                grad, weight = mx.depends([grad, weight], updated[-1:])
            updated.append(self._apply(grad, weight, index, own))
            start += len(weight)
        self.state["step"] = self.step + 1
        return unstacked(plan, updated, gradients)

    def _apply(self, grad: mx.array, weight: mx.array, index: int, rates: _Rates) -> mx.array:
        """Update a stack and its moments."""
        beta1, beta2 = self.options.betas
        most, is_scalar = self.options.scalar_max, weight[0].size == 1
        grad = grad * rates.gradient
        moment = beta2 * self.state["exp_avg_sq"][index] + mx.square(grad)
        step = rates.step * grad / (mx.sqrt(moment) + self.options.eps * rates.root)
        delta = beta1 * self.state["delta"][index] + rates.growth * weight - step
        self.state["exp_avg_sq"][index], self.state["delta"][index] = moment, delta
        if is_scalar and self.compat:
            return mx.clip(weight, -most, most) + delta
        return mx.clip(weight + delta, -most, most) if is_scalar else weight + delta

    def _rates(self, grads: Sequence[mx.array], weights: Sequence[mx.array]) -> _Rates:
        """Update the statistics of all tensors, and reckon their rates from them."""
        options, (beta1, beta2) = self.options, self.options.betas
        is_scalar = _sizes(weights) == 1
        factor = self._clip_factor(grads, is_scalar)
        self.state["clip_factor"] = factor
        share = self._size_steps(sums(map(mx.multiply, weights, grads)) * factor, _rms(weights))
        growth = mx.where(is_scalar, 0.0, (1 - beta1) * share)
        seen = 1 - beta2 ** (self.step + 1).astype(mx.float32)
        root = mx.sqrt(mx.where(is_scalar | (seen < _CORRECTED_UP_TO), seen, 1.0))
        size = mx.maximum(self.state["param_rms"], options.min_rms)
        size = mx.where(is_scalar, options.scalar_lr_scale, size)
        step = (1 - beta1) / (1 - beta2) ** 0.5 * self.learning_rate * size * root
        gradient = (1 - beta2) ** 0.5 * (1.0 if self.compat else factor) * mx.ones_like(root)
        return _Rates(*(rate[:, None, None] for rate in (gradient, root, step, growth)))

    def _clip_factor(self, grads: Sequence[mx.array], is_scalar: mx.array) -> mx.array:
        """The factor, at most 1; also enters the norm into the ring of the last norms.

        The norm is of gradients in proportion to their tensors' sizes.
        """
        period, step = self.options.clipping_update_period, self.step.astype(mx.int32)
        sizes = mx.where(is_scalar, 1.0, self.state["param_rms"])
        norm = mx.sqrt(mx.sum(sums(map(mx.square, grads)) * mx.square(sizes)))
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

    def _size_steps(self, grads: mx.array, rms: mx.array) -> mx.array:
        """By which share each tensor is to grow; 0 but for every `size_update_period`-th step.

        Args:
            grads: of the tensors' sizes, `(tensors,)`.
            rms: of the tensors.
        """
        options, period = self.options, self.options.size_update_period
        rate, step = self.learning_rate * options.scalar_lr_scale, self.step.astype(mx.int32)
        is_due = step % period == period - 1
        place = mx.arange(period)[:, None] == step % period
        grads = mx.where(place, grads, self.state["scale_grads"])
        rms = mx.where(is_due, rms, self.state["param_rms"])
        beta = options.betas[1] ** period
        moment = beta * self.state["scale_exp_avg_sq"]
        moment = moment + (1 - beta) * mx.mean(mx.square(grads), axis=0)
        moment = mx.where(is_due, moment, self.state["scale_exp_avg_sq"])
        self.state["scale_grads"], self.state["param_rms"] = grads, rms
        self.state["scale_exp_avg_sq"] = moment
        seen = 1 - beta ** ((step + 1) // period).astype(mx.float32)
        share = -rate * mx.sqrt(seen) * mx.sum(grads, axis=0) / (mx.sqrt(moment) + options.eps)
        share = mx.where(rms < options.min_rms, 0.0, share)
        share = mx.where(rms > options.max_rms, -rate * period, share)
        return mx.where(is_due, share, 0.0)


def _sizes(stacks: Sequence[mx.array]) -> mx.array:
    """The number of elements of each tensor."""
    return mx.array([stack[0].size for stack in stacks for _ in range(len(stack))])


def _rms(stacks: Sequence[mx.array]) -> mx.array:
    return mx.sqrt(sums(map(mx.square, stacks)) / _sizes(stacks))
