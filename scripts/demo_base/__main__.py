"""`python -m scripts.demo_base`: the demo's base, from recordings to a folder."""

from __future__ import annotations

import json
import shutil
from enum import Enum
from pathlib import Path

import mlx_vits  # noqa: F401  (chooses the BLAS before mlx is imported)
import mlx.core as mx
import typer

from mlx_vits.accel.compilation import stop_fusing
from mlx_vits.errors import UserError
from mlx_vits.system.files import make_folder
from mlx_vits.report.terminal import report_errors
from scripts.demo_base.alignment import align_stage
from scripts.demo_base.assemble import assemble_stage
from scripts.demo_base.codebook import codebook_stage
from scripts.demo_base.distil import distil_stage
from scripts.demo_base.melody import melody_stage
from scripts.demo_base.prepare import prepare
from scripts.demo_base.probe import probe_stage
from scripts.demo_base.running import Clock
from scripts.demo_base.settings import CONFIG, Settings, read_settings
from scripts.demo_base.store import say
from scripts.demo_base.teach import teach
from scripts.demo_base.train import train_stage


class Stage(str, Enum):
    """The stages, in their order."""

    prepare = "prepare"
    teach = "teach"
    align = "align"
    melody = "melody"
    distil = "distil"
    codebook = "codebook"
    train = "train"
    assemble = "assemble"
    probe = "probe"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@report_errors
def main(
    stages: list[Stage] = typer.Argument(None, help="Which; all of them if none is named."),
    voices: Path = typer.Option(..., help="Folder with kathleen/, kokoro/ and ljspeech/."),
    teacher: Path = typer.Option(..., help="whisper_base_encoder.safetensors."),
    work: Path = typer.Option(Path("runs/demo_base"), help="Folder of everything that is made."),
    config: Path = typer.Option(CONFIG, help="The settings."),
    minutes: float = typer.Option(None, help="Stop after so long; run again to go on."),
    fit: bool = typer.Option(
        False, help="Fewer steps of `train` if they do not fit into --minutes."
    ),
) -> None:
    """Makes the demo's base. What is there already is kept: run again to go on."""
    settings = read_settings(config)
    if fit and minutes is None:
        raise UserError("--fit needs the time that there is: give --minutes")
    if not voices.is_dir():
        raise UserError(f"{voices}: there is no such folder; give --voices the folder of voices")
    if not teacher.is_file():
        raise UserError(f"{teacher}: there is no such file; give --teacher Whisper-base's encoder")
    make_folder(work)
    settings = keep_settings(settings, work, fit)
    if settings.compiled and mx.cuda.is_available():
        stop_fusing()
    clock = Clock(minutes)
    say(f"{work} on {mx.default_device()}, MLX {mx.__version__}")
    for stage in [stage for stage in Stage if not stages or stage in stages]:
        say(f"stage {stage.value}")
        if not run_stage(stage, voices, teacher, work, settings, clock, fit):
            say("time is up; run again to go on")
            return
        settings = read_settings(work / "config.json")  # `train` may have made its steps fewer


def run_stage(
    stage: Stage,
    voices: Path,
    teacher: Path,
    work: Path,
    settings: Settings,
    clock: Clock,
    fit: bool = False,
) -> bool:
    """Runs one stage; whether it is done."""
    if stage is Stage.distil:
        return distil_stage(work, settings, clock)
    if stage is Stage.train:
        return train_stage(teacher, work, settings, clock, fit)
    if stage is Stage.prepare:
        prepare(voices, teacher, work, settings)
    elif stage is Stage.teach:
        teach(teacher, work, settings)
    elif stage is Stage.align:
        align_stage(work, settings)
    elif stage is Stage.melody:
        melody_stage(work, settings)
    elif stage is Stage.codebook:
        codebook_stage(work, settings)
    elif stage is Stage.assemble:
        assemble_stage(work, settings)
    else:
        probe_stage(work, settings)
    return not clock.is_over()


def keep_settings(settings: Settings, work: Path, fit: bool) -> Settings:
    """Puts the settings beside what is made with them; those of the work folder.

    Args:
        fit: whether the folder may have been begun with fewer steps of `train`.

    Raises:
        UserError: the folder was begun with others.
    """
    kept = work / "config.json"
    if not kept.is_file():
        shutil.copyfile(settings.source, kept)
    given, begun = (json.loads(p.read_text(encoding="utf-8")) for p in (settings.source, kept))
    if fit and begun["train"]["steps"] < given["train"]["steps"]:
        given["train"]["steps"] = begun["train"]["steps"]
    if begun != given:
        raise UserError(f"{work}: was begun with other settings; give another --work folder")
    return read_settings(kept)


if __name__ == "__main__":
    app()
