"""The pretrained nets of a base, ready to be trained."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import mlx.core as mx

from mlx_vits.checkpoints.base import Base, load_discriminator, load_generator
from mlx_vits.checkpoints.contents import has_posterior
from mlx_vits.checkpoints.voice_file import VoiceFile
from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError, UserError
from mlx_vits.models.vits import MultiPeriodDiscriminator, SynthesizerTrn
from mlx_vits.training.vits_trainer import VITSTrainingConfig


class Nets(NamedTuple):
    """Both nets, with the base's weights."""

    generator: SynthesizerTrn
    discriminator: MultiPeriodDiscriminator


def read_base(base: Base, segment_size: int) -> VoiceFile:
    """Read a base's generator if a voice can be trained from it.

    Args:
        base: the pretrained models.
        segment_size: samples to decode of each clip, which replaces the base's own.

    Raises:
        UserError: it cannot be trained; the sentence says why.
    """
    file = base.read_generator()
    config = file.config
    if not has_posterior(file.tensors):
        raise CheckpointError(
            f"{file.source}: is an exported voice without a posterior encoder (enc_q), which "
            "training needs; give a pretrained s2G file"
        )
    return file._replace(config=with_segment(config, segment_size))


def with_segment(config: Config, segment_size: int) -> Config:
    """Replace the samples that are decoded of each clip.

    Raises:
        UserError: they are not whole frames.
    """
    hop = config.data.hop_length
    if segment_size % hop:
        near = max(2, round(segment_size / hop)) * hop
        raise UserError(
            f"--segment-size {segment_size}: has to be a multiple of {hop}; {near} is the nearest"
        )
    return replace(config, train=replace(config.train, segment_size=segment_size))


def load_nets(base: Base, file: VoiceFile, training: VITSTrainingConfig) -> Nets:
    """Load both nets; a discriminator that the base lacks is initialised from the run's seed.

    Args:
        base: the pretrained models.
        file: from `read_base`.
        training: gives the seed and the layers with weight norm.

    Raises:
        CheckpointError: a file is damaged, or does not fit.
    """
    mx.random.seed(training.seed)
    generator = load_generator(file, training.weight_norm, consume=True)
    return Nets(generator, load_discriminator(base.discriminator, file.config))
