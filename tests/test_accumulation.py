"""A large batch in parts gives the update of the large batch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits import accel
from mlx_vits.config import Config
from mlx_vits.training.accumulation import AccumulatingStep, split_batch
from mlx_vits.training.regularization import take_anchor
from mlx_vits.training.step import draw_step
from mlx_vits.training.vits_trainer import VITSTrainer, VITSTrainingConfig
from tests.support.noise import noise_batch
from tests.support.steps import make_step, peak_above_state
from tests.support.tiny import SEGMENT, tiny_config
from tests.test_trainer import Place

KEY = mx.random.key(3)


def quiet(config: Config) -> Config:
    """Without dropout, whose masks depend on the parts."""
    return replace(config, reduced_dims=replace(config.reduced_dims, dropout_everywhere=0.0))


def arrays_of(tree: Any) -> dict[str, mx.array]:
    leaves: Any = tree_flatten(tree)
    return dict(leaves)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (2, {}),
        (4, {}),
        (2, {"recomputes": True}),
        pytest.param(2, {"compiled": True}, marks=pytest.mark.slow),
        (2, {"compiled": True, "backend": "cuda"}),
        (2, {"compiled": True, "backend": "off"}),  # as on Metal
    ],
    ids=str,
)
def test_it_is_the_step_of_the_large_batch(count: int, options: dict[str, Any]) -> None:
    """Losses, gradient norms and moments; the clips differ in length, so the KL's shares count."""
    config = quiet(tiny_config("v2Pro"))
    batch = noise_batch(config, size=4)
    draws = draw_step(KEY, batch, config)
    recomputes, compiled = (options.get(name, False) for name in ("recomputes", "compiled"))
    with accel.use(options.get("backend", "cpu")):
        whole, parted = (make_step(config, recomputes=recomputes) for _ in range(2))
        expected = whole.run(batch, draws).losses
        found = AccumulatingStep(parted, count, compiled=compiled).run(batch, draws)
        mx.eval(expected, found)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    # The first moments are the gradients times 0.2.
    ours, theirs = arrays_of(parted.state[2:]), arrays_of(whole.state[2:])
    assert set(ours) == set(theirs)
    norms = {n: mx.linalg.norm(a).item() for n, a in theirs.items() if n.endswith(".m")}
    largest = max(norms.values())
    for name, norm in norms.items():
        off = mx.linalg.norm(ours[name] - theirs[name]).item()
        assert off <= 1e-3 * norm + 1e-6 * largest, name


def test_shares() -> None:
    config = tiny_config()
    batch = noise_batch(config, size=4)  # 64, 61, 58 and 55 frames
    parts = list(split_batch(batch, draw_step(KEY, batch, config), 2))
    assert [part.clip_share.item() for part in parts] == [0.5, 0.5]
    shares = [part.frame_share.item() for part in parts]
    assert shares == pytest.approx([125 / 238, 113 / 238])
    assert not mx.array_equal(parts[0].draws.dropout_key, parts[1].draws.dropout_key)
    with pytest.raises(ValueError, match="4 clips cannot be split into 3"):
        list(split_batch(batch, draw_step(KEY, batch, config), 3))


@pytest.mark.skipif(
    mx.default_device().type == mx.DeviceType.gpu, reason="the memory was measured on a CPU"
)
def test_parts_take_less_memory() -> None:
    config = tiny_config()
    batch, peaks = noise_batch(config, size=8, frames=256), []
    for count in (1, 8):
        step = make_step(config)
        run: Any = step if count == 1 else AccumulatingStep(step, count, compiled=False)
        peaks.append(peak_above_state(step, partial(run, batch, KEY)))
    assert peaks[1] < 0.5 * peaks[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Place:
    return Place(tmp_path_factory.mktemp("accumulation"))


def numbers(trainer: VITSTrainer) -> list[dict[str, float]]:
    return [record.values for record in trainer.steps()]


def test_a_run_in_parts_sees_the_clips_of_large_batches(place: Place) -> None:
    """As many steps an epoch, the same batches, rates and, to dropout, the same losses."""
    config = VITSTrainingConfig(steps=2, batch_size=4, lr_g=1e-5, segment_size=SEGMENT)
    large = place.trainer(config)
    parted = place.trainer(replace(config, batch_size=2, accumulate=2))
    assert parted.steps_per_epoch == large.steps_per_epoch
    ours, theirs = numbers(parted), numbers(large)
    for mine, other in zip(ours, theirs, strict=True):
        assert [mine[name] for name in ("step", "epoch", "lr_g", "lr_d")] == [
            other[name] for name in ("step", "epoch", "lr_g", "lr_d")
        ]
        for name in ("loss_d", "loss_gen", "loss_fm", "loss_mel", "loss_kl"):
            assert mine[name] == pytest.approx(other[name], rel=0.1), name
    with pytest.raises(ValueError, match="accumulate is 0"):
        replace(config, accumulate=0)


def test_weights_set_between_steps_are_taken_up(place: Place) -> None:
    config = VITSTrainingConfig(steps=3, batch_size=1, accumulate=2, segment_size=SEGMENT)
    trainer = place.trainer(config)
    steps = trainer.steps()
    next(steps)
    anchor = {path: np.array(array) for path, array in take_anchor(trainer.generator).items()}
    next(steps)
    moved = take_anchor(trainer.generator)
    assert any(not np.array_equal(moved[path], array) for path, array in anchor.items())
    trainer.generator.dec.conv_pre["weight"] = mx.zeros_like(
        trainer.generator.dec.conv_pre["weight"]
    )
    next(steps)
    assert mx.max(mx.abs(trainer.generator.dec.conv_pre["weight"])).item() < 1e-4
