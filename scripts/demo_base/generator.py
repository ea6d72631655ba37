"""`SynthesizerTrn` with few operations, on one vector of weights.

The same function as `mlx_vits.models.vits`, for a step that is many small operations on a GPU. What
is merged: the projections of an attention; the conditions of all layers of a WN stack, and of all
flows; the residual blocks of a decoder stage, which become one of block-diagonal weights; a
transposed convolution becomes one whose channels are a stride of samples (sub-pixel convolution,
Shi et al. 2016, arXiv:1609.05158). Flips are folded into weights. There is no dropout.

Axes: B batch, T spectrogram frames, L phonemes, F bins, N samples, C channels, H heads, D channels
a head, G style channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_vits.config import Config
from mlx_vits.errors import CheckpointError
from mlx_vits.models.generator import LAST_SLOPE, SLOPE
from mlx_vits.models.vits import slice_segments
from mlx_vits.nn.activations import leaky_relu
from mlx_vits.nn.attention import _MASKED_SCORE, _band_to_square, _square_to_band
from mlx_vits.nn.conv import conv1d
from scripts.demo_base.flat import ZERO, Flat

FROZEN = ("ssl_proj", "quantizer")
_TAPS = 3  # input frames that a stride of upsampled samples sees
Weights = dict[str, mx.array]


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
    """

    quantized: mx.array
    spec: mx.array
    mask: mx.array
    text: mx.array
    text_mask: mx.array
    starts: mx.array
    wav: mx.array
    places: mx.array


class Prior(NamedTuple):
    """The prior of the latent, each `(B, T, C)`, and where it looked in the text `(B, H, T, L)`."""

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
        wav: `(B + spoken, N)`: the posterior's segments, then the prior's of the first few clips.
        z_p, logs_q: `(B, T, C)`, with the gradient to the posterior scaled.
        prior: see there.
    """

    wav: mx.array
    z_p: mx.array
    logs_q: mx.array
    prior: Prior


@dataclass(frozen=True)
class _Stage:
    """A decoder stage: channels of a residual block, of the stage's input, and of all blocks."""

    rate: int
    channels: int
    padded: int
    merged: int


class FastGenerator:
    """The generator of a configuration.

    Args:
        config: all residual blocks of a stage have the same dilations; an even number of flows.
        shapes: of the parameters of `SynthesizerTrn(config)`, by path.

    Raises:
        CheckpointError: the configuration cannot be merged so.
    """

    def __init__(self, config: Config, shapes: Mapping[str, tuple[int, ...]]):
        model = config.model
        kernels = zip(model.upsample_rates, model.upsample_kernel_sizes, strict=True)
        is_mergeable = (
            len(set(model.resblock_dilation_sizes)) == 1
            and config.reduced_dims.flow_n_flows % 2 == 0
            and all((k - u) % 2 == 0 and k <= _TAPS * u for u, k in kernels)
            and not model.is_pro
            and config.p_dropout == config.style_dropout == 0
        )
        if not is_mergeable:
            raise CheckpointError(
                "config: its layers cannot be merged; give all residual blocks the same "
                "dilations, an even number of flows, and no dropout"
            )
        self.config, self.flat = config, Flat(shapes, FROZEN)
        self.dilations = model.resblock_dilation_sizes[0]
        self.encoders = {
            "encoder_ssl": model.n_layers // 2,
            "encoder_text": model.n_layers,
            "encoder2": model.n_layers // 2,
        }
        self._add_style()
        self._add_prior()
        self._add_latent()
        self.stages = self._add_decoder()
        self.flat.finish()

    # -- where the weights come from

    def _linear(self, name: str, *stems: str, axis: int = 1) -> None:
        """Layers of one tap side by side, as `(in, out)`."""
        weights = self.flat.weights
        columns = [weights[f"{s}.weight"].reshape(len(weights[f"{s}.weight"]), -1).T for s in stems]
        self.flat.add(f"{name}.w", np.concatenate(columns, axis))
        self.flat.add(f"{name}.b", np.concatenate([weights[f"{s}.bias"] for s in stems]))

    def _conv(self, name: str, stem: str) -> None:
        self.flat.add(f"{name}.w", self.flat.weights[f"{stem}.weight"])
        self.flat.add(f"{name}.b", self.flat.weights[f"{stem}.bias"])

    def _add_style(self) -> None:
        stem = "ref_enc"
        for layer in ("spectral.0.fc", "spectral.3.fc", "fc.fc"):
            self._linear(f"style.{layer}", f"{stem}.{layer}")
        for block in range(2):
            self._conv(f"style.{block}", f"{stem}.temporal.{block}.conv1.conv")
        attention = f"{stem}.slf_attn"
        self._linear("style.qkv", *(f"{attention}.w_{part}s" for part in "qkv"))
        self._linear("style.o", f"{attention}.fc")

    def _add_prior(self) -> None:
        flat, weights = self.flat, self.flat.weights
        self._linear("prior.ssl", "enc_p.ssl_proj")
        flat.add("prior.embedding", weights["enc_p.text_embedding.weight"])
        for encoder, layers in self.encoders.items():
            for layer in range(layers):
                name, stem = f"{encoder}.{layer}", f"enc_p.{encoder}"
                attention = f"{stem}.attn_layers.{layer}"
                self._linear(f"{name}.qkv", *(f"{attention}.conv_{part}" for part in "qkv"))
                self._linear(f"{name}.o", f"{attention}.conv_o")
                flat.add(f"{name}.rel_k", weights[f"{attention}.emb_rel_k"][0].T)
                flat.add(f"{name}.rel_v", weights[f"{attention}.emb_rel_v"][0])
                for part in "12":
                    norm = f"{stem}.norm_layers_{part}.{layer}"
                    flat.add(f"{name}.gamma{part}", weights[f"{norm}.gamma"])
                    flat.add(f"{name}.beta{part}", weights[f"{norm}.beta"])
                    self._conv(f"{name}.ffn{part}", f"{stem}.ffn_layers.{layer}.conv_{part}")
        stem = "enc_p.mrte"
        for part in ("c_pre", "text_pre", "c_post"):
            self._linear(f"mrte.{part}", f"{stem}.{part}")
        for name, parts in (("q", "q"), ("kv", "kv"), ("o", "o")):
            self._linear(f"mrte.{name}", *(f"{stem}.cross_attention.conv_{part}" for part in parts))
        self._linear("prior.proj", "enc_p.proj")

    def _add_wavenet(self, name: str, stem: str, layers: int) -> None:
        weights = self.flat.weights
        for layer in range(layers):
            self.flat.add(f"{name}.in.{layer}", weights[f"{stem}.in_layers.{layer}.weight"])
            self._linear(f"{name}.skip.{layer}", f"{stem}.res_skip_layers.{layer}")

    def _add_conditions(self, name: str, stems: list[str], layers: int) -> None:
        """All conditions of some WN stacks as one layer, with the biases they are added to."""
        self._linear(f"{name}.cond", *(f"{stem}.cond_layer" for stem in stems))
        biases = [
            self.flat.weights[f"{stem}.in_layers.{layer}.bias"]
            for stem in stems
            for layer in range(layers)
        ]
        self.flat.add(f"{name}.cond.b2", np.concatenate(biases))

    def _add_latent(self) -> None:
        dims, weights = self.config.reduced_dims, self.flat.weights
        self._linear("q.pre", "enc_q.pre")
        self._linear("q.proj", "enc_q.proj")
        self._add_wavenet("q", "enc_q.enc", dims.enc_q_wn_layers)
        self._add_conditions("q", ["enc_q.enc"], dims.enc_q_wn_layers)
        stems = [f"flow.flows.{2 * flow}" for flow in range(dims.flow_n_flows)]
        for flow, stem in enumerate(stems):
            # The flips: every other flow meets the channels in reverse.
            turn = slice(None, None, -1 if flow % 2 else 1)
            self.flat.add(f"flow.{flow}.pre.w", weights[f"{stem}.pre.weight"][:, 0].T[turn])
            self.flat.add(f"flow.{flow}.pre.b", weights[f"{stem}.pre.bias"])
            self.flat.add(f"flow.{flow}.post.w", weights[f"{stem}.post.weight"][:, 0].T[:, turn])
            self.flat.add(f"flow.{flow}.post.b", weights[f"{stem}.post.bias"][turn])
            self._add_wavenet(f"flow.{flow}", f"{stem}.enc", dims.flow_wn_layers)
        self._add_conditions("flow", [f"{stem}.enc" for stem in stems], dims.flow_wn_layers)

    def _add_decoder(self) -> list[_Stage]:
        model, weights = self.config.model, self.flat.weights
        self._conv("dec.pre", "dec.conv_pre")
        self._linear("dec.cond", "dec.cond")
        width = model.upsample_initial_channel
        padded, stages = _fours(width), []
        for number, rate in enumerate(model.upsample_rates):
            channels = width // 2
            blocks = len(model.resblock_kernel_sizes)
            stage = _Stage(rate, channels, _fours(channels), _fours(blocks * channels))
            self._add_upsampling(number, stage, width, padded)
            self._add_blocks(number, stage)
            stages.append(stage)
            width, padded = channels, stage.padded
        post = weights["dec.conv_post.weight"]
        self.flat.add("dec.post.w", _embed(post, (1, post.shape[1], padded)))
        return stages

    def _add_upsampling(self, number: int, stage: _Stage, width: int, padded: int) -> None:
        weight = self.flat.weights[f"dec.ups.{number}.weight"]  # (out, K, in)
        kernel, rate = weight.shape[1], stage.rate
        merged = np.full((rate, stage.padded, _TAPS, padded), ZERO)
        for phase in range(rate):
            for tap in range(_TAPS):  # input frame `tap - 1` from this one
                at = phase + (kernel - rate) // 2 + (1 - tap) * rate
                if 0 <= at < kernel:
                    merged[phase, : stage.channels, tap, :width] = weight[:, at]
        self.flat.add(f"up.{number}.w", merged.reshape(rate * stage.padded, _TAPS, padded))
        bias = self.flat.weights[f"dec.ups.{number}.bias"]
        self.flat.add(f"up.{number}.b", _embed(bias, (stage.padded,)))

    def _add_blocks(self, number: int, stage: _Stage) -> None:
        """The residual blocks of a stage as one, each kernel centred in the longest."""
        kernels = self.config.model.resblock_kernel_sizes
        longest, c = max(kernels), stage.channels
        for pair in range(len(self.dilations)):
            for half in "12":
                # All blocks begin with the stage's own channels.
                is_first = pair == 0 and half == "1"
                inputs = stage.padded if is_first else stage.merged
                weight = np.full((stage.merged, longest, inputs), ZERO)
                bias = np.full(stage.merged, ZERO)
                for block, kernel in enumerate(kernels):
                    stem = f"dec.resblocks.{number * len(kernels) + block}.convs{half}.{pair}"
                    own = slice(block * c, (block + 1) * c)
                    source = slice(0, c) if is_first else own
                    at = (longest - kernel) // 2
                    weight[own, at : at + kernel, source] = self.flat.weights[f"{stem}.weight"]
                    bias[own] = self.flat.weights[f"{stem}.bias"]
                self.flat.add(f"res.{number}.{pair}.{half}.w", weight)
                self.flat.add(f"res.{number}.{pair}.{half}.b", bias)

    # -- what they do

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
        query, key, value = _heads(_linear(weights, "style.qkv", x), 3, dims.style_heads)
        scores = (query @ key.swapaxes(-1, -2)) * dims.style_hidden**-0.5
        scores = mx.where(mask.swapaxes(1, 2)[:, None] == 0, -mx.inf, scores)
        attended = _join(mx.softmax(scores, axis=-1) @ value)
        x = _linear(weights, "style.fc.fc", _linear(weights, "style.o", attended) + x) * mask
        return mx.sum(x / mx.sum(mask, axis=1, keepdims=True), axis=1)

    def _encode(self, weights: Weights, encoder: str, x: mx.array, mask: mx.array) -> mx.array:
        """Layers of relative-position attention and FFN: `(B, T, C)` to the same."""
        heads, reach = self.config.model.n_heads, self.config.reduced_dims.attn_window
        hidden = mask.swapaxes(1, 2)[:, None] * mask[:, None] == 0
        x = x * mask
        for layer in range(self.encoders[encoder]):
            name = f"{encoder}.{layer}"
            query, key, value = _heads(_linear(weights, f"{name}.qkv", x), 3, heads)
            query = query * query.shape[-1] ** -0.5
            near = _band_to_square(query @ weights[f"{name}.rel_k"])
            scores = query @ key.swapaxes(-1, -2) + near
            attention = mx.softmax(mx.where(hidden, _MASKED_SCORE, scores), axis=-1)
            y = attention @ value + _square_to_band(attention, reach) @ weights[f"{name}.rel_v"]
            y = _linear(weights, f"{name}.o", _join(y))
            x = _layer_norm(weights, name, "1", x + y)
            y = nn.relu(_conv(weights, f"{name}.ffn1", x * mask)) * mask
            y = _conv(weights, f"{name}.ffn2", y) * mask
            x = _layer_norm(weights, name, "2", x + y)
        return x * mask

    def prior(self, weights: Weights, batch: FastBatch, g: mx.array) -> Prior:
        """What codes, text and style `(B, G)` say of the latent."""
        mask, text_mask = batch.mask, batch.text_mask
        heads = self.config.reduced_dims.mrte_heads
        y = mx.repeat(_linear(weights, "prior.ssl", batch.quantized), 2, axis=1)
        y = self._encode(weights, "encoder_ssl", y, mask)
        embedded = weights["prior.embedding"][batch.text]
        text = self._encode(weights, "encoder_text", embedded, text_mask)
        y = _linear(weights, "mrte.c_pre", y)
        text = _linear(weights, "mrte.text_pre", text)
        (query,) = _heads(_linear(weights, "mrte.q", y * mask), 1, heads)
        key, value = _heads(_linear(weights, "mrte.kv", text * text_mask), 2, heads)
        scores = (query @ key.swapaxes(-1, -2)) * query.shape[-1] ** -0.5
        hidden = (mask @ text_mask.swapaxes(1, 2))[:, None] == 0
        attention = mx.softmax(mx.where(hidden, _MASKED_SCORE, scores), axis=-1)
        attended = _linear(weights, "mrte.o", _join(attention @ value))
        y = _linear(weights, "mrte.c_post", (attended + y + g[:, None]) * mask)
        y = self._encode(weights, "encoder2", y, mask)
        return Prior(*mx.split(_linear(weights, "prior.proj", y) * mask, 2, axis=-1), attention)

    def _wavenet(
        self, weights: Weights, name: str, x: mx.array, mask: mx.array, conditions: list[mx.array]
    ) -> mx.array:
        """A WN stack, with a condition `(B, 2 C)` for each layer."""
        total, last = mx.zeros_like(x), len(conditions) - 1
        for layer, condition in enumerate(conditions):
            h = _same(x, weights[f"{name}.in.{layer}"]) + condition[:, None]
            tanh_half, sigmoid_half = mx.split(h, 2, axis=-1)
            y = mx.tanh(tanh_half) * mx.sigmoid(sigmoid_half)
            y = _linear(weights, f"{name}.skip.{layer}", y)
            if layer < last:
                residual, y = mx.split(y, 2, axis=-1)
                x = (x + residual) * mask
            total = total + y
        return total * mask

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
        m_q, logs_q = mx.split(_linear(weights, "q.proj", x) * mask, 2, axis=-1)
        return Posterior((m_q + noise * mx.exp(logs_q)) * mask, m_q, logs_q)

    def flow(
        self, weights: Weights, z: mx.array, mask: mx.array, g: mx.array, reverse: bool = False
    ) -> mx.array:
        """The latent `(B, T, C)` in the prior's space, or back."""
        dims = self.config.reduced_dims
        flows, layers = dims.flow_n_flows, dims.flow_wn_layers
        conditions = self._conditions(weights, "flow", g, flows * layers)
        halves = list(mx.split(z, 2, axis=-1))
        for flow in reversed(range(flows)) if reverse else range(flows):
            name, own = f"flow.{flow}", conditions[flow * layers : (flow + 1) * layers]
            seen, moved = flow % 2, 1 - flow % 2
            x = _linear(weights, f"{name}.pre", halves[seen]) * mask
            x = self._wavenet(weights, name, x, mask, own)
            shift = _linear(weights, f"{name}.post", x) * mask
            if reverse:
                halves[moved] = (halves[moved] - shift) * mask
            else:
                halves[moved] = halves[moved] * mask + shift
        return mx.concatenate(halves, axis=-1)

    def decode(self, weights: Weights, z: mx.array, g: mx.array) -> mx.array:
        """A latent segment `(B, T, C)` and style `(B, G)` to a waveform `(B, N)`."""
        x = _conv(weights, "dec.pre", z) + _linear(weights, "dec.cond", g)[:, None]
        x = mx.pad(x, [(0, 0), (0, 0), (0, _fours(x.shape[-1]) - x.shape[-1])])
        blocks = len(self.config.model.resblock_kernel_sizes)
        for number, stage in enumerate(self.stages):
            x = _same(leaky_relu(x, SLOPE), weights[f"up.{number}.w"])
            x = x.reshape(x.shape[0], -1, stage.padded) + weights[f"up.{number}.b"]
            own, rest = x[..., : stage.channels], stage.merged - blocks * stage.channels
            merged = mx.pad(mx.concatenate([own] * blocks, -1), [(0, 0), (0, 0), (0, rest)])
            for pair, dilation in enumerate(self.dilations):
                name = f"res.{number}.{pair}"
                y = leaky_relu(merged if pair else x, SLOPE)
                y = leaky_relu(_conv(weights, f"{name}.1", y, dilation), SLOPE)
                merged = merged + _conv(weights, f"{name}.2", y)
            merged = merged[..., : blocks * stage.channels]
            x = mx.sum(merged.reshape(*x.shape[:2], blocks, -1), axis=2) / blocks
            x = mx.pad(x, [(0, 0), (0, 0), (0, stage.padded - stage.channels)])
        return mx.tanh(_same(leaky_relu(x, LAST_SLOPE), weights["dec.post.w"]))[..., 0]

    def __call__(
        self,
        weights: Weights,
        batch: FastBatch,
        noise: mx.array,
        pull: float | mx.array = 1.0,
        spoken: int = 0,
        noise_scale: float = 0.5,
    ) -> Generated:
        """A step's forward.

        Args:
            weights: from `flat`.
            noise: `(B, T, C)`, standard normal.
            pull: share of the KL's gradient that reaches the posterior.
            spoken: of so many clips the prior is decoded as well, at `noise_scale`.
        """
        mask, frames = batch.mask, self.config.segment_frames
        g = self.embed_style(weights, batch.spec, mask)
        prior = self.prior(weights, batch, g)
        posterior = self.posterior(weights, batch.spec, mask, mx.stop_gradient(g), noise)
        z_p = self.flow(weights, _scale_gradient(posterior.z, pull), mask, g)
        segment = slice_segments(posterior.z, batch.starts, frames)
        if spoken:
            # Another clip's noise: the posterior's sample must not show through.
            some = mx.roll(noise, 1, axis=0)[:spoken] * mx.exp(prior.logs_p[:spoken])
            guess = (prior.m_p[:spoken] + noise_scale * some) * mask[:spoken]
            guess = self.flow(weights, guess, mask[:spoken], g[:spoken], reverse=True)
            guess = slice_segments(guess, batch.starts[:spoken], frames)
            segment, g = mx.concatenate([segment, guess]), mx.concatenate([g, g[:spoken]])
        wav = self.decode(weights, segment, g)
        return Generated(wav, z_p, _scale_gradient(posterior.logs_q, pull), prior)


def _fours(channels: int) -> int:
    """Channels rounded up to a multiple of four, which GPUs convolve faster."""
    return -(-channels // 4) * 4


def _embed(index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An index in the first corner of a larger one, zeros elsewhere."""
    larger = np.full(shape, ZERO)
    larger[tuple(slice(size) for size in index.shape)] = index
    return larger


def _linear(weights: Weights, name: str, x: mx.array) -> mx.array:
    """`(..., in)` to `(..., out)`."""
    return mx.addmm(weights[f"{name}.b"], x, weights[f"{name}.w"])


def _same(x: mx.array, weight: mx.array, dilation: int = 1) -> mx.array:
    """A convolution of odd kernel that keeps the length: `(B, T, C)` with `(O, K, C)`."""
    return conv1d(x, weight, padding=(weight.shape[1] - 1) * dilation // 2, dilation=dilation)


def _conv(weights: Weights, name: str, x: mx.array, dilation: int = 1) -> mx.array:
    return _same(x, weights[f"{name}.w"], dilation) + weights[f"{name}.b"]


def _layer_norm(weights: Weights, name: str, part: str, x: mx.array) -> mx.array:
    gamma, beta = weights[f"{name}.gamma{part}"], weights[f"{name}.beta{part}"]
    return mx.fast.layer_norm(x, gamma, beta, 1e-5)


def _heads(x: mx.array, parts: int, heads: int) -> list[mx.array]:
    """`(B, T, parts * H * D)` to as many `(B, H, T, D)`."""
    batch, length, _ = x.shape
    x = x.reshape(batch, length, parts, heads, -1).transpose(2, 0, 3, 1, 4)
    return [part.squeeze(0) for part in mx.split(x, parts, axis=0)]


def _join(x: mx.array) -> mx.array:
    """`(B, H, T, D)` to `(B, T, H * D)`."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _scale_gradient(x: mx.array, by: float | mx.array) -> mx.array:
    """x, with its gradient times `by`."""
    return by * x + mx.stop_gradient((1 - by) * x)
