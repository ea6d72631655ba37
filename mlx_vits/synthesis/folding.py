"""Weight norm folded once, for a model that only speaks.

Synthesis with a full-size voice would otherwise compute `g * v / ||v||` of 24 million numbers in
131 layers for every sentence, always with the same result: 0.1 s on two CPU cores.
"""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_vits import accel
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.nn.layers import set_compute_dtype
from mlx_vits.nn.weight_norm import WeightNormed


def fold_model(model: SynthesizerTrn) -> SynthesizerTrn:
    """Build a model with the same output whose convolutions all hold a plain weight.

    It shares every other array with `model`, which stays as it is, and lacks the posterior encoder,
    which synthesis does not use.
    """
    folded = copy.copy(model)
    folded.pop("enc_q", None)
    _fold_children(folded)
    set_compute_dtype(folded, mx.float32)  # a voice speaks in fp32, whatever it is trained in
    mx.eval(folded.parameters())
    return accel.apply(folded, inference=True)


def _fold_children(module: nn.Module) -> None:
    for name, child in module.children().items():
        module[name] = _folded(child)


def _folded(child: Any) -> Any:
    if isinstance(child, WeightNormed):
        return child.fold()
    if isinstance(child, nn.Module):
        twin = copy.copy(child)
        _fold_children(twin)
        return twin
    if isinstance(child, list):
        return [_folded(one) for one in child]
    return child


class Folding:
    """A model's folded twin, built at its first use and again when a weight was replaced.

    Args:
        model: may be trained on meanwhile.
    """

    def __init__(self, model: SynthesizerTrn):
        self._model = model
        self._folded: SynthesizerTrn | None = None
        self._seen: list[tuple[nn.Module, str, mx.array]] = []

    def model(self) -> SynthesizerTrn:
        """Return the twin, with the weights that the model has now."""
        is_current = all(module.get(name) is array for module, name, array in self._seen)
        if self._folded is None or not is_current:
            self._folded = fold_model(self._model)
            self._seen = [
                (module, name, value)
                for module in self._model.modules()
                for name, value in module.items()
                if isinstance(value, mx.array)
            ]
        return self._folded
