"""Activations that are computed again: the same step, in less memory."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits.benchmarking.kernels import count_graph
from mlx_vits.checkpoints.base import find_base
from mlx_vits.nn.checkpointing import checkpointing, recomputed
from mlx_vits.nn.layers import Conv1d
from mlx_vits.training import vits_trainer
from mlx_vits.training.step import (
    GANStep,
    _losses_of_fake,
    draw_step,
)
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.noise import noise_batch
from tests.support.steps import make_step, peak_above_state
from tests.support.tiny import SEGMENT, tiny_config
from tests.test_trainer import Place

KEY = mx.random.key(3)
# Gradients that are zero but for rounding: a constant added to all keys changes no attention.
ROUNDING = ("conv_k.bias", "w_ks.bias")


def test_a_block_is_called_again_and_its_layers_learn() -> None:
    layer, calls = Conv1d(2, 2, 1), []

    def function(x: mx.array) -> mx.array:
        calls.append(1)
        return mx.tanh(layer(x))

    def loss(weight: mx.array, x: mx.array) -> mx.array:
        layer["weight"] = weight
        return mx.sum(mx.square(recomputed([layer], function, x)))

    x, weight = mx.random.normal((1, 5, 2)), layer["weight"]
    expected = mx.grad(loss, (0, 1))(weight, x)
    calls.clear()
    with checkpointing():
        found = mx.grad(loss, (0, 1))(weight, x)
    assert len(calls) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("train", "compute"),
    [("all", mx.float32), ("decoder", mx.float32), ("all", mx.bfloat16)],
    ids=str,
)
def test_the_gradients_are_the_same(train: Any, compute: mx.Dtype) -> None:
    """Losses bit for bit, dropout and all; gradients but for the order of a few sums."""
    config = tiny_config()
    assert config.p_dropout > 0
    batch, found = noise_batch(config), []
    for recomputes in (False, True):
        step = make_step(config, train, recomputes=recomputes, compute=compute)
        result = step.run(batch, draw_step(KEY, batch, config))
        gradients: Any = tree_flatten(step.gradients(result))
        found.append(({k: v.item() for k, v in result.losses._asdict().items()}, dict(gradients)))
    (kept, ours), (again, theirs) = found
    exact = [name for name in kept if not name.startswith("grad_norm")]
    assert [again[name] for name in exact] == [kept[name] for name in exact]
    for name, gradient in ours.items():
        if not name.endswith(ROUNDING):
            bound = (1e-6 if compute == mx.float32 else 0.02) * mx.linalg.norm(gradient).item()
            assert mx.linalg.norm(theirs[name] - gradient).item() <= 10 * bound + 1e-9, name


@pytest.mark.slow
def test_a_compiled_step_computes_again_too() -> None:
    config = tiny_config()
    batch, named = noise_batch(config), []
    for compiled in (False, True):
        losses = make_step(config, recomputes=True, compiled=compiled)(batch, KEY)
        named.append({k: v.item() for k, v in losses._asdict().items()})
    for name, value in named[0].items():
        assert named[1][name] == pytest.approx(value, rel=2e-5, abs=1e-6), name


def products(array: Any) -> int:
    """Matrix products that are to be computed for a tree of arrays."""
    kinds = count_graph(array).kinds
    return kinds.get("Matmul", 0) + kinds.get("AddMM", 0)


def test_the_generators_step_computes_no_gradient_of_the_judges_weights() -> None:
    """As many products as the gradient in the waveform alone takes: none for a weight's."""
    config = tiny_config()
    found = {}
    for recomputes in (False, True):
        step = make_step(config, recomputes=recomputes)
        judge = step.parts()[1][0]
        real, fake = (mx.random.uniform(-1, 1, (1, SEGMENT, 1)) for _ in range(2))
        mx.eval(real, fake, step.state())

        def as_in_a_step(fake: mx.array, step: GANStep = step, real: mx.array = real) -> mx.array:
            return sum(step._judge(real, fake).values(), start=mx.array(0.0))

        found[recomputes] = products(mx.grad(as_in_a_step)(fake))
    forward = products(as_in_a_step(fake))

    def of_weights(arrays: Any, fake: mx.array) -> mx.array:
        with judge.in_use(arrays, cast=True):
            losses = [_losses_of_fake(n, real, fake) for n in step.discriminator.discriminators]
        return sum((sum(pair) for pair in losses), start=mx.array(0.0))

    arrays = [dict(group) for group in judge.arrays]
    everything = products(mx.grad(of_weights, (0, 1))(arrays, fake))
    layers = sum(len(net.convs) + 1 for net in step.discriminator.discriminators)
    assert found[False] == products(mx.grad(of_weights, 1)(judge.arrays, fake))
    assert found[False] <= everything - layers
    assert found[True] <= found[False] + forward  # which is computed again, and nothing else


@pytest.mark.skipif(
    mx.default_device().type == mx.DeviceType.gpu, reason="the memory was measured on a CPU"
)
def test_it_takes_less_memory() -> None:
    """Above its state a step of the demo, two clips, takes 186 MB without and 80 MB with it."""
    config = find_base("demo").read_generator().config
    batch, peaks = noise_batch(config, frames=256), []
    for recomputes in (False, True):
        step = make_step(config, recomputes=recomputes)
        peaks.append(peak_above_state(step, partial(step, batch, KEY)))
    assert peaks[1] < 0.6 * peaks[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Place:
    return Place(tmp_path_factory.mktemp("checkpointing"))


def test_auto_is_on_where_memory_is_short(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    config = VITSTrainingConfig(steps=1, batch_size=1, segment_size=SEGMENT)
    for memory, recomputes in ((1 << 40, False), (1 << 20, True), (0, False)):
        monkeypatch.setattr(vits_trainer, "usable_memory", lambda memory=memory: memory)
        assert place.trainer(config).recomputes == recomputes
        for wish in ("on", "off"):
            trainer = place.trainer(replace(config, checkpoint_activations=wish))
            assert trainer.recomputes == (wish == "on")
    with pytest.raises(ValueError, match="checkpoint_activations is 'maybe'"):
        replace(config, checkpoint_activations="maybe")
