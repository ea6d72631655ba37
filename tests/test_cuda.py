"""`accel/cuda`: the kernels against MLX's own operations, and fused blocks against plain ones.

Without a GPU, g++ compiles the kernels' sources for a CPU (`support/cuda_on_cpu.py`), and blocks
run MLX's own operations in the kernels' place (`support/plain_kernels.py`), as no gradient passes
through the former.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from mlx_vits import accel
from mlx_vits.accel.compilation import stop_fusing
from mlx_vits.accel.cuda import blocks, kernels, many, rows, training
from mlx_vits.accel.custom_vjp import skip_custom_vjp
from mlx_vits.models.discriminator import DiscriminatorP, DiscriminatorS
from mlx_vits.models.generator import Generator, ResBlock1
from mlx_vits.nn.attention import FFN, Encoder, MultiHeadAttention
from mlx_vits.nn.layers import set_compute_dtype
from mlx_vits.nn.wavenet import WN
from mlx_vits.tools.bench import work
from mlx_vits.training import losses
from mlx_vits.training.optimizers import global_norm
from mlx_vits.training.step import GANStep, draw_step
from tests.support import plain_kernels
from tests.support.cuda_on_cpu import cuda_on_cpu
from tests.support.steps import make_step
from tests.support.tiny import tiny_config

HAS_CUDA = mx.cuda.is_available()


def _normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


# Kernels: arguments for each, and what makes bf16 harder than rounding its inputs.

_MASK = mx.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], mx.float32)[..., None]
_SEEN = _MASK[:, None] * _MASK[:, None, :, 0, None].swapaxes(-1, -2)
_WEIGHTS = mx.softmax(_normal(2, 3, 6, 6, seed=7), axis=-1)
_X, _Y, _BIAS = _normal(2, 6, 8), _normal(2, 6, 8, seed=1), _normal(8, seed=2)
_ONE = mx.ones((1,))
_V = [
    _normal(1 + n % 3, 1 + n, 40, seed=n) for n in range(10)
]  # of more layers than a launch takes
_G = [_normal(len(v), 1, 1, seed=n) for n, v in enumerate(_V)]


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


_CALLS: dict[str, tuple[Callable[..., Any], tuple[mx.array, ...], dict[str, Any]]] = {
    "leaky_relu": (lambda k, *a: k.leaky_relu(*a, 0.1), (_X, _BIAS), {}),
    "leaky_relu of columns": (
        lambda k, x, b: k.leaky_relu(x.swapaxes(0, 1), b, 0.0),
        (_X, _BIAS),
        {},
    ),
    "leaky_relu_gradient": (lambda k, *a: k.leaky_relu_gradient(*a, 0.1, 3, (12, 8)), (_X, _Y), {}),
    "biased_sum": (lambda k, *a: k.biased_sum(*a), (_X, _Y, _BIAS), {}),
    "sum_and_leaky_relu": (lambda k, *a: k.sum_and_leaky_relu(*a, 0.1), (_X, _Y, _BIAS), {}),
    "sum_and_leaky_relu of one": (
        lambda k, *a: k.sum_and_leaky_relu(*a, 0.1),
        (_ONE, _Y, _BIAS),
        {},
    ),
    "sum_and_leaky_relu_gradient": (
        lambda k, *a: k.sum_and_leaky_relu_gradient(*a, 0.1, (12, 8)),
        (_X, _Y, _normal(2, 6, 8, seed=3)),
        {},
    ),
    "mean": (lambda k, *a: k.mean(a, 0.1), tuple(_normal(2, 3, seed=n) for n in range(3)), {}),
    "mean of five": (lambda k, *a: k.mean(a, 0.1), tuple(_normal(7, seed=n) for n in range(5)), {}),
    "gate": (lambda k, *a: k.gate(*a, (12, 4)), (_X, _BIAS, _normal(2, 1, 8, seed=3)), {}),
    "gate_gradient": (
        lambda k, *a: k.gate_gradient(*a, (12, 8)),
        (_X, _BIAS, _normal(2, 1, 8, seed=3), _normal(12, 4, seed=4)),
        {},
    ),
    "residual": (lambda k, *a: k.residual(*a), (_X, _normal(12, 16, seed=3), _MASK, _Y), {}),
    "residual of the first layer": (
        lambda k, *a: k.residual(*a),
        (_X, _normal(12, 16, seed=3), _ONE, 0 * _ONE),
        {},
    ),
    "residual_gradient": (lambda k, *a: k.residual_gradient(*a, (12, 16)), (_X, _Y, _MASK), {}),
    "attention": (
        lambda k, *a: k.attention(*a, -1e4),
        (_normal(2, 3, 6, 6), _normal(2, 3, 6, 5, seed=1), _SEEN),
        {},
    ),
    "attention of many keys": (
        lambda k, *a: k.attention(*a, -1e4),
        (_normal(1, 2, 100, 100), _normal(1, 2, 100, 9, seed=1), _ONE),
        {},
    ),
    "attention_gradient": (
        lambda k, *a: k.attention_gradient(*a),
        (_normal(2, 3, 6, 6), _WEIGHTS, _SEEN, _normal(2, 3, 6, 5, seed=1)),
        {},
    ),
    "widen": (lambda k, *a: k.widen(*a), (_normal(2, 3, 6, 5),), {}),
    "widen beyond the ends": (lambda k, *a: k.widen(*a), (_normal(2, 3, 3, 9),), {}),
    "narrow": (lambda k, *a: k.narrow(*a, 2), (_normal(2, 3, 6, 6),), {}),
    "stacked": (lambda k, *a: k.stacked(*a), tuple(_normal(2, 3, seed=n) for n in range(3)), {}),
    "heads": (lambda k, *a: k.heads(*a, 3, 0.5), (_normal(2, 5, 36),), {}),
    "heads_gradient": (
        lambda k, *a: k.heads_gradient(*a, 0.5),
        tuple(_normal(2, 3, 5, 4, seed=n) for n in range(3)),
        {},
    ),
    "windows": (lambda k, *a: k.windows(*a, 5, 8, 3, 1, 2), (_normal(2, 23, 3),), {}),
    "windows of dilated taps": (
        lambda k, *a: k.windows(*a, 5, 19, 1, 3, 4),
        (_normal(2, 1, 23, 3),),
        {},
    ),
    "dropout": (lambda k, *a: k.dropout(*a, 0.3, mx.random.key(3)), (1 + _X**2, _MASK), {}),
    "dropout with a bias, added": (
        lambda k, x, mask, to, b: k.dropout(x, mask, 0.3, mx.random.key(3), to, b, (2, 6, 8)),
        (1 + _X[:, None] ** 2, _MASK, _Y, 4 + _BIAS),
        {},
    ),
    "dropout of nothing": (
        lambda k, *a: k.dropout(*a, 0.0, mx.random.key(3)),
        (_normal(3, 50, 8), _ONE),
        {},
    ),
    "dropout of an odd count": (
        lambda k, *a: k.dropout(*a, 0.3, mx.random.key(4)),
        (1 + _normal(3, 5, 7) ** 2, _ONE),
        {},
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
    "sum of many squares": (
        lambda k, *a: k.sum_of_squares(a, [n % 3 for n in range(18)], [0.5, 2.0] * 9),
        (*(_normal(1 + n, 3, seed=n) for n in range(17)), _normal(20000, seed=20)),
    ),
    "sum_of_squares": (
        lambda k, *a: k.sum_of_squares(a, [1.0, 0.0, 0.5], [0.5, 2.0, 1.0]),
        (_normal(2, 5), _normal(3, 7000), _normal(1)),
    ),
    "sum of a few squares": (lambda k, *a: k.sum_of_squares(a, [1.0], [0.5]), (_normal(2, 90),)),
    "square_gradients": (
        lambda k, *a: k.square_gradients(a[:9], [1.0, 0.0, 0.5] * 3, [0.5] * 8 + [2.0], a[9]),
        (*(_normal(1 + n, 70, seed=n) for n in range(9)), mx.array(1.5)),
    ),
}


def _home_of(name: str) -> Any:
    return next(module for module in (kernels, many, rows) if hasattr(module, name))


class _Kernels:
    """All kernels, wherever they are."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_home_of(name), name)


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
    call, inputs, *_ = (_CALLS | _FP32_CALLS)[name]
    ours, plain = _arrays(call(_Kernels(), *inputs)), _arrays(call(plain_kernels, *inputs))
    for a, b in zip(ours, plain, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("name", _CALLS)
def test_a_kernel_in_bf16(sources: None, name: str) -> None:
    """Computed in fp32 and rounded once: half a unit of eight bits, of each element."""
    call, inputs, *_ = _CALLS[name]
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
        arrays: Any = {str(n): _normal(1 + n, 40, seed=n) for n in range(count)}
        for step in range(4):
            grads = {name: _normal(*array.shape, seed=step) for name, array in arrays.items()}
            arrays = optimizer.apply_gradients(grads, arrays)
            mx.eval(arrays, optimizer.state)
        return [*arrays.values(), *(optimizer.state[n][m] for n in arrays for m in "mv")]

    for a, b in zip(trained(training.FusedAdamW), trained(optim.AdamW), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-9)


def _rounded_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in that computes in fp32 and gives back what came in, as the kernels do."""

    def wide(value: Any) -> Any:
        is_array = isinstance(value, mx.array) and value.dtype == mx.bfloat16
        return value.astype(mx.float32) if is_array else value

    def run(first: Any, *others: Any, **options: Any) -> Any:
        dtype = first.dtype if isinstance(first, mx.array) else first[0].dtype
        if dtype == mx.float32:
            return function(first, *others, **options)
        given = wide(first) if isinstance(first, mx.array) else [wide(one) for one in first]
        found = function(given, *(wide(one) for one in others), **options)
        if isinstance(found, mx.array):
            return found.astype(dtype)
        return tuple(one.astype(dtype) for one in found)

    return run


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """Has "cuda" in use within a `with` block, without a GPU on MLX's own operations."""
    if not HAS_CUDA:
        for name, function in inspect.getmembers(plain_kernels, inspect.isfunction):
            if not name.startswith("_"):
                monkeypatch.setattr(_home_of(name), name, _rounded_once(function))
        monkeypatch.setattr(kernels, "is_on_cuda", lambda: True)
    return lambda: accel.use("cuda")


On = Callable[[], AbstractContextManager[None]]
_WN = (8, 3, 3, 6, "upstream")

# A block, its arguments, and whether each is differentiated by.
_BLOCKS: dict[str, tuple[Callable[[], nn.Module], list[Any]]] = {
    "ResBlock1": (lambda: ResBlock1(6, 3, (1, 3), "upstream"), [_normal(2, 20, 6)]),
    "Generator": (lambda: Generator(tiny_config()), [_normal(2, 5, 8), _normal(2, 1, 16, seed=1)]),
    "DiscriminatorS": (lambda: DiscriminatorS(1 / 32), [_normal(2, 400, 1)]),
    "DiscriminatorP": (lambda: DiscriminatorP(3, 1 / 32), [_normal(2, 400, 1)]),
    "WN": (lambda: WN(*_WN), [_X, _MASK, _normal(2, 1, 6)]),  # type: ignore[arg-type]
    "WN unmasked": (lambda: WN(*_WN), [_X, None, _normal(2, 1, 6)]),  # type: ignore[arg-type]
    "MultiHeadAttention": (
        lambda: MultiHeadAttention(8, 2, 2, 0.2),
        [_X, _Y, _SEEN.astype(mx.bool_), mx.random.key(5)],
    ),
    "MultiHeadAttention of all": (lambda: MultiHeadAttention(8, 2, 2), [_X, _Y, None, None]),
    "FFN": (lambda: FFN(8, 12, 3, 0.2), [_X, _MASK, mx.random.key(5)]),
    "FFN unmasked": (lambda: FFN(8, 12, 3, 0.2), [_X, None, None]),
    "Encoder": (lambda: Encoder(8, 12, 2, 2, 3, 0.2), [_X, _MASK, mx.random.key(5)]),
    "Encoder unmasked": (lambda: Encoder(8, 12, 2, 2, 3, 0.2), [_X, None, None]),
}


def test_every_equivalent_is_tested() -> None:
    built = {type(build()) for build, _ in _BLOCKS.values()}
    assert set(blocks.EQUIVALENTS) <= built


def _value_and_gradients(block: nn.Module, inputs: list[Any]) -> dict[str, mx.array]:
    """What a block gives, and gradients in its parameters and in its inputs."""
    place = [
        n
        for n, x in enumerate(inputs)
        if x is not None and x is not _MASK and x.dtype == mx.float32
    ]

    def loss(parameters: Any, *given: mx.array) -> Any:
        block.update(parameters)
        arguments = list(inputs)
        for n, x in zip(place, given, strict=True):
            arguments[n] = x
        leaves: Any = tree_flatten(block(*arguments))
        parts = [
            mx.sum(y.astype(mx.float32) * _normal(*y.shape, seed=n))
            for n, (_, y) in enumerate(leaves)
        ]
        return sum(parts), {f"output {name}": y for name, y in leaves}

    parameters = block.trainable_parameters()
    argnums = tuple(range(1 + len(place)))
    (_, outputs), grads = mx.value_and_grad(loss, argnums)(parameters, *(inputs[n] for n in place))
    block.update(parameters)
    leaves: Any = tree_flatten(list(grads))
    mx.eval(outputs, grads)
    return outputs | {f"gradient {name}": grad for name, grad in leaves}


def _differs(ours: mx.array, plain: mx.array, many_: float, few: float, nothing: float) -> bool:
    assert ours.shape == plain.shape
    bound = (few if plain.size <= 4 else many_) * mx.linalg.norm(plain).item() + nothing
    return bool(mx.linalg.norm((ours - plain).astype(mx.float32)).item() > bound)


@pytest.mark.parametrize("name", _BLOCKS)
def test_a_fused_block(stand_ins: On, name: str) -> None:
    """Values and gradients, each compared by its norm; what cancels is left with 1e-6 of the rest.

    On a GPU products may be TF32, which carries ten bits.
    """
    build, inputs = _BLOCKS[name]
    mx.random.seed(0)
    block = build()
    with accel.use("off" if not HAS_CUDA else "cuda"):
        plain = _value_and_gradients(block, inputs)
    with stand_ins():
        accel.apply(block)
        assert type(block) in blocks.EQUIVALENTS.values()
        ours = _value_and_gradients(block, inputs)
        with skip_custom_vjp():
            again = _value_and_gradients(block, inputs) if not HAS_CUDA else ours
    tolerance = 5e-3 if HAS_CUDA else 1e-5
    largest = max(mx.linalg.norm(value).item() for value in plain.values())
    assert set(ours) == set(plain)
    for found in (ours, again):
        wrong = [
            key
            for key, value in plain.items()
            if _differs(found[key], value, tolerance, 4 * tolerance, 0.1 * tolerance * largest)
        ]
        assert not wrong


@pytest.mark.parametrize("name", [name for name in _BLOCKS if "unmasked" not in name])
def test_a_fused_block_in_bf16(stand_ins: On, name: str) -> None:
    """It computes in the type of its layers, as the plain one, and lies about as far from fp32.

    Where a leaky ReLU's input is near 0, rounding to eight bits may turn its sign: one of the last
    layer's 384 elements in `DiscriminatorP` is 5 % of the norm of a gradient, two are 7.
    """
    build, inputs = _BLOCKS[name]
    mx.random.seed(0)
    block = build()
    exact = _value_and_gradients(block, inputs)
    set_compute_dtype(block, mx.bfloat16)
    plain = _value_and_gradients(block, inputs)
    with stand_ins():
        accel.apply(block)
        ours = _value_and_gradients(block, inputs)
    largest = max(mx.linalg.norm(value).item() for value in exact.values())
    for key, value in exact.items():
        assert ours[key].dtype == plain[key].dtype, key
        theirs = mx.linalg.norm(plain[key] - value).item()
        bound = 2 * theirs + 0.1 * mx.linalg.norm(value).item() + 1e-4 * largest
        assert mx.linalg.norm(ours[key] - value).item() <= bound, key


def test_the_norm(stand_ins: On) -> None:
    tree = {"a": _normal(2, 5, 3), "b": [_normal(3, 7000, seed=2)]}
    with stand_ins():
        norm = training.global_norm(tree)
        assert training.global_norm({}).item() == 0
    assert norm.item() == pytest.approx(global_norm(tree).item(), rel=1e-5)


def test_the_losses_of_scores(stand_ins: On) -> None:
    scores = [_normal(2, 5 + n, seed=n) for n in range(4)]

    def found(module: Any) -> list[mx.array]:
        both = mx.vjp(
            lambda *all_: [
                module.discriminator_loss(all_[:2], all_[2:]),
                module.generator_loss(all_[3:]),
            ],
            scores,
            [mx.array(0.5), mx.array(2.0)],
        )
        return [array for arrays in both for array in arrays]

    with stand_ins():
        ours = found(training)
    for a, b in zip(ours, found(losses), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_the_pull(stand_ins: On) -> None:
    """Away from its start: loss, norm, and the sum of all gradients."""
    with accel.use("off"):
        step = make_step(tiny_config(), pull=50.0)
        parameters = step.generator.trainable_parameters()
        grads = tree_map(lambda x: _normal(*x.shape, seed=x.size), parameters)
        step.generator.update(tree_map(lambda x: x + 0.1 * _normal(*x.shape), parameters))
        assert step.penalty is not None
        plain = step.penalized(step.penalty, grads)
    with stand_ins():
        accel.optimize(step)
        ours = step.penalized(step.penalty, grads)
    assert ours.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)
    assert ours.norm.item() == pytest.approx(plain.norm.item(), rel=1e-5)
    found: dict[str, mx.array] = dict(tree_flatten(ours.grads))
    assert plain.norm.item() > 1
    for name, value in tree_flatten(plain.grads):
        np.testing.assert_allclose(found.pop(name), value, rtol=1e-4, atol=1e-5)
    assert not found


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch) -> work.Work:
    monkeypatch.setattr(work.Work, "config", property(lambda self: tiny_config(self.version)))
    return work.Work("v2", 2, 1.0)


def _stepped(step: GANStep, size: work.Work) -> dict[str, mx.array]:
    batch = work.make_batch(size)
    result = step.run(batch, draw_step(mx.random.key(0), batch, size.config))
    leaves: Any = tree_flatten(
        {
            "losses": result.losses,
            "generator": result.grads_g,
            "discriminator": result.grads_d,
            "moments": [optimizer.state for optimizer in step.optimizers],
        }
    )
    mx.eval([array for _, array in leaves])
    return dict(leaves)


def test_a_whole_step(stand_ins: On, size: work.Work) -> None:
    """Each array is compared by its norm, moments among them, by the names that files have.

    How far the plain step is from itself under six BLAS kernels (MKL with AVX-512 and with SSE2,
    OpenBLAS for Prescott, Haswell and Skylake-X, the reference BLAS) sets the scale: up to 7e-4 for
    a gradient of a few elements, each of them a sum over every sample in which most cancels, and up
    to 8e-5 for the rest. Gradients that are 0 in exact arithmetic are left with up to 2e-8, 6e-11
    of the norm of all of them.
    """
    with accel.use("cpu") if not HAS_CUDA else nullcontext():
        plain = _stepped(_plain_step(size), size)
    with stand_ins():
        ours = _stepped(work.make_step(size), size)
    assert list(ours) == list(plain)
    few, rest = (2e-2, 2e-2) if HAS_CUDA else (2e-3, 3e-4)  # products may be TF32 there
    nothing = 3e-10 * plain["losses.grad_norm_g"].item()
    wrong = [
        name
        for name, value in plain.items()
        if _differs(ours[name].astype(mx.float32), value.astype(mx.float32), rest, few, nothing)
    ]
    assert not wrong


def _plain_step(size: work.Work) -> GANStep:
    """Without equivalents of blocks; the convolutions are those of the backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accel, "apply", lambda model, **_: model)
        patch.setattr(accel, "optimize", lambda step: None)
        return work.make_step(size)


def test_a_compiled_step(stand_ins: On, size: work.Work) -> None:
    """Recorded and played back, over two steps: to rounding what is computed at once."""
    found = []
    if not stop_fusing():
        pytest.skip("this MLX fuses, which takes minutes")
    with stand_ins(), ExitStack() as after:
        if not HAS_CUDA:  # where steps are compiled so anyway
            after.callback(stop_fusing.cache_clear)
            after.callback(mx.enable_compile)
        for compiled in (False, True):
            step, batch = work.make_step(size, compiled=compiled), work.make_batch(size)
            for seed in range(2):
                values = step(batch, mx.random.key(seed))
                mx.eval(values, step.state)
            found.append({name: value.item() for name, value in values.items()})
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_what_the_kernels_take(stand_ins: On) -> None:
    x = _normal(2, 3)
    with accel.use("off"):
        assert not kernels.is_used(x)
    with stand_ins():
        assert kernels.is_used(x)
        assert kernels.is_used(x.astype(mx.bfloat16))
        assert not kernels.is_used(x, x.astype(mx.bfloat16))
        assert not kernels.is_used(x.astype(mx.float16))


def test_other_types_take_the_plain_forward(stand_ins: On) -> None:
    build, inputs = _BLOCKS["WN"]
    mx.random.seed(0)
    block = build()
    set_compute_dtype(block, mx.float16)
    halves = [inputs[0].astype(mx.float16), *inputs[1:]]
    plain = block(*halves)
    with stand_ins():
        accel.apply(block)
        np.testing.assert_allclose(block(*halves), plain, rtol=1e-2, atol=1e-2)
