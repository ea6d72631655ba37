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

from mlx_vits.checkpoints.tensors import to_numpy
from mlx_vits.checkpoints.upstream_optimizer import parameter_groups
from mlx_vits.nn.layout import torch_name
from mlx_vits.tools.inspect.subject import Net

_MOMENTS = ("exp_avg", "exp_avg_sq")  # PyTorch's names for MLX's `m` and `v`


@dataclass(frozen=True)
class OptimizerFacts:
    """AdamW's state in a file.

    Attributes:
        epoch: that was done; None where the file does not say.
        learning_rate: before any decay; None as well.
        rates: as they are now, one for each group of tensors.
        steps: updates that the tensors have seen; several numbers are unusual.
        tensors: that can be trained.
        with_moments: tensors that carry running means, which is to say were trained.
        without: names of those that carry none; None where the numbers cannot be given names.
        not_finite: tensors whose running means hold NaN or infinity, by name or number.
        misshapen: tensors whose running means are of another shape than they are.
    """

    epoch: int | None
    learning_rate: float | None
    rates: list[float]
    steps: list[int]
    tensors: int
    with_moments: int
    without: list[str] | None
    not_finite: list[str]
    misshapen: list[str]


def optimizer_facts(net: Net, model: nn.Module | None) -> OptimizerFacts | None:
    """What a file holds of an optimizer; None where it holds nothing.

    Args:
        model: of the net's version and sizes, None where these are unknown.
    """
    if net.optimizer is None:
        return None
    if net.form == "state":
        return _mlx_facts(net)
    return _torch_facts(net, model)


def _torch_facts(net: Net, model: nn.Module | None) -> OptimizerFacts:
    assert net.optimizer is not None
    groups = [group for group in _list(net.optimizer.groups) if isinstance(group, Mapping)]
    params = [_list(group.get("params")) for group in groups]
    indices = [index for listed in params for index in listed if isinstance(index, int)]
    names = _names(model)
    named = dict(zip(indices, names, strict=True)) if len(names) == len(indices) else {}
    held = net.optimizer.state
    entries = held if isinstance(held, Mapping) else {}
    state = {i: entry for i, entry in entries.items() if isinstance(entry, Mapping)}
    carrying = {i for i, entry in state.items() if all(key in entry for key in _MOMENTS)}
    moments = [(str(named.get(i, i)), state[i][key]) for i in carrying for key in _MOMENTS]
    return OptimizerFacts(
        net.iteration,
        net.learning_rate,
        [float(g["lr"]) for g in groups if isinstance(g.get("lr"), (int, float))],
        sorted(
            {step for entry in state.values() if (step := _step(entry.get("step"))) is not None}
        ),
        len(indices),
        len(carrying),
        [named[i] for i in indices if i not in carrying] if named else None,
        _once(name for name, moment in moments if not is_finite(moment)),
        _once(
            name
            for name, moment in moments
            if name in net.tensors
            and tuple(getattr(moment, "shape", ())) != tuple(net.tensors[name].shape)
        ),
    )


def _mlx_facts(net: Net) -> OptimizerFacts:
    assert net.optimizer is not None
    moments: list[tuple[str, Any]] = []
    steps, rates = set(), []
    for key, array in net.optimizer.state.items():
        path, _, leaf = re.sub(r"^states\.\d+\.", "", key).rpartition(".")
        if not isinstance(array, mx.array):
            continue
        if path and leaf in ("m", "v"):
            moments.append((torch_name(path), array))
        elif leaf == "step" and (step := _step(array)) is not None:
            steps.add(step)
        elif leaf == "learning_rate" and array.size == 1:
            rates.append(float(np.array(array.astype(mx.float32))))
    found = {name for name, _ in moments}
    # A run may hold its weights in another form than upstream's, so its own names count.
    held = [name for name in net.tensors if not name.startswith("quantizer.")]
    sizes = {name: math.prod(tensor.shape) for name, tensor in net.tensors.items()}
    return OptimizerFacts(
        None,
        None,
        rates,
        sorted(steps),
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


def _names(model: nn.Module | None) -> list[str]:
    """Upstream's names of what can be trained, in the order that PyTorch numbers them."""
    return list(itertools.chain(*parameter_groups(model))) if model is not None else []


def _step(value: Any) -> int | None:
    """A count of updates: a tensor of no axes in newer files, a number in older ones."""
    plain = value.item() if hasattr(value, "item") and value.size == 1 else value
    is_number = isinstance(plain, (int, float)) and np.isfinite(plain)
    return int(plain) if is_number else None


def is_finite(tensor: Any) -> bool:
    """Whether a tensor, numpy's or MLX's, is free of NaN and infinity."""
    if isinstance(tensor, mx.array):
        tensor = to_numpy(tensor)
    if not isinstance(tensor, np.ndarray) or tensor.dtype.kind != "f":
        return True
    return bool(np.isfinite(tensor).all())
