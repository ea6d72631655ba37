"""The pull toward the pretrained weights: squared relative distance, averaged over weight tensors.

    loss_reg = strength * sum_l ||w_l - w0_l||^2 / ||w0_l||^2 / n

over the n trained weight tensors, the effective weight where a layer holds length and direction.
Biases, norms, embeddings and buffers are left alone; so is a tensor that is zero in the base, which
has no relative distance. Compare L2-SP, Li et al. 2018, arXiv:1802.01483.

The gradient of one tensor is 2 strength (w - w0) / (n ||w0||^2): with the few hundred tensors of a
SoVITS generator the plan's strength of 0.001 is orders of magnitude below the task's gradient at
every distance a fine-tune reaches. The log carries both norms; `docs/training.md` says from which
strength on it acts.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.nn.layers import Convolution
from mlx_vits.training.losses import total
from mlx_vits.training.packed import Arrays, Matrix, Packed

Anchor = dict[str, mx.array]


def _weight_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers with a weight tensor that is being trained."""
    for path, module in model.named_modules():
        trained = module.trainable_parameters()
        if isinstance(module, Convolution):
            if "weight" in trained or "weight_v" in trained:
                yield path, module
        elif isinstance(module, nn.Linear) and "weight" in trained:
            yield path, module


def _weight(layer: nn.Module) -> mx.array:
    return layer.effective_weight() if isinstance(layer, Convolution) else layer["weight"]


def effective_weights(model: nn.Module) -> Anchor:
    """Trained weight tensors by layer path, length and direction multiplied out."""
    return {path: _weight(layer) for path, layer in sorted(_weight_layers(model))}


def take_anchor(model: nn.Module) -> Anchor:
    """The weights to be pulled toward: those the model has now, zero tensors left out."""
    weights = effective_weights(model)
    # Copies: a plain layer's weight is the model's own array, which a compiled step takes over.
    anchor = {path: mx.array(w) for path, w in weights.items() if mx.any(w != 0).item()}
    mx.eval(anchor)
    return anchor


def relative_drift(model: nn.Module, anchor: Anchor) -> dict[str, float]:
    """||w - w0|| / ||w0|| of every anchored layer."""
    weights = effective_weights(model)
    drift = {
        path: mx.sqrt(total(mx.square(weights[path] - origin)) / total(mx.square(origin)))
        for path, origin in anchor.items()
    }
    mx.eval(drift)
    return {path: float(distance) for path, distance in drift.items()}


def pretrained_regularization(model: nn.Module, anchor: Anchor, strength: float) -> mx.array:
    """`loss_reg`, a scalar; 0 where nothing is anchored."""
    weights = effective_weights(model)
    terms = [
        total(mx.square(weights[path] - origin)) / total(mx.square(origin))
        for path, origin in anchor.items()
    ]
    return strength * sum(terms, start=mx.array(0.0)) / max(1, len(terms))


class PackedPull:
    """`pretrained_regularization` over blocks: a few operations in place of a few a layer.

    Args:
        packed: the model's trained parameters.
        model: what they belong to.
        anchor: not empty; taken over, its arrays become views into blocks.
        strength: of the pull.
    """

    def __init__(self, packed: Packed, model: nn.Module, anchor: Anchor, strength: float):
        self._packed, self._strength, self._count = packed, strength, len(anchor)
        # Origins `(R, W)`, and shares `(R, 1)`: one over ||w0||^2, 0 where nothing is anchored.
        self._origins: dict[str, list[mx.array]] = {}
        self._shares: dict[str, list[mx.array]] = {}
        layers = {path: module for path, module in model.named_modules() if path in anchor}
        for block in packed.blocks:
            found = [_anchor_matrix(matrix, anchor, layers) for matrix in block.matrices]
            if block.role != "lengths" and any(mx.any(shares).item() for _, shares in found):
                self._origins[block.name] = [origin for origin, _ in found]
                self._shares[block.name] = [shares for _, shares in found]
        mx.eval(self._origins, self._shares, anchor)

    def __call__(self, arrays: Arrays) -> mx.array:
        """`loss_reg` of these blocks, a scalar."""
        weights = self._packed.effective(arrays)
        terms = [
            total(shares * mx.sum(mx.square(weight - origin), -1, keepdims=True))
            for name in self._origins
            for weight, origin, shares in zip(
                weights[name], self._origins[name], self._shares[name], strict=True
            )
        ]
        return self._strength / self._count * sum(terms, start=mx.array(0.0))


def _anchor_matrix(
    matrix: Matrix, anchor: Anchor, layers: dict[str, nn.Module]
) -> tuple[mx.array, mx.array]:
    """Origins and shares of one matrix; what the anchor holds of it becomes views into it."""
    origins, shares, held = {}, [], {}
    for slot, rows in zip(matrix.slots, matrix.rows, strict=True):
        path, _, name = slot.path.rpartition(".")
        share, origin = mx.array(0.0), mx.zeros(slot.shape)
        if path in layers and name in ("weight", "weight_v"):
            held[slot.path], origin = path, anchor[path]
            share = 1 / total(mx.square(origin))
        origins[slot.path] = origin
        shares.append(mx.broadcast_to(share, (rows, 1)))
    packed = matrix.pack(origins)
    for slot, view in zip(matrix.slots, matrix.views(packed), strict=True):
        if slot.path in held:
            anchor[held[slot.path]] = view
    return packed, mx.concatenate(shares)
