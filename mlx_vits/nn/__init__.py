"""Building blocks: convolutions, weight normalisation, attention, the gated stack."""

from mlx_vits.nn.layers import Conv1d, ConvTranspose1d, LayerNorm
from mlx_vits.nn.weight_norm import (
    WeightNormConv1d,
    WeightNormConv2d,
    WeightNormConvTranspose1d,
)

__all__ = [
    "Conv1d",
    "ConvTranspose1d",
    "LayerNorm",
    "WeightNormConv1d",
    "WeightNormConv2d",
    "WeightNormConvTranspose1d",
]
