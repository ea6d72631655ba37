"""The speaker encoder: log-mel energies to a vector of who speaks.

Source: ERes2NetV2 of 3D-Speaker, Chen et al. 2024, arXiv:2406.02167, read out as GPT-SoVITS
`eres2net/ERes2NetV2.py` does (`forward3`): the last map averaged over time, before the layer that
would make an embedding of it. Axes: B batch, T frames, M mel bands, F bands of a map, C channels.

The network is only ever listened through: batch norms apply the statistics of their training, and
weights are zero until they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.audio.fbank import MEL_BANDS

_CEILING = 20.0  # of every activation but the first
_FUSION_REDUCTION = 4
_SHRINKAGE = 8  # of bands and frames, from the input to the last map


@dataclass(frozen=True)
class SpeakerEncoderConfig:
    """Sizes under 3D-Speaker's argument names; the defaults are those of upstream's file.

    Attributes:
        m_channels: of the first map; the four stages have 1, 2, 4 and 8 times as many planes.
        baseWidth: channels of a block's part, for 64 planes.
        scale: parts of a block.
        expansion: channels that a block gives, for each plane.
        num_blocks: of each stage.
    """

    m_channels: int = 64
    baseWidth: int = 24
    scale: int = 4
    expansion: int = 4
    num_blocks: tuple[int, ...] = (3, 4, 6, 3)

    @property
    def sv_dim(self) -> int:
        """Width of the vector."""
        return 8 * self.m_channels * self.expansion * -(-MEL_BANDS // _SHRINKAGE)


class _Conv2d(nn.Module):
    """2-D convolution with a square kernel, padded so that stride 1 keeps the size.

    Attributes:
        weight: `(out_channels, K, K, in_channels)`.
        bias: `(out_channels,)`, absent with `bias=False`.
    """

    kind = "conv2d"
    file_normed = False

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, bias: bool = False
    ):
        super().__init__()
        self.stride = stride
        self.weight = mx.zeros((outputs, kernel, kernel, inputs))
        if bias:
            self.bias = mx.zeros((outputs,))

    def __call__(self, x: mx.array, scale: mx.array | None = None) -> mx.array:
        """`(B, F, T, in)` to `(B, F_out, T_out, out)` without the bias.

        Args:
            scale: `(out,)`, of the result; multiplied into the weight, which is smaller.
        """
        weight = self.weight if scale is None else self.weight * scale[:, None, None, None]
        kernel = weight.shape[1]
        if kernel == 1:  # on CPU up to twice as fast as MLX's convolution
            return x[:, :: self.stride, :: self.stride] @ weight[:, 0, 0].T
        return mx.conv2d(x, weight, stride=self.stride, padding=kernel // 2)


class _BatchNorm(nn.Module):
    """What a batch norm does to a convolution once its statistics are fixed."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = mx.ones((channels,))
        self.bias = mx.zeros((channels,))
        self.running_mean = mx.zeros((channels,))
        self.running_var = mx.ones((channels,))

    def __call__(self, conv: _Conv2d, x: mx.array) -> mx.array:
        """The normed result of a convolution of `(B, F, T, C)`."""
        scale = self.weight * mx.rsqrt(self.running_var + self.eps)
        mean = self.running_mean - conv.bias if "bias" in conv else self.running_mean
        return conv(x, scale) + (self.bias - mean * scale)


def _clamp(x: mx.array) -> mx.array:
    return mx.minimum(mx.maximum(x, 0.0), _CEILING)


class AFF(nn.Module):
    """Attentive fusion of two maps: a share of each, by what both hold at the place."""

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // _FUSION_REDUCTION
        self.local_att = [
            _Conv2d(2 * channels, inner, 1, bias=True),
            _BatchNorm(inner),
            nn.SiLU(),
            _Conv2d(inner, channels, 1, bias=True),
            _BatchNorm(channels),
        ]

    def __call__(self, x: mx.array, y: mx.array) -> mx.array:
        """Two maps `(B, F, T, C)` to one."""
        reduce, reduce_norm, activate, expand, expand_norm = self.local_att
        hidden = activate(reduce_norm(reduce, mx.concatenate([x, y], axis=-1)))
        # Upstream's x * a + y * (2 - a) with a = 1 + tanh.
        return x + y + mx.tanh(expand_norm(expand, hidden)) * (x - y)


class _Block(nn.Module):
    """Residual block whose channels go through in parts, each convolved with the one before.

    Args:
        inputs: channels.
        planes: gives `planes * expansion` channels.
        fused: whether parts are joined by `AFF` instead of added.
    """

    def __init__(
        self, inputs: int, planes: int, stride: int, config: SpeakerEncoderConfig, *, fused: bool
    ):
        super().__init__()
        width, outputs = planes * config.baseWidth // 64, planes * config.expansion
        self.conv1 = _Conv2d(inputs, width * config.scale, 1, stride=stride)
        self.bn1 = _BatchNorm(width * config.scale)
        self.convs = [_Conv2d(width, width, 3) for _ in range(config.scale)]
        self.bns = [_BatchNorm(width) for _ in range(config.scale)]
        if fused:
            self.fuse_models = [AFF(width) for _ in range(config.scale - 1)]
        self.conv3 = _Conv2d(width * config.scale, outputs, 1)
        self.bn3 = _BatchNorm(outputs)
        if stride != 1 or inputs != outputs:
            self.shortcut = [_Conv2d(inputs, outputs, 1, stride=stride), _BatchNorm(outputs)]

    def __call__(self, x: mx.array) -> mx.array:
        """`(B, F, T, in)` to `(B, F_out, T_out, out)`."""
        parts = mx.split(_clamp(self.bn1(self.conv1, x)), len(self.convs), axis=-1)
        done: list[mx.array] = []
        for index, part in enumerate(parts):
            if done:
                part = self._join(index - 1, done[-1], part)
            done.append(_clamp(self.bns[index](self.convs[index], part)))
        y = self.bn3(self.conv3, mx.concatenate(done, axis=-1))
        if "shortcut" in self:
            conv, norm = self.shortcut
            x = norm(conv, x)
        return _clamp(y + x)

    def _join(self, index: int, before: mx.array, part: mx.array) -> mx.array:
        return self.fuse_models[index](before, part) if "fuse_models" in self else before + part


class ERes2NetV2(nn.Module):
    """Log-mel energies to a speaker vector.

    Attributes:
        config: its sizes.
    """

    def __init__(self, config: SpeakerEncoderConfig | None = None):
        super().__init__()
        self.config = config or SpeakerEncoderConfig()
        planes, expansion = self.config.m_channels, self.config.expansion
        self.conv1 = _Conv2d(1, planes, 3)
        self.bn1 = _BatchNorm(planes)
        self.layer1 = self._build_stage(0, inputs=planes)
        self.layer2 = self._build_stage(1, inputs=planes * expansion)
        self.layer3 = self._build_stage(2, inputs=2 * planes * expansion)
        self.layer4 = self._build_stage(3, inputs=4 * planes * expansion)
        self.layer3_ds = _Conv2d(4 * planes * expansion, 8 * planes * expansion, 3, stride=2)
        self.fuse34 = AFF(8 * planes * expansion)

    def _build_stage(self, index: int, *, inputs: int) -> list[_Block]:
        """Blocks of one size; all stages but the first halve it, the last two fuse."""
        config = self.config
        planes, stride, fused = config.m_channels << index, 2 if index else 1, index > 1
        blocks = [_Block(inputs, planes, stride, config, fused=fused)]
        for _ in range(1, config.num_blocks[index]):
            blocks.append(_Block(planes * config.expansion, planes, 1, config, fused=fused))
        return blocks

    def map_features(self, fbank: mx.array) -> mx.array:
        """Log-mel energies `(B, T, M)` to the last map `(B, ceil(M / 8), ceil(T / 8), C)`."""
        x = fbank.swapaxes(1, 2)[..., None]
        x = nn.relu(self.bn1(self.conv1, x))
        for block in (*self.layer1, *self.layer2, *self.layer3):
            x = block(x)
        aside = self.layer3_ds(x)
        for block in self.layer4:
            x = block(x)
        return self.fuse34(x, aside)

    def forward3(self, fbank: mx.array) -> mx.array:
        """Log-mel energies `(B, T, M)` to vectors `(B, sv_dim)`, means over time at c F + f."""
        mean = mx.mean(self.map_features(fbank), axis=2)
        return mean.swapaxes(1, 2).reshape(mean.shape[0], -1)
