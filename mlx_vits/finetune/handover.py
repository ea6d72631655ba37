"""Runs between here and GPT-SoVITS's own trainer, in both directions.

`hand_over` writes a run's state as `s2_train.py` resumes it; `options_for` finds out how a run that
came from there is to be gone on with. The files' formats are `checkpoints/upstream_run.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_vits.checkpoints.base import Base, choose_base, file_sha256
from mlx_vits.checkpoints.run import CHECKPOINTS, LAST, read_run_state
from mlx_vits.checkpoints.run_info import RUN_FILE, RunInfo
from mlx_vits.checkpoints.upstream_run import (
    Nets,
    Rates,
    SideFile,
    UpstreamRun,
    resume_files,
    write_upstream_run,
)
from mlx_vits.checkpoints.voice_file import read_voice
from mlx_vits.config import Config, TrainSection
from mlx_vits.errors import CheckpointError, DataError, UserError
from mlx_vits.finetune.run import FinetuneOptions
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.preprocessing import prepared as layout
from mlx_vits.training.vits_trainer import VITSTrainingConfig

_DECODER = ("dec.", "ref_enc.")


def hand_over(run: Path, folder: Path) -> list[str]:
    """Writes a run's last state as GPT-SoVITS resumes it.

    Args:
        run: the run's folder.
        folder: of GPT-SoVITS, `logs/NAME/logs_s2_VERSION`; resume files that are there already are
            not touched.

    Returns:
        What a user should know, in sentences.

    Raises:
        UserError: the folder is no run's, or has no checkpoint yet; its weights have another form
            than upstream's; there are resume files already, or they cannot be written.
    """
    run = run.resolve()
    info = RunInfo.read(run)
    training = VITSTrainingConfig.of_run(info.options.training, run / RUN_FILE)
    if training.weight_norm != "upstream":
        raise CheckpointError(
            f"{run}: was trained with --weight-norm {training.weight_norm}, and GPT-SoVITS has no "
            "place for the moments of such weights; export the voice, or train with upstream's"
        )
    if folder.exists() and (not folder.is_dir() or resume_files(folder) is not None):
        raise UserError(f"{folder}: holds resume files already; choose another folder")
    state_path, voice_path = run / CHECKPOINTS / LAST, run / f"{info.voice}.safetensors"
    if not state_path.is_file():
        raise CheckpointError(f"{run}: has no checkpoint yet; go on with --resume {run}")
    state = read_run_state(state_path)
    config = _own_config(read_voice(voice_path).config, info.voice, training)
    nets = Nets(SynthesizerTrn(config), MultiPeriodDiscriminator(config))
    try:
        nets.generator.update(state.trees["generator"], strict=True)
        nets.discriminator.update(state.trees["discriminator"], strict=True)
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{state_path}: does not fit {voice_path.name} ({error}); go on with --resume {run}"
        ) from error
    rates = Rates(training.lr_g, training.lr_d, training.text_low_lr_rate)
    # The folder is another one: paths within the run's own have to be whole.
    info = replace(info, prepared=str(run / info.prepared), generator=str(run / info.generator))
    notes = write_upstream_run(folder, state, nets, rates, info)
    if config.is_reduced:
        notes.append(
            "The run comes from a small base: mlx_vits goes on with it, GPT-SoVITS cannot."
        )
    if not training.bias_correction:
        notes.append("GPT-SoVITS always corrects AdamW's bias, which this run was told not to.")
    return notes


def _own_config(config: Config, name: str, training: VITSTrainingConfig) -> Config:
    """The configuration with the run's own settings, as upstream's WebUI writes them."""
    train = replace(
        config.train,
        learning_rate=training.lr_g,
        batch_size=training.clips_a_step,
        epochs=training.epochs,
        seed=training.seed,
        segment_size=training.segment_size,
        text_low_lr_rate=training.text_low_lr_rate,
        fp16_run=False,
    )
    return replace(config, train=train, extra=dict(config.extra) | {"name": name})


def options_for(
    folder: Path, run: UpstreamRun, given: Mapping[str, Any], runs: Path
) -> FinetuneOptions:
    """How a run that came from GPT-SoVITS is gone on with.

    Args:
        folder: of its resume files.
        run: its state.
        given: the command line's options by name; they win over what the run was started with.
        runs: the folder of runs, for the output where none is given.

    Raises:
        UserError: the data or the base is not to be found.
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
        output=given.get("output") or runs / name,
        training=_training(run, given),
        **(kept | {key: given[key] for key in wished if key in given}),
    )


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
    own = run.generator.config.train
    settings: dict[str, Any] = {"segment_size": own.segment_size}
    if own != TrainSection():  # there was a config.json
        settings |= {"batch_size": own.batch_size, "epochs": own.epochs, "seed": own.seed}
    if run.side is not None:
        settings |= run.side.info.options.training
    else:
        only_decoder = bool(run.trained) and all(n.startswith(_DECODER) for n in run.trained)
        settings |= run.rates._asdict() | {"train": "decoder" if only_decoder else "all"}
    known = set(VITSTrainingConfig.__dataclass_fields__)
    wished = {key: value for key, value in given.items() if key in known}
    if "pretrained_reg" in given:
        wished["pretrained_reg_strength"] = given["pretrained_reg"]
    if "epochs" in wished and "steps" not in wished:
        settings["steps"] = None  # a limit in steps would hide the new one
    return VITSTrainingConfig.of_run(settings | wished, run.path.parent)
