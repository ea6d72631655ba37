"""A run whose data is prepared: train, listen, save, judge, report.

What is said on screen goes through a `Screen`, so that the same run serves a terminal, a test and a
notebook.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from mlx_vits.audio.files import read_audio, write_wav
from mlx_vits.checkpoints.base import Base, load_discriminator, load_generator
from mlx_vits.checkpoints.run import (
    BEST,
    CHECKPOINTS,
    LAST,
    read_run_state,
    write_run_state,
)
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.voice_file import VoiceFile, write_voice
from mlx_vits.config import Config
from mlx_vits.errors import Interrupted, TrainingStopped, UserError
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.report.results import SAMPLES, VERDICT
from mlx_vits.report.verdict import (
    COLLAPSE_RATIO,
    conclude,
    judge_drift,
    judge_level,
    judge_loudness,
    judge_mel_distance,
    score_record,
)
from mlx_vits.report.writing import write_report
from mlx_vits.synthesis.loading import REFERENCE, SPEAKER_VECTOR
from mlx_vits.synthesis.scoring import Score, read_listening, score_voice
from mlx_vits.synthesis.voice import Voice
from mlx_vits.system.files import atomic_write, inside, make_folder, sweep
from mlx_vits.system.memory import is_out_of_memory
from mlx_vits.system.signals import handle_signals
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.blending import Blend
from mlx_vits.training.footprint import Clips, describe_shortage, is_short, usable_memory
from mlx_vits.training.log import LOSSES, SCORES, JsonLines, TensorBoard
from mlx_vits.training.regularization import relative_drift, take_anchor
from mlx_vits.training.vits_trainer import StepRecord, VITSTrainer, VITSTrainingConfig, freeze_for

BOARD = "tensorboard"  # within a run's folder
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
        transcripts: their file, where it is not the one beside the clips.
        strict: whether a clip that cannot be used is refused instead of left out.
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
    transcripts: Path | None = None
    strict: bool = False
    save_every: int = 100
    tensorboard: bool = False


class Nets(NamedTuple):
    """Both nets, with the base's weights."""

    generator: SynthesizerTrn
    discriminator: MultiPeriodDiscriminator


def load_nets(options: FinetuneOptions, file: VoiceFile) -> Nets:
    """Loads both nets; a discriminator that the base lacks starts from the run's seed.

    Raises:
        CheckpointError: a file is damaged, or does not fit.
    """
    mx.random.seed(options.training.seed)
    generator = load_generator(file, options.training.weight_norm, consume=True)
    return Nets(generator, load_discriminator(options.base.discriminator, file.config))


class RunInterrupted(Interrupted):
    """A signal asked the run to end, after everything was saved; the message says how to go on."""


@contextmanager
def _stop_on_interrupt() -> Iterator[list[int]]:
    """Gather Ctrl-C, SIGTERM and SIGHUP instead of being ended by them.

    Ctrl-C after any of them ends at once. A second SIGHUP does not: a shell may pass on the one
    that the system has sent already.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            raise Interrupted(number=number)
        caught.append(number)

    with handle_signals(note):
        yield caught


class FinetuneRun:
    """A run whose data is prepared and whose nets are loaded."""

    def __init__(
        self,
        options: FinetuneOptions,
        info: RunInfo,
        config: Config,
        nets: Nets,
        screen: Screen,
    ):
        self.options, self.screen, self.config = options, screen, config
        self.folder, self.generator = options.output, nets.generator
        for name in (CHECKPOINTS, SAMPLES, BOARD):
            inside(self.folder, name)
        self.base_warning = _small_base_warning(options.base.name) if config.is_reduced else ""
        if options.base.discriminator is None:
            screen.warn(_FRESH_DISCRIMINATOR)
        if self.base_warning:
            screen.warn(self.base_warning)
        freeze_for(self.generator, options.training.train)
        self.anchor = take_anchor(self.generator)
        training = options.training
        self.blend = Blend(self.generator, training.blend, training.blend_prior)
        prepared = self.folder / info.prepared
        sweep(prepared)  # it may lie elsewhere, and other runs write its spectrograms
        self.trainer = VITSTrainer(
            self.generator,
            nets.discriminator,
            PreparedVoice(prepared, config),
            options.training,
            self.anchor,
        )
        self._advise()
        self.listening = read_listening(prepared, config)
        self.reference_wav = prepared / layout.WAV_FOLDER / self.listening.reference
        recording = read_audio(self.reference_wav)
        self.reference = self._speaker().reference_spectrogram(recording.wav)
        self.speaker_file: Path | None = None
        if config.model.is_pro:
            self.speaker_file = layout.speaker_file(prepared, self.listening.reference)
        self.saved_step = 0
        self.base_score: Score
        self.last_score: tuple[int, Score] | None = None

    def _advise(self) -> None:
        """Says before the first step what the voice will be, and that memory may not do."""
        if words := self.blend.describe():
            self.screen.say(words)
        memory, clips, again = usable_memory(), self._largest_batch(), self.trainer.recomputes
        if again and self.options.training.checkpoint_activations == "auto":
            self.screen.say("Memory is short: activations are computed twice instead of kept.")
        if is_short(self.config, clips, memory, recomputes=again):
            words = self._describe(memory)
            self.screen.warn(f"Memory may run out: {words}.")

    def _largest_batch(self) -> Clips:
        return self.trainer.voice.largest_batch(self.options.training.batch_size)

    def _speaker(self) -> Voice:
        return Voice(self.blend.model(), name=self.options.voice)

    def _score(self) -> Score:
        """Of the present weights; the same weights are not listened to twice."""
        step = self.trainer.place.step
        if self.last_score is None or self.last_score[0] != step:
            heard = self.listening
            vector = heard.speaker_vector
            score = score_voice(self._speaker(), heard.clips, self.reference, vector)
            self.last_score = (step, score)
        return self.last_score[1]

    def run(self) -> dict[str, Any]:
        """Trains to the end and judges; see `finetune.start`.

        The folder's last checkpoint is gone on from, if there is one.
        """
        started = time.monotonic()
        try:
            self._begin()
            with self._logs() as log:
                if log.scores.is_new:
                    log.scores.write(score_record(0, self.base_score))
                self._train(log)
            return self._finish(time.monotonic() - started)
        except KeyboardInterrupt as error:
            if not str(error):
                error.args = (f"stopped; go on with --resume {self.folder}",)
            raise

    def _begin(self) -> None:
        self.base_score = self._score()
        state = self.folder / CHECKPOINTS / LAST
        if state.is_file():
            self.trainer.restore(read_run_state(state), str(state))
            self.last_score = None
            self.screen.say(f"Resuming at step {self.trainer.place.step}.")
        self._keep_reference()
        self.saved_step = self.trainer.place.step
        is_over = self.saved_step >= self.trainer.total_steps  # yet it may be blended anew
        if is_over or not (state.is_file() and self.voice_file.is_file()):
            self._save()

    @property
    def voice_file(self) -> Path:
        return self.folder / f"{self.options.voice}.safetensors"

    def _keep_reference(self) -> None:
        """What the finished voice needs to speak in its own style."""
        for kept, source in ((REFERENCE, self.reference_wav), (SPEAKER_VECTOR, self.speaker_file)):
            if source is not None and not (self.folder / kept).is_file():
                with atomic_write(self.folder / kept) as file:
                    file.write(source.read_bytes())

    @contextmanager
    def _logs(self) -> Iterator[_Logs]:
        step = self.trainer.place.step
        with ExitStack() as stack:
            losses = stack.enter_context(closing(JsonLines(self.folder / LOSSES, step)))
            scores = stack.enter_context(closing(JsonLines(self.folder / SCORES, step)))
            board = None
            if self.options.tensorboard:
                board = stack.enter_context(closing(TensorBoard(self.folder / BOARD, step)))
            yield _Logs(losses, scores, board)

    def _train(self, log: _Logs) -> None:
        trainer, total = self.trainer, self.trainer.total_steps

        def is_due(step: int) -> bool:
            return step in (EARLY_STEP, total) or step % self.options.save_every == 0

        with _stop_on_interrupt() as interrupted:
            try:
                for record in trainer.steps(lambda step: is_due(step) or bool(interrupted)):
                    log.losses.write(record.values)
                    if log.board is not None:
                        log.board.write(record.values)
                    self.screen.step(record, total)
                    if trainer.is_ahead:
                        continue  # the weights are not those of this record
                    step = record.place.step
                    if is_due(step):
                        self._listen(log)
                    if is_due(step) or interrupted:
                        self._save()
                    if interrupted and step < total:
                        words = f"stopped at step {step}; go on with --resume {self.folder}"
                        raise RunInterrupted(words, interrupted[0])
            except TrainingStopped as stopped:
                raise UserError(
                    f"Training stopped itself: {stopped}. The weights of step {self.saved_step} "
                    f"are kept in {self.folder}; try a lower --lr-g and --lr-d"
                ) from stopped
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(self._describe_shortage()) from error

    def _describe(self, memory: int) -> str:
        """What a step needs and what would help where there are so many bytes of memory."""
        return describe_shortage(
            self.config,
            self._largest_batch(),
            memory,
            recomputes=self.trainer.recomputes,
            accumulate=self.options.training.accumulate,
        )

    def _describe_shortage(self) -> str:
        # Less than what was held when it ran out is what can be had.
        words = self._describe(mx.get_peak_memory())
        return (
            f"Memory ran out after step {self.trainer.place.step}: {words}. The weights of step "
            f"{self.saved_step} are kept in {self.folder}"
        )

    def _listen(self, log: _Logs) -> None:
        """Scores the present weights, and ends the run if the voice is gone."""
        score, step = self._score(), self.trainer.place.step
        if not math.isfinite(score.mel_distance + score.largest_sample):
            raise TrainingStopped("what the voice says is no longer sound", step)
        if score.largest_sample < COLLAPSE_RATIO * self.base_score.largest_sample:
            raise TrainingStopped(
                f"the voice fell silent (largest sample {score.largest_sample:,.0f} of 32,767, the "
                f"base's {self.base_score.largest_sample:,.0f})",
                step,
            )
        log.scores.write(score_record(step, score))
        if self.trainer.note_score(score.mel_distance):
            self._write_voice(self.folder / CHECKPOINTS / BEST)

    def _save(self) -> None:
        path = self.folder / CHECKPOINTS / LAST
        write_run_state(path, self.trainer.trees(), self.trainer.place)
        self._write_voice(self.voice_file)
        self.saved_step = self.trainer.place.step

    def _write_voice(self, path: Path) -> None:
        make_folder(path.parent)
        place = self.trainer.place
        info = f"{place.epoch}epoch_{place.step}iteration"
        state = state_of(self.blend.model())
        write_voice(path, state, self.config, info=info, name=self.options.voice)

    def _finish(self, seconds: float) -> dict[str, Any]:
        place = self.trainer.place
        exported = self.folder / f"{self.options.voice}_e{place.epoch}_s{place.step}.pth"
        self._write_voice(exported)
        if self.config.is_reduced:
            self.screen.say(
                f"{exported.name} comes from a small base and carries `reduced_dims`: mlx_vits "
                "opens it, GPT-SoVITS itself cannot."
            )
        final = self._score()
        self._write_samples(final)
        verdict = self._verdict(final, seconds)
        with atomic_write(self.folder / VERDICT) as file:
            file.write(json.dumps(verdict, indent=1).encode())
        report = write_report(self.folder)
        for words in (*verdict["words"], verdict["verdict"], f"Open {report}"):
            self.screen.say(words)
        return verdict

    def _write_samples(self, final: Score) -> None:
        folder, rate = self.folder / SAMPLES, self.config.data.sampling_rate
        make_folder(folder)
        kinds = zip(self.listening.clips, self.base_score.clips, final.clips, strict=True)
        for clip, base, tuned in kinds:
            stem = Path(clip.name).stem
            write_wav(folder / f"{stem}_recording.wav", clip.wav, rate)
            write_wav(folder / f"{stem}_base.wav", base.wav, rate)
            write_wav(folder / f"{stem}_finetuned.wav", tuned.wav, rate)

    def _verdict(self, final: Score, seconds: float) -> dict[str, Any]:
        drift = relative_drift(self.blend.model(), self.anchor)
        findings = [
            judge_loudness(self.base_score, final),
            judge_level(final),
            judge_mel_distance(self.base_score, final, self.listening.are_held_out),
            judge_drift(drift),
        ]
        place = self.trainer.place
        return {
            "verdict": conclude(findings),
            "words": [finding.words for finding in findings],
            "better_than_base": all(finding.passed for finding in findings),
            "findings": {f.name: {"passed": f.passed, "words": f.words} for f in findings},
            "voice": self.options.voice,
            "base": self.options.base.name,
            "base_is_reduced": self.config.is_reduced,
            "base_warning": self.base_warning,
            "version": self.config.version,
            "steps": place.step,
            "epochs": place.epoch,
            "seconds": round(seconds, 1),
            "options": asdict(self.options.training),
            "reference": self.listening.reference,
            "clips": [{"name": c.name, "text": c.text} for c in self.listening.clips],
            "clips_are_held_out": self.listening.are_held_out,
            "base_score": score_record(0, self.base_score),
            "final_score": score_record(place.step, final),
            "best": {"step": place.best_step, "mel_distance": place.best_score},
            "drift": drift,
        }


class _Logs(NamedTuple):
    losses: JsonLines
    scores: JsonLines
    board: TensorBoard | None


_FRESH_DISCRIMINATOR = (
    "There is no pretrained discriminator: a fresh one first has to learn, and judges badly for "
    "hundreds of steps. Give --pretrained-d with an s2D file."
)


def _small_base_warning(base: str) -> str:
    return (
        f"THE BASE {base!r} IS A SMALL ONE, FOR TRYING: expect a rough voice. For a full-size one "
        "run `mlx-vits download v2`, or give GPT-SoVITS's own files: --pretrained s2G.pth "
        "--pretrained-d s2D.pth --content-encoder chinese-hubert-base/"
    )
