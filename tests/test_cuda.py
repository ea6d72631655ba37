"""The kernels for CUDA against what is computed without them; a CPU runs their sources instead."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits.benchmarking import work
from mlx_vits.nn import cuda
from mlx_vits.nn.activations import biased_sum, leaky_mean, leaky_relu, sum_and_leaky_relu
from mlx_vits.nn.attention import _attend, _band_to_square, _heads_on_cuda, _square_to_band
from mlx_vits.nn.conv import conv1d, conv_backend, planar
from mlx_vits.nn.dropout import KeyedDropout, dropped
from mlx_vits.nn.gradients import no_gradient
from mlx_vits.nn.joining import cast_together, end_to_end
from mlx_vits.nn.layers import Conv1d, Conv2d, ConvTranspose1d, LayerNorm
from mlx_vits.nn.wavenet import _gated_product, _passed_on, gated
from mlx_vits.nn.weight_norm import fold_rows
from mlx_vits.training.losses import discriminator_loss, feature_loss, generator_loss
from mlx_vits.training.optimizers import SharedAdamW
from mlx_vits.training.step import draw_step, global_norm
from tests.support import plain_kernels
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.tiny import tiny_config

On = Callable[[], AbstractContextManager[None]]
HAS_CUDA = mx.cuda.is_available()
pytestmark = pytest.mark.machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch, folder: Path) -> On:
    """Has the kernels used within a `with` block, and nowhere else."""
    if not HAS_CUDA and not shutil.which("g++"):
        pytest.skip("no g++")
    if not HAS_CUDA:
        return lambda: cuda_on_cpu(monkeypatch, folder)
    monkeypatch.setattr(cuda, "USED", False)

    @contextmanager
    def used() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(cuda, "USED", True)
            yield

    return used


def _normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def _assert_same(
    on_cuda: On, function: Any, *inputs: mx.array, rtol: float = 1e-5, atol: float = 2e-6
) -> None:
    """Values and gradients with the kernels and without; `atol` is a share of the largest."""

    def found() -> list[mx.array]:
        y = function(*inputs)
        grads = mx.vjp(function, list(inputs), [_normal(*y.shape, seed=9)])[1]
        mx.eval(y, grads)
        return [y, *grads]

    plain = found()
    with on_cuda():
        ours = found()
    for a, b in zip(ours, plain, strict=True):
        assert a.shape == b.shape
        size = max(1, mx.max(mx.abs(b)).item())
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * size)


@pytest.mark.parametrize("shape", [(2, 7, 5), (1, 1, 1), (3, 100, 32)])
def test_leaky_relu(on_cuda: On, shape: tuple[int, ...]) -> None:
    x = _normal(*shape)
    x[0, 0, 0] = 0.0
    _assert_same(on_cuda, lambda x: leaky_relu(x, 0.1), x)
    _assert_same(on_cuda, lambda x: leaky_relu(x, 0.0), x)
    _assert_same(on_cuda, lambda x, b: leaky_relu(x, 0.01, b), x, _normal(shape[-1], seed=1))
    _assert_same(on_cuda, lambda x: leaky_relu(x.swapaxes(0, 1), 0.1), x)


def test_the_gate_of_a_wavenet(on_cuda: On) -> None:
    _assert_same(on_cuda, gated, 3 * _normal(2, 5, 8), _normal(8, seed=1), _normal(2, 1, 8, seed=2))


def test_a_layer_of_a_wavenet(on_cuda: On) -> None:
    conv, product = Conv1d(4, 8, 3, padding=1), Conv1d(4, 6, 1)

    def run(x: mx.array, condition: mx.array, *weights: mx.array) -> mx.array:
        conv["weight"], conv["bias"], product["weight"], product["bias"] = weights
        with conv_backend("planar"):
            return _gated_product(conv, product, x, condition).reshape(2, 5, 6)

    shapes = (8, 3, 4), (8,), (6, 1, 4), (6,)
    weights = [_normal(*shape, seed=n) for n, shape in enumerate(shapes)]
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if HAS_CUDA else {"rtol": 1e-4, "atol": 1e-5}
    inputs = _normal(2, 5, 4, seed=5), _normal(2, 1, 8, seed=6)
    _assert_same(on_cuda, run, *inputs, *weights, **tolerance)


def test_a_biased_sum(on_cuda: On) -> None:
    _assert_same(on_cuda, biased_sum, _normal(2, 5, 4), _normal(2, 5, 4, seed=1), _normal(4))


@pytest.mark.parametrize("is_first", [True, False])
def test_a_sum_and_its_leaky_relu(on_cuda: On, is_first: bool) -> None:
    def both(x: mx.array, y: mx.array, bias: mx.array) -> mx.array:
        return mx.stack(sum_and_leaky_relu(None if is_first else x, y, bias, 0.1))

    _assert_same(on_cuda, both, _normal(2, 5, 4), _normal(2, 5, 4, seed=1), _normal(4))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_the_leaky_mean_of_arrays(on_cuda: On, count: int) -> None:
    arrays = [_normal(2, 3, seed=seed) for seed in range(count)]
    _assert_same(on_cuda, lambda *arrays: leaky_mean(arrays, 0.1), *arrays)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("is_masked", [True, False])
def test_what_a_layer_of_a_wavenet_passes_on(on_cuda: On, is_first: bool, is_masked: bool) -> None:
    mask = mx.array([[1, 1, 1], [1, 0, 0]], mx.float32)[..., None] if is_masked else None

    def passed(x: mx.array, y: mx.array, total: mx.array) -> mx.array:
        return mx.stack(_passed_on(x, y, mask, None if is_first else total))

    inputs = _normal(2, 3, 4), _normal(2, 3, 8, seed=1), _normal(2, 3, 4, seed=2)
    _assert_same(on_cuda, passed, *inputs)


def test_queries_keys_and_values(on_cuda: On) -> None:
    x, bias = _normal(2, 7, 24), _normal(24, seed=1)

    def ours(x: mx.array, bias: mx.array) -> mx.array:
        return mx.concatenate(_heads_on_cuda(2)(x, bias))

    def plain(x: mx.array, bias: mx.array) -> mx.array:
        return mx.concatenate(plain_kernels.heads(x, bias, 2))

    cotangent = _normal(6, 2, 7, 4, seed=2)
    theirs = mx.vjp(plain, [x, bias], [cotangent])
    with on_cuda():
        found = mx.vjp(ours, [x, bias], [cotangent])
        mx.eval(found)
    for a, b in zip(tree_flatten(found), tree_flatten(theirs), strict=True):
        np.testing.assert_allclose(a[1], b[1], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("length", "reach"), [(6, 2), (3, 4), (40, 4), (1, 1)])
def test_attention_and_its_band(on_cuda: On, length: int, reach: int) -> None:
    square, band = (2, 3, length, length), (2, 3, length, 2 * reach + 1)
    mask = (mx.arange(length) < mx.array([[length], [1 + length // 2]])).astype(mx.float32)
    pairs = mask[:, None, :, None] * mask[:, None, None]

    for seen in (pairs, None):

        def attended(scores: mx.array, band: mx.array, seen: Any = seen) -> mx.array:
            return _attend(scores, band, seen)

        _assert_same(on_cuda, attended, _normal(*square), _normal(*band, seed=1))
    _assert_same(on_cuda, _band_to_square, _normal(*band))
    _assert_same(on_cuda, lambda x: _square_to_band(x, reach), _normal(*square))


def test_the_norm_of_gradients(on_cuda: On) -> None:
    tree = {"a": _normal(3, 4), "b": [_normal(20000, seed=1)]}
    plain = global_norm(tree).item()
    with on_cuda():
        assert global_norm(tree).item() == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 50), (1,), (2, 1)])
def test_dropout_draws_the_same(on_cuda: On, shape: tuple[int, ...]) -> None:
    key = mx.random.key(3)

    def dropped(x: mx.array) -> mx.array:
        return KeyedDropout(key)(x, 0.3)

    _assert_same(on_cuda, dropped, 1 + _normal(*shape) ** 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [(1, 2, 1), (3, 2, 1), (1, 4, 2), (2, 0, 3), (4, 20, 1)]
)
def test_the_gradients_of_a_convolution(
    on_cuda: On, stride: int, padding: int, dilation: int
) -> None:
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}

    def convolved(x: mx.array, w: mx.array) -> mx.array:
        with conv_backend("planar"):
            return conv1d(x, w, **geometry)

    for length, channels in ((23, 3), (24, 1)):
        x, w = _normal(2, length, channels), _normal(4, 5, channels, seed=1)
        # Products may be TF32 on a GPU.
        rtol, atol = (2e-2, 2e-2) if HAS_CUDA else (1e-4, 2e-6)
        _assert_same(on_cuda, convolved, x, w, rtol=rtol, atol=atol)


@pytest.mark.parametrize("columns", [False, True])
def test_what_follows_a_convolution(on_cuda: On, columns: bool) -> None:
    """Values and gradients, also in the weight and the bias."""
    layer = (
        Conv2d(6, 6, (3, 1), padding=(1, 0)) if columns else Conv1d(6, 6, 3, padding=2, dilation=2)
    )
    to, x, bias = _normal(2, 9, 6), _normal(2, 9, 6, seed=1), _normal(6, seed=2)

    def set_to(weight: mx.array, bias: mx.array) -> None:
        layer["weight"], layer["bias"] = weight, bias

    def leaky(x: mx.array, *weights: mx.array) -> mx.array:
        set_to(*weights)
        with conv_backend("planar"):
            return layer.leaky(x, 0.1)

    def onto(to: mx.array, x: mx.array, *weights: mx.array) -> mx.array:
        set_to(*weights)
        with conv_backend("planar"):
            return layer.onto(to, x)

    def onto_and_leaky(to: mx.array, x: mx.array, *weights: mx.array) -> mx.array:
        set_to(*weights)
        with conv_backend("planar"):
            return mx.concatenate(layer.onto_and_leaky(to, x, 0.1))

    weights = 0.1 * _normal(*layer["weight"].shape, seed=3), bias
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if HAS_CUDA else {"rtol": 1e-4, "atol": 2e-6}
    _assert_same(on_cuda, leaky, x, *weights, **tolerance)
    _assert_same(on_cuda, onto, to, x, *weights, **tolerance)
    _assert_same(on_cuda, onto_and_leaky, to, x, *weights, **tolerance)
    with no_gradient():
        plain = onto_and_leaky(to, x, *weights)
        with on_cuda():
            np.testing.assert_allclose(onto_and_leaky(to, x, *weights), plain, **tolerance)


@pytest.mark.parametrize(
    "layer",
    [Conv1d(6, 6, 3, padding=1), Conv1d(6, 6, 1), Conv2d(6, 6, (5, 1), padding=(2, 0))],
    ids=["Conv1d", "of one tap", "Conv2d"],
)
def test_planar_activations_and_weights(on_cuda: On, layer: Any) -> None:
    """Through several layers, one of them transposed."""
    up = ConvTranspose1d(6, 6, 4, stride=2, padding=1)

    def run(x: mx.array, weight: mx.array, bias: mx.array, up_weight: mx.array) -> mx.array:
        up["weight"], layer["bias"] = up_weight, bias
        with conv_backend("planar"):
            layer["weight"] = weight.reshape(layer.form("weight", weight.shape))
            x = planar(x)
            y = layer.onto(x, layer.leaky(x, 0.1))
            return up.unbiased(y).reshape(2, -1, 6)

    shapes = layer["weight"].shape, (6,), up["weight"].shape
    weights = [0.1 * _normal(*shape, seed=n) for n, shape in enumerate(shapes)]
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if HAS_CUDA else {"rtol": 1e-4, "atol": 2e-6}
    _assert_same(on_cuda, run, _normal(2, 9, 6, seed=5), *weights, **tolerance)


@pytest.mark.parametrize("is_masked", [True, False])
def test_dropout_of_a_sum_and_its_mask(on_cuda: On, is_masked: bool) -> None:
    mask = mx.array([[1, 1, 1], [1, 0, 0]], mx.float32)[..., None] if is_masked else None

    def of_sum(x: mx.array, bias: mx.array) -> mx.array:
        return dropped(KeyedDropout(mx.random.key(3)), x, 0.3, bias, mask)

    _assert_same(on_cuda, of_sum, _normal(2, 3, 8), _normal(8, seed=1))
    _assert_same(on_cuda, lambda x: dropped(KeyedDropout(mx.random.key(3)), x, 0.3), _normal(7))


@pytest.mark.parametrize("width", [8, 300])
def test_layer_norm_of_a_sum(on_cuda: On, width: int) -> None:
    x, y, bias = _normal(2, 3, width), _normal(2, 3, width, seed=1), _normal(width, seed=2)
    norm = LayerNorm(width)
    norm.gamma, norm.beta = 1 + _normal(width, seed=3), _normal(width, seed=4)
    _assert_same(on_cuda, norm.of_sum, x, y, bias, rtol=1e-4, atol=1e-5)
    _assert_same(on_cuda, norm.of_sum, x, y, rtol=1e-4, atol=1e-5)

    def of_weights(gamma: mx.array, beta: mx.array) -> mx.array:
        norm.gamma, norm.beta = gamma, beta
        return norm.of_sum(x, y, bias)

    _assert_same(on_cuda, of_weights, norm.gamma, norm.beta, rtol=1e-4, atol=1e-5)


def test_weight_norm(on_cuda: On) -> None:
    shapes = (3, 4), (2, 7), (5, 1), (2, 700)
    matrices = [_normal(*shape, seed=n) for n, shape in enumerate(shapes)]

    def folded(*arrays: mx.array) -> mx.array:
        return mx.concatenate([w.reshape(-1) for w in fold_rows(arrays[0], arrays[1:])])

    _assert_same(on_cuda, folded, _normal(12, 1, seed=8), *matrices)


def test_the_feature_loss(on_cuda: On) -> None:
    shapes = (2, 5, 3), (2, 4), (3, 7000), (1, 2, 2)
    real = [_normal(*shape, seed=n) for n, shape in enumerate(shapes)]
    fake = [_normal(*shape, seed=n + 4) for n, shape in enumerate(shapes)]

    def loss(*maps: mx.array) -> mx.array:
        return feature_loss([real[:2], real[2:]], [maps[:2], maps[2:]])

    _assert_same(on_cuda, loss, *fake)


@pytest.mark.parametrize("size", [7, 9000])
def test_the_losses_of_scores(on_cuda: On, size: int) -> None:
    scores = _normal(2, size), _normal(2, size, seed=1)
    _assert_same(on_cuda, lambda r, g: discriminator_loss([r], [g]), *scores)
    _assert_same(on_cuda, lambda g: generator_loss([g]), scores[0])


def test_adamw(on_cuda: On) -> None:
    def trained() -> list[mx.array]:
        optimizer = SharedAdamW(1e-3, [0.8, 0.99], 1e-9, 0.01, bias_correction=True)
        arrays: Any = {"a": _normal(40, 32), "b": _normal(7, 1)}
        for step in range(4):
            grads = {name: _normal(*array.shape, seed=step) for name, array in arrays.items()}
            arrays = optimizer.apply_gradients(grads, arrays)
        mx.eval(arrays, optimizer.state)
        return [*arrays.values(), *(optimizer.state[n][m] for n in arrays for m in "mv")]

    plain = trained()
    with on_cuda():
        ours = trained()
    # On a GPU products and sums are rounded once: 5e-5 of a moment on an H200.
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 100])
def test_arrays_end_to_end(on_cuda: On, count: int) -> None:
    arrays = [_normal(1 + n % 5, 3, seed=n) for n in range(count)]
    arrays[0] = arrays[0].T
    arrays.append(mx.broadcast_to(mx.array(2.0), (4,)))
    plain = end_to_end(arrays)
    with on_cuda():
        assert mx.array_equal(end_to_end(arrays), plain)


def test_arrays_are_cast_together(on_cuda: On) -> None:
    arrays = [_normal(*shape) for shape in ((2, 32), (3, 5), (64,), (4, 48))]
    cotangents = [array.astype(mx.bfloat16) for array in arrays]
    with on_cuda():
        found = mx.vjp(lambda *a: cast_together(a, mx.bfloat16), arrays, cotangents)
        mx.eval(found)
    for cast, gradient, cotangent in zip(*found, cotangents, strict=True):
        assert mx.array_equal(cast, cotangent)
        assert mx.array_equal(gradient, cotangent.astype(mx.float32))


@pytest.mark.parametrize("backend", ["planar", "cudnn"])
def test_a_whole_step(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """The wiring: without CUDA, MLX's own operations stand for the kernels.

    Each array is compared by its norm. How far the plain step is from itself under six BLAS kernels
    (MKL with AVX-512 and with SSE2, OpenBLAS for Prescott, Haswell and Skylake-X, the reference
    BLAS) sets the scale: up to 7e-4 for a gradient of a few elements, each of them a sum over every
    sample in which most cancels, and up to 8e-5 for the rest. Gradients that are 0 in exact
    arithmetic are left with up to 2e-8, 6e-11 of the norm of all of them.
    """
    monkeypatch.setattr(cuda, "USED", False)
    monkeypatch.setattr(work.Work, "config", property(lambda self: tiny_config(self.version)))
    size = work.Work("v2", 2, 1.0)
    batch = work.make_batch(size)

    def stepped() -> dict[str, mx.array]:
        step = work.make_step(size)
        result = step.run(batch, draw_step(mx.random.key(0), batch, size.config))
        gradients: Any = tree_flatten(step.gradients(result)._asdict())
        moments: Any = tree_flatten(step.moments().discriminator)
        return result.losses._asdict() | dict(gradients) | dict(moments)

    plain = stepped()
    mx.eval(plain)
    monkeypatch.setattr(cuda, "USED", True)
    if not HAS_CUDA:
        monkeypatch.setattr(cuda, "is_on_cuda", lambda: True)
        for name, function in inspect.getmembers(plain_kernels, inspect.isfunction):
            if not name.startswith("_"):
                monkeypatch.setattr(cuda, name, function)
    with conv_backend(backend):
        ours = stepped()
        mx.eval(ours)
    nothing = 3e-10 * plain["grad_norm_g"].item()
    for name, value in plain.items():
        few, many = (2e-2, 2e-2) if HAS_CUDA else (2e-3, 3e-4)  # products may be TF32 there
        bound = (few if value.size <= 4 else many) * mx.linalg.norm(value).item()
        if name.startswith("generator."):
            bound += nothing
        assert mx.linalg.norm(ours[name] - value).item() <= bound, name


def test_other_types_and_devices_are_computed_without_kernels(on_cuda: On) -> None:
    x = _normal(2, 3)
    assert not cuda.is_used(x)
    with on_cuda():
        assert cuda.is_used(x)
        assert cuda.is_used(x.astype(mx.bfloat16))
        assert not cuda.is_used(x, x.astype(mx.bfloat16))
        assert not cuda.is_used(x.astype(mx.float16))


def _in_bf16(on_cuda: On, function: Any, *inputs: mx.array) -> None:
    """Values and gradients in bf16 with the kernels, beside fp32 of the same numbers without."""
    rounded = [x.astype(mx.bfloat16) for x in inputs]

    def found(inputs: list[mx.array]) -> list[mx.array]:
        y = function(*inputs)
        cotangent = _normal(*y.shape, seed=9).astype(mx.bfloat16).astype(y.dtype)
        grads = mx.vjp(function, inputs, [cotangent])[1]
        mx.eval(y, grads)
        return [y, *grads]

    plain = found([x.astype(mx.float32) for x in rounded])
    with on_cuda():
        ours = found(rounded)
    for a, b in zip(ours, plain, strict=True):
        assert a.shape == b.shape
        size = mx.max(mx.abs(b)).item()
        np.testing.assert_allclose(a.astype(mx.float32), b, rtol=1e-2, atol=1e-2 * size)
    assert ours[1].dtype == mx.bfloat16


def test_bf16(on_cuda: On) -> None:
    x, y, bias = _normal(2, 5, 8), _normal(2, 5, 8, seed=1), _normal(8, seed=2)
    _in_bf16(on_cuda, lambda x, b: leaky_relu(x, 0.1, b), x, bias)
    _in_bf16(on_cuda, biased_sum, x, y, bias)
    _in_bf16(on_cuda, gated, x, bias, _normal(2, 1, 8, seed=3))
    _in_bf16(on_cuda, lambda *arrays: leaky_mean(arrays, 0.1), x, y)
    _in_bf16(on_cuda, lambda x: KeyedDropout(mx.random.key(3))(x, 0.3), x)
    halves = [x.astype(mx.bfloat16), bias.astype(mx.bfloat16)]
    with on_cuda():
        assert mx.array_equal(end_to_end(halves)[-8:], halves[1])
    band = _normal(2, 3, 6, 5, seed=5)
    _in_bf16(on_cuda, lambda s, b: _attend(s, b, None, 0.3), _normal(2, 3, 6, 6, seed=4), band)
    _in_bf16(on_cuda, LayerNorm(8).of_sum, x, y, bias)
    maps = [_normal(2, 5, 3), _normal(3, 7000, seed=1)]

    def loss(*found: mx.array) -> mx.array:
        return feature_loss(
            [[m.astype(f.dtype) for m, f in zip(maps, found, strict=True)]], [found]
        )

    fakes = [_normal(2, 5, 3, seed=6), _normal(3, 7000, seed=7)]
    with on_cuda():
        found = loss(*(fake.astype(mx.bfloat16) for fake in fakes))
    assert found.dtype == mx.float32
    assert found.item() == pytest.approx(loss(*fakes).item(), rel=2e-2)
