"""Activations that are computed again: the same step, in less memory."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits.checkpoints.base import find_base
from mlx_vits.nn.checkpointing import checkpoint_blocks, checkpointing
from mlx_vits.nn.layers import Conv1d
from mlx_vits.training import vits_trainer
from mlx_vits.training.step import draw_step
from mlx_vits.training.vits_trainer import VITSTrainingConfig
from tests.support.noise import noise_batch
from tests.support.steps import make_step, peak_above_state
from tests.support.tiny import SEGMENT, tiny_config
from tests.test_trainer import Place

KEY = mx.random.key(3)
# Gradients that are zero but for rounding: a constant added to all keys changes no attention.
ROUNDING = ("conv_k.bias", "w_ks.bias")


class Block(nn.Module):
    """A layer that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv1d(2, 2, 1)
        self.calls = [0]

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        self.calls[0] += 1
        y = mx.tanh(self.conv(x))
        return y if mask is None else y * mask


@pytest.mark.parametrize("mask", [None, mx.array([1.0, 1, 1, 0, 0])[None, :, None]], ids=str)
def test_a_block_is_called_again_and_learns(mask: mx.array | None) -> None:
    block, x = Block(), mx.random.normal((1, 5, 2))

    def loss(x: mx.array) -> mx.array:
        return mx.sum(mx.square(block(x, mask)))

    def found() -> list[mx.array]:
        gradients: Any = tree_flatten(nn.value_and_grad(block, loss)(x)[1])
        return [mx.grad(loss)(x), *(array for _, array in gradients)]

    expected = found()
    checkpoint_blocks(block, [Block])
    block.calls[0] = 0
    with checkpointing():
        mx.grad(loss)(x)
        assert block.calls[0] == 2
        again = found()
    for ours, theirs in zip(again, expected, strict=True):
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
        gradients: Any = tree_flatten([result.grads_g, result.grads_d])
        found.append(({k: v.item() for k, v in result.losses.items()}, dict(gradients)))
    (kept, ours), (again, theirs) = found
    exact = [name for name in kept if not name.startswith("grad_norm")]
    assert [again[name] for name in exact] == [kept[name] for name in exact]
    relative, absolute = (1e-5, 1e-9) if compute == mx.float32 else (0.2, 1e-6)
    whole = max(mx.linalg.norm(gradient).item() for gradient in ours.values())
    for name, gradient in ours.items():
        if not name.endswith(ROUNDING):
            bound = relative * mx.linalg.norm(gradient).item() + absolute * whole
            assert mx.linalg.norm(theirs[name] - gradient).item() <= bound, name


@pytest.mark.slow
def test_a_compiled_step_computes_again_too() -> None:
    config = tiny_config()
    batch, named = noise_batch(config), []
    for compiled in (False, True):
        losses = make_step(config, recomputes=True, compiled=compiled)(batch, KEY)
        named.append({k: v.item() for k, v in losses.items()})
    for name, value in named[0].items():
        assert named[1][name] == pytest.approx(value, rel=2e-5, abs=1e-6), name


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
