"""The content encoder: 16 kHz speech to features of what is said, 50 frames a second.

Source: Hugging Face `HubertModel` with the switches of chinese-hubert-base (group norm in the first
convolution only, layers normed after the addition); Hsu et al. 2021, arXiv:2106.07447. The waveform
goes in as it is, without mean or variance normalisation. Upstream hears one clip at a time; here
clips of several lengths may share a batch, each heard as if alone. Axes: B batch, N samples,
S frames, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.errors import CheckpointError
from mlx_vits.nn.layers import Conv1d
from mlx_vits.nn.ops import conv1d
from mlx_vits.nn.weight_norm import weight_norm

# What a file states is believed up to here.
_LARGEST = 1 << 20
_MOST_LAYERS = 64


@dataclass(frozen=True)
class HubertConfig:
    """Sizes under Hugging Face's keys; the defaults are chinese-hubert-base's."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config") -> HubertConfig:
        """Reads Hugging Face's `config.json`.

        Raises:
            CheckpointError: the file describes a topology that is not chinese-hubert-base's.
        """
        fixed = {
            "feat_extract_norm": "group",
            "conv_bias": False,
            "feat_proj_layer_norm": True,
            "do_stable_layer_norm": False,
            "hidden_act": "gelu",
            "feat_extract_activation": "gelu",
        }
        for key, expected in fixed.items():
            if values.get(key, expected) != expected:
                raise CheckpointError(
                    f"{source}: {key} is {values[key]!r}; only the topology of "
                    f"chinese-hubert-base ({key} = {expected!r}) is supported"
                )
        known = {f.name: f.default for f in fields(cls)}
        sizes: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known
        }
        for key, value in sizes.items():
            if type(value) is not type(known[key]):
                raise CheckpointError(f"{source}: {key} is {value!r}, not like {known[key]!r}")
        config = cls(**sizes)
        config._check(source)
        return config

    def frames(self, samples: int, layers: int | None = None) -> int:
        """Frames of so many samples, after all convolutions or the first few."""
        for kernel, stride in list(zip(self.conv_kernel, self.conv_stride, strict=True))[:layers]:
            samples = (samples - kernel) // stride + 1
        return samples

    def _check(self, source: str) -> None:
        """Refuses sizes that no model can have, before one is built of them."""
        lists = (self.conv_dim, self.conv_kernel, self.conv_stride)
        sizes = [getattr(self, f.name) for f in fields(self) if f.type == "int"]
        sizes += [size for sizes in lists for size in sizes]
        is_sound = (
            all(type(size) is int and 0 < size <= _LARGEST for size in sizes)
            and self.num_hidden_layers <= _MOST_LAYERS
            and len({len(sizes) for sizes in lists}) == 1
            and 0 < len(lists[0]) <= _MOST_LAYERS
            and self.hidden_size % self.num_attention_heads == 0
            and self.hidden_size % self.num_conv_pos_embedding_groups == 0
        )
        if not is_sound:
            raise CheckpointError(
                f"{source}: its sizes describe no model; copy or download the file again"
            )


class _GroupNorm(nn.Module):
    """Normalises each channel over time (as many groups as channels)."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = mx.ones((channels,))
        self.bias = mx.zeros((channels,))

    def __call__(self, x: mx.array, inside: mx.array | None = None) -> mx.array:
        if inside is None:
            mean = mx.mean(x, axis=1, keepdims=True)
            variance = mx.var(x, axis=1, keepdims=True)
        else:
            frames = mx.sum(inside, axis=1, keepdims=True)
            mean = mx.sum(mx.where(inside, x, 0), axis=1, keepdims=True) / frames
            squares = mx.where(inside, mx.square(x - mean), 0)
            variance = mx.sum(squares, axis=1, keepdims=True) / frames
        return (x - mean) * mx.rsqrt(variance + self.eps) * self.weight + self.bias


class _ConvLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, normed: bool):
        super().__init__()
        self.conv = Conv1d(inputs, outputs, kernel, stride=stride, bias=False)
        if normed:
            self.layer_norm = _GroupNorm(outputs, 1e-5)

    def __call__(self, x: mx.array, inside: mx.array | None = None) -> mx.array:
        x = self.conv(x)
        return nn.gelu(self.layer_norm(x, inside) if "layer_norm" in self else x)


class _FeatureExtractor(nn.Module):
    def __init__(self, config: HubertConfig):
        super().__init__()
        inputs = (1, *config.conv_dim[:-1])
        sizes = zip(inputs, config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
        self.conv_layers = [_ConvLayer(*size, index == 0) for index, size in enumerate(sizes)]

    def __call__(self, x: mx.array, inside: mx.array | None = None) -> mx.array:
        """`inside` says which frames of the first layer are a clip's own: `(B, frames, 1)`."""
        # No convolution is padded, so a clip's own frames see its own samples alone.
        for layer in self.conv_layers:
            x = layer(x, inside)
        return x


class _FeatureProjection(nn.Module):
    def __init__(self, config: HubertConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.projection(self.layer_norm(x))


class _PositionalWeight(nn.Module):
    """A grouped convolution, normed over all axes but time: one magnitude for each tap.

    Attributes:
        weight_g: `(1, K, 1)`.
        weight_v: `(C, K, C / groups)`.
        bias: `(C,)`.
    """

    kind = "conv1d"
    file_normed = True

    def __init__(self, channels: int, kernel: int, groups: int):
        super().__init__()
        self.groups = groups
        self.bias = mx.zeros((channels,))
        self.weight_g = mx.ones((1, kernel, 1))
        self.weight_v = mx.random.normal((channels, kernel, channels // groups))

    def effective_weight(self) -> mx.array:
        return weight_norm(self.weight_g, self.weight_v, (0, 2))

    def __call__(self, x: mx.array) -> mx.array:
        weight = self.effective_weight()
        kernel = weight.shape[1]
        y = conv1d(x, weight, self.bias, padding=kernel // 2, groups=self.groups)
        return y[:, : x.shape[1]]  # an even kernel gives one frame too many


class _PositionalConvEmbedding(nn.Module):
    def __init__(self, config: HubertConfig):
        super().__init__()
        self.conv = _PositionalWeight(
            config.hidden_size,
            config.num_conv_pos_embeddings,
            config.num_conv_pos_embedding_groups,
        )

    def __call__(self, x: mx.array) -> mx.array:
        return nn.gelu(self.conv(x))


class _Attention(nn.Module):
    def __init__(self, config: HubertConfig):
        super().__init__()
        width = config.hidden_size
        self.n_heads = config.num_attention_heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        batch, length, width = x.shape
        query, key, value = (
            layer(x).reshape(batch, length, self.n_heads, -1).swapaxes(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        scale = query.shape[-1] ** -0.5
        y = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=mask)
        return self.out_proj(y.swapaxes(1, 2).reshape(batch, length, width))


class _FeedForward(nn.Module):
    def __init__(self, config: HubertConfig):
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.output_dense(nn.gelu(self.intermediate_dense(x)))


class _EncoderLayer(nn.Module):
    def __init__(self, config: HubertConfig):
        super().__init__()
        self.attention = _Attention(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.feed_forward = _FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        x = self.layer_norm(x + self.attention(x, mask))
        return self.final_layer_norm(x + self.feed_forward(x))


class _Encoder(nn.Module):
    def __init__(self, config: HubertConfig):
        super().__init__()
        self.pos_conv_embed = _PositionalConvEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = [_EncoderLayer(config) for _ in range(config.num_hidden_layers)]

    def __call__(self, x: mx.array, inside: mx.array | None = None) -> mx.array:
        """`inside` says which frames are a clip's own: `(B, S, 1)`."""
        mask = None
        if inside is not None:
            # The positional convolution sees zeros around a clip; no frame attends to the others'.
            x = mx.where(inside, x, 0)
            mask = inside[:, None, None, :, 0]
        x = self.layer_norm(x + self.pos_conv_embed(x))
        for layer in self.layers:
            x = layer(x, mask)
        return x


class HubertModel(nn.Module):
    """Speech to SSL features.

    Attributes:
        masked_spec_embed: `(hidden_size,)`, in the files but unused outside its own pretraining.
    """

    def __init__(self, config: HubertConfig | None = None):
        super().__init__()
        self.config = config or HubertConfig()
        self.masked_spec_embed = mx.zeros((self.config.hidden_size,))
        self.feature_extractor = _FeatureExtractor(self.config)
        self.feature_projection = _FeatureProjection(self.config)
        self.encoder = _Encoder(self.config)

    def __call__(self, wav: mx.array, lengths: Sequence[int] | None = None) -> mx.array:
        """Features of 16 kHz audio.

        Args:
            wav: `(B, N)`; a clip that is shorter is followed by zeros.
            lengths: samples of each clip; None where all are N long.

        Returns:
            `(B, S, hidden_size)`, S = (N - 400) // 320 + 1. With `lengths` a clip's own frames are,
            but for rounding, those it has alone; what follows them means nothing.
        """
        if lengths is None or min(lengths) == wav.shape[1]:
            features = self.feature_extractor(wav[..., None])
            return self.encoder(self.feature_projection(features))
        inside_first, inside = (self._inside(wav.shape[1], lengths, n) for n in (1, None))
        features = self.feature_extractor(wav[..., None], inside_first)
        return self.encoder(self.feature_projection(features), inside)

    def _inside(self, samples: int, lengths: Sequence[int], layers: int | None) -> mx.array:
        """Which frames, after so many convolutions, are a clip's own: `(B, frames, 1)`."""
        own = mx.array([self.config.frames(length, layers) for length in lengths])
        return (mx.arange(self.config.frames(samples, layers)) < own[:, None])[..., None]
