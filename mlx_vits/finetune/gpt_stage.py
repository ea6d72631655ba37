"""The GPT stage: how the voice reads a text.

Held-out clips say after every epoch how well new speech of the voice is foretold. A GPT learns a
minute of speech by heart within a few epochs, so the one that speaks is that of the best epoch;
where no clip is held out, it is the last. The run keeps it in `gpt/`, in full precision. For
GPT-SoVITS both the best and the last are exported as `NAME-eE.ckpt`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mlx_vits.checkpoints.gpt_file import GPT_FOLDER, GPTFile, load_gpt_model, read_gpt, write_gpt
from mlx_vits.checkpoints.run import CHECKPOINTS, GPT_LAST, T2S_PARTS, RunState
from mlx_vits.checkpoints.state_dict import load_state, state_of
from mlx_vits.config import T2SConfig
from mlx_vits.errors import TrainingStopped, UserError
from mlx_vits.finetune.gpt_judging import GPTJudge, gpt_score_record
from mlx_vits.finetune.options import FinetuneOptions, Screen
from mlx_vits.finetune.stage import Stage, StageFiles, StageResult
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.gpt_data import make_gpt_data
from mlx_vits.synthesis.fitting import LANGUAGES_KEY, check_fits
from mlx_vits.training.footprint import exceeds, usable_memory
from mlx_vits.training.log import GPT_BOARD, GPT_LOSSES, GPT_SCORES, GPT_TAGS
from mlx_vits.training.regularization import take_anchor
from mlx_vits.training.t2s_batches import T2SVoice
from mlx_vits.training.t2s_footprint import T2SClips, describe_t2s_shortage, estimate_t2s_peak
from mlx_vits.training.t2s_rows import count_reasons
from mlx_vits.training.t2s_step import CodeScore
from mlx_vits.training.t2s_trainer import T2STrainer


def read_pretrained_gpt(options: FinetuneOptions, model: SynthesizerTrn) -> GPTFile:
    """Read the GPT that is to be trained, if it goes with the base.

    Args:
        model: the base's generator.

    Raises:
        UserError: there is none, its file is damaged, or it is of another version or codebook.
    """
    path = options.gpt
    file = read_gpt(path, version=model.config.version)
    check_fits(file.config, model, options.base.name, path)
    return file


def prepare_gpt_stage(
    options: FinetuneOptions, folder: Path, model: SynthesizerTrn, screen: Screen
) -> None:
    """Make what the GPT is trained on, and check that there is a clip to train on.

    Args:
        folder: the prepared one.
        model: the base's generator.

    Raises:
        UserError: something is missing or damaged, or no clip is left.
    """
    file = read_pretrained_gpt(options, model)
    load_gpt_model(file, consume=True)  # says what is wrong with its weights
    make_gpt_data(folder, model, screen.say)
    voice = _voice(folder, model.config.version, file.config, options)
    for words in count_reasons(voice.left_out):
        screen.warn(f"For the GPT, {words}")


def check_languages(options: FinetuneOptions, folder: Path) -> None:
    """Refuse a GPT that has heard languages, but not those of the voice.

    Args:
        folder: the prepared one.

    Raises:
        UserError: it has not, or there is no GPT.
    """
    heard = read_gpt(options.gpt).config.extra.get(LANGUAGES_KEY) or []
    unheard = sorted(_languages(folder) - set(heard)) if heard else []
    if unheard:
        raise UserError(
            f"{options.gpt}: has heard {', '.join(heard)} alone, and the voice speaks "
            f"{', '.join(unheard)}; --stage both trains it all the same"
        )


def _languages(folder: Path) -> set[str]:
    manifest = layout.Manifest.read(folder)
    sources = manifest.sources if manifest else ()
    return {clip.language.removeprefix("all_") for clip in sources}


def _voice(folder: Path, version: str, config: T2SConfig, options: FinetuneOptions) -> T2SVoice:
    training = options.gpt_training
    return T2SVoice(folder, version, eos=config.EOS, dpo=training.dpo, compat=training.compat)


class GPTStage(Stage):
    """Trains the GPT.

    Args:
        options: how; `output` is the run's folder.
        prepared: the prepared folder, with codes.
        version: of the voice.
        screen: where progress is reported.
    """

    rates = "--gpt-lr"
    trainer: T2STrainer

    def __init__(self, options: FinetuneOptions, prepared: Path, version: str, screen: Screen):
        self.options = options
        file = read_gpt(options.gpt, version=version)
        self.config = _with_languages(file.config, prepared)
        model = load_gpt_model(file, consume=True)
        voice = _voice(prepared, version, file.config, options)
        self.judge = GPTJudge(voice, version)
        folder = options.output
        files = StageFiles(
            folder / CHECKPOINTS / GPT_LAST,
            T2S_PARTS,
            folder / GPT_LOSSES,
            folder / GPT_SCORES,
            folder / GPT_BOARD if options.tensorboard else None,
            GPT_TAGS,
        )
        training = options.gpt_training
        trainer = T2STrainer(model, voice, training, take_anchor(model))
        super().__init__(folder, trainer, files, screen)
        self._advise()

    def _score_base(self) -> dict[str, Any]:
        self.judge.base_score = self.judge.score(self.trainer.model)
        if self.judge.are_held_out:
            self.trainer.note_score(self.judge.base_score.ce)  # which is to be surpassed
        return gpt_score_record(0, 0, self.judge.base_score)

    def _prepare(self) -> None:
        """Nothing: until the first score the base's GPT speaks."""

    def _restore(self, state: RunState) -> None:
        self.trainer.restore(state, str(self.files.state))
        self.screen.say(f"Resuming the GPT at step {self.trainer.place.step}.")

    def _scores_at(self, step: int) -> bool:
        return step % self.trainer.steps_per_epoch == 0 or step == self.trainer.total_steps

    def _saves_at(self, step: int) -> bool:
        return self.trainer.saves_at(step)

    def _score(self) -> dict[str, Any]:
        place = self.trainer.place
        score = self._listen()
        if not score.ce < float("inf"):
            raise TrainingStopped("what the GPT foretells is no longer a number", place.step)
        if self.judge.are_held_out and self.trainer.note_score(score.ce):
            self._write_gpt(self.folder / GPT_FOLDER)
        return gpt_score_record(place.step, place.epoch, score)

    def _listen(self) -> CodeScore:
        return self.judge.score(self.trainer.model)

    def _write_weights(self) -> None:
        if not self.judge.are_held_out:
            self._write_gpt(self.folder / GPT_FOLDER)

    def _write_gpt(self, path: Path) -> None:
        state = state_of(self.trainer.model)
        write_gpt(path, state, self.config, info=f"GPT-e{self.trainer.place.epoch}")

    def _finish(self) -> StageResult:
        place = self.trainer.place
        last = final = self._listen()
        self._write_gpt(self._export_path(place.epoch))
        step, epoch = place.step, place.epoch
        if self.judge.are_held_out and place.best_step != step:
            step, epoch = place.best_step, place.best_step // self.trainer.steps_per_epoch
            if step:
                final = self._take_best(epoch)
        finding = self.judge.finding(final)
        if not step:
            finding = finding._replace(words=f"{finding.words} So the base's GPT goes on speaking.")
        return StageResult([finding], {"gpt": self._record(epoch, last, final)})

    def _take_best(self, epoch: int) -> CodeScore:
        """Go back to the weights of the best epoch, and export them as well."""
        best = read_gpt(self.folder / GPT_FOLDER)
        load_state(self.trainer.model, best.tensors, source=str(best.source), consume=True)
        state = state_of(self.trainer.model)
        write_gpt(self._export_path(epoch), state, self.config, info=best.info)
        return self._listen()

    def _export_path(self, epoch: int) -> Path:
        return self.folder / f"{self.options.voice}-e{epoch}.ckpt"

    def _record(self, epoch: int, last: CodeScore, final: CodeScore) -> dict[str, Any]:
        place, per_epoch = self.trainer.place, self.trainer.steps_per_epoch
        return {
            "base": self.options.gpt.name,
            "steps": place.step,
            "epochs": place.epoch,
            "speaks": epoch,
            "clips": self.judge.names,
            "clips_are_held_out": self.judge.are_held_out,
            "base_score": gpt_score_record(0, 0, self.judge.base_score),
            "final_score": gpt_score_record(epoch * per_epoch, epoch, final),
            "last_score": gpt_score_record(place.step, place.epoch, last),
            "options": asdict(self.options.gpt_training),
        }

    def _advise(self) -> None:
        """Say before the first step that memory may run out."""
        memory, clips = usable_memory(), self._largest_batch()
        trainer, wish = self.trainer, self.options.gpt_training.checkpoint_activations
        if trainer.recomputes and wish == "auto":
            self.screen.say("Memory is short: the GPT's layers are computed twice, not kept.")
        if exceeds(memory, self._peak(clips)):
            self.screen.warn(f"Memory may run out: {self._describe_memory(memory)}.")

    def _largest_batch(self) -> T2SClips:
        return self.trainer.voice.largest_batch(self.trainer.batch_size)

    def _peak(self, clips: T2SClips) -> int:
        training = self.options.gpt_training
        return estimate_t2s_peak(
            self.config,
            clips,
            recomputes=self.trainer.recomputes,
            is_anchored=training.is_pulled,
            dpo=training.dpo,
        )

    def _describe_memory(self, memory: int) -> str:
        return describe_t2s_shortage(self._peak, self._largest_batch(), memory)


def _with_languages(config: T2SConfig, prepared: Path) -> T2SConfig:
    """A configuration that lists the voice's languages as well, if it lists any."""
    heard = config.extra.get(LANGUAGES_KEY)
    if not heard:
        return config
    languages = sorted({*heard, *_languages(prepared)})
    return replace(config, extra=dict(config.extra) | {LANGUAGES_KEY: languages})
