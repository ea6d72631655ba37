"""The demo base's functions, losses and optimizer, against plain ones and MLX's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits.training import losses
from scripts.demo_base import layers
from scripts.demo_base.adamw import AdamW, norm, start
from scripts.demo_base.flat import Packed
from scripts.demo_base.losses import (
    envelope_loss,
    magnitudes,
    matched_feature_loss,
    score_loss,
    stft_loss,
)
from scripts.demo_base.settings import read_settings
from scripts.demo_base.student import Student


def _normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def _assert_same(ours: Callable[..., Any], theirs: Callable[..., Any], *inputs: mx.array) -> None:
    """The same value, and the same gradient of every input."""
    found, wanted = ours(*inputs), theirs(*inputs)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(np.array(found), np.array(wanted), atol=1e-5, rtol=1e-5)
    into = _normal(*found.shape, seed=1)
    of = list(range(len(inputs)))
    gradients = (mx.grad(lambda *x, f=f: mx.sum(f(*x) * into), of)(*inputs) for f in (ours, theirs))
    for mine, other in zip(*gradients, strict=True):
        scale = float(mx.max(mx.abs(other)))
        np.testing.assert_allclose(np.array(mine), np.array(other), atol=1e-5 * max(1, scale))


def test_a_gradient_is_scaled() -> None:
    x = _normal(2, 9, 8)
    assert mx.array_equal(layers.scale_gradient(x, 0.3), x).item()
    gradient = mx.grad(lambda x: mx.sum(layers.scale_gradient(x, 0.3)))(x)
    np.testing.assert_allclose(np.array(gradient), 0.3, rtol=1e-6)


@pytest.mark.parametrize(("samples", "size", "hop"), [(96, 24, 6), (100, 24, 12), (97, 20, 6)])
def test_frames(samples: int, size: int, hop: int) -> None:
    def theirs(wav: mx.array) -> mx.array:
        starts = range(0, samples - size + 1, hop)
        return mx.stack([wav[:, start : start + size] for start in starts], axis=1)

    _assert_same(lambda wav: layers.frames_of(wav, size, hop), theirs, _normal(2, samples))


def test_recordings_are_constants_to_the_losses_of_spectra() -> None:
    real, fake = 0.1 * _normal(2, 4800), 0.1 * _normal(2, 4800, seed=2)

    def stft(real: mx.array, fake: mx.array) -> mx.array:
        logs = (
            (mx.log(magnitudes(w, n) + 3e-3 * n**0.5) for w in (real, fake)) for n in (960, 240)
        )
        return mx.array(sum(mx.mean(mx.abs(a - b)) for a, b in logs))

    _assert_same(
        lambda fake: stft_loss(real, fake, (960, 240)), lambda fake: stft(real, fake), fake
    )
    for loss in (stft_loss, envelope_loss):
        assert not np.array(mx.grad(loss)(real, fake)).any()


def test_losses_of_the_judge_have_the_products_gradients() -> None:
    count, rows = 2, 5
    maps = [_normal(rows, 7, 3), _normal(rows, 4, 2, seed=2)]

    def product(*maps: mx.array) -> mx.array:
        real, own = [m[:count] for m in maps], [m[count : 2 * count] for m in maps]
        return losses.feature_loss([real], [own])

    _assert_same(lambda *m: matched_feature_loss([m], count), product, *maps)
    scores, weights = [_normal(rows, 7), _normal(rows, 4)], np.repeat([1 / 2, 1 / 3], [2, 3])

    def judged(*scores: mx.array) -> mx.array:
        return losses.discriminator_loss([s[:2] for s in scores], [s[2:] for s in scores])

    targets = np.repeat([1.0, 0.0], [2, 3])
    _assert_same(lambda *s: score_loss(s, targets, weights), judged, *scores)


@pytest.mark.parametrize("as_array", [False, True])
def test_adamw_is_mlxs(as_array: bool) -> None:
    adamw, weights = AdamW((0.8, 0.95), 1e-6, 0.02, 0.9), _normal(50)
    model, net, mean = {"w": weights}, start(weights), weights
    theirs = optim.AdamW(1e-2, betas=[0.8, 0.95], eps=1e-6, weight_decay=0.02, bias_correction=True)
    for count in range(1, 6):
        gradient = 10 ** (count - 4) * _normal(50, seed=count)
        theirs.learning_rate = 1e-2 / count
        model = theirs.apply_gradients({"w": gradient}, model)
        factors: Any = adamw.factors(1e-2 / count, count)
        net = adamw.update(net, gradient, mx.array(factors) if as_array else factors)
        np.testing.assert_allclose(np.array(net.weights), np.array(model["w"]), atol=1e-6)
        decay = min(0.9, count / (count + 9))
        mean = decay * mean + (1 - decay) * net.weights
        np.testing.assert_allclose(np.array(net.mean), np.array(mean), atol=1e-6)


def test_a_tree_as_a_vector() -> None:
    tree = {"a": _normal(2, 3), "b": [{"c": _normal(4)}, {"c": _normal(1, 2, seed=1)}]}
    packed = Packed(tree)
    vector = packed.pack(tree)
    assert vector.shape == (3 * 32,)  # each begins at a multiple of 128 bytes
    assert mx.sum(vector != 0).item() == 12
    again: Any = packed(vector)
    assert mx.array_equal(again["b"][1]["c"], tree["b"][1]["c"]).item()

    def loss(vector: mx.array) -> mx.array:
        tree: Any = packed(vector)
        return mx.sum(mx.square(tree["a"])) + mx.sum(tree["b"][0]["c"])

    wanted = packed.pack({"a": 2 * tree["a"], "b": [{"c": mx.ones(4)}, {"c": mx.zeros((1, 2))}]})
    assert mx.allclose(mx.grad(loss)(vector), wanted).item()
    assert norm(vector).item() == pytest.approx(float(np.linalg.norm(np.array(vector))), rel=1e-6)


def test_the_student_hears_as_the_content_encoder() -> None:
    settings = read_settings()
    sizes = replace(settings.encoder, hidden_size=24, num_hidden_layers=2, conv_dim=(8,) * 7)
    settings = replace(settings, encoder=replace(sizes, intermediate_size=32))
    student = Student(settings)
    wav, hidden = _normal(2, 320 * 20 + 80), mx.zeros((2, 20, 1))
    _assert_same(lambda wav: student(wav, hidden), student.encoder, wav)

    def loss(function: Any) -> Any:
        return nn.value_and_grad(student.encoder, lambda: mx.sum(mx.square(function())))()[1]

    ours, theirs = loss(lambda: student(wav, hidden)), loss(lambda: student.encoder(wav))
    for (name, mine), (_, other) in zip(tree_flatten(ours), tree_flatten(theirs), strict=True):
        scale = max(1.0, float(mx.max(mx.abs(other))))
        np.testing.assert_allclose(np.array(mine), np.array(other), atol=2e-4 * scale, err_msg=name)
    shown = student(wav, mx.ones((2, 20, 1)))
    assert np.abs(np.array(shown - student(wav, hidden))).max() > 0.01
