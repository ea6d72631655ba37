"""A run of our own, handed over to GPT-SoVITS's trainer; the way back is `takeover.py`.

The files' formats are in `checkpoints/upstream_run.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlx_vits.checkpoints.run import CHECKPOINTS, LAST, read_run_state
from mlx_vits.checkpoints.run_info import RUN_FILE, RunInfo
from mlx_vits.checkpoints.upstream_run import Nets, Rates, resume_files, write_upstream_run
from mlx_vits.checkpoints.voice_file import read_voice
from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError, UserError
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.training.vits_trainer import VITSTrainingConfig


def hand_over(run: Path, folder: Path) -> list[str]:
    """Write a run's last state as GPT-SoVITS resumes it.

    Args:
        run: the run's folder.
        folder: of GPT-SoVITS, `logs/NAME/logs_s2_VERSION`; must not hold resume files yet.

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
