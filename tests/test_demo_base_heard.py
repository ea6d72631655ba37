"""What the demo base's teacher hears in generated speech, as a loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soxr

from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.errors import UserError
from mlx_vits.training.step import draw_step
from scripts.demo_base.heard import Listener, heard_loss
from scripts.demo_base.losses import ExtraWeights
from scripts.demo_base.settings import read_settings
from scripts.demo_base.step import FastStep, Rates
from scripts.demo_base.train import read_listener
from scripts.demo_base.whisper import WINDOW_SAMPLES, Teacher, mel_power, scale_log
from tests.test_demo_base_step import Both, _normal


def write_teacher(path: Path, width: int = 64, layers: int = 1) -> None:
    """An encoder of Whisper's names with one head a layer, random."""
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, 80, 3),
        "conv1.bias": (width,),
        "conv2.weight": (width, width, 3),
        "conv2.bias": (width,),
        "position_encodings.encodings": (1500, width),
        "layer_norm.gamma": (width,),
        "layer_norm.beta": (width,),
    }
    for layer in range(layers):
        attention, ffn = f"layer_{layer}.self_attention", f"layer_{layer}.ffn"
        for name, rows in ((f"{attention}.linear_0", 3 * width), (f"{attention}.linear_1", width)):
            shapes |= {f"{name}.weight": (rows, width), f"{name}.bias": (rows,)}
        for number in (0, 1):
            shapes |= {f"{ffn}.linear_{number}.weight": (width, width)}
        for part in (attention, ffn):
            shapes |= {f"{part}.layer_norm.gamma": (width,), f"{part}.layer_norm.beta": (width,)}
    tensors = {
        name: mx.array((random.normal(size=shape) * 0.3).astype(np.float16))
        for name, shape in shapes.items()
    }
    write_tensors(path, tensors)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    write_teacher(path, layers=2)
    return Teacher(path)


@pytest.fixture(scope="module")
def listener(teacher: Teacher) -> Listener:
    return Listener(teacher, 32000, (1, 2))


def _vowels(count: int, samples: int = 3840) -> np.ndarray:
    """Harmonics under moving formants, each row another pitch, and a little noise."""
    random, seconds = np.random.default_rng(0), np.arange(samples) / 32000
    rows = []
    for row in range(count):
        hertz = np.arange(1, 60) * (110 + 30 * row)
        formant = 600 + 500 * row + 2000 * seconds[:, None]
        weight = np.exp(-(((hertz - formant) / 400) ** 2)) + 0.02
        rows.append((weight * np.sin(2 * np.pi * hertz * seconds[:, None])).sum(axis=1) * 0.1)
    return (np.stack(rows) + 1e-3 * random.normal(size=(count, samples))).astype(np.float32)


def test_segments_are_heard_as_whisper_would() -> None:
    wav = _vowels(1, 32000)
    half = soxr.resample(wav[0], 32000, 16000, quality="VHQ")
    whole = np.zeros((1, WINDOW_SAMPLES), np.float32)
    # Whisper's frames are centred on multiples of 10 ms, a segment's first 12.5 ms in.
    whole[0, : len(half) - 40] = half[40:]
    theirs = np.array(mel_power(whole))[0, 1:99]
    ours = np.array(Listener.mel_power(_front_end(), mx.array(wav)))[0]
    assert ours.shape == (98, 80)
    floor = 1e-6 * theirs.max()
    apart = np.abs(np.log10(ours + floor) - np.log10(theirs + floor))
    assert apart[1:-1, :-2].max() < 0.01  # soxr leaves nothing of the last two bands


def _front_end() -> Listener:
    """A listener that has no teacher."""

    class Deaf:
        layers = 1

    silent: Any = Deaf()
    return Listener(silent, 32000, (1,))


def test_the_teachers_last_layer_is_what_it_hears(teacher: Teacher) -> None:
    power = mx.exp(_normal(np.random.default_rng(0), 2, 20, 80))
    first, last = teacher.states(scale_log(mx.log10(power)), (1, 2))
    heard = mx.fast.layer_norm(last, *teacher._last, 1e-5)
    assert np.abs(np.array(teacher(power) - heard)).max() < 1e-5
    assert np.abs(np.array(first - last)).max() > 0.1
    (alone,) = teacher.states(scale_log(mx.log10(power)), (1,))
    assert mx.array_equal(alone, first).item()


def test_what_is_the_same_is_heard_the_same(listener: Listener) -> None:
    real = mx.array(_vowels(3))
    fake = mx.concatenate([real[:1], real[:1], real[2:]])
    # The products of equal rows may be summed in another order: a few roundings.
    assert heard_loss(listener, real, real).tolist() == pytest.approx([0, 0, 0], abs=2e-6)
    heard = heard_loss(listener, real, fake).tolist()
    # Segments share a window: what is said in one is heard in the others, but less.
    assert heard[1] > 2 * max(heard[0], heard[2]) > 0


def test_the_gradient_of_what_is_heard(listener: Listener) -> None:
    real, random = mx.array(_vowels(2)), np.random.default_rng(1)
    fake = mx.array(_vowels(3)[1:]) + 0.02 * _normal(random, 2, 3840)

    def loss(real: mx.array, fake: mx.array) -> mx.array:
        return mx.mean(heard_loss(listener, real, fake))

    to_real, to_fake = mx.grad(loss, argnums=(0, 1))(real, fake)
    assert not np.array(to_real).any()
    assert np.isfinite(np.array(to_fake)).all()
    for direction in (to_fake / mx.max(mx.abs(to_fake)), _normal(random, 2, 3840)):
        direction = direction * 2e-5
        there, back = (loss(real, fake + sign * direction).item() for sign in (1, -1))
        slope = mx.sum(to_fake * direction).item()
        assert (there - back) / 2 == pytest.approx(slope, rel=0.05, abs=2e-6)


def test_silence_has_a_finite_gradient(listener: Listener) -> None:
    for real, fake in ((_vowels(2), np.zeros((2, 3840))), (np.zeros((2, 3840)), _vowels(2))):
        real, fake = mx.array(real, dtype=mx.float32), mx.array(fake, dtype=mx.float32)
        loss, gradient = mx.value_and_grad(
            lambda fake, real=real: mx.mean(heard_loss(listener, real, fake))
        )(fake)
        assert np.isfinite(loss.item())
        assert np.isfinite(np.array(gradient)).all()


def test_what_is_heard_is_learnt(listener: Listener) -> None:
    real = mx.array(_vowels(1))
    fake = real + 0.05 * _normal(np.random.default_rng(2), 1, 3840)
    function = mx.value_and_grad(lambda fake: mx.mean(heard_loss(listener, real, fake)))
    found = []
    for _ in range(12):
        loss, gradient = function(fake)
        found.append(loss.item())
        fake = fake - 0.05 * gradient / mx.sqrt(mx.sum(mx.square(gradient)))
    assert found[-1] < 0.9 * found[0]


def test_more_segments_than_a_window_holds(listener: Listener) -> None:
    real = mx.array(_vowels(2, 64000))
    real = mx.concatenate([real] * 16)  # 32 segments of 99 frames; a window holds 1500
    pairs = listener(real, real)
    assert [a.shape for a, _ in pairs] == [(4, 8 * 99, 64)] * 2


def test_a_teacher_of_too_few_layers_is_refused(teacher: Teacher) -> None:
    with pytest.raises(UserError, match="the teacher has 2 layers"):
        Listener(teacher, 32000, (2, 4))


def test_no_teacher_is_read_where_nothing_is_heard() -> None:
    settings = read_settings()
    silent = replace(settings.train, heard_weight=0.0, heard_own_weight=0.0)
    assert read_listener(Path("nowhere"), replace(settings, train=silent)) is None
    with pytest.raises(UserError, match="no such file"):
        read_listener(Path("nowhere"), settings)


HEARD = ("loss_heard", "loss_heard_own")


@pytest.fixture(scope="module")
def heard_steps(listener: Listener) -> dict[str, Any]:
    """One step from the same weights: with a teacher, with weights of 0, and without a teacher."""
    both = Both()
    product, draws = both.product, draw_step(mx.random.key(9), both.batch, both.config)
    real = product.real_segment(both.batch, draws)[..., 0]
    batch = both.fast_batch(draws.ids_slice, real)
    some = ExtraWeights(envelope=20.0, heard=40.0, heard_own=3.0)
    kinds: dict[str, Any] = {
        "teacher": (some, listener),
        "weight 0": (some._replace(heard=0.0, heard_own=0.0), listener),
        "no teacher": (some, None),
    }
    found = {}
    for name, (extra, ears) in kinds.items():
        nets = product.generator, product.discriminator
        step = FastStep(*nets, extra, listener=ears)
        parts = step(batch, draws.noise, Rates(1e-3, 1e-3, spoken=2, heard_own=1))
        mx.eval(parts, step.nets)
        found[name] = parts, step.nets
    return found


def test_a_weight_of_nothing_leaves_the_step_as_it_was(heard_steps: dict[str, Any]) -> None:
    parts, nets = heard_steps["weight 0"]
    without, nets_without = heard_steps["no teacher"]
    assert set(parts) == set(without) == set(heard_steps["teacher"][0]) - set(HEARD)
    assert mx.array_equal(nets["g"].weights, nets_without["g"].weights).item()
    heard = heard_steps["teacher"][0]
    added = sum(heard[name].item() for name in HEARD)
    assert heard["loss_total"].item() - parts["loss_total"].item() == pytest.approx(added, rel=1e-3)
    assert not mx.array_equal(nets["g"].weights, heard_steps["teacher"][1]["g"].weights).item()


def test_compiled_it_hears_the_same(teacher: Teacher) -> None:
    listener = Listener(teacher, 32000, (1,))
    real, fake = mx.array(_vowels(2)), mx.array(_vowels(3)[1:])
    function = mx.value_and_grad(lambda r, f: mx.mean(heard_loss(listener, r, f)), argnums=1)
    loss, gradient = function(real, fake)
    compiled = mx.compile(function)
    for _ in range(2):  # the second time without tracing
        found, to_fake = compiled(real, fake)
        assert found.item() == pytest.approx(loss.item(), rel=1e-5)
        apart = np.abs(np.array(to_fake - gradient)).max()
        assert apart < 1e-3 * float(mx.max(mx.abs(gradient)))
