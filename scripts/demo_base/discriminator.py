"""`MultiPeriodDiscriminator` on one vector of weights; grouped convolutions become dense ones.

The same function as `mlx_vits.models.discriminator`. At the demo's width a grouped convolution has
so few channels a group that a block-diagonal weight is faster on a GPU.

Axes: B waveforms, N samples, P period, H steps of a period, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_vits.models.discriminator import SLOPE, DiscriminatorOutput, reflect_to_multiple
from mlx_vits.nn.ops import conv1d
from scripts.demo_base.flat import ZERO, Flat

PERIODS = (1, 2, 3, 5, 7, 11)  # 1: over samples
_STRIDES = {True: (1, 4, 4, 4, 4, 1, 1), False: (3, 3, 3, 3, 1, 1)}  # over samples or not


class FastDiscriminator:
    """The discriminator of v1 and v2.

    Args:
        shapes: of the parameters of `MultiPeriodDiscriminator`, by path.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.flat = Flat(shapes)
        weights = self.flat.weights
        for net, period in enumerate(PERIODS):
            channels, count = 1, len(_STRIDES[period == 1])
            for layer in range(count):
                kind = f"convs.{layer}" if layer < count - 1 else "conv_post"
                stem = f"discriminators.{net}.{kind}"
                weight = weights[f"{stem}.weight"]
                weight = weight.reshape(*weight.shape[:2], weight.shape[-1])
                self.flat.add(f"{net}.{layer}.w", _dense(weight, channels))
                self.flat.add(f"{net}.{layer}.b", weights[f"{stem}.bias"])
                channels = weight.shape[0]
        self.flat.finish()

    def __call__(self, weights: dict[str, mx.array], wav: mx.array) -> list[DiscriminatorOutput]:
        """Waveforms `(B, N)`; features are `(B, P H, C)`."""
        outputs = []
        for net, period in enumerate(PERIODS):
            x = reflect_to_multiple(wav, period)
            x = x.reshape(len(x), -1, period).swapaxes(1, 2).reshape(len(x) * period, -1, 1)
            features = []
            strides = _STRIDES[period == 1]
            for layer, stride in enumerate(strides):
                weight, bias = weights[f"{net}.{layer}.w"], weights[f"{net}.{layer}.b"]
                x = conv1d(x, weight, bias, stride=stride, padding=weight.shape[1] // 2)
                x = nn.leaky_relu(x, SLOPE) if layer < len(strides) - 1 else x
                features.append(x.reshape(len(wav), -1, x.shape[-1]))
            outputs.append(DiscriminatorOutput(features[-1].reshape(len(wav), -1), features))
        return outputs


def _dense(weight: np.ndarray, channels: int) -> np.ndarray:
    """Indices `(O, K, C / groups)` to block-diagonal ones `(O, K, C)`."""
    outputs, kernel, inputs = weight.shape
    groups = channels // inputs
    dense = np.full((outputs, kernel, channels), ZERO)
    for group in range(groups):
        own = slice(group * outputs // groups, (group + 1) * outputs // groups)
        dense[own, :, group * inputs : (group + 1) * inputs] = weight[own]
    return dense
