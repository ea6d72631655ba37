"""`SynthesizerTrn` with few operations, on one vector of weights.

The same function as `mlx_vits.models.vits`, for a step that is many small operations on a GPU; what
is merged is in `merged.py`. There is no dropout.

Axes: B batch, T spectrogram frames, L phonemes, F bins, N samples, C channels, H heads, D channels
a head, G style channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.config import Config
from mlx_vits.models.generator import LAST_SLOPE, SLOPE
from mlx_vits.models.vits import slice_segments
from mlx_vits.nn.attention import MASKED_SCORE, band_to_square, square_to_band
from mlx_vits.nn.ops import conv1d
from scripts.demo_base.layers import heads, join, scale_gradient
from scripts.demo_base.merged import MergedLayers, fours

Weights = dict[str, mx.array]
_PRIOR = ("prior.", "encoder_", "encoder2.", "mrte.", "flow.")  # layers of prior and flow


class FastBatch(NamedTuple):
    """Windows of clips, zero-padded.

    Attributes:
        quantized: `(B, T / 2, ssl_dim)`, codebook entries.
        spec: `(B, T, F)`, zero after a clip's end.
        mask: `(B, T, 1)`.
        text: `(B, L)` int32.
        text_mask: `(B, L, 1)`.
        starts: `(B,)` int32, first frame of each decoded segment.
        wav: `(B, N)`, the segments' real samples.
        places: `(B, T)` int32, which phoneme of `text` a frame belongs to; -1 where unknown.
        style_noise: `(B, G)`, added to the prior's style, in standard deviations of the batch's.
    """

    quantized: mx.array
    spec: mx.array
    mask: mx.array
    text: mx.array
    text_mask: mx.array
    starts: mx.array
    wav: mx.array
    places: mx.array
    style_noise: mx.array


class Prior(NamedTuple):
    """The prior of the latent, each `(B, T, C)`, and where it looked in the text `(B, H, T, L)`.

    What it says past a clip's end means nothing; so does a posterior's.
    """

    m_p: mx.array
    logs_p: mx.array
    attention: mx.array


class Posterior(NamedTuple):
    """A sample of the posterior and its parameters, each `(B, T, C)`."""

    z: mx.array
    m_q: mx.array
    logs_q: mx.array


class Generated(NamedTuple):
    """What a step's forward gives.

    Attributes:
        wav: `(B + spoken, N)`: the posterior's segments, then the prior's of the first few clips;
            `(spoken, N)` where only the prior is decoded.
        z_p, logs_q: `(B, T, C)`, with the gradient to the posterior scaled.
        prior: see there.
    """

    wav: mx.array
    z_p: mx.array
    logs_q: mx.array
    prior: Prior


class FastGenerator:
    """The generator of a configuration.

    Args:
        config: see `MergedLayers`.
        shapes: of the parameters of `SynthesizerTrn(config)`, by path.
    """

    def __init__(self, config: Config, shapes: Mapping[str, tuple[int, ...]]):
        layers = MergedLayers(config, shapes)
        self.config, self.flat = config, layers.flat
        self.dilations, self.encoders = layers.dilations, layers.encoders
        self.stages = layers.stages

    def embed_style(self, weights: Weights, spec: mx.array, mask: mx.array) -> mx.array:
        """`(B, T, F)` to `(B, G)`."""
        dims = self.config.reduced_dims
        x = spec[..., : dims.ref_spec_bins] * mask
        for layer in ("spectral.0.fc", "spectral.3.fc"):
            x = nn.mish(_linear(weights, f"style.{layer}", x))
        for block in range(2):
            value, gate = mx.split(_conv(weights, f"style.{block}", x), 2, axis=-1)
            x = x + value * mx.sigmoid(gate)
        x = x * mask
        query, key, value = heads(_linear(weights, "style.qkv", x), 3, dims.style_heads)
        hidden = mx.where(mask.swapaxes(1, 2)[:, None] == 0, -mx.inf, 0.0)
        scores = query @ key.swapaxes(-1, -2) + hidden
        attended = join(mx.softmax(scores, axis=-1) @ value)
        x = _linear(weights, "style.fc.fc", _linear(weights, "style.o", attended) + x) * mask
        return mx.sum(x / mx.sum(mask, axis=1, keepdims=True), axis=1)

    def _encode(self, weights: Weights, encoder: str, x: mx.array, mask: mx.array) -> mx.array:
        """Layers of relative-position attention and FFN: `(B, T, C)` to the same.

        What lies past a clip's end means nothing, and changes nothing within.
        """
        count, reach = self.config.model.n_heads, self.config.reduced_dims.attn_window
        hidden = _hidden(mask.swapaxes(1, 2)[:, None] * mask[:, None])
        for layer in range(self.encoders[encoder]):
            name = f"{encoder}.{layer}"
            query, key, value = heads(_linear(weights, f"{name}.qkv", x), 3, count)
            near = band_to_square(query @ weights[f"{name}.rel_k"])
            scores = query @ key.swapaxes(-1, -2) + near + hidden
            attention = mx.softmax(scores, axis=-1)
            y = attention @ value + square_to_band(attention, reach) @ weights[f"{name}.rel_v"]
            y = _linear(weights, f"{name}.o", join(y))
            x = _layer_norm(weights, name, "1", x + y)
            y = nn.relu(_conv(weights, f"{name}.ffn1", x * mask)) * mask
            x = _layer_norm(weights, name, "2", x + _conv(weights, f"{name}.ffn2", y))
        return x

    def prior(self, weights: Weights, batch: FastBatch, g: mx.array) -> Prior:
        """What codes, text and style `(B, G)` say of the latent."""
        mask, text_mask = batch.mask, batch.text_mask
        count = self.config.reduced_dims.mrte_heads
        y = mx.repeat(_linear(weights, "prior.ssl", batch.quantized), 2, axis=1)
        y = self._encode(weights, "encoder_ssl", y, mask)
        embedded = weights["prior.embedding"][batch.text]
        text = self._encode(weights, "encoder_text", embedded, text_mask)
        y = _linear(weights, "mrte.c_pre", y)
        text = _linear(weights, "mrte.text_pre", text)
        (query,) = heads(_linear(weights, "mrte.q", y), 1, count)
        key, value = heads(_linear(weights, "mrte.kv", text), 2, count)
        hidden = _hidden((mask * text_mask.swapaxes(1, 2))[:, None])
        attention = mx.softmax(query @ key.swapaxes(-1, -2) + hidden, axis=-1)
        attended = _linear(weights, "mrte.o", join(attention @ value))
        y = _linear(weights, "mrte.c_post", attended + y + g[:, None])
        y = self._encode(weights, "encoder2", y, mask)
        return Prior(*mx.split(_linear(weights, "prior.proj", y), 2, axis=-1), attention)

    def _wavenet(
        self, weights: Weights, name: str, x: mx.array, mask: mx.array, conditions: list[mx.array]
    ) -> mx.array:
        """A WN stack, with a condition `(B, 2 C)` for each layer; not masked."""
        parts, last = [], len(conditions) - 1
        for layer, condition in enumerate(conditions):
            y = _same(x, weights[f"{name}.in.{layer}"]) + condition[:, None]
            half, gate = mx.split(y, 2, axis=-1)
            y = _linear(weights, f"{name}.skip.{layer}", mx.tanh(half) * mx.sigmoid(gate))
            if layer < last:
                residual, y = mx.split(y, 2, axis=-1)
                x = (x + residual) * mask
            parts.append(y)
        return sum(parts[1:], start=parts[0])

    def _conditions(self, weights: Weights, name: str, g: mx.array, count: int) -> list[mx.array]:
        conditions = _linear(weights, f"{name}.cond", g) + weights[f"{name}.cond.b2"]
        return list(mx.split(conditions, count, axis=-1))

    def posterior(
        self, weights: Weights, spec: mx.array, mask: mx.array, g: mx.array, noise: mx.array
    ) -> Posterior:
        """What a spectrogram `(B, T, F)` says of the latent."""
        x = _linear(weights, "q.pre", spec) * mask
        layers = self.config.reduced_dims.enc_q_wn_layers
        x = self._wavenet(weights, "q", x, mask, self._conditions(weights, "q", g, layers))
        m_q, logs_q = mx.split(_linear(weights, "q.proj", x), 2, axis=-1)
        return Posterior((m_q + noise * mx.exp(logs_q)) * mask, m_q, logs_q)

    def flow(
        self, weights: Weights, z: mx.array, mask: mx.array, g: mx.array, reverse: bool = False
    ) -> mx.array:
        """The latent `(B, T, C)`, 0 past a clip's end, in the prior's space, or back."""
        dims = self.config.reduced_dims
        flows, layers = dims.flow_n_flows, dims.flow_wn_layers
        conditions = self._conditions(weights, "flow", g, flows * layers)
        halves = [mx.contiguous(half) for half in mx.split(z, 2, axis=-1)]
        for flow in reversed(range(flows)) if reverse else range(flows):
            name, own = f"flow.{flow}", conditions[flow * layers : (flow + 1) * layers]
            seen, moved = flow % 2, 1 - flow % 2
            x = _linear(weights, f"{name}.pre", halves[seen]) * mask
            x = self._wavenet(weights, name, x, mask, own)
            shift = _linear(weights, f"{name}.post", x) * mask
            halves[moved] = halves[moved] - shift if reverse else halves[moved] + shift
        return mx.concatenate(halves, axis=-1)

    def decode(self, weights: Weights, z: mx.array, g: mx.array) -> mx.array:
        """A latent segment `(B, T, C)` and style `(B, G)` to a waveform `(B, N)`."""
        x = _conv(weights, "dec.pre", z) + _linear(weights, "dec.cond", g)[:, None]
        x = _widened(x, fours(x.shape[-1]))
        blocks = len(self.config.model.resblock_kernel_sizes)
        for number, stage in enumerate(self.stages):
            x = _same(nn.leaky_relu(x, SLOPE), weights[f"up.{number}.w"])
            x = x.reshape(x.shape[0], -1, stage.padded) + weights[f"up.{number}.b"]
            own = x[..., : stage.channels]
            merged = _widened(mx.concatenate([own] * blocks, -1), stage.merged)
            for pair, dilation in enumerate(self.dilations):
                name = f"res.{number}.{pair}"
                y = nn.leaky_relu(merged if pair else x, SLOPE)
                y = nn.leaky_relu(_conv(weights, f"{name}.1", y, dilation), SLOPE)
                merged = merged + _conv(weights, f"{name}.2", y)
            merged = merged[..., : blocks * stage.channels]
            x = mx.sum(merged.reshape(*x.shape[:2], blocks, -1), axis=2) / blocks
            x = _widened(x, stage.padded)
        return mx.tanh(_same(nn.leaky_relu(x, LAST_SLOPE), weights["dec.post.w"]))[..., 0]

    def __call__(
        self,
        weights: Weights,
        batch: FastBatch,
        noise: mx.array,
        pull: float | mx.array = 1.0,
        spoken: int = 0,
        noise_scale: float = 0.5,
        only_prior: bool = False,
    ) -> Generated:
        """A step's forward.

        Args:
            weights: from `flat`.
            noise: `(B, T, C)`, standard normal.
            pull: share of the KL's gradient that reaches the posterior.
            spoken: of so many clips the prior is decoded as well, at `noise_scale`.
            only_prior: whether the posterior is not decoded, and only the prior and the flow have a
                gradient.
        """
        if only_prior:
            weights = {
                name: weight if name.startswith(_PRIOR) else mx.stop_gradient(weight)
                for name, weight in weights.items()
            }
        mask, frames = batch.mask, self.config.segment_frames
        g = self.embed_style(weights, batch.spec, mask)
        # The prior of a speaker that it has not met is worse off than flow and decoder are.
        spread = mx.stop_gradient(mx.sqrt(mx.var(g, axis=0)))
        prior = self.prior(weights, batch, g + batch.style_noise * spread)
        posterior = self.posterior(weights, batch.spec, mask, mx.stop_gradient(g), noise)
        z_p = self.flow(weights, scale_gradient(posterior.z, pull), mask, g)
        segment = slice_segments(posterior.z, batch.starts, frames)
        segments, styles = ([], []) if only_prior else ([segment], [g])
        if spoken:
            # Another clip's noise: the posterior's sample must not show through.
            some = mx.roll(noise, 1, axis=0)[:spoken] * mx.exp(prior.logs_p[:spoken])
            guess = (prior.m_p[:spoken] + noise_scale * some) * mask[:spoken]
            guess = self.flow(weights, guess, mask[:spoken], g[:spoken], reverse=True)
            guess = slice_segments(guess, batch.starts[:spoken], frames)
            segments, styles = [*segments, guess], [*styles, g[:spoken]]
        wav = self.decode(weights, mx.concatenate(segments), mx.concatenate(styles))
        return Generated(wav, z_p, scale_gradient(posterior.logs_q, pull), prior)


def _linear(weights: Weights, name: str, x: mx.array) -> mx.array:
    """`(..., in)` to `(..., out)`."""
    return mx.addmm(weights[f"{name}.b"], x, weights[f"{name}.w"])


def _same(x: mx.array, weight: mx.array, dilation: int = 1) -> mx.array:
    """A convolution of odd kernel that keeps the length: `(B, T, C)` with `(O, K, C)`."""
    return conv1d(x, weight, padding=(weight.shape[1] - 1) * dilation // 2, dilation=dilation)


def _conv(weights: Weights, name: str, x: mx.array, dilation: int = 1) -> mx.array:
    return _same(x, weights[f"{name}.w"], dilation) + weights[f"{name}.b"]


def _widened(x: mx.array, channels: int) -> mx.array:
    """`(B, T, C)` with zeros in further channels; MLX pads even by nothing."""
    missing = channels - x.shape[-1]
    return mx.pad(x, [(0, 0), (0, 0), (0, missing)]) if missing else x


def _hidden(seen: mx.array) -> mx.array:
    """What hides from an attention where 1 does not stand, added to its scores."""
    return (seen == 0) * MASKED_SCORE


def _layer_norm(weights: Weights, name: str, part: str, x: mx.array) -> mx.array:
    gamma, beta = weights[f"{name}.gamma{part}"], weights[f"{name}.beta{part}"]
    return mx.fast.layer_norm(x, gamma, beta, 1e-5)
