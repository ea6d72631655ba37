"""What a finished run left in its folder, read and checked.

`verdict.json` is written by `mlx_vits.finetune`, `losses.jsonl` and `scores.jsonl` line by line by
`mlx_vits.training.log`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlx_vits.errors import DataError
from mlx_vits.training.log import LOSSES, SCORES

VERDICT = "verdict.json"
SAMPLES = "samples"
TAKES = ("recording", "base", "finetuned")

_NUMBER = (int, float)
_CLIP_SCORE = {"name": str, "largest_sample": _NUMBER, "rms": _NUMBER, "mel_distance": _NUMBER}
_SCORE = {
    "step": _NUMBER,
    "largest_sample": _NUMBER,
    "rms": _NUMBER,
    "mel_distance": _NUMBER,
    "clips": [_CLIP_SCORE],
}
# A shape is a type (or several), [shape] for a list, {"key": shape} for these keys and any others,
# {str: shape} for any keys.
_VERDICT_SHAPE = {
    "verdict": str,
    "words": [str],
    "better_than_base": bool,
    "findings": {str: {"passed": bool, "words": str}},
    "voice": str,
    "base": str,
    "base_warning": str,
    "version": str,
    "steps": _NUMBER,
    "epochs": _NUMBER,
    "seconds": _NUMBER,
    "options": dict,
    "reference": str,
    "clips": [{"name": str, "text": str}],
    "clips_are_held_out": bool,
    "base_score": _SCORE,
    "final_score": _SCORE,
    "drift": {str: _NUMBER},
}
_LOSS_NAMES = (
    "step",
    "loss_d",
    "loss_gen",
    "loss_fm",
    "loss_mel",
    "loss_kl",
    "loss_reg",
    "loss_total",
    "grad_norm_g",
    "grad_norm_d",
    "grad_norm_task",
    "grad_norm_reg",
    "peak_fake",
    "lr_g",
    "lr_d",
)
_LOSS_SHAPE = dict.fromkeys(_LOSS_NAMES, _NUMBER)


class RunResults(NamedTuple):
    """A finished run.

    Attributes:
        folder: the run's.
        verdict: `verdict.json`.
        losses: by name, `(steps,)` float64 each, among them "step".
        scores: the lines of `scores.jsonl`, by step.
    """

    folder: Path
    verdict: dict[str, Any]
    losses: dict[str, np.ndarray]
    scores: list[dict[str, Any]]

    def sample(self, clip: str, take: str) -> Path:
        """The wav file of a clip's take, one of `TAKES`."""
        return self.folder / SAMPLES / f"{Path(clip).stem}_{take}.wav"


def read_results(folder: Path) -> RunResults:
    """Reads what the report shows, except the sound.

    Raises:
        DataError: a file is missing or damaged; one sentence that names it.
    """
    path = folder / VERDICT
    verdict = _parse(_read(path), path)
    _check(verdict, _VERDICT_SHAPE, path, "it")
    for score in ("base_score", "final_score"):
        if len(verdict[score]["clips"]) != len(verdict["clips"]):
            raise _damaged(path, f"{score} and clips differ in length")
    losses = _read_lines(folder / LOSSES, _LOSS_SHAPE)
    columns = {
        name: np.array([record[name] for record in losses], dtype=np.float64)
        for name in _LOSS_NAMES
    }
    scores = _read_lines(folder / SCORES, _SCORE)
    return RunResults(folder, verdict, columns, sorted(scores, key=lambda score: score["step"]))


def _read(path: Path) -> str:
    if not path.is_file():
        raise DataError(
            f"{path}: is missing; the report needs a finished run, so resume it to its end or "
            "start it again"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error


def _read_lines(path: Path, shape: Any) -> list[dict[str, Any]]:
    """Strict where `training.log.read_lines` forgives: a finished run has no half line."""
    records = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        record = _parse(line, path, f"line {number} ")
        _check(record, shape, path, f"line {number}")
        records.append(record)
    return records


def _parse(text: str, path: Path, where: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{where}is not JSON") from error


def _check(value: Any, shape: Any, path: Path, where: str) -> None:
    """Compares a value from a file with the shape it should have."""
    if isinstance(shape, list):
        _check(value, list, path, where)
        for index, item in enumerate(value):
            _check(item, shape[0], path, f"{where}[{index}]")
    elif isinstance(shape, dict) and str in shape:
        _check(value, dict, path, where)
        for key, item in value.items():
            _check(item, shape[str], path, f"{where}.{key}")
    elif isinstance(shape, dict):
        _check(value, dict, path, where)
        for key, inner in shape.items():
            if key not in value:
                raise _damaged(path, f"{where} lacks {key!r}")
            _check(value[key], inner, path, f"{where}.{key}")
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is _NUMBER):
        raise _damaged(path, f"{where} is {type(value).__name__}, which does not belong there")


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: is damaged ({reason}); resume the run to its end or start it again")
