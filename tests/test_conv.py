"""Every backend's convolutions against MLX's own, values and gradients."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_vits import accel
from mlx_vits.nn.ops import conv1d, conv_transpose1d
from tests.support.goldens import assert_near

# in, out, kernel, stride, padding, dilation, groups, length: all that the models have, and edges
CONVOLUTIONS = [
    (3, 5, 3, 1, 1, 1, 1, 17),
    (16, 16, 11, 1, 25, 5, 1, 40),
    (8, 16, 41, 4, 20, 1, 4, 101),
    (1, 16, 15, 1, 7, 1, 1, 50),
    (5, 7, 5, 3, 2, 1, 1, 31),
    (6, 3, 2, 2, 0, 1, 1, 13),
    (4, 4, 10, 5, 0, 1, 1, 100),
    (16, 16, 128, 1, 64, 1, 4, 60),
    (12, 24, 1, 1, 0, 1, 1, 9),
    (4, 6, 1, 2, 0, 1, 1, 9),
    (4, 6, 3, 2, 0, 2, 2, 12),
    (16, 20, 3, 1, 4, 1, 1, 9),
    (20, 16, 5, 1, 0, 3, 1, 30),
    (5, 4, 1, 1, 2, 1, 1, 9),
    (140, 130, 3, 1, 1, 1, 1, 9),
    (5, 7, 9, 2, 4, 1, 1, 31),
    (5, 7, 4, 3, 1, 2, 1, 32),
    (5, 1, 3, 1, 1, 1, 1, 12),
]
TRANSPOSED = [
    (12, 6, 16, 10, 3, 1, 1, 9),
    (6, 3, 16, 8, 4, 1, 1, 12),
    (8, 4, 8, 2, 3, 1, 1, 20),
    (8, 4, 2, 2, 0, 1, 1, 21),
    (10, 5, 20, 10, 5, 1, 1, 8),
    (8, 6, 5, 3, 1, 2, 2, 11),
    (16, 16, 9, 2, 4, 1, 1, 10),
    (16, 18, 3, 1, 1, 1, 1, 10),
]


def assert_backends_agree(
    function, x: mx.array, w: mx.array, bias: mx.array, **geometry: int
) -> None:
    def objective(x: mx.array, w: mx.array, bias: mx.array) -> mx.array:
        return mx.sum(mx.sin(function(x, w, bias, **geometry)))

    found = {}
    backends: tuple[accel.Backend, ...] = ("off", "cpu", "cuda")
    for backend in backends:
        with accel.use(backend):
            y = function(x, w, bias, **geometry)
            grads = mx.grad(objective, argnums=(0, 1, 2))(x, w, bias)
            mx.eval(y, grads)
            found[backend] = (y, *grads)
    for backend in backends[1:]:
        for ours, reference in zip(found[backend], found["off"], strict=True):
            assert ours.shape == reference.shape, backend
            assert_near(ours, reference, 2e-5)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(case: tuple[int, ...]) -> None:
    inputs, outputs, kernel, stride, padding, dilation, groups, length = case
    mx.random.seed(3)
    x = mx.random.normal((2, length, inputs))
    w = mx.random.normal((outputs, kernel, inputs // groups)) / kernel**0.5
    bias = mx.random.normal((outputs,))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    assert_backends_agree(conv1d, x, w, bias, **geometry)


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_transposed_convolution(case: tuple[int, ...]) -> None:
    inputs, outputs, kernel, stride, padding, dilation, groups, length = case
    mx.random.seed(4)
    x = mx.random.normal((2, length, inputs))
    w = mx.random.normal((outputs // groups, kernel, inputs)) / kernel**0.5
    bias = mx.random.normal((outputs,))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    assert_backends_agree(conv_transpose1d, x, w, bias, **geometry)


@pytest.mark.machine("g++")
@pytest.mark.usefixtures("fusing")
def test_the_cpu_formulation_compiles_to_the_same_numbers() -> None:
    mx.random.seed(5)
    x, w = mx.random.normal((2, 40, 16)), mx.random.normal((16, 11, 16))

    def gradient(x: mx.array, w: mx.array) -> mx.array:
        def objective(w: mx.array) -> mx.array:
            return mx.sum(mx.tanh(conv1d(x, w, padding=25, dilation=5)))

        return mx.grad(objective)(w)

    with accel.use("cpu"):
        assert_near(mx.compile(gradient)(x, w), gradient(x, w), 1e-6)
