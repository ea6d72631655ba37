"""Compare a fine-tuned voice with its base, in words and in numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mlx_vits.synthesis.scoring import Score

LOUDNESS_MARGIN = 0.30
LEAST_LARGEST_SAMPLE = 15000
COLLAPSE_RATIO = 0.3
FEWEST_STEPS = 50
_RESAMPLES = 2000
CODES_FORETOLD = "codes foretold"  # the finding on the GPT
_FAULTS = {
    "mel distance": "it is no nearer to the recordings",
    "loudness kept": "its loudness changed",
    "loud enough": "it is too quiet",
    "long enough": "it was hardly trained",
    CODES_FORETOLD: "its GPT is no better at foretelling new speech",
}


class Finding(NamedTuple):
    """The result of one comparison.

    Attributes:
        name: what was compared.
        passed: whether it turned out well.
        words: a sentence with the numbers.
    """

    name: str
    passed: bool
    words: str


def judge_loudness(base: Score, tuned: Score) -> Finding:
    """Check that the voice kept its loudness."""
    ratio = _ratio(tuned.largest_sample, base.largest_sample)
    kept = abs(ratio - 1) <= LOUDNESS_MARGIN
    words = (
        f"The largest sample is {tuned.largest_sample:,.0f} of 32,767, the base's "
        f"{base.largest_sample:,.0f}: {ratio:.2f} times"
    )
    words += "." if kept else f", further than {LOUDNESS_MARGIN:.0%} from it."
    return Finding("loudness kept", kept, words)


def judge_level(tuned: Score) -> Finding:
    """Check that the voice is loud enough in absolute terms."""
    loud = tuned.largest_sample > LEAST_LARGEST_SAMPLE
    words = f"The largest sample is {'above' if loud else 'NOT above'} {LEAST_LARGEST_SAMPLE:,}."
    return Finding("loud enough", loud, words)


def judge_mel_distance(base: Score, tuned: Score, are_held_out: bool) -> Finding:
    """Check that the voice came nearer to the recordings, by more than the choice of clips."""
    change = _ratio(tuned.mel_distance, base.mel_distance) - 1
    low, high = change_interval(base, tuned)
    clips = "held-out clips" if are_held_out else "training clips, as none was held out"
    words = (
        f"The mel distance to the {clips} went from {base.mel_distance:.3f} to "
        f"{tuned.mel_distance:.3f} ({change:+.1%}"
    )
    words += f"; {low:+.1%} to {high:+.1%} as other clips would have it)." if low < high else ")."
    return Finding("mel distance", high < 0, words)


def change_interval(base: Score, tuned: Score) -> tuple[float, float]:
    """The relative change of the mel distance, within which 95 % of bootstraps over clips lie.

    With a single clip both ends are the change itself.
    """
    before, after = (
        np.array([clip.mel_distance for clip in score.clips]) for score in (base, tuned)
    )
    drawn = np.random.default_rng(0).integers(len(before), size=(_RESAMPLES, len(before)))
    with np.errstate(divide="ignore", invalid="ignore"):
        changes = after[drawn].mean(1) / before[drawn].mean(1) - 1
    low, high = np.quantile(changes, [0.025, 0.975])
    return float(low), float(high)


def judge_length(steps: int) -> Finding:
    """Check that there were steps enough for a verdict."""
    count = f"{steps:,} step{'' if steps == 1 else 's'}"
    words = f"It was trained for {count}; a verdict takes {FEWEST_STEPS} or more."
    return Finding("long enough", steps >= FEWEST_STEPS, words)


def judge_drift(drift: dict[str, float]) -> Finding:
    """Describe how far the weights moved; for information, always passed."""
    largest = max(drift, key=lambda layer: drift[layer])
    mean = sum(drift.values()) / len(drift)
    words = (
        f"The weights moved by {mean:.2%} of their size on average, most in {largest} "
        f"({drift[largest]:.2%})."
    )
    return Finding("drift", True, words)


def is_better(findings: list[Finding]) -> bool:
    """Whether a voice is better than its base."""
    return not _faults(findings)


def conclude(findings: list[Finding], *, from_scratch: bool = False) -> str:
    """Sum up the findings in one sentence.

    Args:
        from_scratch: whether the voice started from random weights, and has no base.
    """
    faults = _faults(findings)
    if from_scratch:
        ending = f"not a voice yet: {' and '.join(faults)}" if faults else "judge it by ear"
        return f"Trained from random weights, so there is no base to compare with; {ending}."
    if faults:
        return f"Not better than the base: {' and '.join(faults)}."
    merits = []
    if len(findings) > 1:
        merits.append("nearer to the recordings, and as loud")
    if any(finding.name == CODES_FORETOLD and finding.passed for finding in findings):
        merits.append("its GPT foretells better how its owner speaks")
    return f"Better than the base: {'; '.join(merits)}."


def _faults(findings: list[Finding]) -> list[str]:
    """What is wrong, in words. A GPT that is no better is not used, so the rest may still be."""
    is_alone = len(findings) == 1
    return [
        _FAULTS[finding.name]
        for finding in findings
        if not finding.passed and (finding.name != CODES_FORETOLD or is_alone)
    ]


def score_record(step: int, score: Score) -> dict[str, Any]:
    """Convert a score for `scores.jsonl` and `verdict.json`, without the waveforms."""
    return {
        "step": step,
        "largest_sample": score.largest_sample,
        "rms": score.rms,
        "mel_distance": score.mel_distance,
        "clips": [
            {
                "name": clip.name,
                "largest_sample": clip.largest_sample,
                "rms": clip.rms,
                "mel_distance": clip.mel_distance,
            }
            for clip in score.clips
        ],
    }


def _ratio(value: float, origin: float) -> float:
    return value / origin if origin else float("inf")
