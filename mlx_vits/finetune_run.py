"""A run whose data is prepared: train, listen, save, judge, report.

What is said on screen goes through a `Screen`, so that the same run serves a terminal, a test and a
notebook.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import mlx.core as mx

from mlx_vits.audio.files import read_audio, write_wav
from mlx_vits.checkpoints.base import Base, load_discriminator, load_generator
from mlx_vits.checkpoints.run import BEST, LAST, read_run_state, write_run_state
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.voice_file import VoiceFile, write_voice
from mlx_vits.config import Config
from mlx_vits.errors import TrainingStopped, UserError
from mlx_vits.files import atomic_write, make_folder
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.reporting.report import write_report
from mlx_vits.reporting.results import SAMPLES, VERDICT
from mlx_vits.synthesis.loading import REFERENCE
from mlx_vits.synthesis.scoring import Score, read_listening_clips, score_voice
from mlx_vits.synthesis.voice import Voice
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.log import LOSSES, SCORES, JsonLines, TensorBoard
from mlx_vits.training.regularization import relative_drift, take_anchor
from mlx_vits.training.vits_trainer import StepRecord, VITSTrainer, VITSTrainingConfig, freeze_for
from mlx_vits.verdict import (
    COLLAPSE_RATIO,
    conclude,
    judge_drift,
    judge_level,
    judge_loudness,
    judge_mel_distance,
    score_record,
)

CHECKPOINTS = "checkpoints"
EARLY_STEP = 50  # the plan's: by then the loudness of a broken fine-tune is gone


class Screen(Protocol):
    """Where a run says what it does."""

    def say(self, text: str) -> None:
        """A line of information."""

    def warn(self, text: str) -> None:
        """A line that must not be missed."""

    def preparing(self, done: int, count: int, name: str) -> None:
        """A clip was prepared."""

    def step(self, record: StepRecord, total: int) -> None:
        """An update was done, of so many in all."""


@dataclass(frozen=True)
class FinetuneOptions:
    """What to fine-tune, from what, and where to.

    Attributes:
        voice: a name for it, which the files carry.
        data: clips with transcripts, or a prepared folder.
        base: the pretrained models.
        output: the run's folder.
        training: how.
        language: of the transcripts.
        held_out: clips to keep from training, see `read_voice_source`.
        save_every: steps between checkpoints, each with a score.
        tensorboard: whether to write TensorBoard's files as well.
    """

    voice: str
    data: Path
    base: Base
    output: Path
    training: VITSTrainingConfig = field(default_factory=VITSTrainingConfig)
    language: str = "en"
    held_out: int | None = None
    save_every: int = 100
    tensorboard: bool = False


@contextmanager
def _stop_on_interrupt() -> Iterator[list[int]]:
    """Gathers Ctrl-C instead of raising it; a second one ends the program at once."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: the caller looks after Ctrl-C
        yield caught
        return
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)


class FinetuneRun:
    """A run whose data is prepared."""

    def __init__(self, options: FinetuneOptions, info: RunInfo, file: VoiceFile, screen: Screen):
        self.options, self.info, self.screen = options, info, screen
        self.folder = options.output
        training, config = options.training, file.config
        mx.random.seed(training.seed)  # initial values of whatever the base lacks
        self.generator: SynthesizerTrn = load_generator(file, training.weight_norm)
        discriminator = load_discriminator(options.base.discriminator, config)
        if options.base.discriminator is None:
            screen.warn(
                "There is no pretrained discriminator: a fresh one first has to learn, and judges "
                "badly for hundreds of steps. Give --pretrained-d with an s2D file."
            )
        if config.is_reduced:
            screen.warn(_small_base_warning(options.base.name))
        freeze_for(self.generator, training.train)
        self.anchor = take_anchor(self.generator)
        self.voice = PreparedVoice(Path(info.prepared), config)
        self.trainer = VITSTrainer(self.generator, discriminator, self.voice, training, self.anchor)
        self._prepare_listening(config)

    def _prepare_listening(self, config: Config) -> None:
        folder = Path(self.info.prepared)
        self.clips = read_listening_clips(folder, config)
        held_out = folder / layout.HELD_OUT_FOLDER / layout.TEXT_FILE
        self.on_training_clips = not (held_out.is_file() and layout.read_text_lines(held_out))
        manifest = layout.Manifest.read(folder)
        names = {item.name for item in self.voice.items}
        ordered = [clip.name for clip in manifest.sources] if manifest else sorted(names)
        self.reference_name = next(name for name in ordered if name in names)
        recording = read_audio(folder / layout.WAV_FOLDER / self.reference_name)
        self.reference_wav = recording.wav
        self.reference = self._listener().reference_spectrogram(recording.wav)

    def _listener(self) -> Voice:
        return Voice(self.generator, name=self.options.voice)

    def _score(self) -> Score:
        return score_voice(self._listener(), self.clips, self.reference)

    def run(self, resumed: bool) -> dict[str, Any]:
        started = time.monotonic()
        self.base_score = self._score()
        rate = self.generator.config.data.sampling_rate
        write_wav(self.folder / REFERENCE, self.reference_wav, rate)
        if resumed:
            state = self.folder / CHECKPOINTS / LAST
            self.trainer.restore(read_run_state(state), str(state))
            self.screen.say(f"Resuming at step {self.trainer.place.step}.")
        keep_to = self.trainer.place.step if resumed else None
        self.losses = JsonLines(self.folder / LOSSES, keep_to)
        self.scores = JsonLines(self.folder / SCORES, keep_to)
        if not resumed:
            self.scores.write(score_record(0, self.base_score))
        board = None
        if self.options.tensorboard:
            board = TensorBoard(self.folder / "tensorboard", self.trainer.place.step)
        try:
            self._train(board)
        finally:
            self.losses.close()
            self.scores.close()
            if board:
                board.close()
        return self._finish(time.monotonic() - started)

    def _train(self, board: TensorBoard | None) -> None:
        trainer, total = self.trainer, self.trainer.total_steps
        with _stop_on_interrupt() as interrupted:
            try:
                for record in trainer.steps():
                    self.losses.write(record.values)
                    if board:
                        board.write(record.values)
                    self.screen.step(record, total)
                    step = trainer.place.step
                    is_due = step in (EARLY_STEP, total) or step % self.options.save_every == 0
                    if is_due:
                        self._listen()
                    if is_due or interrupted:
                        self._save()
                    if interrupted:
                        raise KeyboardInterrupt
            except TrainingStopped:
                self._save()
                raise

    def _listen(self) -> None:
        """Scores the present weights, and ends the run if the voice fell silent."""
        score, step = self._score(), self.trainer.place.step
        if score.largest_sample < COLLAPSE_RATIO * self.base_score.largest_sample:
            kept = self.folder / CHECKPOINTS / LAST
            raise _Collapsed(
                f"The voice fell silent by step {step}: its largest sample is "
                f"{score.largest_sample:,.0f} of 32,767 where the base's was "
                f"{self.base_score.largest_sample:,.0f}; the last good weights are in {kept}; "
                "try a lower --lr-g"
            )
        self.scores.write(score_record(step, score))
        if self.trainer.note_score(score.mel_distance):
            self._write_voice(self.folder / CHECKPOINTS / BEST)

    def _save(self) -> None:
        path = self.folder / CHECKPOINTS / LAST
        write_run_state(path, self.trainer.trees(), self.trainer.place)
        self._write_voice(self.folder / f"{self.options.voice}.safetensors")

    def _write_voice(self, path: Path) -> None:
        make_folder(path.parent)
        place = self.trainer.place
        info = f"{place.epoch}epoch_{place.step}iteration"
        state = state_of(self.generator)
        write_voice(path, state, self.generator.config, info=info, name=self.options.voice)

    def _finish(self, seconds: float) -> dict[str, Any]:
        place, voice = self.trainer.place, self.options.voice
        exported = self.folder / f"{voice}_e{place.epoch}_s{place.step}.pth"
        self._write_voice(exported)
        if self.generator.config.is_reduced:
            self.screen.say(
                f"{exported.name} comes from a small base and carries `reduced_dims`: mlx_vits "
                "opens it, GPT-SoVITS itself cannot."
            )
        final = self._score()
        self._write_samples(final)
        verdict = self._verdict(final, seconds)
        with atomic_write(self.folder / VERDICT) as file:
            file.write(json.dumps(verdict, indent=1).encode())
        write_report(self.folder)
        for words in (*verdict["words"], verdict["verdict"]):
            self.screen.say(words)
        return verdict

    def _write_samples(self, final: Score) -> None:
        folder, rate = self.folder / SAMPLES, self.generator.config.data.sampling_rate
        make_folder(folder)
        kinds = zip(self.clips, self.base_score.clips, final.clips, strict=True)
        for clip, base, tuned in kinds:
            stem = Path(clip.name).stem
            write_wav(folder / f"{stem}_recording.wav", clip.wav, rate)
            write_wav(folder / f"{stem}_base.wav", base.wav, rate)
            write_wav(folder / f"{stem}_finetuned.wav", tuned.wav, rate)

    def _verdict(self, final: Score, seconds: float) -> dict[str, Any]:
        drift = relative_drift(self.generator, self.anchor)
        findings = [
            judge_loudness(self.base_score, final),
            judge_level(final),
            judge_mel_distance(self.base_score, final, self.on_training_clips),
            judge_drift(drift),
        ]
        place, config = self.trainer.place, self.generator.config
        return {
            "verdict": conclude(findings),
            "words": [finding.words for finding in findings],
            "better_than_base": all(finding.passed for finding in findings),
            "findings": {f.name: {"passed": f.passed, "words": f.words} for f in findings},
            "voice": self.options.voice,
            "base": self.options.base.name,
            "base_is_reduced": config.is_reduced,
            "base_warning": _small_base_warning(self.options.base.name)
            if config.is_reduced
            else "",
            "version": config.version,
            "steps": place.step,
            "epochs": place.epoch,
            "seconds": round(seconds, 1),
            "options": asdict(self.options.training),
            "reference": self.reference_name,
            "clips": [{"name": clip.name, "text": clip.text} for clip in self.clips],
            "clips_are_held_out": not self.on_training_clips,
            "base_score": score_record(0, self.base_score),
            "final_score": score_record(place.step, final),
            "best": {"step": place.best_step, "mel_distance": place.best_score},
            "drift": drift,
        }


class _Collapsed(UserError):
    """The voice fell silent; what was saved last stays as it is."""


def _small_base_warning(base: str) -> str:
    return (
        f"THE BASE {base!r} IS A SMALL ONE, FOR TRYING: expect a rough voice. For a full-size one "
        "give GPT-SoVITS's own files: --pretrained s2G.pth --pretrained-d s2D.pth "
        "--content-encoder chinese-hubert-base/"
    )
