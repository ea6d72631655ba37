"""`enc_p`: semantic codes, phonemes and style to the prior of the latent.

Source: GPT-SoVITS `module/models.py` (`TextEncoder`), `module/mrte_model.py` (`MRTE`). Axes:
B batch, T spectrogram frames, L phonemes, C channels, M width of MRTE.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_vits.config import Config
from mlx_vits.nn.attention import Encoder, MultiHeadAttention
from mlx_vits.nn.dropout import Key, split_key
from mlx_vits.nn.layers import Conv1d, keep_fp32
from mlx_vits.nn.masking import masked, pairs_of


class Prior(NamedTuple):
    """The prior of the latent.

    Attributes:
        encoded: `(B, S, hidden)`, the encoding before any change of speed: T frames, or the last
            ones that were asked for.
        x: `(B, T, hidden)`, the encoding before the last projection, after any change of speed.
        m_p, logs_p: `(B, T, C)`.
        mask: `(B, T, 1)`, or None.
    """

    encoded: mx.array
    x: mx.array
    m_p: mx.array
    logs_p: mx.array
    mask: mx.array | None


class Tail(NamedTuple):
    """The end of a growing utterance, which is all that a streamed chunk needs decoded.

    Attributes:
        frames: how many of the last encoded frames are kept.
        before: `(B, N, hidden)`, the former chunk's encoding of the first N of them, to fade from;
            None for none.
    """

    frames: int
    before: mx.array | None = None


class MRTE(nn.Module):
    """Cross-attention from the semantic stream to the phonemes, with style added."""

    def __init__(self, config: Config):
        super().__init__()
        dims, hidden = config.reduced_dims, config.model.hidden_channels
        self.cross_attention = MultiHeadAttention(dims.mrte_hidden, dims.mrte_heads)
        self.c_pre = Conv1d(hidden, dims.mrte_hidden, 1)
        self.text_pre = Conv1d(hidden, dims.mrte_hidden, 1)
        self.c_post = Conv1d(dims.mrte_hidden, hidden, 1)

    def __call__(
        self,
        ssl: mx.array,
        ssl_mask: mx.array | None,
        text: mx.array,
        text_mask: mx.array | None,
        g: mx.array,
    ) -> mx.array:
        """`(B, T, C)`, `(B, L, C)`, their masks and a style `(B, 1, M)` to `(B, T, C)`."""
        pairs = pairs_of(ssl_mask, text_mask)
        ssl = self.c_pre(masked(ssl, ssl_mask))
        text = self.text_pre(masked(text, text_mask))
        attended = self.cross_attention(masked(ssl, ssl_mask), masked(text, text_mask), pairs)
        return self.c_post(masked(attended + ssl + g.astype(ssl.dtype), ssl_mask))


class TextEncoder(nn.Module):
    """The prior network."""

    def __init__(self, config: Config):
        super().__init__()
        model, dims = config.model, config.reduced_dims
        width = model.hidden_channels

        def encoder(n_layers: int) -> Encoder:
            return Encoder(
                width,
                model.filter_channels,
                model.n_heads,
                n_layers,
                model.kernel_size,
                config.p_dropout,
                dims.attn_window,
            )

        self.ssl_proj = Conv1d(dims.ssl_dim, width, 1)
        self.encoder_ssl = encoder(model.n_layers // 2)
        self.encoder_text = encoder(model.n_layers)
        self.text_embedding = nn.Embedding(dims.text_vocab, width)
        self.text_embedding.weight = mx.random.normal((dims.text_vocab, width))
        self.mrte = MRTE(config)
        self.encoder2 = encoder(model.n_layers // 2)
        self.proj = keep_fp32(Conv1d(width, 2 * model.inter_channels, 1))

    def __call__(
        self,
        quantized: mx.array,
        mask: mx.array | None,
        text: mx.array,
        text_mask: mx.array | None,
        g: mx.array,
        *,
        speed: float = 1.0,
        tail: Tail | None = None,
        key: Key = None,
    ) -> Prior:
        """Encode content.

        Args:
            quantized: `(B, T, ssl_dim)`, at the frame rate of the spectrogram.
            mask: `(B, T, 1)`, or None where nothing is padded.
            text: `(B, L)` phoneme ids.
            text_mask: `(B, L, 1)`, or None.
            g: style, `(B, 1, mrte_hidden)`.
            speed: 2.0 halves the length; int(T / speed) + 1 frames unless 1.
            tail: the frames to keep once all are encoded; without a mask only.
            key: of the dropout.
        """
        of_ssl, of_text, of_both = split_key(key, 3)
        y = self.ssl_proj(masked(quantized, mask))
        y = self.encoder_ssl(masked(y, mask), mask, of_ssl)
        embedded = self.encoder_text(self.text_embedding(text), text_mask, of_text)
        y = self.mrte(y, mask, embedded, text_mask, g)
        y = self.encoder2(y, mask, of_both)
        if tail is not None:
            y = y[:, -tail.frames :]
            y = y if tail.before is None else _cross_fade(tail.before, y)
        encoded = y
        if speed != 1:
            length = int(y.shape[1] / speed) + 1
            y = _resize_linear(y, length)
            mask = None if mask is None else _resize_nearest(mask, length)
        m_p, logs_p = mx.split(masked(self.proj(y), mask), 2, axis=-1)
        return Prior(encoded, y, m_p, logs_p, mask)


def _cross_fade(before: mx.array, x: mx.array) -> mx.array:
    """Fade from `before` `(B, N, C)` into the first N frames of `x`, by a half-wave window."""
    count = before.shape[1]
    window = mx.sin(mx.arange(2 * count) * (mx.pi / (2 * count)))[None, :, None]
    faded = x[:, :count] * window[:, :count] + before * window[:, count:]
    return mx.concatenate([faded, x[:, count:]], axis=1)


def _resize_linear(x: mx.array, length: int) -> mx.array:
    """`(B, T, C)` to `(B, length, C)`: half-pixel centres, the scale taken from the sizes."""
    before = x.shape[1]
    source = mx.maximum((mx.arange(length) + 0.5) * (before / length) - 0.5, 0)
    left = mx.floor(source).astype(mx.int32)
    right = mx.minimum(left + 1, before - 1)
    weight = (source - left)[None, :, None]
    return x[:, left] * (1 - weight) + x[:, right] * weight


def _resize_nearest(x: mx.array, length: int) -> mx.array:
    """`(B, T, C)` to `(B, length, C)`, each frame the one at floor(i T / length)."""
    before = x.shape[1]
    source = mx.floor(mx.arange(length) * (before / length)).astype(mx.int32)
    return x[:, mx.minimum(source, before - 1)]
