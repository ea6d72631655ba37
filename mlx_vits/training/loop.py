"""The loop that trainers share: one step after another, each begun before the last one is read."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

import mlx.core as mx

from mlx_vits.checkpoints.run import Place
from mlx_vits.errors import CheckpointError, TrainingStopped
from mlx_vits.training.ahead import Ahead

Fields = TypeVar("Fields")


class StepRecord(NamedTuple):
    """One step, as it is logged.

    Attributes:
        values: losses, norms and learning rates by name, `step` and `epoch`, as numbers.
        place: where the run stands after it.
    """

    values: dict[str, float]
    place: Place


class Begun(NamedTuple):
    """A step that the device is given to compute.

    Attributes:
        names: of the losses.
        losses: their values, one array.
        rates: learning rates.
        place: where the run stands after it.
    """

    names: tuple[str, ...]
    losses: mx.array
    rates: dict[str, float]
    place: Place


def begin(losses: Mapping[str, mx.array], state: Any, rates: dict[str, float], to: Place) -> Begun:
    """Give the device a step to compute, and do not wait for it.

    Args:
        losses: scalars by name.
        state: what else the step changes.
        rates: learning rates by name.
        to: where the run stands after it.
    """
    together = mx.stack(list(losses.values()))  # one transfer from the device, not one a loss
    mx.async_eval(together, state)
    return Begun(tuple(losses), together, rates, to)


class TrainingLoop(ABC, Generic[Fields]):
    """Takes steps, and stops when the numbers do.

    Attributes:
        place: where the run stands after the last step whose losses were read.
        is_ahead: whether the weights are of the step after it, see `steps`.
        waited_seconds: for batches, so far.
    """

    def __init__(self) -> None:
        self.place = Place()
        self.is_ahead = False
        self.waited_seconds = 0.0

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """Updates of the whole run."""

    @abstractmethod
    def _batches(self) -> Iterator[Fields]:
        """What one step after another takes, from the present place on; run in a thread."""

    @abstractmethod
    def _begin(self, fields: Fields, place: Place) -> Begun:
        """Begin the step that comes after a place, and do not wait for it.

        Args:
            fields: of its batch; MLX's copies of them go when the step is done.
        """

    @abstractmethod
    def trees(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as trees of arrays."""

    def steps(self, settles: Callable[[int], bool] | None = None) -> Iterator[StepRecord]:
        """Run on from the present place to the end, yielding after every update.

        A step is begun before the losses of the one before it are read, so that the device never
        waits for their reader. `is_ahead` then says that the weights are of the step after `place`.

        Args:
            settles: whether the next step may not be begun when one's record is given, as where
                the weights are to be read; asked with the number of the one. None for every step.

        Raises:
            TrainingStopped: a loss or a gradient is no longer a number; nor are the weights now.
        """
        ahead = Ahead(self._batches())
        begun: Begun | None = None
        try:
            while (place := begun.place if begun else self.place).step < self.total_steps:
                fields = next(ahead)
                self.waited_seconds = ahead.waited
                before = begun
                try:
                    begun = self._begin(fields, place)
                finally:  # the step before it counts, also where this one fails
                    if before is not None:
                        yield self._read(before, is_ahead=True)
                if settles is None or settles(begun.place.step):
                    yield self._read(begun)
                    begun = None
            if begun is not None:
                yield self._read(begun)
        finally:
            ahead.close()

    def _read(self, begun: Begun, *, is_ahead: bool = False) -> StepRecord:
        """Wait for a step, and move to its place.

        Args:
            is_ahead: whether the next one is begun.

        Raises:
            TrainingStopped: one of its losses is no number.
        """
        read: Any = begun.losses.tolist()
        values: dict[str, float] = dict(zip(begun.names, read, strict=True))
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        place = begun.place
        if broken:
            raise TrainingStopped(f"{broken[0]} is no longer a number", place.step)
        self.place, self.is_ahead = place, is_ahead
        values |= begun.rates | {"step": place.step, "epoch": place.epoch}
        return StepRecord(values, place)

    def note_score(self, score: float) -> bool:
        """Take a score of the present weights (lower is better); whether it is the best yet."""
        best = self.place.best_score
        if best is not None and score >= best:
            return False
        self.place = replace(self.place, best_score=score, best_step=self.place.step)
        return True


def other_settings(source: str, error: Exception) -> CheckpointError:
    """The refusal of a state that does not fit the trainer."""
    return CheckpointError(
        f"{source}: belongs to a run with other settings ({error}); start a new run"
    )
