"""Operations of the models and losses, against what they are by definition."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_vits.accel import compilation
from mlx_vits.accel.compilation import compiles_step
from mlx_vits.models.posterior import Flip
from mlx_vits.nn.attention import band_to_square, square_to_band
from mlx_vits.nn.dropout import dropout, split_key
from mlx_vits.nn.ops import conv1d
from mlx_vits.training.losses import FEATURE_WEIGHT, feature_loss, total


def _assert_same(ours: Any, plain: Any, *inputs: mx.array, rtol: float = 1e-5) -> None:
    """Values and gradients, under a random cotangent."""
    outputs = [function(*inputs) for function in (ours, plain)]
    c = mx.random.normal(outputs[0].shape, key=mx.random.key(9))
    grads = [mx.vjp(function, list(inputs), [c])[1] for function in (ours, plain)]
    for a, b in zip([outputs[0], *grads[0]], [outputs[1], *grads[1]], strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


def test_relative_positions_and_their_gradients() -> None:
    batch, heads, length, reach = 2, 2, 6, 2
    offset = mx.arange(length)[None] - mx.arange(length)[:, None] + reach
    picks = (offset[..., None] == mx.arange(2 * reach + 1)).astype(mx.float32)

    def plain_square(band: mx.array) -> mx.array:
        return mx.einsum("bhiw,ijw->bhij", band, picks)

    def plain_band(square: mx.array) -> mx.array:
        return mx.einsum("bhij,ijw->bhiw", square, picks)

    band = mx.random.normal((batch, heads, length, 2 * reach + 1), key=mx.random.key(0))
    square = mx.random.normal((batch, heads, length, length), key=mx.random.key(1))
    _assert_same(band_to_square, plain_square, band)
    _assert_same(lambda s: square_to_band(s, reach), plain_band, square)
    # Also of an array that is a view of another.
    _assert_same(
        lambda s: square_to_band(s.swapaxes(2, 3), reach), lambda s: plain_band(s.mT), square
    )


def test_a_flip_and_its_gradient() -> None:
    x = mx.random.normal((2, 3, 4), key=mx.random.key(0))
    _assert_same(lambda x: Flip()(x, x, x), lambda x: mx.take(x, mx.array([3, 2, 1, 0]), -1), x)


def test_dropout_keeps_a_share_and_scales_it() -> None:
    p, x = 0.25, mx.ones((200, 200))
    y = dropout(x, p, mx.random.key(3))
    kept = (y != 0).astype(mx.float32)
    assert abs(mx.mean(kept).item() - 0.75) < 4 * (0.25 * 0.75 / x.size) ** 0.5  # four sigma
    np.testing.assert_allclose(y, kept / 0.75, rtol=1e-6)
    assert mx.array_equal(y, dropout(x, p, mx.random.key(3)))
    assert not mx.array_equal(y, dropout(x, p, mx.random.key(4)))
    assert dropout(x.astype(mx.bfloat16), p, mx.random.key(3)).dtype == mx.bfloat16
    assert dropout(x, p, None) is x
    assert dropout(x, 0.0, mx.random.key(3)) is x


def test_a_split_key_gives_other_masks() -> None:
    first, second = split_key(mx.random.key(0), 2)
    x = mx.ones((50,))
    assert not mx.array_equal(dropout(x, 0.5, first), dropout(x, 0.5, second))
    assert split_key(None, 2) == [None, None]


def test_a_convolution_of_one_tap_and_its_gradient() -> None:
    keys = mx.random.split(mx.random.key(0), 3)
    x, w, b = (
        mx.random.normal(shape, key=key)
        for shape, key in zip(((2, 5, 4), (3, 1, 4), (3,)), keys, strict=True)
    )
    _assert_same(conv1d, lambda x, w, b: mx.conv1d(x, w) + b, x, w, b)
    _assert_same(conv1d, lambda x, w: mx.conv1d(x, w), x, w)


def test_the_feature_loss_is_the_sum_of_means() -> None:
    keys = iter(mx.random.split(mx.random.key(0), 8))
    shapes = [[(2, 5, 3), (2, 4)], [(3, 7), (1, 2, 2)]]
    real = [[mx.random.normal(s, key=next(keys)) for s in row] for row in shapes]
    fake = [[mx.random.normal(s, key=next(keys)) for s in row] for row in shapes]

    def plain(fake: Any) -> mx.array:
        means = [
            mx.mean(mx.abs(r - g))
            for of_real, of_fake in zip(real, fake, strict=True)
            for r, g in zip(of_real, of_fake, strict=True)
        ]
        return FEATURE_WEIGHT * sum(means, start=mx.array(0.0))

    (a, of_a), (b, of_b) = (
        mx.value_and_grad(f)(fake) for f in (lambda fake: feature_loss(real, fake), plain)
    )
    assert a.item() == pytest.approx(b.item(), rel=1e-6)
    for ours, theirs in zip(of_a, of_b, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3_000_000, 1), (1025,), (70_000, 32), ()])
def test_a_total_keeps_its_digits(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random(shape).astype(np.float32)
    assert total(mx.array(x)).item() == pytest.approx(x.sum(dtype=np.float64), rel=1e-6)
    assert mx.all(mx.grad(total)(mx.array(x)) == 1).item()


def test_gpus_compile_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiles_step(True)
    assert not compiles_step(False)
    for device, is_metal, can_stop, expected in (
        (mx.cpu, True, True, False),
        (mx.gpu, False, True, True),
        (mx.gpu, False, False, False),  # an MLX that would fuse
        (mx.gpu, True, False, True),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(mx, "default_device", lambda device=device: mx.Device(device))
            patch.setattr(mx.metal, "is_available", lambda is_metal=is_metal: is_metal)
            patch.setattr(compilation, "stop_fusing", lambda can_stop=can_stop: can_stop)
            assert compiles_step() == expected
