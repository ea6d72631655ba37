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
from mlx_vits.training.packed import Arrays, Block, Packed

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
        self._packed, self._model, self._strength = packed, model, strength
        self._count = len(anchor)
        # Origins `(R, W)`, and shares `(R, 1)`: one over ||w0||^2, 0 where nothing is anchored.
        self._origins: dict[str, mx.array] = {}
        self._shares: dict[str, mx.array] = {}
        self._rest = dict(anchor)
        for block in packed.blocks:
            if block.role in ("directions", "plain"):
                self._anchor_block(block, anchor)
        mx.eval(self._origins, self._shares, anchor)

    def _anchor_block(self, block: Block, anchor: Anchor) -> None:
        name = "weight_v" if block.role == "directions" else "weight"
        layers = {
            slot.path: slot.path.rpartition(".")[0]
            for slot in block.slots
            if slot.name == name and slot.path.rpartition(".")[0] in anchor
        }
        origins, shares = {}, []
        for slot, rows in zip(block.slots, block.rows, strict=True):
            share, origin = mx.array(0.0), mx.zeros(slot.shape)
            if slot.path in layers:
                origin = self._rest.pop(layers[slot.path])
                share = 1 / total(mx.square(origin))
            origins[slot.path] = origin
            shares.append(mx.broadcast_to(share, (rows, 1)))
        self._origins[block.name] = block.pack(origins)
        self._shares[block.name] = mx.concatenate(shares)
        for slot, view in block.unpack(self._origins[block.name]):
            if slot.path in layers:
                anchor[layers[slot.path]] = view

    def __call__(self, arrays: Arrays) -> mx.array:
        """`loss_reg` of these blocks, a scalar."""
        with self._packed.in_use(arrays) as weights:
            rest = pretrained_regularization(self._model, self._rest, len(self._rest))
        terms = [
            total(
                shares * mx.sum(mx.square(weights[name] - self._origins[name]), -1, keepdims=True)
            )
            for name, shares in self._shares.items()
        ]
        return self._strength / self._count * sum(terms, start=rest)
