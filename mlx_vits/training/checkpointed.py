"""A GAN step that recomputes activations in the backward pass, for where memory is short."""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx

from mlx_vits.models.discriminator import SubDiscriminator
from mlx_vits.models.generator import ResBlock1
from mlx_vits.models.vits import SynthesizerOutput
from mlx_vits.nn.attention import FFN, MultiHeadAttention
from mlx_vits.nn.checkpointing import checkpoint_blocks, checkpointing, recomputed
from mlx_vits.nn.wavenet import WN
from mlx_vits.training.step import Batch, Draws, GANStep

BLOCKS = (ResBlock1, WN, MultiHeadAttention, FFN)


def checkpointed(step_class: type[GANStep]) -> type[GANStep]:
    """Derive a step that recomputes the generator's blocks and each sub-discriminator.

    Of a sub-discriminator its losses alone are kept, not its feature maps.
    """

    class CheckpointedStep(step_class):  # type: ignore[misc,valid-type]
        def __init__(self, generator: Any, *others: Any, **options: Any):
            super().__init__(checkpoint_blocks(generator, BLOCKS), *others, **options)

        def forward(self, batch: Batch, draws: Draws) -> SynthesizerOutput:
            with checkpointing():
                return super().forward(batch, draws)

        def discriminator_gradients(self, real: mx.array, fake: mx.array) -> Any:
            with checkpointing():
                return super().discriminator_gradients(real, fake)

        def generator_terms(self, *arguments: Any) -> Any:
            with checkpointing():
                return super().generator_terms(*arguments)

        def loss_of(self, net: SubDiscriminator, both: mx.array) -> mx.array:
            # Bound, not an argument: the waveforms need no gradient here.
            return recomputed(net, partial(super().loss_of, net, both))

        def judge(self, net: SubDiscriminator, real: mx.array, fake: mx.array) -> Any:
            return recomputed(net, partial(super().judge, net), real, fake, learns=False)

    return CheckpointedStep
