"""One stage of a fine-tune: a trainer's steps, scored, saved and logged on the way."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_vits.checkpoints.run import RunState, read_run_state, write_run_state
from mlx_vits.errors import Interrupted, TrainingStopped, UserError
from mlx_vits.finetune.options import Screen
from mlx_vits.report.verdict import Finding
from mlx_vits.system.memory import is_out_of_memory
from mlx_vits.system.signals import handle_signals
from mlx_vits.training.log import JsonLines, TensorBoard
from mlx_vits.training.loop import TrainingLoop


class RunInterrupted(Interrupted):
    """A signal ended the run after everything was saved; the message says how to go on."""


class StageFiles(NamedTuple):
    """Where a stage writes.

    Attributes:
        state: everything that a resumed run needs.
        parts: whose trees it holds, see `read_run_state`.
        losses, scores: one JSON object a line.
        board: folder of TensorBoard's files; None for none.
        tags: TensorBoard's names of what is logged, by our own.
    """

    state: Path
    parts: tuple[str, ...]
    losses: Path
    scores: Path
    board: Path | None
    tags: Mapping[str, str]


class StageResult(NamedTuple):
    """What a stage has to say at its end.

    Attributes:
        findings: in the order in which they are shown.
        record: its part of `verdict.json`.
        steps: taken since the last start.
    """

    findings: list[Finding]
    record: dict[str, Any]
    steps: int = 0


class _Logs(NamedTuple):
    losses: JsonLines
    scores: JsonLines
    board: TensorBoard | None


class Stage(ABC):
    """Trains to the end, from the last saved state if there is one.

    Args:
        folder: the run's.
        trainer: with the base's weights.
        files: where it writes.
        screen: where progress is reported.

    Attributes:
        saved_step: of the last saved state.
        rates: options that a user may lower where training stops itself.
    """

    rates: str

    def __init__(self, folder: Path, trainer: TrainingLoop[Any], files: StageFiles, screen: Screen):
        self.folder, self.trainer, self.files, self.screen = folder, trainer, files, screen
        self.saved_step = 0

    def run(self) -> StageResult:
        """Train to the end, and judge.

        Raises:
            UserError: training stopped itself, memory ran out, or a file cannot be written.
            RunInterrupted: a signal asked for it.
        """
        base = self._score_base()
        if self.files.state.is_file():
            state = read_run_state(self.files.state, parts=self.files.parts)
            self._restore(state)
        self.saved_step = begun = self.trainer.place.step
        self._prepare()
        with self._logs() as log:
            if log.scores.is_new:
                log.scores.write(base)
            self._train(log)
        return self._finish()._replace(steps=self.trainer.place.step - begun)

    @abstractmethod
    def _score_base(self) -> dict[str, Any]:
        """Score the weights before the first step; a line of the scores."""

    @abstractmethod
    def _restore(self, state: RunState) -> None:
        """Continue where a state was taken."""

    @abstractmethod
    def _prepare(self) -> None:
        """Write what has to be there before the first step."""

    @abstractmethod
    def _scores_at(self, step: int) -> bool:
        """Whether the weights after a step are scored."""

    @abstractmethod
    def _saves_at(self, step: int) -> bool:
        """Whether the state after a step is saved."""

    @abstractmethod
    def _score(self) -> dict[str, Any]:
        """Score the present weights, and keep them if they are the best; a line of the scores.

        Raises:
            TrainingStopped: there is nothing left that would be worth training.
        """

    @abstractmethod
    def _write_weights(self) -> None:
        """Write the present weights as others read them, beside the state."""

    @abstractmethod
    def _finish(self) -> StageResult:
        """Write what is left behind at the end, and judge it."""

    @abstractmethod
    def _describe_memory(self, memory: int) -> str:
        """Describe what a step needs, and what would help with so many bytes of memory."""

    @contextmanager
    def _logs(self) -> Iterator[_Logs]:
        step, files = self.trainer.place.step, self.files
        with ExitStack() as stack:
            losses = stack.enter_context(closing(JsonLines(files.losses, step)))
            scores = stack.enter_context(closing(JsonLines(files.scores, step)))
            board = None
            if files.board is not None:
                board = stack.enter_context(closing(TensorBoard(files.board, step, files.tags)))
            yield _Logs(losses, scores, board)

    def _train(self, log: _Logs) -> None:
        try:
            with _stop_on_interrupt() as interrupted:
                self._take_steps(log, interrupted)
        except TrainingStopped as stopped:
            raise UserError(
                f"Training stopped itself: {stopped}. {self._kept()}; try a lower {self.rates}"
            ) from stopped
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # What was held when it ran out is more than can be had.
            words = self._describe_memory(mx.get_peak_memory())
            raise UserError(
                f"Memory ran out after step {self.trainer.place.step}: {words}. {self._kept()}"
            ) from error

    def _kept(self) -> str:
        return f"The weights of step {self.saved_step} are kept in {self.folder}"

    def _take_steps(self, log: _Logs, interrupted: list[int]) -> None:
        """Train to the end, or to the step after a signal."""
        trainer, total = self.trainer, self.trainer.total_steps

        def settles(step: int) -> bool:
            return self._scores_at(step) or self._saves_at(step) or bool(interrupted)

        for record in trainer.steps(settles):
            log.losses.write(record.values)
            if log.board is not None:
                log.board.write(record.values)
            self.screen.step(record, total)
            if trainer.is_ahead:
                continue  # the weights are not those of this record
            step = record.place.step
            if self._scores_at(step):
                log.scores.write(self._score())
            if self._saves_at(step) or interrupted:
                self._save()
            if interrupted and step < total:
                words = f"stopped at step {step}; go on with --resume {self.folder}"
                raise RunInterrupted(words, interrupted[0])

    def _save(self) -> None:
        write_run_state(self.files.state, self.trainer.trees(), self.trainer.place)
        self._write_weights()
        self.saved_step = self.trainer.place.step


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
