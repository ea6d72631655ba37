"""Text to semantic codes: the GPT stage, a decoder-only transformer over phonemes and codes.

A sequence is phonemes (with BERT features) followed by semantic codes. Phonemes see each other,
codes see all phonemes and the codes up to their own; what the transformer gives at a place predicts
the next code, at the last phoneme the first one.

Source: GPT-SoVITS `AR/models/t2s_model.py`, `AR/modules/embedding.py`, `AR/modules/transformer.py`.
Axes: B batch, X phonemes, Y codes, S phonemes and codes together, C channels, H heads, D channels
of a head, V codes and EOS, R rows of a cache that are allocated.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_vits.config import BERT_CHANNELS, T2S_DROPOUT, T2SConfig
from mlx_vits.nn.dropout import Key, dropout, split_key
from mlx_vits.nn.layers import draw_uniform

CACHE_BLOCK = 256  # rows by which a cache grows
_TABLE_ROWS = 4000


@cache
def _sine_table(rows: int, channels: int) -> mx.array:
    """Sines at even and cosines at odd channels: `(rows, C)`."""
    steps = np.arange(0, channels, 2, dtype=np.float32) * np.float32(-np.log(10000.0) / channels)
    angles = np.arange(rows, dtype=np.float32)[:, None] * np.exp(steps)
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    return mx.array(table.reshape(rows, channels))


class TokenEmbedding(nn.Module):
    """A table of vectors, with dropout."""

    def __init__(self, channels: int, count: int, p_dropout: float):
        super().__init__()
        self.p_dropout = p_dropout
        self.word_embeddings = nn.Embedding(count, channels)

    def __call__(self, ids: mx.array, key: Key = None) -> mx.array:
        """`(B, T)` integers to `(B, T, C)`."""
        return dropout(self.word_embeddings(ids), self.p_dropout, key)


class SinePositionalEmbedding(nn.Module):
    """Adds sinusoids, scaled by a learned factor."""

    def __init__(self, p_dropout: float):
        super().__init__()
        self.p_dropout = p_dropout
        self.alpha = mx.ones((1,))

    def __call__(self, x: mx.array, start: int | mx.array = 0, key: Key = None) -> mx.array:
        """`(B, T, C)`; the first has position `start`, an array `(B, 1)` where rows differ.

        Positions below 0, those of padding, have no meaning.
        """
        rows = x.shape[1] + (start if isinstance(start, int) else 0)
        table = _sine_table(-(-rows // _TABLE_ROWS) * _TABLE_ROWS, x.shape[2])
        if isinstance(start, int):
            sines = table[start:rows]
        else:
            sines = table[mx.maximum(start + mx.arange(x.shape[1]), 0)]
        return dropout(x + self.alpha * sines.astype(x.dtype), self.p_dropout, key)


class SelfAttention(nn.Module):
    """Multi-head attention; one product makes queries, keys and values."""

    def __init__(self, channels: int, n_heads: int, p_dropout: float):
        super().__init__()
        self.n_heads, self.p_dropout = n_heads, p_dropout
        self.in_proj_weight = draw_uniform((3 * channels, channels), channels)
        self.in_proj_bias = mx.zeros((3 * channels,))
        self.out_proj = nn.Linear(channels, channels)

    def project(self, x: mx.array) -> mx.array:
        """`(B, T, C)` to queries, keys and values `(B, 3, H, T, D)`."""
        batch, length, _ = x.shape
        if "in_proj" in self:  # quantized
            y = self.in_proj(x)
        else:
            y = mx.addmm(self.in_proj_bias, x, self.in_proj_weight.T)
        if length == 1:
            return y.reshape(batch, 3, self.n_heads, 1, -1)
        return y.reshape(batch, length, 3, self.n_heads, -1).transpose(0, 2, 3, 1, 4)

    def quantize_projection(self, group_size: int, bits: int) -> None:
        """Hold the weight of `project` in so many bits; it can no longer be trained."""
        outputs, inputs = self.in_proj_weight.shape
        layer = nn.Linear(inputs, outputs)
        layer.update({"weight": self.pop("in_proj_weight"), "bias": self.pop("in_proj_bias")})
        self.in_proj = layer.to_quantized(group_size, bits)

    def mix(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        mask: mx.array | None,
        dropout_key: Key = None,
    ) -> mx.array:
        """Queries `(B, H, T, D)`, keys and values `(B, H, S, D)` to `(B, T, C)`.

        Args:
            mask: boolean, broadcast to `(B, H, T, S)`: which keys a query sees.
        """
        y = self.attend(query, key, value, mask, dropout_key)
        batch, _, length, _ = query.shape
        if length > 1:
            y = y.swapaxes(1, 2)
        return self.out_proj(y.reshape(batch, length, -1))

    def attend(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        mask: mx.array | None,
        dropout_key: Key = None,
    ) -> mx.array:
        """The attention itself, `(B, H, T, D)`; arguments as those of `mix`."""
        scale = query.shape[-1] ** -0.5
        if dropout_key is None or self.p_dropout == 0.0:
            attention = mx.fast.scaled_dot_product_attention
            return attention(query, key, value, scale=scale, mask=mask)
        scores = (query * scale) @ key.swapaxes(2, 3)
        if mask is not None:
            scores = mx.where(mask, scores, -mx.inf)
        weights = mx.softmax(scores, axis=-1, precise=True)
        return dropout(weights, self.p_dropout, dropout_key) @ value


class TransformerEncoderLayer(nn.Module):
    """Self-attention and a ReLU feed-forward, each followed by addition and layer norm."""

    def __init__(self, channels: int, n_heads: int, p_dropout: float):
        super().__init__()
        self.p_dropout = p_dropout
        self.self_attn = SelfAttention(channels, n_heads, p_dropout)
        self.linear1 = nn.Linear(channels, 4 * channels)
        self.linear2 = nn.Linear(4 * channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)

    def __call__(self, x: mx.array, mask: mx.array, key: Key = None) -> mx.array:
        """`(B, S, C)` to the same; `mask` as `SelfAttention.mix`."""
        first, second, third, fourth = split_key(key, 4)
        query, keys, values = self.self_attn.project(x).moveaxis(1, 0)
        y = self.self_attn.mix(query, keys, values, mask, first)
        x = self.norm1(x + dropout(y, self.p_dropout, second))
        y = self.linear2(dropout(nn.relu(self.linear1(x)), self.p_dropout, third))
        return self.norm2(x + dropout(y, self.p_dropout, fourth))

    def cached(self, x: mx.array, kept: mx.array, start: int, mask: mx.array | None) -> LayerOutput:
        """Read what follows `start` rows that were read before; no dropout.

        Args:
            x: `(B, T, C)`.
            kept: keys and values of the rows before, `(B, 2, H, R, D)`, R >= start + T.
            mask: broadcast to `(B, H, T, start + T)`.
        """
        end = start + x.shape[1]
        projected = self.self_attn.project(x)
        kept[:, :, :, start:end] = projected[:, 1:]
        y = self.self_attn.mix(projected[:, 0], kept[:, 0, :, :end], kept[:, 1, :, :end], mask)
        x = self.norm1(x + y)
        return LayerOutput(self.norm2(x + self.linear2(nn.relu(self.linear1(x)))), kept)


class LayerOutput(NamedTuple):
    """What a layer gives, `(B, T, C)`, and its keys and values, `(B, 2, H, R, D)`."""

    x: mx.array
    kept: mx.array


class TransformerEncoder(nn.Module):
    """The layers."""

    def __init__(self, config: T2SConfig, p_dropout: float):
        super().__init__()
        self.layers = [
            TransformerEncoderLayer(config.hidden_dim, config.head, p_dropout)
            for _ in range(config.n_layer)
        ]


class Reading:
    """What the transformer keeps of the rows that it has read.

    Attributes:
        layers: keys and values of each, `(B, 2, H, R, D)`.
        rows: that were read, phonemes and codes.
        codes: that were read.
        seen: which phonemes are no padding, `(B, X)` boolean; None where none is padding.
    """

    def __init__(self, layers: list[mx.array], rows: int, codes: int, seen: mx.array | None):
        self.layers, self.rows, self.codes, self.seen = layers, rows, codes, seen

    def make_room(self) -> None:
        """Grow where another row would not fit."""
        if self.rows < self.layers[0].shape[3]:
            return
        batch, two, heads, _, depth = self.layers[0].shape
        block = mx.zeros((batch, two, heads, CACHE_BLOCK, depth), self.layers[0].dtype)
        self.layers = [mx.concatenate([layer, block], axis=3) for layer in self.layers]

    def keep(self, rows: list[int]) -> None:
        """Drop the rows of the batch that are not listed."""
        index = mx.array(rows)
        self.layers = [layer[index] for layer in self.layers]
        if self.seen is not None:
            self.seen = self.seen[index]

    def mask(self) -> mx.array | None:
        """Which rows the next code sees, `(B, 1, 1, rows + 1)`; None where it sees all."""
        if self.seen is None:
            return None
        batch, phonemes = self.seen.shape
        codes = mx.ones((batch, self.rows + 1 - phonemes), mx.bool_)
        return mx.concatenate([self.seen, codes], axis=1)[:, None, None]


class Prefill(NamedTuple):
    """Logits `(B, V)` of the first code, and what was read."""

    logits: mx.array
    reading: Reading


class Text2SemanticDecoder(nn.Module):
    """The GPT.

    Args:
        config: sizes.
        p_dropout: in training, everywhere but in the token embeddings.
    """

    def __init__(self, config: T2SConfig | None = None, p_dropout: float = T2S_DROPOUT):
        super().__init__()
        self.config = config = config or T2SConfig()
        channels = config.hidden_dim
        self.bert_proj = nn.Linear(BERT_CHANNELS, channels)
        self.ar_text_embedding = TokenEmbedding(channels, config.phoneme_vocab_size, config.dropout)
        self.ar_text_position = SinePositionalEmbedding(p_dropout)
        self.ar_audio_embedding = TokenEmbedding(channels, config.vocab_size, config.dropout)
        self.ar_audio_position = SinePositionalEmbedding(p_dropout)
        self.h = TransformerEncoder(config, p_dropout)
        self.ar_predict_layer = nn.Linear(channels, config.vocab_size, bias=False)

    def __call__(
        self,
        phones: mx.array,
        codes: mx.array,
        bert: mx.array | None = None,
        *,
        padding: mx.array | None = None,
        phones_seen: mx.array | None = None,
        codes_seen: mx.array | None = None,
        key: Key = None,
    ) -> mx.array:
        """Teacher-forced logits.

        Args:
            phones: `(B, X)` ids.
            codes: `(B, Y)` ids, Y >= 0.
            bert: `(B, X, 1024)`; None stands for zeros.
            padding: `(B,)`, how many phonemes of each row are padding, on its left; positions
                begin after it. None for none.
            phones_seen, codes_seen: `(B, X)` and `(B, Y)` boolean: what others attend to; None for
                all but `padding`. What is not seen is still read, and gives logits of its own.
            key: of dropout; None for evaluation.

        Returns:
            `(B, Y + 1, V)`: row t predicts `codes[:, t]`, the last one what follows.
        """
        text_key, audio_key, *keys = split_key(key, 2 + len(self.h.layers))
        n_phones, n_codes = phones.shape[1], codes.shape[1]
        start: int | mx.array = 0
        if padding is not None:
            start = -padding[:, None]
            phones_seen = mx.arange(n_phones) >= padding[:, None]
        text = self.embed_text(phones, bert, start, text_key)
        x = mx.concatenate([text, self.embed_codes(codes, key=audio_key)], axis=1)
        mask = _mask(n_phones, n_codes)
        if phones_seen is not None or codes_seen is not None:
            parts = [
                mx.ones(ids.shape, mx.bool_) if seen is None else seen
                for ids, seen in ((phones, phones_seen), (codes, codes_seen))
            ]
            mask = mask & mx.concatenate(parts, axis=1)[:, None, None]
        for layer, layer_key in zip(self.h.layers, keys, strict=True):
            x = layer(x, mask, layer_key)
        return self.ar_predict_layer(x[:, n_phones - 1 :])

    def embed_text(
        self,
        phones: mx.array,
        bert: mx.array | None,
        start: int | mx.array = 0,
        key: Key = None,
    ) -> mx.array:
        """Phonemes `(B, X)` and BERT features `(B, X, 1024)` to `(B, X, C)`.

        Args:
            start: see `SinePositionalEmbedding`.
        """
        first, second = split_key(key, 2)
        x = self.ar_text_embedding(phones, first)
        x = x + (self.bert_proj.bias if bert is None else self.bert_proj(bert))
        return self.ar_text_position(x, start, second)

    def embed_codes(self, codes: mx.array, start: int = 0, key: Key = None) -> mx.array:
        """Codes `(B, Y)`, the first of which is number `start`, to `(B, Y, C)`."""
        first, second = split_key(key, 2)
        return self.ar_audio_position(self.ar_audio_embedding(codes, first), start, second)

    def prefill(
        self,
        phones: mx.array,
        prompt: mx.array,
        bert: mx.array | None = None,
        padding: mx.array | None = None,
    ) -> Prefill:
        """Read phonemes and the codes of the prompt.

        Args:
            phones: `(B, X)` ids, shorter texts padded on the left.
            prompt: `(B, P)` ids, P >= 0.
            bert: `(B, X, 1024)`; None stands for zeros.
            padding: `(B,)`, how many phonemes of each row are padding; None for none.
        """
        n_phones, n_codes = phones.shape[1], prompt.shape[1]
        rows, mask, seen = n_phones + n_codes, _mask(n_phones, n_codes), None
        if padding is None:
            text = self.embed_text(phones, bert)
        else:
            seen = mx.arange(n_phones) >= padding[:, None]
            text = self.embed_text(phones, bert, -padding[:, None]) * seen[..., None]
            all_seen = mx.concatenate([seen, mx.ones(prompt.shape, mx.bool_)], axis=1)
            mask = mask & all_seen[:, None, None]
        x = mx.concatenate([text, self.embed_codes(prompt)], axis=1)
        config = self.config
        depth, room = config.hidden_dim // config.head, -(-(rows + 1) // CACHE_BLOCK) * CACHE_BLOCK
        layers = []
        for layer in self.h.layers:
            empty = mx.zeros((len(phones), 2, config.head, room, depth), x.dtype)
            x, kept = layer.cached(x, empty, 0, mask)
            layers.append(kept)
        reading = Reading(layers, rows, n_codes, seen)
        return Prefill(self.ar_predict_layer(x[:, -1]), reading)

    def step(self, codes: mx.array, reading: Reading) -> mx.array:
        """Read one more code of each row.

        Args:
            codes: `(B,)` ids.
            reading: from `prefill`; changed in place.

        Returns:
            `(B, V)` logits of the next code.
        """
        reading.make_room()
        x = self.embed_codes(codes[:, None], reading.codes)
        mask = reading.mask()
        for index, layer in enumerate(self.h.layers):
            x, reading.layers[index] = layer.cached(x, reading.layers[index], reading.rows, mask)
        reading.rows += 1
        reading.codes += 1
        return self.ar_predict_layer(x[:, 0])


def _mask(phones: int, codes: int) -> mx.array:
    """Which rows a row sees, `(S, S)`: all phonemes; codes see those up to their own as well."""
    row = mx.arange(phones + codes)
    return row[None] <= mx.maximum(row, phones - 1)[:, None]
