"""Batches made in a thread are the same batches, and nothing is left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from mlx_vits.errors import DataError
from mlx_vits.training.ahead import Ahead


def _threads() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


def test_the_elements_come_in_order_and_end() -> None:
    ahead = Ahead(iter(range(50)))
    assert list(ahead) == list(range(50))
    assert _threads() == 0


def test_it_runs_ahead_by_its_depth_alone() -> None:
    made = []

    def source() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    ahead = Ahead(source(), depth=3)
    assert next(ahead) == 0
    for _ in range(100):
        if len(made) == 5:
            break
        time.sleep(0.01)
    # One taken, three ready, one that waits for room.
    assert len(made) == 5
    ahead.close()
    assert _threads() == 0


def test_an_error_reaches_the_one_who_asks_after_what_came_before() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise DataError("clip.wav: is damaged; record it again")

    ahead = Ahead(source())
    assert next(ahead) == 1
    with pytest.raises(DataError, match=r"clip\.wav"):
        next(ahead)
    assert _threads() == 0


def test_after_closing_nothing_comes() -> None:
    ahead = Ahead(iter(range(5)))
    ahead.close()
    assert list(ahead) == []


def test_waiting_is_counted() -> None:
    def source() -> Iterator[int]:
        time.sleep(0.05)
        yield 1

    ahead = Ahead(source())
    next(ahead)
    assert ahead.waited > 0.03
