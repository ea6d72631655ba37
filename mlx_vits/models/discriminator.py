"""`MultiPeriodDiscriminator`: one discriminator over samples, and one for each period.

Source: GPT-SoVITS `module/models.py` (`DiscriminatorS`, `DiscriminatorP`), as in HiFi-GAN,
arXiv:2010.05646. Axes: B batch, N samples, P period, H steps of a period, C channels.

The layers that read the waveform and those that return the scores compute in fp32 always.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.config import Config
from mlx_vits.nn.layers import LeakyReLU, keep_fp32
from mlx_vits.nn.weight_norm import WeightNormConv1d, WeightNormConv2d

PERIODS = (2, 3, 5, 7, 11)  # of v1 and v2
PRO_PERIODS = (*PERIODS, 17, 23)
SLOPE = 0.1
_KERNEL = 5  # of the period discriminators, along the height
_STRIDE = 3


class DiscriminatorOutput(NamedTuple):
    """Scores and feature maps of one sub-discriminator.

    Attributes:
        score: `(B, scores)`, near 1 for real speech.
        features: outputs of every layer, the last the raw scores. `(B, T, C)` over samples;
            `(B P, H, C)` over a period, its P columns side by side in the batch.
    """

    score: mx.array
    features: list[mx.array]


class DiscriminatorS(nn.Module):
    """Over samples, with grouped strided convolutions."""

    def __init__(self, width: float):
        super().__init__()
        self.activation = LeakyReLU(SLOPE)
        c16, c64, c256, c1024 = (_scaled(width, size) for size in (16, 64, 256, 1024))
        # in, out, kernel, stride, groups
        shapes = [
            (1, c16, 15, 1, 1),
            (c16, c64, 41, 4, _scaled(width, 4)),
            (c64, c256, 41, 4, _scaled(width, 16)),
            (c256, c1024, 41, 4, _scaled(width, 64)),
            (c1024, c1024, 41, 4, _scaled(width, 256)),
            (c1024, c1024, 5, 1, 1),
        ]
        self.convs = [
            WeightNormConv1d(
                inputs, outputs, kernel, stride=stride, groups=groups, padding=kernel // 2
            )
            for inputs, outputs, kernel, stride, groups in shapes
        ]
        self.conv_post = keep_fp32(WeightNormConv1d(c1024, 1, 3, padding=1))
        keep_fp32(self.convs[0])

    def __call__(self, x: mx.array) -> DiscriminatorOutput:
        """A waveform `(B, N, 1)`."""
        features = []
        for conv in self.convs:
            x = self.activation(conv(x))
            features.append(x)
        x = self.conv_post(x)
        features.append(x)
        return DiscriminatorOutput(x.reshape(x.shape[0], -1), features)


class DiscriminatorP(nn.Module):
    """Over every P-th sample: the waveform as P columns, which never meet."""

    def __init__(self, period: int, width: float):
        super().__init__()
        self.activation = LeakyReLU(SLOPE)
        self.period = period
        channels = [1, *(_scaled(width, size) for size in (32, 128, 512, 1024, 1024))]
        strides = [_STRIDE] * 4 + [1]

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Any:
            padding = (kernel // 2, 0)
            return WeightNormConv2d(
                inputs, outputs, (kernel, 1), stride=(stride, 1), padding=padding
            )

        self.convs = [
            conv(inputs, outputs, _KERNEL, stride)
            for inputs, outputs, stride in zip(channels[:-1], channels[1:], strides, strict=True)
        ]
        self.conv_post = keep_fp32(conv(channels[-1], 1, 3))
        keep_fp32(self.convs[0])

    def __call__(self, x: mx.array) -> DiscriminatorOutput:
        """A waveform `(B, N, 1)`."""
        batch, period = x.shape[0], self.period
        x = reflect_to_multiple(x[..., 0], period)
        x = x.reshape(batch, -1, period).swapaxes(1, 2).reshape(batch * period, -1, 1)
        features = []
        for conv in self.convs:
            x = self.activation(conv.columns(x))
            features.append(x)
        x = self.conv_post.columns(x)
        features.append(x)
        score = x.reshape(batch, period, -1).swapaxes(1, 2).reshape(batch, -1)
        return DiscriminatorOutput(score, features)


SubDiscriminator = DiscriminatorS | DiscriminatorP


class MultiPeriodDiscriminator(nn.Module):
    """All sub-discriminators: one over samples, then one for each period of the version.

    Args:
        config: `version` chooses the periods; `disc_width` scales hidden channels and groups.
    """

    def __init__(self, config: Config | None = None):
        super().__init__()
        config = config or Config()
        width = config.reduced_dims.disc_width
        periods = PRO_PERIODS if config.model.is_pro else PERIODS
        self.discriminators = [
            DiscriminatorS(width),
            *(DiscriminatorP(period, width) for period in periods),
        ]

    def __call__(self, x: mx.array) -> list[DiscriminatorOutput]:
        """A waveform `(B, N, 1)`; one output for each sub-discriminator."""
        return [discriminator(x) for discriminator in self.discriminators]


def _scaled(width: float, size: int) -> int:
    return max(1, round(width * size))


def reflect_to_multiple(x: mx.array, period: int) -> mx.array:
    """`(B, N)` extended to a multiple of `period` by its mirror, which starts before the end."""
    missing = -x.shape[1] % period
    if not missing:
        return x
    mirror = x[:, -1 - missing : -1][:, ::-1]
    return mx.concatenate([x, mirror], axis=1)
