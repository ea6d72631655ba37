"""Linear and mel spectrograms: differentiable, and equal to upstream's.

Source: GPT-SoVITS `module/mel_processing.py`; the filterbank is librosa's Slaney scale and norm
(Slaney 1998, Auditory Toolbox). Axes: B batch, N samples, T frames, F bins, M mel bands.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import numpy as np

from mlx_vits.config import DataSection

_MAGNITUDE_FLOOR = 1e-8  # added to the power, inside the square root
_LOG_FLOOR = 1e-5


def spectrogram(wav: mx.array, data: DataSection) -> mx.array:
    """Compute a linear magnitude spectrogram.

    Hann window, reflection padding of (n_fft - hop) / 2 samples at both ends.

    Args:
        wav: `(B, N)` within [-1, 1], longer than (n_fft - hop) / 2 samples.
        data: `filter_length`, `hop_length`, `win_length`.

    Returns:
        `(B, T, F)`, T = N // hop_length, F = filter_length // 2 + 1.

    Raises:
        ValueError: the waveform is too short for reflection padding.
    """
    n_fft, hop = data.filter_length, data.hop_length
    pad = (n_fft - hop) // 2
    batch, samples = wav.shape
    if samples <= pad:
        raise ValueError(f"{samples} samples are too few for a spectrogram; {pad + 1} are needed")
    frames = samples // hop
    left, right = wav[:, 1 : pad + 1][:, ::-1], wav[:, -pad - 1 : -1][:, ::-1]
    padded = mx.concatenate([left, wav, right], axis=1)
    # Frames as concatenated hops: only slices and copies, which are fast on every backend.
    hops = -(-n_fft // hop)
    needed = (frames - 1 + hops) * hop
    padded = mx.pad(padded[:, :needed], [(0, 0), (0, max(0, needed - padded.shape[1]))])
    blocks = padded.reshape(batch, -1, hop)
    windows = mx.concatenate([blocks[:, i : i + frames] for i in range(hops)], axis=-1)
    return _magnitude(windows[..., :n_fft], data)


def spectrogram_in_thread(wav: np.ndarray, data: DataSection) -> np.ndarray:
    """Like `spectrogram`, on the CPU, and safe to call from a worker thread.

    `mx.stream` changes the default device of all threads, so the thread that drives the GPU would
    compute on the CPU meanwhile. Hence every operation here names its device.

    Args:
        wav: `(N,)` float32 within [-1, 1], longer than (n_fft - hop) / 2 samples.
        data: see `spectrogram`.

    Returns:
        `(T, F)` float32.

    Raises:
        ValueError: the waveform is too short for reflection padding.
    """
    n_fft, hop = data.filter_length, data.hop_length
    pad, frames = (n_fft - hop) // 2, len(wav) // hop
    if len(wav) <= pad:
        raise ValueError(f"{len(wav)} samples are too few for a spectrogram; {pad + 1} are needed")
    padded = np.pad(wav, pad, mode="reflect")
    padded = np.pad(padded, (0, max(0, (frames - 1) * hop + n_fft - len(padded))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop][:frames]
    return np.array(_magnitude(mx.array(windows), data, mx.cpu))


def _magnitude(
    windows: mx.array, data: DataSection, device: mx.DeviceType | None = None
) -> mx.array:
    """Map windows `(..., n_fft)` to magnitudes `(..., F)`; `device` None is the default one."""
    shaped = mx.multiply(windows, _hann(data.win_length), stream=device)
    spectrum = mx.fft.rfft(shaped, axis=-1, stream=device)
    real, imag = (
        mx.square(part(spectrum, stream=device), stream=device) for part in (mx.real, mx.imag)
    )
    power = mx.add(real, imag, stream=device)
    return mx.sqrt(mx.add(power, _MAGNITUDE_FLOOR, stream=device), stream=device)


def mel_of_spectrogram(spec: mx.array, data: DataSection) -> mx.array:
    """Map a linear spectrogram `(B, T, F)` to log-mel `(B, T, M)`; natural log, floor ln 1e-5."""
    mel = spec @ _filterbank(data).T
    return mx.log(mx.maximum(mel, _LOG_FLOOR))


def mel_spectrogram(wav: mx.array, data: DataSection) -> mx.array:
    """Map a waveform `(B, N)` to log-mel `(B, T, M)`."""
    return mel_of_spectrogram(spectrogram(wav, data), data)


@cache
def _hann(length: int) -> mx.array:
    """Return a periodic Hann window."""
    phase = 2 * np.pi * np.arange(length) / length
    return mx.array((0.5 - 0.5 * np.cos(phase)).astype(np.float32))


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Map hertz to Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    linear = hz * 3 / 200
    log = 15 + np.log(np.maximum(hz, 1000) / 1000) * 27 / np.log(6.4)
    return np.where(hz < 1000, linear, log)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


@cache
def mel_filterbank(rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> mx.array:
    """Return area-normalised triangles on Slaney's scale, `(n_mels, n_fft // 2 + 1)`; Hz."""
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    low, high = _hz_to_mel(np.array([fmin, fmax], dtype=np.float64))
    edges = _mel_to_hz(np.linspace(low, high, n_mels + 2))
    widths = np.diff(edges)
    rising = (bins - edges[:-2, None]) / widths[:-1, None]
    falling = (edges[2:, None] - bins) / widths[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    area = 2 / (edges[2:] - edges[:-2])
    return mx.array((triangles * area[:, None]).astype(np.float32))


def _filterbank(data: DataSection) -> mx.array:
    """Return the configuration's mel filterbank `(M, F)`."""
    fmax = data.mel_fmax if data.mel_fmax is not None else data.sampling_rate / 2
    return mel_filterbank(
        data.sampling_rate, data.filter_length, data.n_mel_channels, data.mel_fmin, fmax
    )
