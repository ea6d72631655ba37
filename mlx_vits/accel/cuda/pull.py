"""The pull toward the pretrained weights on CUDA: value and gradient of several layers a launch."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from mlx_vits.accel.cuda import kernels, rows
from mlx_vits.nn.weight_norm import WeightNormed
from mlx_vits.training.optimizers import leaves
from mlx_vits.training.regularization import Penalized, PretrainedRegularization
from mlx_vits.training.step import GANStep, Penalty


def penalized(step: GANStep, penalty: Penalty, grads: Any) -> Penalized:
    """Add the pull's gradient to gradients of the generator; any other penalty's as the step does.

    All of them are fp32, as the parameters are.
    """
    flat = leaves(grads)
    is_pull = isinstance(penalty, PretrainedRegularization) and bool(penalty.anchor)
    if not is_pull or not kernels.is_used(*flat.values()):
        return GANStep.penalized(step, penalty, grads)
    assert isinstance(penalty, PretrainedRegularization)
    parameters, modules = leaves(step.generator), dict(step.generator.named_modules())
    of_v = {path: _direction(path, modules[path]) for path in penalty.anchor}
    of_g = {path: f"{path}.weight_g" for path in penalty.anchor}

    def in_rows(path: str, array: mx.array) -> mx.array:
        return array.transpose(2, 0, 1) if _is_transposed(modules[path]) else array

    pull = rows.pull(
        [in_rows(path, parameters[name]) for path, name in of_v.items()],
        [in_rows(path, origin) for path, origin in penalty.anchor.items()],
        [in_rows(path, flat[name]) for path, name in of_v.items()],
        [parameters.get(name) for name in of_g.values()],
        [flat.get(name) for name in of_g.values()],
        [penalty.scales[path] for path in penalty.anchor],
    )
    changed = dict(zip(of_g.values(), pull.of_g, strict=True))
    for (path, name), grad in zip(of_v.items(), pull.of_v, strict=True):
        changed[name] = grad.transpose(1, 2, 0) if _is_transposed(modules[path]) else grad
    both = tree_map_with_path(lambda name, grad: changed.get(name, grad), grads)
    return Penalized(pull.loss, pull.norm, both)


def _direction(path: str, layer: nn.Module) -> str:
    """Name of the weight, or of its direction where it is weight-normed."""
    return f"{path}.weight_v" if isinstance(layer, WeightNormed) else f"{path}.weight"


def _is_transposed(layer: nn.Module) -> bool:
    """Whether each row that has a norm lies along the last axis."""
    return isinstance(layer, WeightNormed) and layer.kind == "conv_transpose1d"
