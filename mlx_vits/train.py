"""Fine-tune a voice from the command line.

python -m mlx_vits.train --data-dir my_clips/ --output runs/me
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, cast

import typer

from mlx_vits import finetune
from mlx_vits.arguments.finetune import FinetuneArguments, RunArguments
from mlx_vits.arguments.groups import grouped, option
from mlx_vits.checkpoints.base import DEMO, weights_home
from mlx_vits.checkpoints.run_info import RUNS, Stage, find_run, is_run
from mlx_vits.checkpoints.upstream_run import read_upstream_run, resume_files
from mlx_vits.finetune.data import find_voice_data
from mlx_vits.finetune.options import (
    RESUME_OPTIONS,
    TAKE_OVER_OPTIONS,
    FinetuneOptions,
    gpt_options,
    override,
    suggested_options,
)
from mlx_vits.finetune.scratch import REFUSED, scratch_training
from mlx_vits.finetune.takeover import options_for
from mlx_vits.report.terminal import TerminalScreen, report_errors
from mlx_vits.training.t2s_trainer import T2STrainingConfig
from mlx_vits.training.vits_trainer import VITSTrainingConfig


@report_errors
@grouped
def main(
    given: FinetuneArguments,
    resume: Annotated[
        Path | None,
        option(
            "Continue the run in this folder, ours or GPT-SoVITS's logs/NAME/logs_s2_VERSION.",
            rich_help_panel=RunArguments.panel,
        ),
    ] = None,
    log_every: Annotated[
        int | None,
        option(
            "Steps between lines on screen.",
            TerminalScreen.LOG_EVERY,
            min=1,
            rich_help_panel=RunArguments.panel,
        ),
    ] = None,
) -> None:
    """Fine-tune a GPT-SoVITS voice from about one minute of speech."""
    given.training.check()
    given.gpt.check()
    with closing(TerminalScreen(log_every or TerminalScreen.LOG_EVERY)) as screen:
        resume = find_run(resume) if resume else None
        if resume is None:
            _start(given, screen)
        elif not is_run(resume) and resume_files(resume) is not None:
            _take_over(resume, given, screen)
        else:
            given.refuse_all_but(RESUME_OPTIONS, "cannot be changed when a run is resumed")
            finetune.resume(resume, screen, **given.given())


def _start(given: FinetuneArguments, screen: TerminalScreen) -> None:
    name, folder = find_voice_data(
        given.voice.voice,
        given.voice.data_dir,
        given.recordings.options(given.clips),
        screen,
        transcripts=given.clips.transcripts,
    )
    is_demo = folder.resolve() == (weights_home() / DEMO / "voice").resolve()
    base = given.base.choose(for_demo=is_demo)
    config = given.base.from_scratch
    if config is not None:
        allowed = set(given.given()) - set(REFUSED)
        given.refuse_all_but(allowed, "cannot be chosen with --from-scratch")
        suggested = scratch_training(config)
    else:
        suggested = suggested_options(base.generator) | suggested_options(folder)
    gpt_training = gpt_options(suggested | given.given())
    suggested.pop("gpt_epochs", None)
    training = override(suggested, given.training.given())
    options = FinetuneOptions(
        voice=name,
        data=folder,
        base=base,
        output=given.voice.output or RUNS / name,
        from_scratch=config,
        training=VITSTrainingConfig(**training),
        stage=cast(Stage | None, given.gpt.stage) if config is None else "sovits",
        gpt_training=T2STrainingConfig(**gpt_training),
        **given.clips.given(),
        **given.run.given(),
    )
    judge, parts = options.base.discriminator, given.base
    if parts.pretrained is not None and parts.pretrained_d is None and judge is not None:
        screen.say(f"The discriminator beside --pretrained is used as well: {judge}.")
    finetune.start(options, screen)


def _take_over(folder: Path, given: FinetuneArguments, screen: TerminalScreen) -> None:
    """Continue a run of GPT-SoVITS as one of our own."""
    words = "cannot be chosen when a run of GPT-SoVITS is resumed"
    given.refuse_all_but(TAKE_OVER_OPTIONS, words)
    run = read_upstream_run(folder)
    options = options_for(folder, run, given.given())
    for note in run.notes:
        screen.warn(note)
    rates = options.training
    screen.say(
        f"{run.path.name}: {run.iteration} epochs are done; continuing at the learning rates "
        f"{rates.lr_g:g} and {rates.lr_d:g} before decay."
    )
    finetune.take_over(options, run, screen)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    app()
