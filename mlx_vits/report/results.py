"""Read and check the results of a finished run.

`mlx_vits.finetune` writes `verdict.json`; `mlx_vits.training.log` writes losses and scores line by
line, those of the GPT stage in files of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from mlx_vits.errors import DataError
from mlx_vits.system.json_files import read_json, read_json_lines
from mlx_vits.training.log import GPT_LOSSES, GPT_SCORES, LOSSES, SCORES

VERDICT = "verdict.json"
SAMPLES = "samples"
NEW_SENTENCE = "new_sentence.wav"  # among the samples
TAKES = ("recording", "base", "finetuned")
_CURE = "the report needs a finished run, so resume it to its end or start it again"


class _ClipScore(TypedDict):
    name: str
    largest_sample: float
    rms: float
    mel_distance: float


class _Score(TypedDict):
    step: float
    largest_sample: float
    rms: float
    mel_distance: float
    clips: list[_ClipScore]


class _Finding(TypedDict):
    passed: bool
    words: str


class _Clip(TypedDict):
    name: str
    text: str


class _Best(TypedDict):
    step: int
    mel_distance: float | None


class NewSentence(TypedDict):
    """A sentence that a voice said although it was never trained on it.

    Attributes:
        text: the sentence.
        language: its code.
        seconds: of sound.
        largest_sample: of it, in units of 32,767.
        reference_text: what the voice continued, "" where only a timbre was given.
        warnings: what may be wrong with it.
    """

    text: str
    language: str
    seconds: float
    largest_sample: float
    reference_text: str
    warnings: list[str]


class _CodeScore(TypedDict):
    step: float
    epoch: float
    ce: float
    top3_accuracy: float


class _GPT(TypedDict):
    base: str
    steps: float
    epochs: float
    speaks: float
    clips: list[str]
    clips_are_held_out: bool
    base_score: _CodeScore
    final_score: _CodeScore
    last_score: _CodeScore
    options: dict[str, Any]


class _MayHave(TypedDict, total=False):
    best: _Best | None
    from_scratch: bool
    new_sentence: NewSentence | None
    gpt: _GPT


class _Verdict(_MayHave):
    verdict: str
    words: list[str]
    better_than_base: bool
    findings: dict[str, _Finding]
    voice: str
    base: str
    base_warning: str
    version: str
    seconds: float


class _SoVITSVerdict(_Verdict):
    steps: float
    epochs: float
    options: dict[str, Any]
    reference: str
    clips: list[_Clip]
    clips_are_held_out: bool
    base_score: _Score
    final_score: _Score
    drift: dict[str, float]


class LossRecord(TypedDict):
    step: float
    loss_d: float
    loss_gen: float
    loss_fm: float
    loss_mel: float
    loss_kl: float
    loss_reg: float
    loss_total: float
    grad_norm_g: float
    grad_norm_d: float
    grad_norm_task: float
    grad_norm_reg: float
    peak_fake: float
    lr_g: float
    lr_d: float


class GPTLossRecord(TypedDict):
    step: float
    ce: float
    top3_accuracy: float
    loss_reg: float
    grad_norm: float
    grad_norm_task: float
    grad_norm_reg: float


class StageResults(NamedTuple):
    """What a stage logged.

    Attributes:
        losses: `(steps,)` float64 by name, including "step".
        scores: by step.
    """

    losses: dict[str, np.ndarray]
    scores: list[dict[str, Any]]


class RunResults(NamedTuple):
    """The results of a finished run.

    Attributes:
        folder: the run's.
        verdict: `verdict.json`.
        sovits, gpt: of the stages; None for one that was not trained.
    """

    folder: Path
    verdict: dict[str, Any]
    sovits: StageResults | None
    gpt: StageResults | None

    def sample(self, clip: str, take: str) -> Path:
        """Path of a clip's WAV file; `take` is one of `TAKES`."""
        return self.folder / SAMPLES / f"{Path(clip).stem}_{take}.wav"


class _Time(TypedDict):
    seconds: float


def read_seconds(folder: Path) -> float:
    """How long a run took that is finished; 0 for another."""
    try:
        found = read_json(folder / VERDICT, _Time, error=DataError, cure=_CURE)
    except DataError:
        return 0.0
    return found["seconds"]


def read_results(folder: Path) -> RunResults:
    """Read everything that the report shows, except the sound.

    Raises:
        DataError: a file is missing or damaged; one sentence that names it.
    """
    path = folder / VERDICT
    verdict: Any = read_json(path, _Verdict, error=DataError, cure=_CURE)
    sovits = gpt = None
    if "gpt" in verdict:
        gpt = _read_stage(folder / GPT_LOSSES, GPTLossRecord, folder / GPT_SCORES, _CodeScore)
    if gpt is None or "final_score" in verdict:
        verdict = read_json(path, _SoVITSVerdict, error=DataError, cure=_CURE)
        for score in ("base_score", "final_score"):
            if len(verdict[score]["clips"]) != len(verdict["clips"]):
                raise DataError(f"{path}: {score} and clips differ in length; {_CURE}")
        sovits = _read_stage(folder / LOSSES, LossRecord, folder / SCORES, _Score)
    return RunResults(folder, verdict, sovits, gpt)


def _read_stage(losses: Path, loss: type, scores: Path, score: type) -> StageResults:
    # Stricter than a resumed run: a finished one has no incomplete last line.
    lines: Any = read_json_lines(losses, loss, error=DataError, cure=_CURE)
    columns = {
        name: np.array([record[name] for record in lines], dtype=np.float64)
        for name in loss.__annotations__
    }
    found: Any = read_json_lines(scores, score, error=DataError, cure=_CURE)
    return StageResults(columns, sorted(found, key=lambda record: record["step"]))
