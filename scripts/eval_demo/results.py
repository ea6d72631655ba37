"""What the runs and their scores say: numbers of each run, and base against fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval_demo.intervals import Interval, bootstrap_interval
from eval_demo.runs import read_result
from eval_demo.scores import QUALITY, RECOGNISERS, SPEAKER_MODELS, read_scores
from eval_demo.settings import BASE, DEFAULT, RECORDING, Run, Settings
from eval_demo.words import WordErrors, word_error_rate

# Of each clip; None where it could not be measured.
Values = list[float | None]
LEAST_LARGEST_SAMPLE, LOUDNESS_MARGIN, QUALITY_MARGIN = 15000, 0.30, 0.05


class Outcome(NamedTuple):
    """One run.

    Attributes:
        clips: values of each held-out clip, by measure.
        overall: one value for the run, by measure.
        probes: loudness while it was trained.
        stopped: why it has no speech; empty where it has.
        device: what it was made on.
    """

    clips: dict[str, Values]
    overall: dict[str, float]
    probes: list[dict[str, float]]
    stopped: str
    device: str


class Comparison(NamedTuple):
    """The fine-tuned voice of one minute against the base, by one measure.

    Attributes:
        base, tuned: means over the held-out clips; of the largest sample, the maximum.
        change: mean difference, tuned less base, with its interval; None where there is none.
        is_met: whether what was asked holds; None where nothing was asked of this measure.
    """

    minute: str
    measure: str
    base: float
    tuned: float
    change: Interval | None
    is_met: bool | None


def gather(settings: Settings, output: Path) -> dict[Run, Outcome]:
    """All finished runs.

    Raises:
        UserError: a file is damaged, or was made with other settings.
    """
    found = {}
    for run in settings.runs():
        result = read_result(output, run, settings)
        if result is not None:
            found[run] = _outcome(output, run, result)
    return {run: _with_loudness(outcome, run, found) for run, outcome in found.items()}


def _outcome(output: Path, run: Run, result: dict[str, Any]) -> Outcome:
    made = result["clips"]
    measures = ("mel_distance", "largest_sample", "rms", "f0_correlation", "f0_voiced_kept")
    clips: dict[str, Values] = {name: [clip[name] for clip in made] for name in measures}
    overall: dict[str, float] = {}
    if "drift" in result:
        overall["drift"] = result["drift"]
    for tool in SPEAKER_MODELS:
        if scores := read_scores(output, run, tool):
            clips[tool] = [score["similarity"] for score in scores]
    if scores := read_scores(output, run, QUALITY):
        for name in scores[0]:
            clips[name] = [score[name] for score in scores]
    for tool in RECOGNISERS:
        if scores := read_scores(output, run, tool):
            errors = [WordErrors(score["errors"], score["words"]) for score in scores]
            overall[tool] = word_error_rate(errors)
    for name, values in clips.items():
        measured = [value for value in values if value is not None]
        if measured:
            overall[name] = sum(measured) / len(measured)
    if clips["largest_sample"]:
        overall["largest_sample"] = max(v for v in clips["largest_sample"] if v is not None)
    return Outcome(
        clips, overall, result.get("probes", []), result.get("stopped", ""), result["device"]
    )


def _with_loudness(outcome: Outcome, run: Run, found: dict[Run, Outcome]) -> Outcome:
    """Adds the loudness: root mean square over the base's of the same clips."""
    base = found.get(Run(run.minute, BASE))
    if base is None or "rms" not in outcome.overall or "rms" not in base.overall:
        return outcome
    ratio = outcome.overall["rms"] / base.overall["rms"]
    return outcome._replace(overall=outcome.overall | {"loudness": ratio})


def compare_minutes(settings: Settings, found: dict[Run, Outcome]) -> list[Comparison]:
    """Fine-tuned against base, minute by minute, as far as they are finished."""
    compared = []
    for minute in settings.minutes:
        base = found.get(Run(minute, BASE))
        tuned = found.get(Run(minute, DEFAULT, settings.seeds[0]))
        if base is None or tuned is None or tuned.stopped:
            continue
        measures = ("mel_distance", *SPEAKER_MODELS, "ovrl", "sig", "bak", "p808", "rms")
        for measure in measures:
            if measure in base.clips and measure in tuned.clips:
                compared.append(_compare(settings, minute, measure, base, tuned))
        peaks = base.overall["largest_sample"], tuned.overall["largest_sample"]
        is_met = peaks[1] > LEAST_LARGEST_SAMPLE and _is_as_loud(*peaks)
        compared.append(Comparison(minute, "largest_sample", *peaks, None, is_met))
    return compared


def _compare(
    settings: Settings, minute: str, measure: str, base: Outcome, tuned: Outcome
) -> Comparison:
    differences = paired_differences(base.clips[measure], tuned.clips[measure])
    change = bootstrap_interval(differences, settings.resampling_seed, settings.resamples)
    means = base.overall[measure], tuned.overall[measure]
    is_met: bool | None = None
    if measure == "mel_distance":
        is_met = change.mean < 0
    elif measure in SPEAKER_MODELS:
        is_met = change.mean > 0
    elif measure == "ovrl":
        is_met = change.mean >= -QUALITY_MARGIN
    elif measure == "rms":
        is_met = _is_as_loud(*means)
    return Comparison(minute, measure, *means, change, is_met)


def _is_as_loud(base: float, tuned: float) -> bool:
    return abs(tuned / base - 1) <= LOUDNESS_MARGIN


def paired_differences(base: Sequence[float | None], tuned: Sequence[float | None]) -> list[float]:
    """Tuned less base, of the clips that have both.

    Raises:
        ValueError: they are not of the same clips.
    """
    pairs = zip(base, tuned, strict=True)
    return [after - before for before, after in pairs if before is not None and after is not None]


def ablation_rows(settings: Settings, found: dict[Run, Outcome]) -> dict[str, list[Outcome]]:
    """The ablation's outcomes by row: recording, base, and each cell with its finished seeds."""
    minute = settings.ablation
    rows = {cell: [Run(minute, cell)] for cell in (RECORDING, BASE)}
    rows |= {cell: [Run(minute, cell, seed) for seed in settings.seeds] for cell in settings.cells}
    present = {name: [found[run] for run in runs if run in found] for name, runs in rows.items()}
    return {name: outcomes for name, outcomes in present.items() if outcomes}
