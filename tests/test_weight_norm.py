"""Weight-normed convolutions against `torch.nn.utils.weight_norm`, values and gradients."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_vits import accel
from mlx_vits.nn import (
    Conv1d,
    ConvTranspose1d,
    WeightNormConv1d,
    WeightNormConv2d,
    WeightNormConvTranspose1d,
)
from mlx_vits.nn.layout import from_torch, to_torch
from mlx_vits.nn.weight_norm import fold_weight
from tests.support.goldens import assert_close, tensors, values

CASES = values("weight_norm", "weight_norm.json")
LAYERS = {
    "conv1d": WeightNormConv1d,
    "conv2d": WeightNormConv2d,
    "convtr1d": WeightNormConvTranspose1d,
}
# Golden's own spread between fp32 and fp64 is 1e-5.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}


def _layer(case: dict[str, Any], data: dict[str, mx.array]) -> Any:
    kind = LAYERS[case["kind"]]
    geometry = {"stride": case["stride"], "padding": case["padding"]}
    if case["kind"] == "conv2d":
        geometry = {name: tuple(size) for name, size in geometry.items()}
        shape = (case["cin"], case["cout"], tuple(case["k"]))
    else:
        geometry |= {"dilation": case["dilation"], "groups": case["groups"]}
        shape = (case["cin"], case["cout"], case["k"])
    layer = kind(*shape, bias=case["bias"], **geometry)
    layer.weight_g = from_torch(data["g"], layer.kind)
    layer.weight_v = from_torch(data["v"], layer.kind)
    if case["bias"]:
        layer.bias = data["bias"]
    return layer


def _channels_last(array: mx.array) -> mx.array:
    return mx.moveaxis(array, 1, -1)


def _case_data(name: str) -> dict[str, mx.array]:
    everything = tensors("weight_norm", "weight_norm.safetensors")
    return {k.split("/")[1]: v for k, v in everything.items() if k.startswith(f"{name}/")}


@pytest.mark.parametrize("backend", ["off", "cpu", "cuda"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_values_and_gradients(case: dict[str, Any], backend: accel.Backend) -> None:
    data = _case_data(case["name"])
    layer = _layer(case, data)
    x, r = _channels_last(data["x"]), _channels_last(data["r"])

    def objective(layer: nn.Module, x: mx.array) -> mx.array:
        return mx.sum(layer(x) * r)

    with accel.use(backend):
        assert_close(to_torch(layer.effective_weight(), layer.kind), data["weight"], **TOLERANCE)
        assert_close(mx.moveaxis(layer(x), -1, 1), data["y"], **TOLERANCE)
        grads = nn.value_and_grad(layer, lambda: objective(layer, x))()[1]
        grad_x = mx.grad(lambda x: objective(layer, x))(x)
        mx.eval(grads, grad_x)
    assert_close(to_torch(grads["weight_g"], layer.kind), data["grad_g"], **TOLERANCE)
    assert_close(to_torch(grads["weight_v"], layer.kind), data["grad_v"], **TOLERANCE)
    assert_close(mx.moveaxis(grad_x, -1, 1), data["grad_x"], **TOLERANCE)
    if case["bias"]:
        assert_close(grads["bias"], data["grad_bias"], **TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "plain"), [(WeightNormConv1d, Conv1d), (WeightNormConvTranspose1d, ConvTranspose1d)]
)
def test_from_a_plain_weight_and_back(kind: Any, plain: Any) -> None:
    mx.random.seed(1)
    weight, bias = mx.random.normal((6, 5, 4)), mx.random.normal((6,))
    layer = kind.from_weight(weight, bias, stride=2, padding=1)
    assert mx.array_equal(layer.weight_v, weight)
    assert_close(layer.effective_weight(), weight, rtol=1e-6)
    folded = layer.fold()
    assert type(folded) is plain
    x = mx.random.normal((2, 9, 4))
    assert_close(folded(x), layer(x), atol=1e-6)


def test_a_transposed_layer_has_one_magnitude_for_each_input_channel() -> None:
    layer = WeightNormConvTranspose1d(12, 6, 16, stride=10, padding=3)
    assert layer.weight_g.shape == (1, 1, 12)
    assert to_torch(layer.weight_g, layer.kind).shape == (12, 1, 1)


def test_magnitude_and_direction_are_trainable_and_direction_is_not_normed_again() -> None:
    layer = WeightNormConv1d(3, 5, 3)
    assert set(layer.trainable_parameters()) == {"weight_g", "weight_v", "bias"}
    layer.weight_v = layer.weight_v * 3
    assert_close(
        fold_weight(layer.weight_g, layer.weight_v / 3, "conv1d"),
        layer.effective_weight(),
        rtol=1e-5,
    )


def test_a_kernel_across_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="across the width"):
        WeightNormConv2d(3, 4, (5, 2))


@pytest.mark.parametrize("option", ["dilation", "groups"])
def test_what_a_column_cannot_do_is_refused(option: str) -> None:
    options: Any = {option: 2}
    with pytest.raises(TypeError, match=option):
        WeightNormConv2d(4, 4, (5, 1), **options)
