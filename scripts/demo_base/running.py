"""How a long stage runs: its clock, its schedule, and its state between calls."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_vits.checkpoints.tensors import read_tensors, write_tensors
from mlx_vits.errors import TrainingStopped, UserError

SAVE_SECONDS = 300
_AHEAD, _THREADS = 8, 4
Drawn_co = TypeVar("Drawn_co", covariant=True)


class Draw(Protocol[Drawn_co]):
    """Makes what step number `step` needs, from nothing but its settings."""

    def __call__(self, step: int) -> Drawn_co: ...


class Clock:
    """Says when to save and when to stop.

    Args:
        minutes: that all stages of this call may take; None for no limit.
    """

    def __init__(self, minutes: float | None = None):
        now = time.monotonic()
        self._end = math.inf if minutes is None else now + 60 * minutes
        self._saved = now

    def left(self) -> float:
        """Seconds until the end, below 0 past it."""
        return self._end - time.monotonic()

    def is_over(self) -> bool:
        return self.left() < 0

    def is_time_to_save(self) -> bool:
        """Whether `SAVE_SECONDS` have passed since it last was."""
        now = time.monotonic()
        if now - self._saved < SAVE_SECONDS:
            return False
        self._saved = now
        return True


class State(NamedTuple):
    """What a stage goes on from: trees of arrays, and how many steps are done."""

    trees: dict[str, Any]
    step: int


def write_state(path: Path, state: State) -> None:
    """Writes a state in full precision, whole or not at all."""
    leaves: Any = tree_flatten(state.trees)
    write_tensors(path, dict(leaves), {"step": str(state.step)})


def read_state(path: Path) -> State:
    """Reads it.

    Raises:
        UserError: the file is damaged.
    """
    file = read_tensors(path)
    if not file.metadata.get("step", "").isdigit():
        raise UserError(f"{path}: is not the state of a stage; delete it to begin again")
    return State(tree_unflatten(list(file.tensors.items())), int(file.metadata["step"]))


def same_shapes(tree: Any, other: Any) -> bool:
    """Whether two trees have the same names and shapes."""
    leaves: list[Any] = [tree_flatten(t) for t in (tree, other)]
    named = [{name: array.shape for name, array in pairs} for pairs in leaves]
    return named[0] == named[1]


def draw_ahead(draw: Draw[Drawn_co], start: int, end: int) -> Iterator[Drawn_co]:
    """What the steps from `start` to `end` need, in order, made by a few threads beforehand."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting = [pool.submit(draw, step) for step in range(start, min(end, start + _AHEAD))]
        try:
            for step in range(start, end):
                yield waiting.pop(0).result()
                if step + _AHEAD < end:
                    waiting.append(pool.submit(draw, step + _AHEAD))
        finally:
            for job in waiting:
                job.cancel()


def step_key(seed: int, step: int) -> mx.array:
    """The random key of a step."""
    return mx.random.key((seed << 32) + step)


def cosine_rate(step: int, steps: int, warmup: int, last: float) -> float:
    """Share of the learning rate at a step: up in `warmup` steps, a cosine down to `last`."""
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return min(1.0, (step + 1) / warmup) * (share * (1 - last) + last)


class Late:
    """Reads what a step says while the device computes the next one."""

    def __init__(self) -> None:
        self._begun: list[tuple[int, Mapping[str, mx.array | float]]] = []

    def add(
        self, step: int, values: Mapping[str, mx.array | float], *, now: bool = False
    ) -> list[dict[str, float]]:
        """Takes what a step says that is begun, counted from 1, and gives what is read.

        Args:
            now: whether this step is waited for as well.

        Raises:
            TrainingStopped: a value is no number.
        """
        self._begun.append((step, values))
        kept = 0 if now else 1
        ready, self._begun = self._begun[: len(self._begun) - kept], self._begun[-1:] * kept
        return [_read_finite(*one) for one in ready]


def _read_finite(step: int, values: Mapping[str, mx.array | float]) -> dict[str, float]:
    arrays = {name: value for name, value in values.items() if isinstance(value, mx.array)}
    # One transfer from the device, not one a value.
    found: Any = mx.stack(list(arrays.values())).tolist() if arrays else []
    read = {name: value for name, value in values.items() if not isinstance(value, mx.array)}
    read |= zip(arrays, found, strict=True)
    check_finite(read, step)
    return read


def check_finite(values: dict[str, float], step: int) -> None:
    """Stops at a loss that is no number.

    Raises:
        TrainingStopped: one is.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingStopped(f"{name} is no longer a number", step)
