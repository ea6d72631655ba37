"""Convolutions in a file: whether their weights are live or folded, and how loud they are.

Definitions, for one layer:

| name | what |
| --- | --- |
| live | the weight is stored as magnitude `weight_g` and direction `weight_v`, as GPT-SoVITS does |
| folded | one `weight` where GPT-SoVITS has the pair, which it then drops without a word |
| plain | one `weight`, where GPT-SoVITS has one too |
| split | the pair where GPT-SoVITS has one `weight` |
| mixed | both; `weight_g` and `weight_v` count |
| broken | only one of the pair |
| norm | Frobenius norm of the weight that the forward uses, g v / ‖v‖ multiplied out |
| mean g | mean of `weight_g`, where there is one |
| gain | norm / sqrt(outputs * stride): RMS out for independent samples of RMS 1 in |
| norm ratio, g ratio | to the other file's |
| moved | ‖w - w'‖ / ‖w'‖, w' being the other file's weight |

A transposed convolution's stride (1 for all others) counts, because each of its outputs sees only
every stride-th tap. For several layers together norm and moved are taken over all their numbers,
mean g and gain are means. All arithmetic is in fp32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import mlx.core as mx

from mlx_vits.nn.layers import Kind
from mlx_vits.nn.layout import from_torch, to_torch, torch_name
from mlx_vits.nn.weight_norm import fold_weight

Form = Literal["live", "folded", "plain", "split", "mixed", "broken"]
Tensors = Mapping[str, Any]  # upstream's names, PyTorch's axes
_SUFFIXES = ("weight", "weight_g", "weight_v")


@dataclass(frozen=True)
class Levels:
    """What the table above defines, for one layer or several; None where there is no value."""

    norm: float | None
    mean_g: float | None
    gain: float | None
    norm_ratio: float | None
    g_ratio: float | None
    moved: float | None


@dataclass(frozen=True)
class LayerFacts:
    """One layer."""

    name: str
    form: Form
    shape: list[int]  # of the weight, PyTorch's axes; empty where it is not whole
    channels: list[int]  # inputs and outputs
    levels: Levels


@dataclass(frozen=True)
class RowFacts:
    """Layers that stand side by side in the signal's way, under their common name."""

    name: str
    levels: Levels  # of all of them together
    layers: list[LayerFacts]


class _Measured(NamedTuple):
    """One layer in numbers, from which those of several are made."""

    shape: list[int]
    channels: list[int]
    norm: float | None = None
    mean_g: float | None = None
    gain: float | None = None
    other_norm: float | None = None
    other_g: float | None = None
    distance: float | None = None


class _Row(NamedTuple):
    """Layers of a row, and the stride of a transposed one, None where unknown."""

    name: str
    layers: list[str]
    stride: int | None = 1


def natural(name: str) -> list[Any]:
    """Return a sorting key that puts layer 10 after layer 9."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else part) for part in name.split(".")]


def _kind(name: str, axes: int) -> Kind:
    """The kind of a convolution, by the name and the number of axes of its weight."""
    if axes == 4:
        return "conv2d"
    return "conv_transpose1d" if ".ups." in name else "conv1d"


def upstream_tensors(parameters: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Return a model's parameters under upstream's names and in PyTorch's axes."""
    found = {}
    for path, array in parameters.items():
        is_weight = path.endswith(_SUFFIXES) and array.ndim in (3, 4)
        found[torch_name(path)] = to_torch(array, _kind(path, array.ndim) if is_weight else None)
    return found


def forms(tensors: Tensors, normed: Iterable[str]) -> dict[str, Form]:
    """Return how each convolution's weight is stored.

    Args:
        normed: the layers that have the pair in upstream's files.
    """
    parts: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        if last in ("weight_g", "weight_v") or (last == "weight" and len(tensor.shape) in (3, 4)):
            parts.setdefault(layer, set()).add(last)
    return {layer: _form(found, layer in normed) for layer, found in parts.items()}


def _form(found: set[str], is_normed: bool) -> Form:
    if found == {"weight"}:
        return "folded" if is_normed else "plain"
    if found == {"weight_g", "weight_v"}:
        return "live" if is_normed else "split"
    return "mixed" if len(found) == 3 else "broken"


def decoder_rows(
    tensors: Tensors,
    stored: Mapping[str, Form],
    rates: Iterable[int],
    against: Tensors | None = None,
) -> list[RowFacts]:
    """Measure the decoder in the signal's order; the residual blocks of a stage make one row.

    Args:
        stored: from `forms`.
        rates: of the upsampling stages, empty where they are not known.
        against: the other file's tensors.
    """
    ups = sorted((n for n in stored if re.fullmatch(r"dec\.ups\.\d+", n)), key=natural)
    blocks = sorted((n for n in stored if re.match(r"dec\.resblocks\.\d+\.", n)), key=natural)
    count = len({name.split(".")[2] for name in blocks})
    each = max(1, count // max(1, len(ups)))
    strides = list(rates)
    rows = [_Row("conv_pre", ["dec.conv_pre"]), _Row("cond", ["dec.cond"])]
    for up in ups:
        stage = int(up.split(".")[2])
        rows.append(_Row(f"ups.{stage}", [up], strides[stage] if stage < len(strides) else None))
        first, last = stage * each, (stage + 1) * each - 1
        members = [n for n in blocks if first <= int(n.split(".")[2]) <= last]
        rows.append(_Row(f"resblocks.{first}-{last}", members))
    rows.append(_Row("conv_post", ["dec.conv_post"]))
    return _measure_rows(rows, tensors, stored, against)


def discriminator_rows(
    tensors: Tensors, stored: Mapping[str, Form], against: Tensors | None = None
) -> list[RowFacts]:
    """Measure a discriminator, one row for each of its parts; arguments as `decoder_rows`."""
    rows: dict[str, _Row] = {}
    for layer in sorted(stored, key=natural):
        name = ".".join(layer.split(".")[:2])
        rows.setdefault(name, _Row(name, [])).layers.append(layer)
    return _measure_rows(rows.values(), tensors, stored, against)


def _measure_rows(
    rows: Iterable[_Row], tensors: Tensors, stored: Mapping[str, Form], against: Tensors | None
) -> list[RowFacts]:
    facts = []
    for row in rows:
        names = [name for name in row.layers if name in stored]
        measured = [_measure(name, tensors, row.stride, against) for name in names]
        layers = [
            LayerFacts(name, stored[name], one.shape, one.channels, _levels([one]))
            for name, one in zip(names, measured, strict=True)
        ]
        if layers:
            facts.append(RowFacts(row.name, _levels(measured), layers))
    return facts


def effective_weight(tensors: Tensors, name: str) -> mx.array | None:
    """Return the weight that the forward uses, fp32 and MLX's axes; None where it is not whole."""
    g, v, weight = (tensors.get(f"{name}.{part}") for part in ("weight_g", "weight_v", "weight"))
    main = weight if g is None and v is None else v
    if main is None or len(main.shape) not in (3, 4) or 0 in main.shape:
        return None
    kind = _kind(f"{name}.", len(main.shape))
    if main is weight:
        return from_torch(mx.array(weight), kind).astype(mx.float32)
    if g is None or tuple(g.shape) != (main.shape[0], *(1 for _ in main.shape[1:])):
        return None
    return fold_weight(from_torch(mx.array(g), kind), from_torch(mx.array(main), kind), kind)


def _measure(name: str, tensors: Tensors, stride: int | None, against: Tensors | None) -> _Measured:
    weight, g = effective_weight(tensors, name), _mean(tensors.get(f"{name}.weight_g"))
    if weight is None:
        return _Measured([], [], mean_g=g)
    kind = _kind(f"{name}.", weight.ndim)
    shape, norm = list(to_torch(weight, kind).shape), _norm(weight)
    # The first axis of a transposed convolution is its inputs.
    channels = shape[:2] if kind == "conv_transpose1d" else [shape[1], shape[0]]
    gain = None if stride is None else norm / math.sqrt(weight.shape[0] * stride)
    measured = _Measured(shape, channels, norm, g, gain)
    if against is None:
        return measured
    other = effective_weight(against, name)
    if other is None or other.shape != weight.shape:
        return measured
    return measured._replace(
        other_norm=_norm(other),
        other_g=_mean(against.get(f"{name}.weight_g")),
        distance=_norm(weight - other),
    )


def _levels(layers: list[_Measured]) -> Levels:
    """One layer's, or those of several together; only what both files have enters a ratio."""
    shared = [layer for layer in layers if layer.other_norm is not None]
    with_g = [layer for layer in layers if layer.mean_g is not None and layer.other_g is not None]
    other_norm = _length(layer.other_norm for layer in shared)
    return Levels(
        norm=_length(layer.norm for layer in layers),
        mean_g=_average(layer.mean_g for layer in layers),
        gain=_average(layer.gain for layer in layers),
        norm_ratio=ratio(_length(layer.norm for layer in shared), other_norm),
        g_ratio=ratio(
            _average(layer.mean_g for layer in with_g), _average(layer.other_g for layer in with_g)
        ),
        moved=ratio(_length(layer.distance for layer in shared), other_norm),
    )


def _norm(array: mx.array) -> float:
    return float(mx.sqrt(mx.sum(mx.square(array))))


def _mean(array: Any) -> float | None:
    if array is None or 0 in array.shape:
        return None
    return float(mx.mean(mx.array(array).astype(mx.float32)))


def ratio(value: float | None, other: float | None) -> float | None:
    """Return a quotient, None where one of the two is missing or the second is 0."""
    return value / other if value is not None and other else None


def _length(norms: Iterable[float | None]) -> float | None:
    found = [norm for norm in norms if norm is not None]
    return math.sqrt(sum(norm * norm for norm in found)) if found else None


def _average(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
