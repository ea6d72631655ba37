"""Log-mel spectrograms as PNG, in a perceptually uniform colour map.

Axes: N samples, T frames, M mel bands (the lowest first; a picture has it at the bottom).
"""

from __future__ import annotations

import math
import struct
import zlib
from functools import cache

import mlx.core as mx
import numpy as np

from mlx_vits.audio.spectrogram import mel_of_spectrogram, mel_spectrogram
from mlx_vits.config import DataSection

DECIBELS = 80.0  # from the darkest colour to the brightest
_DECIBELS_PER_NEPER = 20 * math.log10(math.e)  # log-mels are natural logarithms of magnitudes
# Anchors of the colour map in OKLCh: lightness rises evenly, the hue goes from indigo over magenta
# to yellow. Lightness, chroma, hue in degrees.
_ANCHORS = (
    (0.10, 0.030, 275.0),
    (0.27, 0.120, 285.0),
    (0.44, 0.170, 318.0),
    (0.61, 0.170, 375.0),
    (0.78, 0.130, 425.0),
    (0.95, 0.080, 462.0),
)
# Björn Ottosson, "A perceptual color space for image processing", 2020.
_LAB_TO_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@cache
def colour_map() -> np.ndarray:
    """The colour map, `(256, 3)` uint8 sRGB, dark to bright."""
    anchors = np.array(_ANCHORS)
    at = np.linspace(0, len(anchors) - 1, 256)
    lightness, chroma, hue = (np.interp(at, np.arange(len(anchors)), c) for c in anchors.T)
    angle = np.radians(hue)
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    linear = np.clip((lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(srgb * 255).astype(np.uint8)


def log_mel(wav: np.ndarray, data: DataSection) -> np.ndarray:
    """Compute the log-mel `(T, M)` in dB of a waveform `(N,)` at `data.sampling_rate`.

    Raises:
        ValueError: the waveform is too short.
    """
    mel = mel_spectrogram(mx.array(wav)[None], data)[0]
    return np.array(mel, dtype=np.float64) * _DECIBELS_PER_NEPER


def paint(mel: np.ndarray, top: float) -> bytes:
    """Encode a log-mel `(T, M)` in dB as a PNG, T pixels wide and M high.

    Args:
        top: dB of the brightest colour; anything more than `DECIBELS` below is darkest.
    """
    shade = np.clip((mel - top + DECIBELS) / DECIBELS, 0, 1)
    pixels = np.round(shade * 255).astype(np.uint8)
    return _png(np.ascontiguousarray(pixels.T[::-1]), colour_map())


def frequency_rows(frequencies: tuple[int, ...], data: DataSection) -> list[float]:
    """Locate frequencies (Hz) in a spectrogram's picture, from 0 (bottom) to 1 (top).

    Each is the band that a pure tone falls into, so this holds for any filterbank.
    Frequencies must be below Nyquist.
    """
    bins = [round(hz * data.filter_length / data.sampling_rate) for hz in frequencies]
    tones = np.eye(data.spec_channels, dtype=np.float32)[bins]
    bands = np.array(mel_of_spectrogram(mx.array(tones)[None], data))[0].argmax(axis=-1)
    return [(int(band) + 0.5) / data.n_mel_channels for band in bands]


def gradient() -> str:
    """Format the colour map as a CSS gradient, left to right."""
    stops = colour_map()[np.linspace(0, 255, 17).astype(int)]
    return f"linear-gradient(90deg,{','.join(f'#{r:02x}{g:02x}{b:02x}' for r, g, b in stops)})"


def _png(pixels: np.ndarray, palette: np.ndarray) -> bytes:
    """Indexed 8-bit PNG (W3C PNG specification, colour type 3) of `(height, width)` uint8."""
    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)  # 0: no row filter
    chunks = (
        (b"IHDR", header),
        (b"PLTE", palette.tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    framed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
