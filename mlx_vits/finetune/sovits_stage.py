"""The SoVITS stage: how the voice sounds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_vits.checkpoints.run import BEST, CHECKPOINTS, LAST, VITS_PARTS, RunState
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.voice_file import write_voice
from mlx_vits.config import Config
from mlx_vits.finetune.first_words import keep_references
from mlx_vits.finetune.judging import Judge
from mlx_vits.finetune.nets import Nets
from mlx_vits.finetune.options import FinetuneOptions, Screen
from mlx_vits.finetune.stage import Stage, StageFiles, StageResult
from mlx_vits.report.verdict import score_record
from mlx_vits.system.files import make_folder
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.blending import Blend
from mlx_vits.training.footprint import describe_shortage, is_short, usable_memory
from mlx_vits.training.log import BOARD, LOSSES, SCORES, SOVITS_TAGS
from mlx_vits.training.regularization import take_anchor
from mlx_vits.training.vits_trainer import VITSTrainer, freeze_for

EARLY_STEP = 50  # scored whatever the interval: a broken fine-tune is silent by then


class SoVITSStage(Stage):
    """Trains generator and discriminator.

    Args:
        options: how; `output` is the run's folder.
        config: of the model.
        nets: with the base's weights.
        voice: the prepared clips.
        screen: where progress is reported.
    """

    rates = "--lr-g and --lr-d"
    trainer: VITSTrainer

    def __init__(
        self,
        options: FinetuneOptions,
        config: Config,
        nets: Nets,
        voice: PreparedVoice,
        screen: Screen,
    ):
        self.options, self.config, self.voice = options, config, voice
        folder, training = options.output, options.training
        if options.base.discriminator is None and options.from_scratch is None:
            screen.warn(_FRESH_DISCRIMINATOR)
        freeze_for(nets.generator, training.train)
        anchor = take_anchor(nets.generator)
        self.blend = Blend(nets.generator, training.blend, training.blend_prior)
        files = StageFiles(
            folder / CHECKPOINTS / LAST,
            VITS_PARTS,
            folder / LOSSES,
            folder / SCORES,
            folder / BOARD if options.tensorboard else None,
            SOVITS_TAGS,
        )
        super().__init__(folder, VITSTrainer(*nets, voice, training, anchor), files, screen)
        self._advise()
        self.judge = Judge(options, config, voice.folder, self.blend, anchor)
        self.voice_file = folder / f"{options.voice}.safetensors"

    def _score_base(self) -> dict[str, Any]:
        self.judge.listen_to_base()
        return score_record(0, self.judge.base_score)

    def _restore(self, state: RunState) -> None:
        self.trainer.restore(state, str(self.files.state))
        self.screen.say(f"Resuming at step {self.trainer.place.step}.")

    def _prepare(self) -> None:
        language = self.options.language
        keep_references(self.folder, self.voice.folder, self.config, language, self.screen)
        is_over = self.saved_step >= self.trainer.total_steps  # its blend may have changed
        if is_over or not (self.files.state.is_file() and self.voice_file.is_file()):
            self._save()

    def _scores_at(self, step: int) -> bool:
        return step in (EARLY_STEP, self.trainer.total_steps) or step % self.options.save_every == 0

    def _saves_at(self, step: int) -> bool:
        return self._scores_at(step)

    def _score(self) -> dict[str, Any]:
        step = self.trainer.place.step
        score = self.judge.score(step)
        self.judge.check(score, step)
        if self.trainer.note_score(score.mel_distance):
            self._write_voice(self.folder / CHECKPOINTS / BEST)
        return score_record(step, score)

    def _write_weights(self) -> None:
        self._write_voice(self.voice_file)

    def _write_voice(self, path: Path) -> None:
        make_folder(path.parent)
        place = self.trainer.place
        info = f"{place.epoch}epoch_{place.step}iteration"
        state = state_of(self.blend.model())
        write_voice(path, state, self.config, info=info, name=self.options.voice)

    def _finish(self) -> StageResult:
        place = self.trainer.place
        exported = self.folder / f"{self.options.voice}_e{place.epoch}_s{place.step}.pth"
        self._write_voice(exported)
        if self.config.is_reduced:
            self.screen.say(
                f"{exported.name} comes from a small base and carries `reduced_dims`: mlx_vits "
                "opens it, GPT-SoVITS itself cannot."
            )
        final = self.judge.score(place.step)
        self.judge.write_samples(final, self.folder)
        training = {"options": asdict(self.options.training)}
        findings = self.judge.findings(final, place.step)
        return StageResult(findings, self.judge.record(final, place) | training)

    def _advise(self) -> None:
        """Say before the first step what the voice will be, and that memory may run out."""
        if words := self.blend.describe():
            self.screen.say(words)
        training, recomputes = self.options.training, self.trainer.recomputes
        memory, clips = usable_memory(), self.voice.largest_batch(training.batch_size)
        if recomputes and training.checkpoint_activations == "auto":
            self.screen.say("Memory is short: activations are computed twice instead of kept.")
        if is_short(self.config, clips, memory, recomputes=recomputes):
            self.screen.warn(f"Memory may run out: {self._describe_memory(memory)}.")

    def _describe_memory(self, memory: int) -> str:
        training = self.options.training
        return describe_shortage(
            self.config,
            self.voice.largest_batch(training.batch_size),
            memory,
            recomputes=self.trainer.recomputes,
            accumulate=training.accumulate,
        )


_FRESH_DISCRIMINATOR = (
    "There is no pretrained discriminator: a fresh one first has to learn, and judges badly for "
    "hundreds of steps. Give --pretrained-d with an s2D file."
)
