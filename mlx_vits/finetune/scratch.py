"""A run that starts from random weights: sizes of a configuration, semantic codes of a base.

Content encoder, `ssl_proj` and codebook are the base's, frozen as in any fine-tune, so that a GPT
of that base speaks with the new voice as well. Everything else has upstream's initial values, drawn
from the run's seed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_vits.checkpoints.base import Base, file_sha256
from mlx_vits.checkpoints.run_info import RunInfo
from mlx_vits.checkpoints.state_dict import state_of
from mlx_vits.checkpoints.voice_file import VoiceFile, write_voice
from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError
from mlx_vits.finetune.nets import with_segment
from mlx_vits.models.vits import SynthesizerTrn
from mlx_vits.training.vits_trainer import VITSTrainingConfig

START = "start.safetensors"  # in the run's folder: the weights that it started from
_OF_THE_BASE = ("ssl_proj.", "quantizer.")
# What only makes sense where there are pretrained weights.
REFUSED = ("pretrained", "pretrained_d", "pretrained_gpt", "stage", "train", "blend", "blend_prior")


def scratch_training(config: Path) -> dict[str, Any]:
    """Return the options of training that a configuration states, for a run from scratch.

    Nothing pulls toward the weights that training starts from, and the text side learns as fast
    as the rest.

    Raises:
        CheckpointError: the file does not describe a model.
    """
    train = _read(config).train
    options: dict[str, Any] = {
        "epochs": train.epochs,
        "batch_size": train.batch_size,
        "lr_g": train.learning_rate,
        "lr_d": train.learning_rate,
        "text_low_lr_rate": 1.0,
        "pretrained_reg_strength": 0.0,
        "segment_size": train.segment_size,
        "seed": train.seed,
    }
    try:
        VITSTrainingConfig(**options)
    except ValueError as fault:
        raise CheckpointError(f"{config}: train: {fault}; choose another value") from fault
    return options


def draw_start(config: Path, base: Base, training: VITSTrainingConfig) -> VoiceFile:
    """Draw a generator's weights.

    Args:
        config: the file of its sizes and its training, as a base's `config.json`.
        base: gives `ssl_proj` and the codebook.
        training: gives the seed and the segment.

    Raises:
        CheckpointError: the file does not describe a model, or the base has features or codes of
            other sizes.
        UserError: `--segment-size` does not fit.
    """
    sizes = with_segment(_read(config), training.segment_size)
    mx.random.seed(training.seed)
    tensors: dict[str, Any] = dict(state_of(SynthesizerTrn(sizes)))
    theirs = base.read_generator()
    for name in [name for name in tensors if name.startswith(_OF_THE_BASE)]:
        if tuple(theirs.tensors[name].shape) != tuple(tensors[name].shape):
            raise _other_codes(config, sizes, base, theirs.config)
        tensors[name] = theirs.tensors[name]
    return VoiceFile(sizes, tensors, "", config)


def _read(config: Path) -> Config:
    if not config.is_file():
        raise CheckpointError(f"{config}: is not a file; give one like a base's config.json")
    return Config.read(config)


def _other_codes(path: Path, ours: Config, base: Base, theirs: Config) -> CheckpointError:
    def described(config: Config) -> str:
        dims, rate = config.reduced_dims, config.model.semantic_frame_rate
        return f"{dims.codebook_size} codes of features {dims.ssl_dim} wide at {rate}"

    return CheckpointError(
        f"{path}: describes a model of {described(ours)}, but the base {base.name} has "
        f"{described(theirs)}; set ssl_dim and codebook_size in its reduced_dims, or choose "
        "another --base"
    )


def keep_start(config: Path, generator: SynthesizerTrn, folder: Path, info: RunInfo) -> RunInfo:
    """Write the weights that a run starts from into its folder, which takes the base's place.

    Args:
        config: the file of the model's sizes.
        generator: before the first step.
        folder: the run's.
        info: what is to be `run.json`.

    Returns:
        `info`, with these weights.

    Raises:
        UserError: they cannot be written.
    """
    path = folder / START
    write_voice(path, state_of(generator), generator.config, info="", name=info.voice)
    return replace(
        info,
        generator=START,
        generator_sha256=file_sha256(path),
        discriminator="",
        from_scratch=str(config.resolve()),
    )
