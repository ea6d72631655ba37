"""Terminal output of the commands: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mlx_vits._backend import BLAS
from mlx_vits.checkpoints.run_info import Stage
from mlx_vits.errors import Interrupted, UserError
from mlx_vits.system.files import given_path
from mlx_vits.system.memory import address_limit, is_out_of_memory
from mlx_vits.system.signals import handle_signals, raise_interrupted
from mlx_vits.training.loop import StepRecord

Command = TypeVar("Command", bound=Callable[..., Any])
_SIGNALLED = 128  # plus the signal's number is what a shell reports: 130 for Ctrl-C
_NO_MEMORY = "memory ran out; close other programs, or give shorter recordings"
_RATE_STEPS, _FEWEST_TIMES = 20, 6  # that the shown rate is measured over


class _Shown(NamedTuple):
    """What is shown of a stage.

    Attributes:
        name: of the stage.
        losses: of a line.
        main: the one beside the bar.
        legend: what the losses are.
    """

    name: str
    losses: tuple[str, ...]
    main: str
    legend: str


_STAGES: dict[Stage, _Shown] = {
    "sovits": _Shown(
        "SoVITS",
        ("loss_total", "loss_mel", "loss_fm", "loss_gen", "loss_kl", "loss_d"),
        "loss_mel",
        "Shown: the sum of the generator's losses (total), its distance to the recordings as heard "
        "(mel) and as the discriminator sees it (fm), how well it is seen through (gen), text "
        "against sound (kl); the discriminator's loss (d), the pull to the base (reg).",
    ),
    "gpt": _Shown(
        "GPT",
        ("ce", "top3_accuracy", "loss_dpo", "grad_norm"),
        "ce",
        "Shown: cross-entropy of a code (ce), the share of codes among the first three guesses "
        "(top3), the norm of the gradient, the pull to the base (reg).",
    ),
}


def report_errors(command: Command) -> Command:
    """Turn a user's mistake into one sentence on standard error and exit status 1.

    SIGTERM and SIGHUP end the command as Ctrl-C does; the exit status is 143, 129 and 130.
    Options that are paths are checked first.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # file names may be in any encoding
                stream.reconfigure(errors="backslashreplace")
        try:
            with handle_signals(raise_interrupted):
                return command(*args, **{name: _given(value) for name, value in kwargs.items()})
        except UserError as error:
            _complain(f"error: {error}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            _complain(str(error) or "stopped.")
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            raise typer.Exit(_SIGNALLED + number) from error
        except OSError as error:
            if error.filename is None:
                raise
            # A fault of the disk that nothing closer to it has foreseen.
            fault = UserError(f"{error.filename}: {error.strerror}; check the path and its disk")
            _complain(f"error: {fault}")
            raise typer.Exit(1) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            _complain(f"error: {_NO_MEMORY}")
            raise typer.Exit(1) from error

    return wrapped  # type: ignore[return-value]


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(text, file=sys.stderr)


class _Console(Console):
    """A console that goes silent when its reader is gone, as after SIGHUP, and lets work go on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):
            # What Python writes at exit goes nowhere, too.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.on_broken_pipe()


def _given(value: Any) -> Any:
    """Check the paths in an option's value."""
    if isinstance(value, list):
        return [_given(item) for item in value]
    return given_path(value) if isinstance(value, Path) else value


def _plain(name: str) -> str:
    return name.removeprefix("loss_").removesuffix("_accuracy")


class TerminalScreen:
    """Report what a command does; a `Screen` of a fine-tune.

    Args:
        log_every: steps between two lines.
    """

    LOG_EVERY = 10

    def __init__(self, log_every: int = LOG_EVERY):
        self._log_every = log_every
        self._console = _Console(highlight=False)
        self._progress: Progress | None = None
        self._times: list[float] = []
        self._shown = _STAGES["sovits"]
        if BLAS.name == "wheel":
            self.warn(
                f"MLX runs on its own slow BLAS ({BLAS.note}): install libopenblas, or the package "
                "mkl on x86-64, for a speed up to forty times higher."
            )
        if limit := address_limit():
            self.warn(
                f"Addresses are limited to {limit / 1e9:.1f} GB (ulimit -v): where they run out, "
                "MLX crashes instead of saying so; raise the limit if it does."
            )

    def say(self, text: str) -> None:
        with self._console.writing():
            self._console.print(text, soft_wrap=True, markup=False)

    def warn(self, text: str) -> None:
        with self._console.writing():
            self._console.print(f"! {text}", style="bold yellow", soft_wrap=True, markup=False)

    def preparing(self, done: int, count: int, name: str) -> None:
        self.say(f"prepared {done}/{count}  {name}")

    def cutting(self, done: int, count: int, name: str) -> None:
        self.say(f"cut {done}/{count}  {name}")

    def listening(self, done: int, count: int, name: str) -> None:
        self.say(f"heard {done}/{count}  {name}")

    def stage(self, name: Stage, number: int, count: int) -> None:
        self._shown, self._times = _STAGES[name], []
        if count > 1:
            self.say(f"Stage {number} of {count}: {self._shown.name}")
        self.say(self._shown.legend)

    def step(self, record: StepRecord, total: int) -> None:
        now = time.monotonic()
        self._times = [*self._times[-_RATE_STEPS:], now]
        step, values = record.place.step, record.values
        if self._console.is_terminal:
            with self._console.writing():
                self._advance(step, total, values)
        if step % self._log_every and step != total:
            return
        losses = "  ".join(
            f"{_plain(name)} {values[name]:.3f}" for name in self._shown.losses if name in values
        )
        reg = f"reg {values['loss_reg']:.2e}"
        speed, rate = "", self._rate()
        if rate:
            speed = f"  {rate:.2f} steps/s  {(total - step) / rate:.0f} s left"
        self.say(f"step {step}/{total}  epoch {record.place.epoch}  {losses}  {reg}{speed}")

    def _rate(self) -> float:
        """Steps a second by the median of the last ones; 0 where there were too few.

        The first steps build and warm up, and a step that is scored is reported late.
        """
        if len(self._times) < _FEWEST_TIMES:
            return 0.0
        return 1 / max(float(np.median(np.diff(self._times))), 1e-9)

    def _advance(self, step: int, total: int, values: dict[str, float]) -> None:
        if self._progress is None:
            self._progress = Progress(
                TextColumn(f"training {self._shown.name}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}  {task.fields[rate]:.2f} steps/s"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._progress.start()
            self._progress.add_task("training", total=total, loss="", rate=0.0)
        task, main = self._progress.task_ids[0], self._shown.main
        loss = f"{_plain(main)} {values[main]:.2f}"
        self._progress.update(task, completed=step, loss=loss, rate=self._rate())
        if step == total:
            self.close()

    def close(self) -> None:
        """Remove the progress bar."""
        if self._progress is not None:
            with self._console.writing():
                self._progress.stop()
            self._progress = None
