"""The pull toward the pretrained weights: squared relative distance, averaged over weight tensors.

    loss_reg = strength * sum_l ||w_l - w0_l||^2 / ||w0_l||^2 / n

over the n trained weight tensors, the effective weight where a layer is weight-normed.
Biases, norms, embeddings and buffers are left alone; so is a tensor that is zero in the base, which
has no relative distance. Compare L2-SP, Li et al. 2018, arXiv:1802.01483.

The gradient of one tensor is 2 strength (w - w0) / (n ||w0||^2): with the few hundred tensors of a
SoVITS generator the plan's strength of 0.001 is orders of magnitude below the task's gradient at
every distance a fine-tune reaches. The log carries both norms; `docs/training.md` says from which
strength on it acts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from mlx_vits.nn.layers import Convolution
from mlx_vits.training.losses import added, total
from mlx_vits.training.optimizers import add_gradients, global_norm
from mlx_vits.training.stacks import plan_stacks, stacked, sums

Anchor = dict[str, mx.array]
_JOINED = "in_proj_weight"  # of an attention: queries, keys and values


class Penalized(NamedTuple):
    """Gradients with a penalty's.

    Attributes:
        loss: the penalty.
        norm: of its own gradient.
        grads: the tree of both.
    """

    loss: mx.array
    norm: mx.array
    grads: Any


def _weight_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers with a weight tensor that is being trained."""
    for path, module in model.named_modules():
        trained = module.trainable_parameters()
        if isinstance(module, Convolution):
            if "weight" in trained or "weight_v" in trained:
                yield path, module
        elif (isinstance(module, nn.Linear) and "weight" in trained) or _JOINED in trained:
            yield path, module


def _weight(layer: nn.Module) -> mx.array:
    if isinstance(layer, Convolution):
        return layer.effective_weight()
    return layer[_weight_name(layer)]


def _weight_name(layer: nn.Module) -> str:
    return _JOINED if _JOINED in layer else "weight"


def effective_weights(model: nn.Module) -> Anchor:
    """Return the trained weight tensors by layer path, weight norm applied."""
    return {path: _weight(layer) for path, layer in sorted(_weight_layers(model))}


def take_anchor(model: nn.Module) -> Anchor:
    """Copy the weights to be pulled toward: those the model has now, zero tensors left out."""
    weights = effective_weights(model)
    # Copies: a plain layer's weight is the model's own array, which a compiled step takes over.
    anchor = {path: mx.array(w) for path, w in weights.items() if mx.any(w != 0).item()}
    mx.eval(anchor)
    return anchor


def relative_drift(model: nn.Module, anchor: Anchor) -> dict[str, float]:
    """Return ||w - w0|| / ||w0|| of every anchored layer."""
    weights = effective_weights(model)
    drift = {
        path: mx.sqrt(total(mx.square(weights[path] - origin)) / total(mx.square(origin)))
        for path, origin in anchor.items()
    }
    mx.eval(drift)
    return {path: float(distance) for path, distance in drift.items()}


class PretrainedRegularization:
    """The pull, a function of a model to `loss_reg`; 0 where nothing is anchored.

    Attributes:
        anchor: the weights to be pulled toward.
        scales: what each squared distance is multiplied by.
    """

    def __init__(self, anchor: Anchor, strength: float):
        self.anchor = anchor
        self.scales = {
            path: strength / len(anchor) / float(total(mx.square(origin)))
            for path, origin in anchor.items()
        }

    def __call__(self, model: nn.Module) -> mx.array:
        weights = effective_weights(model)
        return added(
            self.scales[path] * total(mx.square(weights[path] - origin))
            for path, origin in self.anchor.items()
        )


def penalized(
    model: nn.Module,
    penalty: Callable[[Any], mx.array],
    grads: Any,
    norm_of: Callable[[Any], mx.array] = global_norm,
) -> Penalized:
    """Add the gradient of a penalty of the model's weights to gradients of the model."""
    loss, own = nn.value_and_grad(model, penalty)(model)
    return Penalized(loss, norm_of(own), add_gradients(grads, own))


class StackedPull:
    """The pull on a model without weight norm, by the closed form above, in few operations.

    Args:
        model: whose weights are pulled.
        anchor: the weights to be pulled toward.
        strength: of it.
    """

    def __init__(self, model: nn.Module, anchor: Anchor, strength: float):
        layers = dict(model.named_modules())
        named = {f"{path}.{_weight_name(layers[path])}": anchor[path] for path in anchor}
        self._plan = plan_stacks(named)
        self._origins = stacked(self._plan, named)
        self._scales = [
            strength / len(anchor) / mx.sum(mx.square(origin), axis=(1, 2), keepdims=True)
            for origin in self._origins
        ]
        mx.eval(self._origins, self._scales)

    def __call__(self, model: nn.Module, grads: Any) -> Penalized:
        """Add its gradient to gradients of the model."""
        if not self._plan:
            return Penalized(mx.array(0.0), mx.array(0.0), grads)
        weights = stacked(self._plan, model.trainable_parameters())
        own: dict[str, mx.array] = {}
        losses, squares = [], []
        for stack, weight, origin, scale in zip(
            self._plan, weights, self._origins, self._scales, strict=True
        ):
            difference = weight - origin
            distances = sums([mx.square(difference)])
            losses.append(distances * scale.flatten())
            squares.append(distances * mx.square(scale.flatten()))
            parts = mx.split(2 * scale * difference, len(stack.paths))
            own |= {
                path: part.reshape(stack.shape)
                for path, part in zip(stack.paths, parts, strict=True)
            }
        both = tree_map_with_path(lambda path, g: g + own[path] if path in own else g, grads)
        norm = 2 * mx.sqrt(mx.sum(mx.concatenate(squares)))
        return Penalized(mx.sum(mx.concatenate(losses)), norm, both)
