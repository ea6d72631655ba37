"""Convert AdamW's state between PyTorch (by index) and MLX (by path), bit-identical.

PyTorch numbers parameters across its groups. Upstream's generator has four: everything but the text
side, in the order of the state dict, then three parts of the text side; its discriminator has one.
Buffers have no index. A frozen tensor has an index but no state.

Source: GPT-SoVITS `s2_train.py`; PyTorch `torch/optim/adamw.py`. PyTorch's `exp_avg`, `exp_avg_sq`
are MLX's `m`, `v`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_vits.checkpoints.state_dict import expected_shapes, parameter_paths
from mlx_vits.checkpoints.tensors import check_finite
from mlx_vits.config import TrainSection
from mlx_vits.errors import CheckpointError
from mlx_vits.models.vits import TEXT_SIDE
from mlx_vits.nn.layout import from_torch, to_torch, torch_name

_BUFFERS = "quantizer."
# Other fields of a group in PyTorch 2; versions that lack a field ignore it.
_GROUP_DEFAULTS = {
    "weight_decay": 0.01,
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": True,
}


class Moments(NamedTuple):
    """AdamW's state of the trained tensors.

    Attributes:
        step: updates done.
        first, second: running means of gradient and squared gradient, by upstream's names, in
            PyTorch's axes.
    """

    step: int
    first: dict[str, mx.array]
    second: dict[str, mx.array]


class Rate(NamedTuple):
    """Learning rate of a group: current, and before decay."""

    now: float
    initial: float


class UpstreamOptimizer(NamedTuple):
    """An optimizer's state as read from a file.

    Attributes:
        moments: of the tensors that have state.
        rates: current learning rate of each group.
    """

    moments: Moments
    rates: list[float]


def parameter_groups(model: nn.Module) -> list[list[str]]:
    """Return parameter names in PyTorch's order, by group: 4 for a generator, else 1."""
    names = [name for name in expected_shapes(model) if not name.startswith(_BUFFERS)]
    text_side = [[name for name in names if name.startswith(part)] for part in TEXT_SIDE]
    if not any(text_side):
        return [names]
    return [[name for name in names if not name.startswith(TEXT_SIDE)], *text_side]


def _layout(model: nn.Module) -> dict[str, tuple[str, str | None]]:
    """Map each parameter path to upstream's name and the kind of its layer.

    Raises:
        ValueError: a layer's weight norm differs from upstream's.
    """
    modules = dict(model.named_modules())
    found = {}
    for path in parameter_paths(model):
        module: Any = modules[path.rpartition(".")[0]]
        found[path] = (torch_name(path), getattr(module, "kind", None))
    if {name for name, _ in found.values()} != set(expected_shapes(model)):
        raise ValueError("the model's weights are not in upstream's form")
    return found


def moments_of(model: nn.Module, states: Sequence[Mapping[str, Any]]) -> Moments:
    """Extract moments from MLX's optimizer states.

    Args:
        model: the model being optimized, in upstream's form of weight norm.
        states: of one AdamW, or of several that share the model.

    Raises:
        ValueError: the model is in another form, or the states' steps differ.
    """
    layout = _layout(model)
    steps = {int(state["step"].item()) for state in states}
    if len(steps) != 1:
        raise ValueError("the parts of the optimizer stand at different steps")
    parts: dict[str, dict[str, mx.array]] = {"m": {}, "v": {}}
    for state in states:
        leaves: Any = tree_flatten(state)
        for key, array in leaves:
            path, _, leaf = key.rpartition(".")
            if path in layout:
                name, kind = layout[path]
                parts[leaf][name] = mx.contiguous(to_torch(array, kind))
    return Moments(steps.pop(), parts["m"], parts["v"])


def optimizer_states(
    model: nn.Module, moments: Moments, groups: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """Convert moments to MLX's optimizer states, one for each group of names.

    Args:
        model: as in `moments_of`.
        moments: of every trained tensor; those in no group are dropped.
        groups: upstream's names.
    """
    paths = {name: (path, kind) for path, (name, kind) in _layout(model).items()}
    states = []
    for group in groups:
        leaves: list[tuple[str, mx.array]] = [
            ("step", mx.array(moments.step, mx.uint64)),
            ("learning_rate", mx.array(0.0)),
        ]
        for name in group:
            if name in moments.first:
                path, kind = paths[name]
                for leaf, arrays in (("m", moments.first), ("v", moments.second)):
                    leaves.append((f"{path}.{leaf}", mx.contiguous(from_torch(arrays[name], kind))))
        states.append(tree_unflatten(leaves))
    return states


def to_upstream(
    model: nn.Module, moments: Moments, rates: Sequence[Rate], train: TrainSection
) -> dict[str, Any]:
    """Build PyTorch's `state_dict` of an AdamW.

    Args:
        model: as in `moments_of`.
        moments: at step 0 no tensor has state, as in PyTorch.
        rates: one for each of `parameter_groups`.
        train: betas and eps.
    """
    groups = parameter_groups(model)
    numbers = itertools.count()
    state: dict[int, dict[str, np.ndarray]] = {}
    param_groups = []
    for names, rate in zip(groups, rates, strict=True):
        indices = [next(numbers) for _ in names]
        for index, name in zip(indices, names, strict=True):
            if moments.step and name in moments.first:
                state[index] = {
                    "step": np.array(moments.step, dtype=np.float32),
                    "exp_avg": np.array(moments.first[name]),
                    "exp_avg_sq": np.array(moments.second[name]),
                }
        own = {"lr": rate.now, "betas": tuple(train.betas), "eps": train.eps}
        rest = {"initial_lr": rate.initial, "params": indices}
        param_groups.append(own | _GROUP_DEFAULTS | rest)
    return {"state": state, "param_groups": param_groups}


def from_upstream(
    model: nn.Module, optimizer: Mapping[str, Any], source: str | Path
) -> UpstreamOptimizer:
    """Read PyTorch's `state_dict` of an AdamW.

    Args:
        model: of the same version as the file.
        optimizer: from a resume file.
        source: the file, for messages.

    Raises:
        CheckpointError: it belongs to another model, or is not AdamW's.
    """
    names = list(itertools.chain.from_iterable(parameter_groups(model)))
    rates = _read_rates(model, optimizer["param_groups"], source)
    shapes = expected_shapes(model)
    first: dict[str, mx.array] = {}
    second: dict[str, mx.array] = {}
    steps = set()
    state = optimizer["state"]
    if not isinstance(state, Mapping):
        raise _damaged(source)
    for index, entry in state.items():
        if type(index) is not int or index >= len(names) or not isinstance(entry, Mapping):
            raise _damaged(source)
        name = names[index]
        moments: list[Any] = [entry.get(key) for key in ("exp_avg", "exp_avg_sq")]
        if any(getattr(moment, "shape", None) != shapes[name] for moment in moments):
            raise CheckpointError(
                f"{source}: its optimizer's state of {name} is missing or has another shape; the "
                "file belongs to another version, or its optimizer is no AdamW"
            )
        first[name], second[name] = (mx.array(moment).astype(mx.float32) for moment in moments)
        check_finite({f"the optimizer's state of {name}": first[name] + second[name]}, source)
        steps.add(_read_step(entry.get("step"), source))
    if len(steps) > 1:
        raise CheckpointError(
            f"{source}: its tensors have been trained for different numbers of steps "
            f"({min(steps)} to {max(steps)}), which mlx_vits cannot go on with; give the file as "
            "--pretrained to start from its weights"
        )
    return UpstreamOptimizer(Moments(steps.pop() if steps else 0, first, second), rates)


def _damaged(source: str | Path) -> CheckpointError:
    return CheckpointError(
        f"{source}: its optimizer's state is damaged; take an earlier file of that run, or give it "
        "as --pretrained to start from its weights"
    )


def _read_rates(model: nn.Module, groups: Any, source: str | Path) -> list[float]:
    expected = [len(names) for names in parameter_groups(model)]
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise _damaged(source)
    found = [group.get("params") for group in groups]
    if not all(isinstance(indices, list) for indices in found):
        raise _damaged(source)
    if [len(indices) for indices in found] != expected:
        raise CheckpointError(
            f"{source}: its optimizer numbers {[len(i) for i in found]} tensors, this model has "
            f"{expected}; the file belongs to another version"
        )
    numbers = list(itertools.chain.from_iterable(found))
    if not all(type(n) is int for n in numbers) or numbers != list(range(sum(expected))):
        raise _damaged(source)
    rates = [group.get("lr") for group in groups]
    if not all(type(rate) is float and rate >= 0 for rate in rates):
        raise _damaged(source)
    return rates


def _read_step(value: Any, source: str | Path) -> int:
    """Read a tensor's step count: a scalar tensor in newer files, a number in older ones."""
    plain = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    if not isinstance(plain, (int, float)) or not 0 <= plain < 1 << 63 or plain != int(plain):
        raise _damaged(source)
    return int(plain)
