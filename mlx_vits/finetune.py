"""Fine-tuning from beginning to end: a new run, or one that goes on.

It holds the order of things; each of them lives in a module of its own.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mlx_vits.checkpoints.base import Base, content_encoder_file, file_sha256
from mlx_vits.checkpoints.run_info import RunInfo, is_run
from mlx_vits.checkpoints.voice_file import VoiceFile
from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError, UserError
from mlx_vits.files import make_folder, replace_folder
from mlx_vits.finetune_run import FinetuneOptions, FinetuneRun, Screen
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.preprocessing.prepare import prepare_voice
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.vits_trainer import VITSTrainingConfig

PREPARED = "prepared"

__all__ = ["FinetuneOptions", "Screen", "resume", "start"]


def start(options: FinetuneOptions, screen: Screen) -> dict[str, Any]:
    """Prepares the data and runs a new fine-tune.

    Args:
        options: what to do. A finished or interrupted run at `output` is moved aside first.

    Returns:
        The verdict, as written to `verdict.json`.

    Raises:
        UserError: something given cannot be used, or training stopped itself.
    """
    if options.output.exists() and not is_run(options.output) and any(options.output.iterdir()):
        raise UserError(
            f"{options.output}: is not empty and not a run of mlx_vits; choose another --output"
        )
    file = _read_base(options)
    fresh = options.output.with_name(f".{options.output.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        make_folder(fresh)
        prepared = _prepare(options, file.config, fresh, screen)
        _move_aside(options.output, screen)
        replace_folder(fresh, options.output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    info = _run_info(options, prepared, file)
    info.write(options.output)
    return FinetuneRun(options, info, file, screen).run(resumed=False)


def resume(folder: Path, screen: Screen, **changes: Any) -> dict[str, Any]:
    """Continues a run from its last checkpoint.

    Args:
        folder: the run's.
        changes: `epochs`, `steps`, `save_every` or `tensorboard`, where they are to be different.

    Returns:
        The verdict.

    Raises:
        UserError: the folder is not a run's, or its base is gone or changed.
    """
    info = RunInfo.read(folder)
    base = Base(
        info.base,
        Path(info.generator),
        Path(info.discriminator) if info.discriminator else None,
        Path(info.content_encoder) if info.content_encoder else None,
    )
    training = VITSTrainingConfig(**info.options["training"])
    given = {name: value for name, value in changes.items() if value is not None}
    training = replace(training, **{k: given.pop(k) for k in ("epochs", "steps") if k in given})
    options = FinetuneOptions(
        voice=info.voice,
        data=Path(info.data),
        base=base,
        output=folder,
        training=training,
        language=info.language,
        save_every=given.get("save_every", info.options["save_every"]),
        tensorboard=given.get("tensorboard", info.options["tensorboard"]),
    )
    file = _read_base(options)
    if file_sha256(file.source) != info.generator_sha256:
        raise CheckpointError(
            f"{file.source}: is not the file that the run in {folder} was started from; put that "
            "back, or start a new run"
        )
    return FinetuneRun(options, info, file, screen).run(resumed=True)


def _read_base(options: FinetuneOptions) -> VoiceFile:
    file = options.base.read_generator()
    if not any(name.startswith("enc_q.") for name in file.tensors):
        raise CheckpointError(
            f"{file.source}: is an exported voice without a posterior encoder (enc_q), which "
            "training needs; give a pretrained s2G file"
        )
    train = replace(file.config.train, segment_size=options.training.segment_size)
    if train.segment_size % file.config.data.hop_length:
        hop = file.config.data.hop_length
        raise UserError(f"--segment-size {train.segment_size}: has to be a multiple of {hop}")
    return file._replace(config=replace(file.config, train=train))


def _prepare(options: FinetuneOptions, config: Config, fresh: Path, screen: Screen) -> Path:
    """The prepared folder, at the place it will have once `fresh` has the run's name."""
    if layout.is_prepared(options.data):
        encoder = options.base.content_encoder
        sha256 = file_sha256(content_encoder_file(encoder)) if encoder else None
        layout.check_fits(options.data, config, sha256, options.base.name)
        PreparedVoice(options.data, config)
        return options.data.resolve()
    prepare_voice(
        options.data,
        fresh / PREPARED,
        options.base,
        config,
        language=options.language,
        held_out=options.held_out,
        progress=screen.preparing,
    )
    return options.output.resolve() / PREPARED


def _move_aside(output: Path, screen: Screen) -> None:
    if not output.exists():
        return
    if is_run(output):
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(output.stat().st_mtime))
        aside = output.with_name(f"{output.name}-{stamp}")
        number = 2
        while aside.exists():
            aside = output.with_name(f"{output.name}-{stamp}-{number}")
            number += 1
        output.rename(aside)
        screen.say(f"The earlier run is kept in {aside}.")
    else:
        output.rmdir()


def _run_info(options: FinetuneOptions, prepared: Path, file: VoiceFile) -> RunInfo:
    base = options.base
    return RunInfo(
        voice=options.voice,
        data=str(options.data.resolve()),
        prepared=str(prepared),
        base=base.name,
        generator=str(base.generator.resolve()),
        discriminator=str(base.discriminator.resolve()) if base.discriminator else "",
        content_encoder=str(base.content_encoder.resolve()) if base.content_encoder else "",
        generator_sha256=file_sha256(file.source),
        language=options.language,
        options={
            "training": asdict(options.training),
            "save_every": options.save_every,
            "tensorboard": options.tensorboard,
        },
    )
