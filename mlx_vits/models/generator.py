"""`dec`: the HiFi-GAN generator, from a latent segment to a waveform.

Source: GPT-SoVITS `module/models.py` (`Generator`), `module/modules.py` (`ResBlock1`); Kong et al.
2020, arXiv:2010.05646. Axes: B batch, T latent frames, N samples, C channels, G conditioning.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.config import Config
from mlx_vits.nn.layers import Conv1d, Convolution, LeakyReLU, keep_fp32
from mlx_vits.nn.weight_norm import NormScheme, build_conv1d, build_conv_transpose1d

SLOPE = 0.1
LAST_SLOPE = 0.01  # PyTorch's default, which upstream leaves in place before conv_post


def mean_of(arrays: list[mx.array]) -> mx.array:
    """Mean of arrays of one shape."""
    return sum(arrays[1:], start=arrays[0]) / len(arrays)


class ResBlock1(nn.Module):
    """Three pairs of a dilated and a plain convolution, each pair added to its input."""

    def __init__(
        self, channels: int, kernel_size: int, dilations: tuple[int, ...], scheme: NormScheme
    ):
        super().__init__()

        def conv(dilation: int) -> Convolution:
            padding = (kernel_size - 1) * dilation // 2
            shape = (channels, channels, kernel_size)
            return build_conv1d("resblocks", scheme, *shape, padding=padding, dilation=dilation)

        self.activation = LeakyReLU(SLOPE)
        self.convs1 = [conv(dilation) for dilation in dilations]
        self.convs2 = [conv(1) for _ in dilations]

    def __call__(self, x: mx.array) -> mx.array:
        """`(B, N, C)` to `(B, N, C)`."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(self.activation(dilated(self.activation(x))))
        return x


class Generator(nn.Module):
    """Upsamples latent frames by the product of `upsample_rates` to samples within (-1, 1).

    Args:
        config: `inter_channels`, `gin_channels`, `upsample_*` and `resblock_*` of `model`.
        norm_scheme: which layers hold their weight as magnitude and direction.
    """

    def __init__(self, config: Config | None = None, norm_scheme: NormScheme = "upstream"):
        super().__init__()
        model = (config or Config()).model
        width = model.upsample_initial_channel
        self.num_kernels = len(model.resblock_kernel_sizes)
        self.activation, self.last_activation = LeakyReLU(SLOPE), LeakyReLU(LAST_SLOPE)
        self.conv_pre = build_conv1d(
            "conv_pre", norm_scheme, model.inter_channels, width, 7, padding=3
        )
        self.ups, self.resblocks = [], []
        for rate, kernel in zip(model.upsample_rates, model.upsample_kernel_sizes, strict=True):
            self.ups.append(
                build_conv_transpose1d(
                    "ups",
                    norm_scheme,
                    width,
                    width // 2,
                    kernel,
                    stride=rate,
                    padding=(kernel - rate) // 2,
                )
            )
            width //= 2
            self.resblocks += [
                ResBlock1(width, size, dilations, norm_scheme)
                for size, dilations in zip(
                    model.resblock_kernel_sizes, model.resblock_dilation_sizes, strict=True
                )
            ]
        self.conv_post = keep_fp32(
            build_conv1d("conv_post", norm_scheme, width, 1, 7, padding=3, bias=False)
        )
        self.cond = Conv1d(model.gin_channels, model.upsample_initial_channel, 1)

    def __call__(self, z: mx.array, g: mx.array) -> mx.array:
        """`(B, T, C)` and conditioning `(B, 1, G)` to a waveform `(B, N, 1)`."""
        x = self.conv_pre(z) + self.cond(g)
        for stage, up in enumerate(self.ups):
            x = up(self.activation(x))
            first = stage * self.num_kernels
            blocks = self.resblocks[first : first + self.num_kernels]
            x = mean_of([block(x) for block in blocks])
        return mx.tanh(self.conv_post(self.last_activation(x)))
