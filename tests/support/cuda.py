"""`accel/cuda` without a GPU: MLX's own operations in the place of its kernels.

No gradient passes through the kernels that `cuda_on_cpu.py` compiles, so fused blocks and steps are
tested on these; `test_cuda_kernels.py` holds the kernels' sources to them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
import pytest

from mlx_vits import accel
from mlx_vits.accel.cuda import kernels, many, rows
from tests.support import plain_kernels

HAS_CUDA = mx.cuda.is_available()
On = Callable[[], AbstractContextManager[None]]


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def home_of(name: str) -> Any:
    return next(module for module in (kernels, many, rows) if hasattr(module, name))


def stand_in_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """Has "cuda" in use within a `with` block, without a GPU on MLX's own operations."""
    if not HAS_CUDA:
        for name, function in inspect.getmembers(plain_kernels, inspect.isfunction):
            if not name.startswith("_"):
                monkeypatch.setattr(home_of(name), name, _rounded_once(function))
        monkeypatch.setattr(kernels, "is_on_cuda", lambda: True)
    return lambda: accel.use("cuda")


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


def differs(ours: mx.array, plain: mx.array, many_: float, few: float, nothing: float) -> bool:
    assert ours.shape == plain.shape
    bound = (few if plain.size <= 4 else many_) * mx.linalg.norm(plain).item() + nothing
    return bool(mx.linalg.norm((ours - plain).astype(mx.float32)).item() > bound)
