"""`quantizer`: SSL features to the nearest codebook entry, frozen.

Source: GPT-SoVITS `module/quantize.py`, `module/core_vq.py` (`EuclideanCodebook`). Axes: B batch,
K codes in time, C channels, E codebook entries.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn


class Quantized(NamedTuple):
    """Codebook entries and their indices.

    Attributes:
        values: `(B, K, C)`.
        codes: `(B, K)` int32.
    """

    values: mx.array
    codes: mx.array


class EuclideanCodebook(nn.Module):
    """The codebook and the running statistics that it was trained with; none is ever trained here.

    Attributes:
        inited: `(1,)`, 1 once the entries are fitted: upstream fails on 0.
        cluster_size: `(E,)`.
        embed: `(E, C)`, the entries.
        embed_avg: `(E, C)`.
    """

    def __init__(self, entries: int, channels: int):
        super().__init__()
        self.inited = mx.zeros((1,))
        self.cluster_size = mx.zeros((entries,))
        self.embed = mx.zeros((entries, channels))
        self.embed_avg = mx.zeros((entries, channels))

    def nearest(self, x: mx.array) -> mx.array:
        """`(B, K, C)` to the indices `(B, K)` int32 of the nearest entries, the first on ties."""
        squares = mx.sum(x * x, axis=-1, keepdims=True)
        distance = squares - 2 * (x @ self.embed.T) + mx.sum(self.embed * self.embed, axis=-1)
        return mx.argmax(-distance, axis=-1).astype(mx.int32)


class _VectorQuantization(nn.Module):
    def __init__(self, entries: int, channels: int):
        super().__init__()
        self.codebook = EuclideanCodebook(entries, channels)  # `_codebook` in files


class _ResidualVectorQuantization(nn.Module):
    def __init__(self, entries: int, channels: int):
        super().__init__()
        self.layers = [_VectorQuantization(entries, channels)]


class ResidualVectorQuantizer(nn.Module):
    """One level of vector quantisation. Its commitment loss is 0, because it is frozen."""

    def __init__(self, entries: int, channels: int):
        super().__init__()
        self.vq = _ResidualVectorQuantization(entries, channels)

    @property
    def codebook(self) -> EuclideanCodebook:
        return self.vq.layers[0].codebook

    def __call__(self, x: mx.array) -> Quantized:
        """`(B, K, C)` to the nearest entries; no gradient passes."""
        codes = self.codebook.nearest(mx.stop_gradient(x))
        return Quantized(self.decode(codes), codes)

    def decode(self, codes: mx.array) -> mx.array:
        """Indices `(B, K)` to entries `(B, K, C)`."""
        return mx.stop_gradient(self.codebook.embed[codes])
