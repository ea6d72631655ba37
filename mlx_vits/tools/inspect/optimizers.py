"""How far an optimizer is: of a resume file, or of a run's state."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_vits.checkpoints.upstream_optimizer import parameter_groups
from mlx_vits.nn.layout import torch_name
from mlx_vits.tools.inspect.expected import is_finite
from mlx_vits.tools.inspect.subject import Net, OptimizerFile

_MOMENTS = ("exp_avg", "exp_avg_sq")  # PyTorch's names for MLX's `m` and `v`


@dataclass(frozen=True)
class OptimizerFacts:
    """AdamW's state in a file."""

    epoch: int | None  # that was finished; None where the file does not say
    learning_rate: float | None  # before any decay; None where the file does not say
    rates: list[float]  # after decay, one for each group of tensors
    steps: list[int]  # updates that the tensors have seen; several numbers are unusual
    tensors: int  # that can be trained
    with_moments: int  # tensors that were trained
    without: list[str] | None  # tensors that were not; None where indices have no names
    not_finite: list[str]  # tensors whose moments hold NaN or infinity, by name or index
    misshapen: list[str]  # tensors whose moments have another shape


def optimizer_facts(net: Net, model: nn.Module | None) -> OptimizerFacts | None:
    """Return what a file holds of an optimizer; None where it holds nothing.

    Args:
        model: of the net's version and sizes, None where these are unknown.
    """
    if net.optimizer is None:
        return None
    if net.form == "state":
        return _mlx_facts(net.optimizer, net.tensors)
    return _torch_facts(net.optimizer, net.tensors, model)


def _torch_facts(
    file: OptimizerFile, tensors: Mapping[str, Any], model: nn.Module | None
) -> OptimizerFacts:
    groups = [group for group in _list(file.groups) if isinstance(group, Mapping)]
    listed = itertools.chain(*(_list(group.get("params")) for group in groups))
    indices = [index for index in listed if isinstance(index, int)]
    # PyTorch numbers what can be trained in this order.
    names = list(itertools.chain(*parameter_groups(model))) if model is not None else []
    named = dict(zip(indices, names, strict=True)) if len(names) == len(indices) else {}
    entries = file.state.items() if isinstance(file.state, Mapping) else ()
    state = {i: entry for i, entry in entries if isinstance(entry, Mapping)}
    carrying = {i for i, entry in state.items() if all(key in entry for key in _MOMENTS)}
    moments = [(str(named.get(i, i)), state[i][key]) for i in carrying for key in _MOMENTS]
    return OptimizerFacts(
        file.epoch,
        file.learning_rate,
        [float(g["lr"]) for g in groups if isinstance(g.get("lr"), (int, float))],
        _steps(entry.get("step") for entry in state.values()),
        len(indices),
        len(carrying),
        [named[i] for i in indices if i not in carrying] if named else None,
        _once(name for name, moment in moments if not is_finite(moment)),
        _once(
            name
            for name, moment in moments
            if name in tensors and getattr(moment, "shape", ()) != tuple(tensors[name].shape)
        ),
    )


def _mlx_facts(file: OptimizerFile, tensors: Mapping[str, Any]) -> OptimizerFacts:
    moments: list[tuple[str, Any]] = []
    steps, rates = [], []
    for key, array in file.state.items():
        path, _, leaf = re.sub(r"^states\.\d+\.", "", key).rpartition(".")
        if not isinstance(array, mx.array):
            continue
        if path and leaf in ("m", "v"):
            moments.append((torch_name(path), array))
        elif leaf == "step":
            steps.append(array)
        elif leaf == "learning_rate" and array.size == 1:
            rates.append(float(np.array(array.astype(mx.float32))))
    found = {name for name, _ in moments}
    # A run may hold its weights in another form than upstream's, so its own names count.
    held = [name for name in tensors if not name.startswith("quantizer.")]
    sizes = {name: math.prod(tensor.shape) for name, tensor in tensors.items()}
    return OptimizerFacts(
        None,
        None,
        rates,
        _steps(steps),
        len(held),
        len(found),
        [name for name in held if name not in found],
        _once(name for name, moment in moments if not is_finite(moment)),
        _once(name for name, moment in moments if sizes.get(name) != moment.size),
    )


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _steps(values: Iterable[Any]) -> list[int]:
    """Counts of updates, each once: scalar tensors in newer files, numbers in older ones."""
    plain = [v.item() if hasattr(v, "item") and v.size == 1 else v for v in values]
    return sorted({int(v) for v in plain if isinstance(v, (int, float)) and np.isfinite(v)})
