"""The kernels of `accel/cuda` against MLX's own operations.

Without a GPU, g++ compiles their sources for a CPU: blocks of 64 threads, two warps, so that sums
over a block are shuffled and shared as on a GPU (`support/cuda_on_cpu.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

from mlx_vits import accel
from mlx_vits.accel.cuda import kernels, training
from tests.support import plain_kernels
from tests.support.cuda import HAS_CUDA, home_of, normal
from tests.support.cuda_on_cpu import cuda_on_cpu

# Arguments of each kernel.

_MASK = mx.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], mx.float32)[..., None]
_SEEN = _MASK[:, None] * _MASK[:, None, :, 0, None].swapaxes(-1, -2)
_WEIGHTS = mx.softmax(normal(2, 3, 6, 6, seed=7), axis=-1)
_X, _Y, _BIAS = normal(2, 6, 8), normal(2, 6, 8, seed=1), normal(8, seed=2)
_ONE = mx.ones((1,))
_V = [normal(1 + n % 3, 1 + n, 40, seed=n) for n in range(10)]  # of more layers than a launch takes
_G = [normal(len(v), 1, 1, seed=n) for n, v in enumerate(_V)]


def _flat(found: Any) -> list[mx.array]:
    return [array for arrays in found for array in arrays]


def _pulled(k: Any, arrays: tuple[mx.array, ...]) -> list[mx.array]:
    """Of more layers than a launch takes, every third without weight norm."""
    v, origins, grads, g, grads_g = (list(arrays[n : n + 10]) for n in range(0, 50, 10))
    is_normed = [n % 3 != 1 for n in range(10)]
    g, grads_g = (
        [a if b else None for a, b in zip(one, is_normed, strict=True)] for one in (g, grads_g)
    )
    found = k.pull(v, origins, grads, g, grads_g, [0.1 * n for n in range(10)])
    of_g = [array for array, normed in zip(found.of_g, is_normed, strict=True) if normed]
    return [found.loss, found.norm, *of_g, *found.of_v]


_CALLS: dict[str, tuple[Callable[..., Any], tuple[mx.array, ...]]] = {
    "leaky_relu": (lambda k, *a: k.leaky_relu(*a, 0.1), (_X, _BIAS)),
    "leaky_relu of columns": (lambda k, x, b: k.leaky_relu(x.swapaxes(0, 1), b, 0.0), (_X, _BIAS)),
    "leaky_relu_gradient": (lambda k, *a: k.leaky_relu_gradient(*a, 0.1, 3, (12, 8)), (_X, _Y)),
    "biased_sum": (lambda k, *a: k.biased_sum(*a), (_X, _Y, _BIAS)),
    "sum_and_leaky_relu": (lambda k, *a: k.sum_and_leaky_relu(*a, 0.1), (_X, _Y, _BIAS)),
    "sum_and_leaky_relu of one": (lambda k, *a: k.sum_and_leaky_relu(*a, 0.1), (_ONE, _Y, _BIAS)),
    "sum_and_leaky_relu_gradient": (
        lambda k, *a: k.sum_and_leaky_relu_gradient(*a, 0.1, (12, 8)),
        (_X, _Y, normal(2, 6, 8, seed=3)),
    ),
    "mean": (lambda k, *a: k.mean(a, 0.1), tuple(normal(2, 3, seed=n) for n in range(3))),
    "mean of five": (lambda k, *a: k.mean(a, 0.1), tuple(normal(7, seed=n) for n in range(5))),
    "gate": (lambda k, *a: k.gate(*a, (12, 4)), (_X, _BIAS, normal(2, 1, 8, seed=3))),
    "gate_gradient": (
        lambda k, *a: k.gate_gradient(*a, (12, 8)),
        (_X, _BIAS, normal(2, 1, 8, seed=3), normal(12, 4, seed=4)),
    ),
    "residual": (lambda k, *a: k.residual(*a), (_X, normal(12, 16, seed=3), _MASK, _Y)),
    "residual of the first layer": (
        lambda k, *a: k.residual(*a),
        (_X, normal(12, 16, seed=3), _ONE, 0 * _ONE),
    ),
    "residual_gradient": (lambda k, *a: k.residual_gradient(*a, (12, 16)), (_X, _Y, _MASK)),
    "attention": (
        lambda k, *a: k.attention(*a, -1e4),
        (normal(2, 3, 6, 6), normal(2, 3, 6, 5, seed=1), _SEEN),
    ),
    "attention of many keys": (
        lambda k, *a: k.attention(*a, -1e4),
        (normal(1, 2, 100, 100), normal(1, 2, 100, 9, seed=1), _ONE),
    ),
    "attention_gradient": (
        lambda k, *a: k.attention_gradient(*a),
        (normal(2, 3, 6, 6), _WEIGHTS, _SEEN, normal(2, 3, 6, 5, seed=1)),
    ),
    "widen": (lambda k, *a: k.widen(*a), (normal(2, 3, 6, 5),)),
    "widen beyond the ends": (lambda k, *a: k.widen(*a), (normal(2, 3, 3, 9),)),
    "narrow": (lambda k, *a: k.narrow(*a, 2), (normal(2, 3, 6, 6),)),
    "stacked": (lambda k, *a: k.stacked(*a), tuple(normal(2, 3, seed=n) for n in range(3))),
    "heads": (lambda k, *a: k.heads(*a, 3, 0.5), (normal(2, 5, 36),)),
    "heads_gradient": (
        lambda k, *a: k.heads_gradient(*a, 0.5),
        tuple(normal(2, 3, 5, 4, seed=n) for n in range(3)),
    ),
    "windows": (lambda k, *a: k.windows(*a, 5, 8, 3, 1, 2), (normal(2, 23, 3),)),
    "windows of dilated taps": (
        lambda k, *a: k.windows(*a, 5, 19, 1, 3, 4),
        (normal(2, 1, 23, 3),),
    ),
    "dropout": (lambda k, *a: k.dropout(*a, 0.3, mx.random.key(3)), (1 + _X**2, _MASK)),
    "dropout with a bias, added": (
        lambda k, x, mask, to, b: k.dropout(x, mask, 0.3, mx.random.key(3), to, b, (2, 6, 8)),
        (1 + _X[:, None] ** 2, _MASK, _Y, 4 + _BIAS),
    ),
    "dropout of nothing": (
        lambda k, *a: k.dropout(*a, 0.0, mx.random.key(3)),
        (normal(3, 50, 8), _ONE),
    ),
    "dropout of an odd count": (
        lambda k, *a: k.dropout(*a, 0.3, mx.random.key(4)),
        (1 + normal(3, 5, 7) ** 2, _ONE),
    ),
}
_FP32_CALLS: dict[str, Any] = {
    "fold": (lambda k, *a: _flat(k.fold(a[:10], a[10:])), (*_G, *_V)),
    "fold_gradient": (
        lambda k, *a: _flat(k.fold_gradient(a[:10], a[10:20], a[20:30], a[30:])),
        (*_G, *_V, *(2 + g * g for g in _G), *(v[::-1] for v in _V)),
    ),
    "pull": (
        lambda k, *a: _pulled(k, a),
        (*_V, *(v[::-1] for v in _V), *(2 * v for v in _V), *_G, *(3 * g for g in _G)),
    ),
    "sum_of_products": (
        lambda k, *a: k.sum_of_products(a, a),
        (*(normal(1 + n, 3, seed=n) for n in range(17)), normal(20000, seed=20)),
    ),
    "distance_gradients": (
        lambda k, *a: k.distance_gradients(a[:9], a[9:18], [0.5] * 8 + [2.0], a[18]),
        (
            *(normal(1 + n, 70, seed=n) for n in range(9)),
            *(normal(1 + n, 70, seed=n + 9) for n in range(9)),
            mx.array(1.5),
        ),
    ),
    "sum_of_squares": (
        lambda k, *a: k.sum_of_squares(a, [1.0, 0.0, 0.5], [0.5, 2.0, 1.0]),
        (normal(2, 5), normal(3, 7000), normal(1)),
    ),
    "sum of a few squares": (lambda k, *a: k.sum_of_squares(a, [1.0], [0.5]), (normal(2, 90),)),
    "square_gradients": (
        lambda k, *a: k.square_gradients(a[:3], [1.0, 0.0, 0.5], [0.5, 2.0, 1.0], a[3]),
        (normal(2, 5), normal(3, 70), normal(1), mx.array(1.5)),
    ),
    "sum_of_distances": (
        lambda k, *a: k.sum_of_distances(a[:3], a[3:], [0.5, 2.0, 1.0]),
        (
            normal(2, 5),
            normal(3, 7000),
            normal(1),
            normal(2, 5, seed=1),
            normal(3, 7000, seed=1),
            normal(1, seed=1),
        ),
    ),
}


class _Kernels:
    """All kernels, wherever they are."""

    def __getattr__(self, name: str) -> Any:
        return getattr(home_of(name), name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """The kernels' sources, compiled by g++ where there is no GPU."""
    if HAS_CUDA:
        yield
        return
    if not shutil.which("g++"):
        pytest.skip("no g++")
    monkeypatch.setattr(kernels, "is_on_cuda", lambda: True)
    with cuda_on_cpu(monkeypatch, folder), accel.use("cuda"):
        yield


def _arrays(found: Any) -> list[mx.array]:
    return list(found) if isinstance(found, (list, tuple)) else [found]


@pytest.mark.parametrize("name", [*_CALLS, *_FP32_CALLS])
def test_a_kernel(sources: None, name: str) -> None:
    call, inputs = (_CALLS | _FP32_CALLS)[name]
    ours, plain = _arrays(call(_Kernels(), *inputs)), _arrays(call(plain_kernels, *inputs))
    for a, b in zip(ours, plain, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("name", _CALLS)
def test_a_kernel_in_bf16(sources: None, name: str) -> None:
    """Computed in fp32 and rounded once: half a unit of eight bits, of each element."""
    call, inputs = _CALLS[name]
    rounded = [x.astype(mx.bfloat16) for x in inputs]
    ours = _arrays(call(_Kernels(), *rounded))
    plain = _arrays(call(plain_kernels, *(x.astype(mx.float32) for x in rounded)))
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == mx.bfloat16
        np.testing.assert_allclose(a.astype(mx.float32), b, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("count", [1, 8, 11])
def test_adamw_is_mlxs(sources: None, count: int) -> None:
    """Several steps; on a GPU products and sums are rounded once: 5e-5 of a moment on an H200."""

    def trained(kind: type[optim.AdamW]) -> list[mx.array]:
        optimizer = kind(1e-3, [0.8, 0.99], 1e-9, 0.01, bias_correction=True)
        arrays: Any = {str(n): normal(1 + n, 40, seed=n) for n in range(count)}
        for step in range(4):
            grads = {name: normal(*array.shape, seed=step) for name, array in arrays.items()}
            arrays = optimizer.apply_gradients(grads, arrays)
            mx.eval(arrays, optimizer.state)
        return [*arrays.values(), *(optimizer.state[n][m] for n in arrays for m in "mv")]

    for a, b in zip(trained(training.FusedAdamW), trained(optim.AdamW), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-9)
