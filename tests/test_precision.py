"""bf16: what stays fp32, how near it is to fp32, and that a run is the same file either way."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits.checkpoints.base import find_base, load_discriminator, load_generator
from mlx_vits.checkpoints.run import read_run_state, write_run_state
from mlx_vits.config import Config
from mlx_vits.nn import layers, weight_norm
from mlx_vits.nn.layers import set_compute_dtype
from mlx_vits.training import losses
from mlx_vits.training.optimizers import build_optimizers
from mlx_vits.training.precision import compute_type
from mlx_vits.training.step import GANStep, draw_step
from mlx_vits.training.vits_trainer import VITSTrainer, VITSTrainingConfig, freeze_for
from tests.support.noise import noise_batch
from tests.support.steps import make_step
from tests.support.tiny import SEGMENT, tiny_config
from tests.test_trainer import Place

KEY = mx.random.key(0)


def step_in(config: Config, precision: str = "bf16", *, train: Any = "all") -> GANStep:
    """A step with a pull."""
    return make_step(config, train, pull=0.5, compute=compute_type(precision))


def arrays_of(tree: Any) -> dict[str, mx.array]:
    leaves: Any = tree_flatten(tree)
    return dict(leaves)


class Watch:
    """The types that functions are given and give, by the function's name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.seen: dict[str, Counter[mx.Dtype]] = {}
        self._monkeypatch = monkeypatch

    def on(self, place: Any, name: str) -> None:
        original = getattr(place, name)
        seen = self.seen.setdefault(name, Counter())

        def watched(*args: Any, **options: Any) -> Any:
            out = original(*args, **options)
            arrays = [a for a in (*args, out) if isinstance(a, mx.array)]
            seen.update({a.dtype for a in arrays if a.dtype != mx.int32})
            return out

        self._monkeypatch.setattr(place, name, watched)


def test_what_is_computed_in_what(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    exact = [
        (mx, "softmax"),
        (mx.fft, "rfft"),
        (losses, "total"),
        (losses, "kl_loss"),
        (losses, "mel_loss"),
        (weight_norm, "weight_norm"),
    ]
    for place, name in exact:
        watch.on(place, name)
    for name in ("conv1d", "conv_transpose1d"):
        watch.on(layers, name)
    config = tiny_config("v2Pro")
    step, batch = step_in(config), noise_batch(config)
    result = step.run(batch, draw_step(KEY, batch, config))
    for _, name in exact:
        assert set(watch.seen[name]) <= {mx.float32, mx.complex64}, name
    # Every layer is called in one type: no array is widened on the way by another one.
    ups = len(config.model.upsample_rates)
    assert dict(watch.seen["conv_transpose1d"]) == {mx.bfloat16: ups}
    nets = 8  # one over samples, seven over periods: first and last layer, three judgements
    ends = 3 + config.reduced_dims.flow_n_flows  # proj of both encoders, conv_post, post
    assert watch.seen["conv1d"][mx.float32] == 2 * 3 * nets + ends + 1  # and the frozen ssl_proj
    assert watch.seen["conv1d"][mx.bfloat16] > 100
    for tree in (result._asdict(), step.state):
        wrong = {n: a.dtype for n, a in arrays_of(tree).items() if a.dtype == mx.bfloat16}
        assert not wrong


def test_what_losses_read_is_fp32() -> None:
    config = tiny_config()
    step, batch = step_in(config), noise_batch(config)
    out = step.forward(batch, draw_step(KEY, batch, config))
    assert {array.dtype for array in out} == {mx.float32}
    outputs = step.discriminator(out.y_hat)
    assert {output.score.dtype for output in outputs} == {mx.float32}
    inner = {f.dtype for output in outputs for f in output.features[1:-1]}
    assert inner == {mx.bfloat16}


def test_auto_is_fp32() -> None:
    assert compute_type("auto") == mx.float32
    with pytest.raises(ValueError, match="'fp8' is not one of auto, fp32, bf16"):
        compute_type("fp8")


@pytest.mark.parametrize("train", ["all", "decoder"])
def test_it_is_near_fp32(train: Any) -> None:
    """bf16 rounds to 2^-9: losses to 1 %, gradients of a whole net to 3 % of their length.

    The peak is one sample, in which nothing evens out: it is 2 % off, and may be 4 %. Without the
    mel loss: that of a decoder which says nothing is the logarithm of rounding noise.
    """
    config = tiny_config()
    config = replace(config, train=replace(config.train, c_mel=0.0))
    batch, named, flat = noise_batch(config), [], []
    for precision in ("fp32", "bf16"):
        step = step_in(config, precision, train=train)
        result = step.run(batch, draw_step(KEY, batch, config))
        named.append({k: v.item() for k, v in result.losses.items()})
        flat.append({"g": arrays_of(result.grads_g), "d": arrays_of(result.grads_d)})
    for name, value in named[0].items():
        bound = 0.04 if name.startswith("peak") else 0.02 if name.startswith("grad") else 0.01
        assert named[1][name] == pytest.approx(value, rel=bound, abs=1e-6), name
    for net, theirs in flat[0].items():
        ours = flat[1][net]
        assert set(ours) == set(theirs)
        whole, off = (
            np.sqrt(sum(float(np.sum(np.square(np.array(a, np.float64)))) for a in arrays))
            for arrays in (theirs.values(), [ours[name] - theirs[name] for name in theirs])
        )
        assert off <= 0.03 * whole, (net, off / whole)


def test_the_demos_losses_are_near_those_of_fp32() -> None:
    """With a decoder that speaks, the mel loss is as near as the others."""
    base = find_base("demo")
    named = []
    for precision in ("fp32", "bf16"):
        file = base.read_generator()
        config = replace(file.config, train=replace(file.config.train, segment_size=6400))
        generator = load_generator(file._replace(config=config), "upstream")
        freeze_for(generator, "all")
        judge = load_discriminator(base.discriminator, config)
        optimizers = build_optimizers(config)
        for net in (generator, judge):
            set_compute_dtype(net, compute_type(precision))
        step = GANStep(generator, judge, optimizers, compiled=False)
        batch = noise_batch(config, size=1)
        result = step.run(batch, draw_step(KEY, batch, config))
        named.append({k: v.item() for k, v in result.losses.items()})
    for name in ("loss_d", "loss_gen", "loss_fm", "loss_mel", "loss_kl"):
        # 0.3 % on the demo's own clips; of noise its nets have seen nothing like.
        assert named[1][name] == pytest.approx(named[0][name], rel=0.05), name


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Place:
    return Place(tmp_path_factory.mktemp("precision"))


LONGER = VITSTrainingConfig(steps=20, batch_size=1, lr_g=1e-4, lr_d=1e-4, segment_size=SEGMENT)


def run_to_end(trainer: VITSTrainer) -> list[dict[str, float]]:
    return [record.values for record in trainer.steps()]


@pytest.mark.slow
def test_a_run_ends_where_that_of_fp32_does(place: Place) -> None:
    """Twenty steps: numbers all the way, and losses of the last ten within a tenth."""
    runs = [run_to_end(place.trainer(replace(LONGER, precision=p))) for p in ("fp32", "bf16")]
    assert all(np.isfinite(list(record.values())).all() for record in runs[1])
    for name in ("loss_d", "loss_gen", "loss_fm", "loss_mel", "loss_kl", "loss_total"):
        fp32, bf16 = (np.mean([record[name] for record in run[10:]]) for run in runs)
        assert bf16 == pytest.approx(fp32, rel=0.1), name


def test_a_run_may_change_its_precision(place: Place, tmp_path: Path) -> None:
    """What is saved has the same names and types, so the one goes on where the other stopped."""
    first = place.trainer(replace(LONGER, steps=2, precision="bf16"))
    run_to_end(first)
    path = tmp_path / "state.safetensors"
    write_run_state(path, first.trees(), first.place)
    assert {a.dtype for a in arrays_of(first.generator.parameters()).values()} == {mx.float32}
    for precision in ("bf16", "fp32"):
        second = place.trainer(replace(LONGER, steps=3, precision=precision))
        second.restore(read_run_state(path), "state")
        ours, theirs = arrays_of(second.trees()), arrays_of(first.trees())
        assert set(ours) == set(theirs)
        assert all(mx.array_equal(ours[name], theirs[name]) for name in theirs)
        assert len(run_to_end(second)) == 1
    with pytest.raises(ValueError, match="precision"):
        replace(LONGER, precision="half")
