"""As many steps of `train` as fit into the time that is left.

The curriculum is in shares of all steps: a training that is cut off ends at a full learning rate.
So the steps are timed before the first, and where they do not fit there are fewer of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mlx_vits.errors import UserError
from mlx_vits.system.files import atomic_write
from scripts.demo_base.settings import Settings, Train
from scripts.demo_base.store import say

_FIRST, _TIMED = 5, 10  # steps of a phase: kernels are built and plans made, then the clock runs
_MARGIN = 0.03


class Paces(NamedTuple):
    """Seconds a step: before the prior is decoded, from then on, and once it learns alone."""

    middle: float
    spoken: float
    prior: float


def measure_paces(train: Train, run: Callable[[int, int], None]) -> Paces:
    """Times the phases.

    Args:
        run: does so many steps, all with the curriculum of one number, and waits for them.
    """
    starts = (int(train.spoken_from * train.steps), int(train.only_prior_from * train.steps))
    paces = []
    for number in (*(max(0, start - 1) for start in starts), train.steps - 1):
        run(number, _FIRST)
        start = time.monotonic()
        run(number, _TIMED)
        paces.append((time.monotonic() - start) / _TIMED)
    return Paces(*paces)


def steps_that_fit(train: Train, paces: Paces, seconds: float) -> int:
    """The steps as they are set, or fewer.

    Raises:
        UserError: so few would fit that the curriculum would fall apart.
    """
    share, alone = train.spoken_from, 1 - train.only_prior_from
    pace = share * paces.middle + (1 - share - alone) * paces.spoken + alone * paces.prior
    steps = int(min(train.steps, max(0.0, seconds) * (1 - _MARGIN) / pace))
    if steps < train.steps and steps * share <= train.adversarial_from:
        raise UserError(
            f"{steps} steps fit into the time that is left, too few for the curriculum: give "
            "--minutes more, or go without --fit"
        )
    return steps


def fit_settings(
    settings: Settings, work: Path, run: Callable[[int, int], None], left: Callable[[], float]
) -> Settings:
    """The settings with as many steps as fit, which the work folder's copy of them then names.

    Args:
        run: see `measure_paces`.
        left: says how many seconds there are.
    """
    train = settings.train
    paces, seconds = measure_paces(train, run), left()
    steps = steps_that_fit(train, paces, seconds)
    say(
        f"{1e3 * paces.middle:.0f} ms a step, {1e3 * paces.spoken:.0f} once the prior is decoded, "
        f"{1e3 * paces.prior:.0f} once it learns alone; {seconds / 60:.1f} minutes are left: "
        f"{steps} of {train.steps} steps"
    )
    if steps == train.steps:
        return settings
    keep_steps(work / "config.json", steps)
    return replace(settings, train=replace(train, steps=steps))


def keep_steps(path: Path, steps: int) -> None:
    """Writes the number of steps into a file of settings."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values["train"]["steps"] = steps
    with atomic_write(path) as file:
        file.write((json.dumps(values, indent=1) + "\n").encode())
