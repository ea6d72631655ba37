"""What is computed in fewer operations than MLX would take, against what MLX would compute."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

from mlx_vits import compilation
from mlx_vits.benchmarking.kernels import count_graph
from mlx_vits.accel.compilation import compiles_step
from mlx_vits.models.posterior import Flip
from mlx_vits.nn.attention import _band_to_square, _square_to_band
from mlx_vits.nn.conv import conv1d
from mlx_vits.nn.dropout import KeyedDropout
from mlx_vits.nn.wavenet import _split_evenly, gated
from mlx_vits.nn.weight_norm import fold_rows, fold_weight
from mlx_vits.training.losses import FEATURE_WEIGHT, feature_loss, total
from mlx_vits.training.optimizers import SharedAdamW
from tests.support.repeating import ON_CPU, same


def _assert_same(ours: Any, plain: Any, *inputs: mx.array, rtol: float = 1e-5) -> None:
    """Values and gradients, under a random cotangent."""
    outputs = [function(*inputs) for function in (ours, plain)]
    c = mx.random.normal(outputs[0].shape, key=mx.random.key(9))
    grads = [mx.vjp(function, list(inputs), [c])[1] for function in (ours, plain)]
    for a, b in zip([outputs[0], *grads[0]], [outputs[1], *grads[1]], strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_adamw_is_mlxs_own_bit_for_bit(bias_correction: bool) -> None:
    settings: Any = {"learning_rate": 1e-3, "betas": [0.8, 0.99], "eps": 1e-9}
    settings |= {"weight_decay": 0.01, "bias_correction": bias_correction}
    mx.random.seed(0)
    start = {"a": mx.random.normal((40, 32)), "b": mx.random.normal((7, 1))}
    found = []
    for kind in (SharedAdamW, optim.AdamW):
        optimizer, arrays = kind(**settings), dict(start)
        for step in range(5):
            optimizer.learning_rate = 1e-3 * 0.9**step
            grads = {
                name: mx.random.normal(array.shape, key=mx.random.key(10 * step + len(array)))
                for name, array in arrays.items()
            }
            arrays = optimizer.apply_gradients(grads, arrays)
        found.append((arrays, optimizer.state))
    (ours, state), (theirs, their_state) = found
    assert set(state) == set(their_state)
    for name in ("step", "learning_rate"):
        assert mx.array_equal(state[name], their_state[name])
    for name in start:
        assert same(ours[name], theirs[name])
        assert all(same(state[name][leaf], their_state[name][leaf]) for leaf in "mv")


@pytest.mark.skipif(not ON_CPU, reason="on CUDA an update is one kernel")
def test_an_update_computes_what_depends_on_the_step_once() -> None:
    counts = []
    for size in (1, 5):
        arrays = {str(number): mx.zeros((64, 32)) for number in range(size)}
        optimizer = SharedAdamW(1e-3, bias_correction=True)
        optimizer.init(arrays)
        mx.eval(arrays, optimizer.state)
        counts.append(count_graph(optimizer.apply_gradients(arrays, arrays)).kernels)
    assert (counts[1] - counts[0]) / 4 == 14


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
    _assert_same(_band_to_square, plain_square, band)
    _assert_same(lambda s: _square_to_band(s, reach), plain_band, square)
    # Also of an array that is a view of another.
    _assert_same(
        lambda s: _square_to_band(s.swapaxes(2, 3), reach), lambda s: plain_band(s.mT), square
    )


def test_the_gate_of_a_wavenet_and_its_gradient() -> None:
    def plain(x: mx.array) -> mx.array:
        a, b = mx.split(x, 2, axis=-1)
        return mx.tanh(a) * mx.sigmoid(b)

    _assert_same(gated, plain, 3 * mx.random.normal((2, 5, 8), key=mx.random.key(0)))


@pytest.mark.parametrize("count", [1, 4, 10, 11, 16, 23])
def test_an_even_split(count: int) -> None:
    x = mx.random.normal((2, 1, 3 * count), key=mx.random.key(0))
    parts = _split_evenly(x, count)
    assert len(parts) == count
    assert mx.array_equal(mx.stack(parts), mx.stack(mx.split(x, count, axis=-1)))
    grad = mx.grad(lambda x: mx.sum(mx.stack(_split_evenly(x, count)) ** 2))(x)
    np.testing.assert_allclose(grad, 2 * x, rtol=1e-6)


def test_a_flip_and_its_gradient() -> None:
    x = mx.random.normal((2, 3, 4), key=mx.random.key(0))
    _assert_same(lambda x: Flip()(x, x, x), lambda x: mx.take(x, mx.array([3, 2, 1, 0]), -1), x)


def test_dropout_and_its_gradient() -> None:
    p, key = 0.1, mx.random.key(3)
    keep = mx.random.bernoulli(1 - p, (4, 50), key=mx.random.split(key, 64)[0])
    x = mx.random.normal((4, 50), key=mx.random.key(0))
    _assert_same(
        lambda x: KeyedDropout(key)(x, p), lambda x: mx.where(keep, x * (1 / (1 - p)), 0.0), x
    )
    assert KeyedDropout(key)(x.astype(mx.bfloat16), p).dtype == mx.bfloat16


def test_a_convolution_of_one_tap_and_its_gradient() -> None:
    keys = mx.random.split(mx.random.key(0), 3)
    x, w, b = (
        mx.random.normal(shape, key=key)
        for shape, key in zip(((2, 5, 4), (3, 1, 4), (3,)), keys, strict=True)
    )
    _assert_same(conv1d, lambda x, w, b: mx.conv1d(x, w) + b, x, w, b)
    _assert_same(conv1d, lambda x, w: mx.conv1d(x, w), x, w)


def test_weight_norm_of_rows_of_several_widths() -> None:
    widths, rows = (4, 7, 1), (3, 2, 5)
    matrices = [
        mx.random.normal((r, w), key=mx.random.key(w)) for r, w in zip(rows, widths, strict=True)
    ]
    g = mx.random.normal((sum(rows), 1), key=mx.random.key(0))

    def ours(*arrays: mx.array) -> mx.array:
        return mx.concatenate([w.reshape(-1) for w in fold_rows(arrays[0], arrays[1:])])

    def plain(*arrays: mx.array) -> mx.array:
        lengths, start, found = arrays[0], 0, []
        for v in arrays[1:]:
            part = lengths[start : start + len(v), :, None]
            found.append(fold_weight(part, v[:, None], "conv1d").reshape(-1))
            start += len(v)
        return mx.concatenate(found)

    _assert_same(ours, plain, g, *matrices)


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
