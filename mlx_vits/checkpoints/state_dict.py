"""Load and save state dicts under upstream's names and in PyTorch's axes, strictly.

Model and file may differ in which layers have weight norm (see `nn/weight_norm.py`): a pair
`weight_g`, `weight_v` is folded, or a plain `weight` split, on loading, and the reverse on saving.
Where the forms agree, tensors are bit-identical.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_vits.checkpoints.contents import check_tensors
from mlx_vits.checkpoints.tensors import check_finite
from mlx_vits.checkpoints.torch_names import printable
from mlx_vits.errors import CheckpointError
from mlx_vits.nn.layout import from_torch, to_torch, torch_name, torch_shape
from mlx_vits.nn.weight_norm import fold_weight, split_weight

_MAX_LISTED = 5  # names quoted in a message


class _Entry(NamedTuple):
    """The weight and bias of a layer, or one other tensor.

    Attributes:
        module: the module that holds it.
        path: of the module, with a trailing dot, or "" for the model itself.
        names: the parameters' names in the file, in upstream's order.
    """

    module: Any
    path: str
    names: tuple[str, ...]


def _entries(model: nn.Module) -> Iterator[_Entry]:
    """Yield everything that a file of this model holds, in upstream's order."""
    modules = dict(model.named_modules())
    seen = set()
    for path in parameter_paths(model):
        parent, _, name = path.rpartition(".")
        module: Any = modules[parent]
        prefix = f"{parent}." if parent else ""
        if getattr(module, "kind", None) is None:
            yield _Entry(module, prefix, (name,))
        elif parent not in seen:
            seen.add(parent)
            bias = ("bias",) if "bias" in module else ()
            normed = module.file_normed
            names = (*bias, "weight_g", "weight_v") if normed else ("weight", *bias)
            yield _Entry(module, prefix, names)


def parameter_paths(model: nn.Module) -> list[str]:
    """Return the dotted path of every parameter, in the order of registration."""
    leaves: Any = tree_flatten(model.parameters())
    return [path for path, _ in leaves]


def _full_names(entry: _Entry) -> list[str]:
    return [torch_name(entry.path + name) for name in entry.names]


def _is_normed(module: Any) -> bool:
    return "weight_v" in module


def _to_file(entry: _Entry) -> dict[str, mx.array]:
    """Convert an entry's tensors to the file's form of weight norm, still in MLX's axes."""
    module = entry.module
    if "weight_v" in entry.names and not _is_normed(module):
        pair = split_weight(module.weight, module.kind)
        found = {"weight_g": pair.g, "weight_v": pair.v}
    elif "weight" in entry.names and _is_normed(module):
        found = {"weight": module.effective_weight()}
    else:
        found = {}
    return {name: found[name] if name in found else module[name] for name in entry.names}


def _to_model(entry: _Entry, tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    """Convert an entry's tensors to the model's form of weight norm."""
    module = entry.module
    if "weight_v" in tensors and not _is_normed(module):
        g, v = tensors.pop("weight_g"), tensors.pop("weight_v")
        tensors["weight"] = fold_weight(g, v, module.kind)
    elif "weight" in tensors and "kind" in dir(module) and _is_normed(module):
        pair = split_weight(tensors.pop("weight"), module.kind)
        tensors |= {"weight_g": pair.g, "weight_v": pair.v}
    return tensors


def _file_shape(entry: _Entry, name: str) -> tuple[int, ...]:
    module = entry.module
    kind = getattr(module, "kind", None)
    if name in module:
        return torch_shape(module[name].shape, kind)
    if name == "weight":
        return torch_shape(module.weight_v.shape, kind)
    if name == "weight_v":
        return torch_shape(module.weight.shape, kind)
    return torch_shape(split_weight(module.weight, module.kind).g.shape, kind)


def expected_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the names in a file of this model, with shapes in PyTorch's axes."""
    return {
        torch_name(entry.path + name): _file_shape(entry, name)
        for entry in _entries(model)
        for name in entry.names
    }


def load_state(
    model: nn.Module,
    tensors: Mapping[str, Any],
    *,
    source: str,
    may_lack: Iterable[str] = (),
    consume: bool = False,
) -> list[str]:
    """Load a state dict into a model, casting to fp32.

    Args:
        tensors: arrays (numpy or MLX) by name, in PyTorch's axes.
        source: the file, for messages.
        may_lack: prefixes that the file may omit entirely, as an exported voice omits `enc_q.`.
        consume: empty the dict `tensors` while its arrays are cast, so that they can be freed
            early. If names or shapes are refused, it is left untouched.

    Returns:
        The prefixes of `may_lack` that were absent; those parts keep their values.

    Raises:
        CheckpointError: a tensor is unknown, missing, of another shape, not a tensor, or not finite
            in fp32.
    """
    check_tensors(tensors, source)
    expected = expected_shapes(model)
    absent = [p for p in may_lack if not any(name.startswith(p) for name in tensors)]
    required = [name for name in expected if not name.startswith(tuple(absent))]
    _refuse(source, "lacks", [name for name in required if name not in tensors])
    _refuse(source, "holds tensors this model has not:", [n for n in tensors if n not in expected])
    for name in required:
        shape = tuple(tensors[name].shape)
        if shape != expected[name]:
            raise CheckpointError(
                f"{source}: {name} has shape {list(shape)}, this model needs "
                f"{list(expected[name])}; the file belongs to another model or version"
            )
    present = [entry for entry in _entries(model) if all(n in tensors for n in _full_names(entry))]
    if consume:
        # Largest first: the memory they free fits those that follow.
        present.sort(key=lambda entry: -max(math.prod(expected[n]) for n in _full_names(entry)))
    source_tensors: Any = tensors
    loaded = []
    for entry in present:
        arrays = {}
        for name, full in zip(entry.names, _full_names(entry), strict=True):
            # A single variable, so that each stage frees the previous one.
            array = source_tensors.pop(full) if consume else source_tensors[full]
            array = _cast(array, getattr(entry.module, "kind", None))
            array = mx.array(array)
            arrays[name] = array
        _check_numbers(entry, arrays, source)
        found = _to_model(entry, arrays)
        # Evaluated now: a lazy array keeps its inputs alive.
        mx.eval(found)
        loaded += [(entry.path + name, array) for name, array in found.items()]
    model.update(tree_unflatten(loaded))
    mx.eval(model.parameters())
    return absent


def _check_numbers(entry: _Entry, arrays: Mapping[str, mx.array], source: str) -> None:
    """Refuse NaN and infinity, and channels of norm 0, which weight norm divides by."""
    named = {torch_name(entry.path + name): array for name, array in arrays.items()}
    if "weight_v" in arrays:
        name = torch_name(f"{entry.path}weight_v")
        direction = {name: named.pop(name)}
        length = split_weight(direction[name], entry.module.kind).g
        if not mx.isfinite(mx.sum(length + 1 / length)).item():
            check_finite(direction, source)
            raise CheckpointError(
                f"{source}: {name} has a channel of length 0 or infinity, which weight norm "
                "divides by; copy or download the file again, or take an earlier one"
            )
    check_finite(named, source)


def _cast(array: Any, kind: str | None) -> Any:
    """Cast a file's tensor (numpy or MLX) to fp32 in MLX's axes, contiguous.

    A strided weight takes another path through the BLAS, so a resumed run, whose weights are
    contiguous, would differ in the last digit.
    """
    if isinstance(array, np.ndarray):
        # In one pass; MLX would allocate twice, for the cast and for the axes.
        with np.errstate(over="ignore"):  # infinity is refused later, by name
            return np.asarray(from_torch(array, kind), np.float32, order="C")
    return mx.contiguous(from_torch(array.astype(mx.float32), kind))


def state_of(model: nn.Module) -> dict[str, mx.array]:
    """Return all tensors of a model, frozen ones too, in upstream's names, order and axes."""
    state = {}
    for entry in _entries(model):
        kind = getattr(entry.module, "kind", None)
        for name, array in _to_file(entry).items():
            state[torch_name(entry.path + name)] = mx.contiguous(to_torch(array, kind))
    return state


def _refuse(source: str, verb: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
        listed = ", ".join(printable(str(name), 80) for name in names[:_MAX_LISTED])
        raise CheckpointError(
            f"{source}: {verb} {listed}{more}; the file is damaged, or "
            "belongs to another model or version"
        )
