"""What makes a backend fast is applied from outside: taking it away changes rounding alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits import accel
from mlx_vits.accel.cpu.blocks import FastLeakyReLU
from mlx_vits.nn.layers import LeakyReLU
from mlx_vits.training.step import StepResult, draw_step
from tests.support.noise import noise_batch
from tests.support.steps import make_step
from tests.support.tiny import tiny_config


def _step(name: accel.Backend, version: str) -> StepResult:
    with accel.use(name):
        config = tiny_config(version)
        step, batch = make_step(config, pull=0.5), noise_batch(config)
        result = step.run(batch, draw_step(mx.random.key(3), batch, config))
        mx.eval(result.losses, step.state)
    return result


@pytest.mark.parametrize("version", ["v2", "v2Pro"])
def test_a_step_in_plain_mlx_is_that_with_a_cpus_equivalents(version: str) -> None:
    """Losses, and gradients by the norm of each, with what cancels left 1e-8 of the largest."""
    plain, fast = _step("off", version), _step("cpu", version)
    for name, value in plain.losses.items():
        assert fast.losses[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    theirs: Any = dict(tree_flatten([plain.grads_g, plain.grads_d]))
    ours: Any = dict(tree_flatten([fast.grads_g, fast.grads_d]))
    largest = max(mx.linalg.norm(gradient).item() for gradient in theirs.values())
    for name, gradient in theirs.items():
        off = mx.linalg.norm(ours[name] - gradient).item()
        assert off <= 1e-3 * mx.linalg.norm(gradient).item() + 1e-8 * largest, name


def test_a_variable_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(accel.VARIABLE, "off")
    assert accel.backend() == "off"
    assert accel.convolutions() is None
    layer = accel.apply(LeakyReLU(0.1))
    assert type(layer) is LeakyReLU


@pytest.mark.parametrize("slope", [0.1, 0.01])
def test_a_leaky_relu_and_its_gradient_at_zero(slope: float) -> None:
    """PyTorch's: the slope at 0."""
    x = mx.array([-2.0, -0.0, 0.0, 3.0])
    for layer in (LeakyReLU(slope), FastLeakyReLU(slope)):
        np.testing.assert_allclose(layer(x), [-2 * slope, 0, 0, 3], rtol=1e-6)
        gradient = mx.grad(lambda x, layer=layer: mx.sum(layer(x)))(x)
        np.testing.assert_allclose(gradient, [slope, slope, slope, 1], rtol=1e-6)
