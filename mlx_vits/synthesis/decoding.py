"""One synthesis with given arrays: the work that `Voice.decode` hands to the device.

Axes: B batch, K semantic codes, L phonemes, T frames, F bins, C latent channels, N samples,
V speaker vector.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlx_vits.models.text_encoder import Tail
from mlx_vits.models.vits import Decoded, SynthesizerTrn


class Request(NamedTuple):
    """What is said, and how.

    Attributes:
        codes: `(B, K)`.
        text: `(B, L)`, phoneme ids.
        noise: `(B, T, C)`, standard normal.
        noise_scale: `()`.
        specs: of each reference `(B, T, F)`; of its own length, without padding.
        vectors: of each reference `(B, V)`, or none at all.
        before: the encoding `(B, N, C)` that a streamed chunk fades from, or none at all.
    """

    codes: mx.array
    text: mx.array
    noise: mx.array
    noise_scale: mx.array
    specs: list[mx.array]
    vectors: list[mx.array]
    before: tuple[mx.array, ...] = ()


def decode(model: SynthesizerTrn, request: Request, speed: float) -> mx.array:
    """Synthesize a waveform `(B, N, 1)`; see `SynthesizerTrn.decode`."""
    return _decode(model, request, speed, None).wav


class Chunk(NamedTuple):
    """A streamed chunk: its waveform `(B, N, 1)` and its encoding, for the next to fade from."""

    wav: mx.array
    encoded: mx.array


def decode_chunk(model: SynthesizerTrn, request: Request, speed: float, frames: int) -> Chunk:
    """Synthesize the last `frames` frames (before the change of speed) of what the codes say."""
    decoded = _decode(model, request, speed, Tail(frames, *request.before))
    return Chunk(decoded.wav, decoded.encoded)


def _decode(model: SynthesizerTrn, request: Request, speed: float, tail: Tail | None) -> Decoded:
    styles = []
    for index, spec in enumerate(request.specs):
        vector = request.vectors[index] if request.vectors else None
        styles.append(model.embed_style(spec, mx.ones((*spec.shape[:2], 1)), vector))
    return model.decode(
        request.codes,
        request.text,
        styles,
        noise=request.noise,
        noise_scale=request.noise_scale,
        speed=speed,
        tail=tail,
    )
