"""Scores the speech that `runs` made, one file for each run and tool, none of them twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from eval_demo import hearing
from eval_demo.runs import RESULT, read_result, speech_folder
from eval_demo.settings import TRAINED, Run, Settings
from eval_demo.words import count_word_errors
from mlx_vits.audio.files import read_audio, resample
from mlx_vits.checkpoints.base import file_sha256
from mlx_vits.errors import UserError
from mlx_vits.system.files import atomic_write, make_folder

RECOGNISERS = ("whisper", "sphinx")
SPEAKER_MODELS = ("campplus", "resemblyzer")
QUALITY = "dnsmos"
TOOLS = (*RECOGNISERS, *SPEAKER_MODELS, QUALITY)
SCORES = "scores"
_CACHE = "models"

Say = Callable[[str], None]
ScoreRun = Callable[[Run, list[dict[str, Any]]], list[dict[str, Any]]]


def score_path(output: Path, run: Run, tool: str) -> Path:
    """Where a run's scores by one tool are kept."""
    return output / SCORES / f"{run.name}.{tool}.json"


def read_scores(output: Path, run: Run, tool: str) -> list[dict[str, Any]] | None:
    """Scores of each clip, in the run's order; None where there are none of its present speech."""
    path = score_path(output, run, tool)
    made = speech_folder(output, run) / RESULT
    if not path.is_file() or not made.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept["clips"] if kept["run_sha256"] == file_sha256(made) else None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged; take it away and score again") from error


def score_runs(
    settings: Settings, output: Path, runs: list[Run], tools: tuple[str, ...], say: Say
) -> None:
    """Scores every finished run that has no scores yet.

    Raises:
        UserError: a tool is unknown or not installed, or a run's files are damaged.
    """
    unknown = sorted(set(tools) - set(TOOLS))
    if unknown:
        raise UserError(f"--tool {unknown[0]}: is not one of {', '.join(TOOLS)}")
    for tool in tools:
        scorer: ScoreRun | None = None
        for run in runs:
            if run.cell == TRAINED or read_scores(output, run, tool) is not None:
                continue
            result = read_result(output, run, settings)
            if result is None:
                continue
            started = time.monotonic()
            scorer = scorer or _scorer(tool, output)
            _write(output, run, tool, scorer(run, result["clips"]))
            say(f"{run.name} by {tool}: {time.monotonic() - started:.0f} s")


def _write(output: Path, run: Run, tool: str, clips: list[dict[str, Any]]) -> None:
    path = score_path(output, run, tool)
    make_folder(path.parent)
    digest = file_sha256(speech_folder(output, run) / RESULT)
    with atomic_write(path) as file:
        file.write(json.dumps({"run_sha256": digest, "clips": clips}, indent=1).encode())


def _scorer(tool: str, output: Path) -> ScoreRun:
    if tool in RECOGNISERS:
        return _recognition(hearing.load_recogniser(tool, output / _CACHE), output)
    if tool in SPEAKER_MODELS:
        return _similarity(hearing.load_speaker_model(tool), output)
    return _quality(hearing.load_quality_model(), output)


def _recognition(hear: hearing.Hear, output: Path) -> ScoreRun:
    def score(run: Run, clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
        scores = []
        for clip in clips:
            heard = hear(_read(output, run, clip["name"]))
            scores.append({"heard": heard, **count_word_errors(clip["text"], heard)._asdict()})
        return scores

    return score


def _quality(rate: hearing.Rate, output: Path) -> ScoreRun:
    def score(run: Run, clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [dict(rate(_read(output, run, clip["name"]))) for clip in clips]

    return score


def _similarity(embed: hearing.Embed, output: Path) -> ScoreRun:
    """Against the recordings that the minute's voice is trained on, so none is its own judge."""
    known: dict[str, np.ndarray] = {}

    def score(run: Run, clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if run.minute not in known:
            trained = Run(run.minute, TRAINED)
            paths = sorted(speech_folder(output, trained).glob("*.flac"))
            if not paths:
                raise UserError(
                    f"{speech_folder(output, trained)}: holds no recordings to compare with; run "
                    f"{trained.name} first"
                )
            known[run.minute] = np.stack([embed(_load(path)) for path in paths])
        others = known[run.minute]
        vectors = (embed(_read(output, run, clip["name"])) for clip in clips)
        return [{"similarity": hearing.similarity(vector, others)} for vector in vectors]

    return score


def _read(output: Path, run: Run, name: str) -> np.ndarray:
    return _load(speech_folder(output, run) / Path(name).with_suffix(".flac").name)


def _load(path: Path) -> np.ndarray:
    """`(N,)` float32 at the tools' rate."""
    recording = read_audio(path)
    return resample(recording.wav, recording.rate, hearing.RATE)
