"""Two streams of the CPU: where pieces go, and that the numbers are those of one stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_vits.nn import streams
from mlx_vits.nn.streams import side_by_side
from mlx_vits.nn.weight_norm import fold_rows
from mlx_vits.training.optimizers import SharedAdamW
from mlx_vits.training.step import global_norm


@pytest.fixture(autouse=True)
def on_cpu_with_small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(streams, "_LEAST", 1)
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def _has_moved(sizes: list[int]) -> list[bool]:
    own = mx.default_stream(mx.cpu)
    moved = []
    for place in side_by_side(sizes):
        with place:
            moved.append(mx.default_stream(mx.cpu) != own)
    return moved


def test_both_streams_get_about_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    second = mx.new_thread_local_stream(mx.cpu)
    monkeypatch.setattr(streams, "_second", lambda: second)
    assert _has_moved([3, 3, 3, 3]) == [False, True, False, True]
    assert _has_moved([4, 1, 1, 1, 1, 5]) == [False, True, True, True, True, False]
    assert _has_moved([7]) == [False]
    monkeypatch.setattr(streams, "_LEAST", 2)
    assert _has_moved([2, 1, 2]) == [False, False, True]


def test_a_single_core_keeps_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_cores", lambda: 1)
    monkeypatch.setattr(streams, "_second", streams._second.__wrapped__)
    assert _has_moved([3, 3]) == [False, False]


def _draw(*shapes: tuple[int, ...]) -> list[mx.array]:
    keys = mx.random.split(mx.random.key(len(shapes)), len(shapes))
    return [mx.random.normal(shape, key=key) for shape, key in zip(shapes, keys, strict=True)]


def _update() -> Any:
    """Two updates: parameters and moments."""
    optimizer = SharedAdamW(1e-3, bias_correction=True)
    named = dict(zip("abcd", _draw((9, 4), (40,), (7, 5), (3,)), strict=True))
    for _ in range(2):
        named = optimizer.apply_gradients({name: 3 * a + 1 for name, a in named.items()}, named)
    return [named, optimizer.state]


def _fold() -> Any:
    """Weights and the gradients of lengths and directions."""
    matrices = _draw((6, 4), (5, 9), (8, 2))
    arrays = [mx.abs(_draw((19, 1))[0]) + 1, *matrices]

    def folded(*arrays: mx.array) -> list[mx.array]:
        return fold_rows(arrays[0], arrays[1:])

    return mx.vjp(folded, arrays, [mx.sin(matrix) for matrix in matrices])


def _norm() -> Any:
    return global_norm(dict(zip("abc", _draw((30, 4), (50,), (7,)), strict=True)))


@pytest.mark.parametrize("compute", [_update, _fold, _norm])
def test_two_streams_give_the_numbers_of_one(
    compute: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_second", lambda: None)
    one: Any = tree_flatten(compute())
    second = mx.new_thread_local_stream(mx.cpu)
    monkeypatch.setattr(streams, "_second", lambda: second)
    two: Any = tree_flatten(compute())
    with ThreadPoolExecutor(1) as pool:
        elsewhere: Any = pool.submit(_computed, compute).result()
    for found in (two, elsewhere):
        assert [name for name, _ in found] == [name for name, _ in one]
        for (name, ours), (_, theirs) in zip(found, one, strict=True):
            assert mx.array_equal(ours, theirs), name


def _computed(compute: Callable[[], Any]) -> Any:
    """Evaluated, as another thread has to leave it."""
    leaves: Any = tree_flatten(compute())
    mx.eval([array for _, array in leaves])
    return leaves
