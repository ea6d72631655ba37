"""A run's nets as a base, to fine-tune voices from; `checkpoints/base.py` reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from mlx_vits.checkpoints.base import (
    CONTENT_ENCODER,
    DISCRIMINATOR_FILE,
    SPEAKER_ENCODER,
)
from mlx_vits.checkpoints.gpt_file import GPT_FILE, GPT_FOLDER
from mlx_vits.checkpoints.run import CHECKPOINTS, LAST, read_run_state
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.tensors import write_tensors
from mlx_vits.checkpoints.voice_file import GENERATOR_FILE, read_voice
from mlx_vits.config import CONFIG_FILE, Config, TrainSection
from mlx_vits.errors import CheckpointError, UserError
from mlx_vits.models.vits import MultiPeriodDiscriminator
from mlx_vits.synthesis.companions import Companions
from mlx_vits.synthesis.loading import companions_of_run
from mlx_vits.system.files import atomic_write, fresh_folder, replace_folder


def write_base(run: Path, folder: Path) -> None:
    """Write a run's voice and discriminator as a base, with what its own base has besides.

    Args:
        run: the run's folder.
        folder: of the new base; must not exist.

    Raises:
        UserError: the folder is no run's, or has no checkpoint yet; `folder` is there already, or
            cannot be written.
    """
    info = RunInfo.read(run)
    voice, state = run / f"{info.voice}.safetensors", run / CHECKPOINTS / LAST
    if not (voice.is_file() and state.is_file()):
        raise CheckpointError(f"{run}: has no checkpoint yet; go on with --resume {run}")
    if folder.exists():
        raise UserError(f"{folder}: is there already; take it away or choose another name")
    file = read_voice(voice)
    config = _without_schedule(file.config)
    companions = companions_of_run(run, info, file.config.version)
    kept = Path(info.content_encoder) if info.content_encoder else None
    companions = Companions(content_encoder=kept).completed_by(companions)
    about = {"info": file.info, "format": "pt"}
    with fresh_folder(folder) as fresh:
        with atomic_write(fresh / CONFIG_FILE) as out:
            out.write(json.dumps(config.to_dict(), indent=1).encode())
        write_tensors(fresh / GENERATOR_FILE, _in_half(file.tensors), about)
        judge = state_of(_discriminator(state, config))
        write_tensors(fresh / DISCRIMINATOR_FILE, _in_half(judge), about)
        _copy_companions(companions, fresh)
        replace_folder(fresh, folder)


def _without_schedule(config: Config) -> Config:
    """The configuration for voices to be fine-tuned with: `lr_decay` would be theirs as well."""
    ordinary = TrainSection()
    train = replace(config.train, learning_rate=ordinary.learning_rate, lr_decay=ordinary.lr_decay)
    return replace(config, train=train)


def _discriminator(path: Path, config: Config) -> MultiPeriodDiscriminator:
    model = MultiPeriodDiscriminator(config)
    try:
        model.update(read_run_state(path).trees["discriminator"], strict=True)
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: does not fit the run's voice ({error})") from error
    return model


def _in_half(tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Tensors in fp16, but for those with numbers that are too large for it."""
    halves = {name: array.astype(mx.float16) for name, array in tensors.items()}
    fits = {name: mx.all(mx.isfinite(half)) for name, half in halves.items()}
    return {name: half if fits[name].item() else tensors[name] for name, half in halves.items()}


def _copy_companions(found: Companions, folder: Path) -> None:
    gpt = found.gpt
    copies = (
        (found.content_encoder, folder / CONTENT_ENCODER),
        (found.speaker_encoder, folder / SPEAKER_ENCODER),
        (gpt, folder / (GPT_FOLDER if gpt is not None and gpt.is_dir() else GPT_FILE)),
    )
    for source, target in copies:
        try:
            if source is not None and source.is_dir():
                shutil.copytree(source, target)
            elif source is not None:
                to = target if source is gpt else target / source.name
                to.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, to)
        except OSError as error:
            raise UserError(f"{source}: cannot be copied to {target} ({error})") from error
