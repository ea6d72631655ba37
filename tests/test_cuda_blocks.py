"""The fused blocks of `accel/cuda` against the plain ones, on `support/cuda.py` without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_vits import accel
from mlx_vits.accel.cuda import blocks
from mlx_vits.accel.custom_vjp import skip_custom_vjp
from mlx_vits.models.discriminator import DiscriminatorP, DiscriminatorS
from mlx_vits.models.generator import Generator, ResBlock1
from mlx_vits.nn.attention import FFN, Encoder, MultiHeadAttention
from mlx_vits.nn.layers import set_compute_dtype
from mlx_vits.nn.wavenet import WN
from tests.support.cuda import HAS_CUDA, On, differs, normal, stand_in_kernels
from tests.support.tiny import tiny_config

stand_ins = pytest.fixture(stand_in_kernels)


_MASK = mx.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], mx.float32)[..., None]
_SEEN = _MASK[:, None] * _MASK[:, None, :, 0, None].swapaxes(-1, -2)
_X, _Y = normal(2, 6, 8), normal(2, 6, 8, seed=1)
_WN = (8, 3, 3, 6, "upstream")

# A block, its arguments, and whether each is differentiated by.
_BLOCKS: dict[str, tuple[Callable[[], nn.Module], list[Any]]] = {
    "ResBlock1": (lambda: ResBlock1(6, 3, (1, 3), "upstream"), [normal(2, 20, 6)]),
    "Generator": (lambda: Generator(tiny_config()), [normal(2, 5, 8), normal(2, 1, 16, seed=1)]),
    "DiscriminatorS": (lambda: DiscriminatorS(1 / 32), [normal(2, 400, 1)]),
    "DiscriminatorP": (lambda: DiscriminatorP(3, 1 / 32), [normal(2, 400, 1)]),
    "WN": (lambda: WN(*_WN), [_X, _MASK, normal(2, 1, 6)]),  # type: ignore[arg-type]
    "WN unmasked": (lambda: WN(*_WN), [_X, None, normal(2, 1, 6)]),  # type: ignore[arg-type]
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
            mx.sum(y.astype(mx.float32) * normal(*y.shape, seed=n))
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
            if differs(found[key], value, tolerance, 4 * tolerance, 0.1 * tolerance * largest)
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
