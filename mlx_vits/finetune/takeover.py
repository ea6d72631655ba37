"""A run of GPT-SoVITS, or one that was handed over to it, becomes a run of our own.

The files' formats are in `checkpoints/upstream_run.py`; the way there is `handover.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_vits.checkpoints.base import Base, choose_base, file_sha256
from mlx_vits.checkpoints.run import CHECKPOINTS, LAST, Place, write_run_state
from mlx_vits.checkpoints.run_info import RUNS, RunInfo
from mlx_vits.checkpoints.upstream_run import SideFile, UpstreamRun, resume_files
from mlx_vits.checkpoints.voice_file import write_voice
from mlx_vits.config import Config, TrainSection
from mlx_vits.errors import CheckpointError, DataError, UserError
from mlx_vits.finetune.options import TRAINING_OPTIONS, FinetuneOptions, override
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.training.batches import PreparedVoice
from mlx_vits.training.vits_trainer import VITSTrainingConfig

TAKEN_OVER = "taken_over.safetensors"  # a run's weights, if its pretrained ones are unknown
_DECODER = ("dec.", "ref_enc.")


def options_for(folder: Path, run: UpstreamRun, given: Mapping[str, Any]) -> FinetuneOptions:
    """Find out how to continue a run that came from GPT-SoVITS.

    Args:
        folder: of its resume files.
        run: its state; notes on what is unknown are added to it.
        given: options by name, of `TAKE_OVER_OPTIONS`; they win over what the run was started with.

    Raises:
        UserError: the data or the base cannot be found.
    """
    name = given.get("voice") or _name_of(folder, run.side)
    data = _find_data(folder, run.side, given.get("data_dir"))
    kept: dict[str, Any] = {}
    if run.side is not None:
        info = run.side.info
        kept = {"language": info.language, "save_every": info.options.save_every}
        if layout.fingerprint(data) != info.prepared_sha256:
            run.notes.append(
                f"{data}: is not the data that the run was started with; the order of its clips "
                "will be another."
            )
    wished = ("language", "save_every", "tensorboard")
    return FinetuneOptions(
        voice=name,
        data=data,
        base=_find_base(run, given),
        output=given.get("output") or RUNS / name,
        training=_training(run, given),
        stage="sovits",
        **(kept | {key: given[key] for key in wished if key in given}),
    )


def check_version(run: UpstreamRun, base: Base, config: Config) -> None:
    """Check that a run is of its base's version.

    Raises:
        CheckpointError: it is of another one.
    """
    version = run.generator.config.version
    if version != config.version:
        raise CheckpointError(
            f"{run.path}: is a {version} run, but the base {base.name} is {config.version}; give "
            "the base that the run was started from"
        )


def carry_over(
    run: UpstreamRun, folder: Path, options: FinetuneOptions, voice: PreparedVoice, info: RunInfo
) -> RunInfo:
    """Write a run's state as the first checkpoint of the new one.

    Args:
        run: its state.
        folder: of the new run.
        options: of the new run.
        voice: its data.
        info: of the new run.

    Returns:
        `info`, with the file of the pretrained weights that the new run has to keep itself.

    Raises:
        UserError: there is nothing left to do.
    """
    place = _place(run, voice, options.training)
    write_run_state(folder / CHECKPOINTS / LAST, run.trees, place)
    if options.base.generator != run.path:
        return info
    # The weights that the run came with: GPT-SoVITS may replace its file.
    path, weights = folder / TAKEN_OVER, run.generator
    arrays = {name: mx.array(tensor) for name, tensor in weights.tensors.items()}
    write_voice(path, arrays, weights.config, info=weights.info, name=info.voice)
    return replace(info, generator=TAKEN_OVER, generator_sha256=file_sha256(path))


def _place(run: UpstreamRun, voice: PreparedVoice, training: VITSTrainingConfig) -> Place:
    """Where the run stands; upstream itself knows no place within an epoch."""
    count = len(voice.plan(training.clips_a_step, training.seed, 1))
    if run.side is not None:
        place = run.side.place
    else:
        place = Place(step=run.iteration * count, epoch=run.iteration + 1)
    total = training.steps if training.steps is not None else training.epochs * count
    if place.step >= total:
        raise UserError(
            f"{run.path}: has done its {place.step} steps ({run.iteration} epochs) already; give "
            "more with --epochs or --steps"
        )
    return place


def _name_of(folder: Path, side: SideFile | None) -> str:
    if side is not None:
        return side.info.voice
    folder = folder.resolve()
    return folder.parent.name if folder.name.startswith("logs_s2") else folder.name


def _find_data(folder: Path, side: SideFile | None, given: Path | None) -> Path:
    """The prepared folder: as given, as the run was started with, or GPT-SoVITS's `logs/NAME`."""
    known = [Path(side.info.prepared)] if side is not None else []
    candidates = [given] if given is not None else [*known, folder.resolve().parent]
    for candidate in candidates:
        if layout.is_prepared(candidate):
            return candidate
    raise DataError(
        f"{candidates[-1]}: holds no prepared voice ({layout.TEXT_FILE}); give the folder that the "
        "run was trained on with --data-dir"
    )


def _find_base(run: UpstreamRun, given: Mapping[str, Any]) -> Base:
    """The pretrained weights that the pull and the verdict refer to, with the run's own judge."""
    files = resume_files(run.path.parent)
    assert files is not None
    encoder = given.get("content_encoder")
    pretrained = given.get("pretrained")
    if pretrained is not None or given.get("base") is not None:
        base = choose_base(given.get("base"), pretrained=pretrained, content_encoder=encoder)
        return replace(base, discriminator=files[1])
    if run.side is not None:
        info = run.side.info
        generator = Path(info.generator)
        source = generator / "generator.safetensors" if generator.is_dir() else generator
        if source.is_file() and file_sha256(source) == info.generator_sha256:
            kept = Path(info.content_encoder) if info.content_encoder else None
            return Base(info.base, generator, files[1], encoder or kept)
    run.notes.append(
        "The pretrained weights of this run are not known: the pull and the verdict refer to the "
        "weights as they come; give --pretrained with the s2G file to change that."
    )
    return Base(run.path.stem, run.path, files[1], encoder)


def _training(run: UpstreamRun, given: Mapping[str, Any]) -> VITSTrainingConfig:
    """The options that the run was trained with, as far as known, and those given."""
    own = run.generator.config.train
    known: dict[str, Any] = {"segment_size": own.segment_size}
    if own != TrainSection():  # there was a config.json
        known |= {"batch_size": own.batch_size, "epochs": own.epochs, "seed": own.seed}
    if run.side is not None:
        known |= run.side.info.options.training
    else:
        only_decoder = bool(run.trained) and all(n.startswith(_DECODER) for n in run.trained)
        known |= run.rates._asdict() | {"train": "decoder" if only_decoder else "all"}
    wished = {name: given[name] for name in TRAINING_OPTIONS & set(given)}
    return VITSTrainingConfig.of_run(override(known, wished), run.path.parent)
