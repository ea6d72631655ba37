"""When a voice is better than its base, and when that may be chance."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_vits.report.verdict import (
    change_interval,
    conclude,
    is_better,
    judge_length,
    judge_mel_distance,
)
from mlx_vits.synthesis.scoring import ClipScore, Score


def score(*distances: float) -> Score:
    clips = [ClipScore("a", np.zeros(1), 20000.0, 2000.0, distance) for distance in distances]
    return Score(20000.0, 2000.0, float(np.mean(distances)), clips)


@pytest.mark.parametrize(
    ("base", "tuned", "is_nearer"),
    [
        ((1.0, 1.1, 0.9), (0.8, 0.9, 0.75), True),  # all of them, alike
        ((1.0, 1.1, 0.9), (0.99, 1.09, 0.89), True),  # little, but every one
        ((1.0, 1.1, 0.9), (0.9, 1.12, 0.91), False),  # one alone
        ((1.0, 1.1, 0.9, 1.0), (0.97, 1.13, 0.88, 1.0), False),
        ((1.0, 1.0), (1.1, 1.2), False),
        ((1.0,), (0.9,), True),  # a single clip says what it says
        ((1.0,), (1.0,), False),
    ],
)
def test_nearer_by_more_than_the_choice_of_clips(
    base: tuple[float, ...], tuned: tuple[float, ...], is_nearer: bool
) -> None:
    finding = judge_mel_distance(score(*base), score(*tuned), are_held_out=True)
    assert finding.passed is is_nearer
    low, high = change_interval(score(*base), score(*tuned))
    change = np.mean(tuned) / np.mean(base) - 1
    assert low <= change + 1e-9
    assert change <= high + 1e-9


@pytest.mark.parametrize(("steps", "is_enough"), [(1, False), (49, False), (50, True), (200, True)])
def test_a_verdict_takes_steps(steps: int, is_enough: bool) -> None:
    nearer = judge_mel_distance(score(1.0, 1.1), score(0.8, 0.9), are_held_out=True)
    findings = [judge_length(steps), nearer]
    assert is_better(findings) is is_enough
    assert ("it was hardly trained" in conclude(findings)) is not is_enough
