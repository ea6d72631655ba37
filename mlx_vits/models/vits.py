"""`SynthesizerTrn`: the whole generator of GPT-SoVITS's SoVITS stage, parts named as upstream's.

Source: GPT-SoVITS `module/models.py`. Axes: B batch, S SSL frames, T spectrogram frames, F bins,
L phonemes, K semantic codes, N samples, C latent channels, G style channels, V speaker vector.

Activations are channels-last throughout. The model draws no random number: noise, slice starts and
the key of the dropout are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.config import Config
from mlx_vits.models.discriminator import MultiPeriodDiscriminator
from mlx_vits.models.generator import Generator
from mlx_vits.models.posterior import PosteriorEncoder, ResidualCouplingBlock
from mlx_vits.models.quantizer import ResidualVectorQuantizer
from mlx_vits.models.style_encoder import MelStyleEncoder
from mlx_vits.models.text_encoder import Tail, TextEncoder
from mlx_vits.nn.dropout import Key, split_key
from mlx_vits.nn.layers import Conv1d, Linear
from mlx_vits.nn.masking import length_mask
from mlx_vits.nn.weight_norm import NormScheme

# The text side, which learns at a rate of its own, in the order of upstream's parameter groups.
TEXT_SIDE = ("enc_p.text_embedding.", "enc_p.encoder_text.", "enc_p.mrte.")

__all__ = [
    "Generator",
    "MultiPeriodDiscriminator",
    "SynthesizerOutput",
    "SynthesizerTrn",
    "slice_segments",
]


class SynthesizerOutput(NamedTuple):
    """What the training forward gives.

    Attributes:
        y_hat: `(B, segment samples, 1)`.
        commit_loss: 0, the codebook is frozen.
        mask: `(B, T, 1)`, valid frames.
        z, z_p, m_p, logs_p, m_q, logs_q: `(B, T, C)`.
        quantized: `(B, T, ssl_dim)`, codebook entries at the spectrogram's frame rate.
    """

    y_hat: mx.array
    commit_loss: mx.array
    mask: mx.array
    z: mx.array
    z_p: mx.array
    m_p: mx.array
    logs_p: mx.array
    m_q: mx.array
    logs_q: mx.array
    quantized: mx.array


class Decoded(NamedTuple):
    """What synthesis gives.

    Attributes:
        wav: `(B, N, 1)`.
        encoded: `(B, S, hidden)`, the content encoding before any change of speed.
        x: `(B, T, hidden)`, the same after it.
        z, z_p, m_p, logs_p: `(B, T, C)`.
        g: `(B, 1, G)`, the style.
    """

    wav: mx.array
    encoded: mx.array
    x: mx.array
    z: mx.array
    z_p: mx.array
    m_p: mx.array
    logs_p: mx.array
    g: mx.array


class _PReLU(nn.Module):
    """One slope for each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = mx.full((channels,), 0.25)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.maximum(x, 0) + self.weight * mx.minimum(x, 0)


class SynthesizerTrn(nn.Module):
    """Content codes, phonemes and a reference to speech.

    Args:
        config: sizes and version.
        norm_scheme: which layers hold their weight as magnitude and direction.
    """

    def __init__(self, config: Config, norm_scheme: NormScheme = "upstream"):
        super().__init__()
        self.config = config
        model, dims = config.model, config.reduced_dims
        self.enc_p = TextEncoder(config)
        self.dec = Generator(config, norm_scheme)
        self.enc_q = PosteriorEncoder(config, norm_scheme)
        self.flow = ResidualCouplingBlock(config, norm_scheme)
        self.ref_enc = MelStyleEncoder(config)
        # 25 codes a second from 50 feature frames.
        stride = 2 if model.semantic_frame_rate == "25hz" else 1
        self.ssl_proj = Conv1d(dims.ssl_dim, dims.ssl_dim, stride, stride=stride)
        self.quantizer = ResidualVectorQuantizer(dims.codebook_size, dims.ssl_dim)
        if model.is_pro:
            self.sv_emb = Linear(dims.sv_dim, model.gin_channels)
            self.ge_to512 = Linear(model.gin_channels, dims.mrte_hidden)
            self.prelu = _PReLU(model.gin_channels)

    def embed_style(
        self,
        spec: mx.array,
        mask: mx.array,
        sv_emb: mx.array | None = None,
        key: Key = None,
    ) -> mx.array:
        """Style of a reference.

        Args:
            spec: `(B, T, F)`, linear magnitude.
            mask: `(B, T, 1)`.
            sv_emb: speaker vector `(B, V)`, for v2Pro and v2ProPlus.

        Returns:
            `(B, 1, G)`.
        """
        g = self.ref_enc(spec, mask, key)
        if self.config.model.is_pro:
            if sv_emb is None:
                raise ValueError(f"{self.config.version} needs a speaker vector `sv_emb`")
            g = self.prelu(g + self.sv_emb(sv_emb)[:, None])
        return g

    def _text_style(self, g: mx.array) -> mx.array:
        return self.ge_to512(g) if self.config.model.is_pro else g

    def _double(self, quantized: mx.array) -> mx.array:
        """Codes' rate to the spectrogram's."""
        if self.config.model.semantic_frame_rate != "25hz":
            return quantized
        return mx.repeat(quantized, 2, axis=1)

    def __call__(
        self,
        ssl: mx.array,
        spec: mx.array,
        spec_lengths: mx.array,
        text: mx.array,
        text_lengths: mx.array,
        *,
        noise: mx.array,
        ids_slice: mx.array,
        sv_emb: mx.array | None = None,
        key: Key = None,
    ) -> SynthesizerOutput:
        """The training forward: whole utterances through the encoders, a segment to the decoder.

        Args:
            ssl: `(B, T, ssl_dim)`, T even.
            spec: `(B, T, F)`.
            spec_lengths: `(B,)`, valid frames.
            text: `(B, L)`, phoneme ids.
            text_lengths: `(B,)`.
            noise: `(B, T, C)`, standard normal, for the posterior.
            ids_slice: `(B,)`, first frame of each decoded segment.
            sv_emb: `(B, V)`, for v2Pro and v2ProPlus.
            key: of the dropout; None for none.
        """
        of_style, of_prior = split_key(key, 2)
        mask = length_mask(spec_lengths, spec.shape[1])
        text_mask = length_mask(text_lengths, text.shape[1])
        g = self.embed_style(spec, mask, sv_emb, of_style)
        quantized = self._double(self.quantizer(self.ssl_proj(ssl)).values)
        prior = self.enc_p(quantized, mask, text, text_mask, self._text_style(g), key=of_prior)
        posterior = self.enc_q(spec, mask, mx.stop_gradient(g), noise)
        z_p = self.flow(posterior.z, mask, g)
        segment = slice_segments(posterior.z, ids_slice, self.config.segment_frames)
        return SynthesizerOutput(
            y_hat=self.dec(segment, g),
            commit_loss=mx.array(0.0),
            mask=mask,
            z=posterior.z,
            z_p=z_p,
            m_p=prior.m_p,
            logs_p=prior.logs_p,
            m_q=posterior.m_q,
            logs_q=posterior.logs_q,
            quantized=quantized,
        )

    def decode(
        self,
        codes: mx.array,
        text: mx.array,
        styles: Sequence[mx.array],
        *,
        noise: mx.array,
        noise_scale: float | mx.array = 0.5,
        speed: float = 1.0,
        tail: Tail | None = None,
    ) -> Decoded:
        """Synthesize speech from semantic codes; those of `extract_latent` say a recording again.

        Args:
            codes: `(B, K)`.
            text: `(B, L)`, phoneme ids.
            styles: each `(B, 1, G)`, from `embed_style`; averaged.
            noise: `(B, T, C)` of `decoded_frames(K, speed)` frames, standard normal.
            noise_scale: 0 gives the prior's mean.
            speed: 2.0 halves the length.
            tail: the end of the utterance that is decoded, None for all of it; `noise` then has as
                many frames as that has at this speed.

        Source: GPT-SoVITS `module/models.py` (`decode`, `decode_streaming`).
        """
        g = sum(styles[1:], start=styles[0]) / len(styles)
        quantized = self._double(self.quantizer.decode(codes))
        style = self._text_style(g)
        prior = self.enc_p(quantized, None, text, None, style, speed=speed, tail=tail)
        z_p = prior.m_p + noise * mx.exp(prior.logs_p) * noise_scale
        z = self.flow(z_p, None, g, reverse=True)
        return Decoded(self.dec(z, g), prior.encoded, prior.x, z, z_p, prior.m_p, prior.logs_p, g)

    def decoded_frames(self, codes: int, speed: float = 1.0) -> int:
        """Frames that `decode` gives for a number of codes."""
        frames = 2 * codes if self.config.model.semantic_frame_rate == "25hz" else codes
        return frames if speed == 1 else int(frames / speed) + 1

    def extract_latent(self, ssl: mx.array) -> mx.array:
        """SSL features `(B, S, ssl_dim)` to semantic codes `(B, S // 2)` int32."""
        return self.quantizer(self.ssl_proj(ssl)).codes


def slice_segments(x: mx.array, starts: mx.array, length: int) -> mx.array:
    """`(B, T, C)` to `(B, length, C)`, from a start of its own for each row `(B,)`."""
    indices = starts[:, None] + mx.arange(length)[None]
    return mx.take_along_axis(x, indices[..., None], axis=1)
