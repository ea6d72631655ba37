"""How a voice sounds while it is trained, and what is found at the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mlx_vits.audio.files import read_audio, write_wav
from mlx_vits.checkpoints.run import Place
from mlx_vits.config import Config
from mlx_vits.errors import TrainingStopped
from mlx_vits.finetune.options import FinetuneOptions
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.report.results import SAMPLES
from mlx_vits.report.verdict import (
    COLLAPSE_RATIO,
    Finding,
    judge_drift,
    judge_length,
    judge_level,
    judge_loudness,
    judge_mel_distance,
    score_record,
)
from mlx_vits.synthesis.scoring import Score, read_listening, score_voice
from mlx_vits.synthesis.voice import Voice
from mlx_vits.system.files import make_folder
from mlx_vits.training.blending import Blend
from mlx_vits.training.regularization import Anchor, relative_drift


class Judge:
    """Scores a voice on the clips kept for listening, against its base.

    Args:
        options: of the fine-tune.
        config: of the model.
        prepared: the prepared folder.
        blend: gives the voice as it would be saved.
        anchor: the base's weights.

    Attributes:
        base_score: of the base, from `listen_to_base`.
    """

    base_score: Score

    def __init__(
        self,
        options: FinetuneOptions,
        config: Config,
        prepared: Path,
        blend: Blend,
        anchor: Anchor,
    ):
        self.options, self.config = options, config
        self._blend, self._anchor = blend, anchor
        self._listening = listening = read_listening(prepared, config)
        speech = read_audio(prepared / layout.WAV_FOLDER / listening.reference)
        self._reference = self._voice().reference_spectrogram(speech.wav)
        self._last: tuple[int, Score] | None = None

    def listen_to_base(self) -> None:
        """Score the voice before its first step."""
        self.base_score = self._listen()

    def score(self, step: int) -> Score:
        """Score the present weights, which are those of `step`; each step is scored once."""
        if self._last is None or self._last[0] != step:
            self._last = (step, self._listen())
        return self._last[1]

    def _voice(self) -> Voice:
        return Voice(self._blend.model(), name=self.options.voice)

    def _listen(self) -> Score:
        heard = self._listening
        return score_voice(self._voice(), heard.clips, self._reference, heard.speaker_vector)

    def check(self, score: Score, step: int) -> None:
        """Check that there is still a voice.

        Raises:
            TrainingStopped: it is silent, or no sound at all.
        """
        if not math.isfinite(score.mel_distance + score.largest_sample):
            raise TrainingStopped("what the voice says is no longer sound", step)
        if self.options.from_scratch is not None:
            return  # random weights give no level to keep
        if score.largest_sample < COLLAPSE_RATIO * self.base_score.largest_sample:
            raise TrainingStopped(
                f"the voice fell silent (largest sample {score.largest_sample:,.0f} of 32,767, the "
                f"base's {self.base_score.largest_sample:,.0f})",
                step,
            )

    def write_samples(self, final: Score, folder: Path) -> None:
        """Write each clip as recorded, as the base says it and as the voice says it."""
        samples, rate = folder / SAMPLES, self.config.data.sampling_rate
        make_folder(samples)
        takes = zip(self._listening.clips, self.base_score.clips, final.clips, strict=True)
        for clip, base, tuned in takes:
            stem = Path(clip.name).stem
            write_wav(samples / f"{stem}_recording.wav", clip.wav, rate)
            write_wav(samples / f"{stem}_base.wav", base.wav, rate)
            write_wav(samples / f"{stem}_finetuned.wav", tuned.wav, rate)

    def findings(self, final: Score, steps: int) -> list[Finding]:
        """Compare the voice, of which this is the score after so many steps, with its base.

        Where it started from random weights, only what can be said without a base is said.
        """
        level = judge_level(final)
        distance = judge_mel_distance(self.base_score, final, self._listening.are_held_out)
        if self.options.from_scratch is not None:
            return [level, distance]
        loudness = judge_loudness(self.base_score, final)
        findings = [loudness, level, distance, judge_drift(self._drift())]
        length = judge_length(steps)
        return findings if length.passed else [length, *findings]

    def _drift(self) -> dict[str, float]:
        return relative_drift(self._blend.model(), self._anchor)

    def record(self, final: Score, place: Place) -> dict[str, Any]:
        """Return the part of `verdict.json` that is on SoVITS.

        Args:
            final: the voice's score.
            place: where training ended.
        """
        listening = self._listening
        return {
            "steps": place.step,
            "epochs": place.epoch,
            "reference": listening.reference,
            "clips": [{"name": c.name, "text": c.text} for c in listening.clips],
            "clips_are_held_out": listening.are_held_out,
            "base_score": score_record(0, self.base_score),
            "final_score": score_record(place.step, final),
            "best": {"step": place.best_step, "mel_distance": place.best_score},
            "drift": self._drift(),
        }
