"""One fine-tune, from nets to verdict: train, listen, save, judge, report."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_vits.checkpoints.run import BEST, CHECKPOINTS, LAST, read_run_state, write_run_state
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.voice_file import write_voice
from mlx_vits.config import Config
from mlx_vits.errors import Interrupted, TrainingStopped, UserError
from mlx_vits.finetune.first_words import keep_prompt, say_new_sentence, speak_command
from mlx_vits.finetune.judging import Judge
from mlx_vits.finetune.nets import Nets
from mlx_vits.finetune.options import FinetuneOptions, Screen
from mlx_vits.report.results import SAMPLES, VERDICT
from mlx_vits.report.verdict import score_record
from mlx_vits.report.writing import write_report
from mlx_vits.system.files import atomic_write, inside, make_folder, sweep
from mlx_vits.system.memory import is_out_of_memory
from mlx_vits.system.signals import handle_signals
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.blending import Blend
from mlx_vits.training.footprint import describe_shortage, is_short, usable_memory
from mlx_vits.training.log import LOSSES, SCORES, JsonLines, TensorBoard
from mlx_vits.training.regularization import take_anchor
from mlx_vits.training.vits_trainer import VITSTrainer, freeze_for

BOARD = "tensorboard"  # within a run's folder
EARLY_STEP = 50  # scored whatever the interval: a broken fine-tune is silent by then


class RunInterrupted(Interrupted):
    """A signal ended the run after everything was saved; the message says how to go on."""


class _Logs(NamedTuple):
    losses: JsonLines
    scores: JsonLines
    board: TensorBoard | None


class FinetuneRun:
    """One fine-tune whose data is prepared and whose nets are loaded.

    Args:
        options: how; `output` is the run's folder.
        config: of the model.
        nets: with the base's weights.
        voice: the prepared clips.
        screen: where progress is reported.
    """

    def __init__(
        self,
        options: FinetuneOptions,
        config: Config,
        nets: Nets,
        voice: PreparedVoice,
        screen: Screen,
    ):
        self.options, self.config, self.voice, self.screen = options, config, voice, screen
        self.folder, training = options.output, options.training
        for name in (CHECKPOINTS, SAMPLES, BOARD):
            inside(self.folder, name)
        sweep(voice.folder)  # it may lie elsewhere, and other runs write its spectrograms
        base_warning = _small_base_warning(options.base.name) if config.is_reduced else ""
        if options.base.discriminator is None:
            screen.warn(_FRESH_DISCRIMINATOR)
        if base_warning:
            screen.warn(base_warning)
        freeze_for(nets.generator, training.train)
        anchor = take_anchor(nets.generator)
        self.blend = Blend(nets.generator, training.blend, training.blend_prior)
        self.trainer = VITSTrainer(*nets, voice, training, anchor)
        self._advise()
        self.judge = Judge(options, config, voice.folder, self.blend, anchor, base_warning)
        self.voice_file = self.folder / f"{options.voice}.safetensors"
        self.saved_step = 0

    def run(self) -> dict[str, Any]:
        """Train to the end and judge, from the folder's last checkpoint if there is one.

        Returns:
            The verdict, as written to `verdict.json`.

        Raises:
            UserError: training stopped itself, memory ran out, or a file cannot be written.
            RunInterrupted: a signal asked for it.
        """
        started = time.monotonic()
        try:
            self._begin()
            with self._logs() as log:
                if log.scores.is_new:
                    log.scores.write(score_record(0, self.judge.base_score))
                self._train(log)
            return self._finish(time.monotonic() - started)
        except KeyboardInterrupt as error:
            if not str(error):
                error.args = (f"stopped; go on with --resume {self.folder}",)
            raise

    def _begin(self) -> None:
        self.judge.listen_to_base()
        state = self.folder / CHECKPOINTS / LAST
        if state.is_file():
            self.trainer.restore(read_run_state(state), str(state))
            self.screen.say(f"Resuming at step {self.trainer.place.step}.")
        self.judge.keep_reference(self.folder)
        keep_prompt(
            self.folder, self.voice.folder, self.judge.style, self.options.language, self.screen
        )
        self.saved_step = self.trainer.place.step
        is_over = self.saved_step >= self.trainer.total_steps  # its blend may have changed
        if is_over or not (state.is_file() and self.voice_file.is_file()):
            self._save()

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
        try:
            with _stop_on_interrupt() as interrupted:
                self._take_steps(log, interrupted)
        except TrainingStopped as stopped:
            raise UserError(
                f"Training stopped itself: {stopped}. The weights of step {self.saved_step} "
                f"are kept in {self.folder}; try a lower --lr-g and --lr-d"
            ) from stopped
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # What was held when it ran out is more than can be had.
            words = self._describe(mx.get_peak_memory())
            raise UserError(
                f"Memory ran out after step {self.trainer.place.step}: {words}. The weights of "
                f"step {self.saved_step} are kept in {self.folder}"
            ) from error

    def _take_steps(self, log: _Logs, interrupted: list[int]) -> None:
        """Train to the end, or to the step after a signal."""
        trainer, total = self.trainer, self.trainer.total_steps

        def is_due(step: int) -> bool:
            return step in (EARLY_STEP, total) or step % self.options.save_every == 0

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

    def _listen(self, log: _Logs) -> None:
        """Score the present weights, and end the run if the voice is gone."""
        step = self.trainer.place.step
        score = self.judge.score(step)
        self.judge.check(score, step)
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
        final = self.judge.score(place.step)
        self.judge.write_samples(final, self.folder)
        verdict = self.judge.verdict(final, place, seconds)
        said = say_new_sentence(self.folder, self.config.version, self.screen)
        verdict["new_sentence"] = said
        with atomic_write(self.folder / VERDICT) as file:
            file.write(json.dumps(verdict, indent=1).encode())
        report = write_report(self.folder)
        for words in (*verdict["words"], verdict["verdict"], f"Open {report}"):
            self.screen.say(words)
        if said is not None:
            self.screen.say(f"Hear it say what you like: {speak_command(self.folder)}")
        return verdict

    def _advise(self) -> None:
        """Say before the first step what the voice will be, and that memory may run out."""
        if words := self.blend.describe():
            self.screen.say(words)
        training, recomputes = self.options.training, self.trainer.recomputes
        memory, clips = usable_memory(), self.voice.largest_batch(training.batch_size)
        if recomputes and training.checkpoint_activations == "auto":
            self.screen.say("Memory is short: activations are computed twice instead of kept.")
        if is_short(self.config, clips, memory, recomputes=recomputes):
            self.screen.warn(f"Memory may run out: {self._describe(memory)}.")

    def _describe(self, memory: int) -> str:
        """Describe what a step needs, and what would help with so many bytes of memory."""
        training = self.options.training
        return describe_shortage(
            self.config,
            self.voice.largest_batch(training.batch_size),
            memory,
            recomputes=self.trainer.recomputes,
            accumulate=training.accumulate,
        )


@contextmanager
def _stop_on_interrupt() -> Iterator[list[int]]:
    """Collect Ctrl-C, SIGTERM and SIGHUP instead of being ended by them.

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
